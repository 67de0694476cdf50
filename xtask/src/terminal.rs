//! The clock, and how progress is shown: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use harness::campaign::{Proceed, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// Elsewhere than on a terminal there is a line of progress so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A campaign's clock and its display.
#[derive(Debug)]
pub(crate) struct Display {
    started: Instant,
    last_line: Duration,
    limit: Limit,
    bar: Option<ProgressBar>,
}

/// What a campaign is measured against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// It ends after so many runs.
    Runs(u64),
    /// It ends after so long.
    Time(Duration),
}

impl Display {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one clock; no run looks at it"
    )]
    pub(crate) fn start(limit: Limit) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let len = match limit {
                Limit::Runs(runs) => runs,
                Limit::Time(time) => time.as_secs(),
            };
            let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}")
                .expect("the template is constant");
            ProgressBar::new(len).with_style(style)
        });
        Self {
            started: Instant::now(),
            last_line: Duration::ZERO,
            limit,
            bar,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows how far a campaign is.
    pub(crate) fn show(&mut self, progress: &Progress) {
        let counts = progress.counts;
        let message = format!(
            "{} runs, {} states judged, {} violations",
            progress.runs, counts.states_judged, counts.violations
        );
        self.show_at(progress.runs, message);
    }

    /// Shows how many runs are done, and what else there is to say.
    pub(crate) fn show_at(&mut self, runs: u64, message: String) {
        let elapsed = self.elapsed();
        if let Some(bar) = &self.bar {
            bar.set_position(match self.limit {
                Limit::Runs(_) => runs,
                Limit::Time(_) => elapsed.as_secs(),
            });
            bar.set_message(message);
        } else if elapsed >= self.last_line + LINE_EVERY {
            self.last_line = elapsed;
            println!("{:>5} s: {message}", elapsed.as_secs());
        }
    }

    /// Whether a campaign goes on: not when the time that was given is over.
    pub(crate) fn proceed(&self) -> Proceed {
        match self.limit {
            Limit::Time(time) if self.elapsed() >= time => Proceed::Stop,
            Limit::Time(_) | Limit::Runs(_) => Proceed::GoOn,
        }
    }

    /// Takes the bar away, and tells how long it took.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.elapsed()
    }
}

/// A length of time as people write it: `90`, `90s`, `10m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 30s, 10m or 2h");
    let (number, factor) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// How many jobs, where nobody said.
pub(crate) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_hours(2)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "s", "-1s", "1d", "99999999999999999999h", "ä"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
