//! `zoo`: how soon each planted defect is seen, over many seeds.
//!
//! One hunt may be lucky. The time to detection over many seeds says how much a campaign of a given length is
//! worth, and which defects it is weakest against.

use std::time::Duration;

use clap::Args;
use engine::defect::Defect;
use harness::canary::sight;
use harness::guide::Guidance;

use crate::canary::parse_defect;
use crate::fuzz::parse_guidance;
use crate::terminal::{Display, Limit, parse_duration};
use crate::{Ending, Refusal};

/// Plant each known defect under many seeds, and tell how soon it is seen.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Zoo {
    /// Only the defect of this name
    #[arg(long, value_name = "NAME", value_parser = parse_defect)]
    only: Option<Defect>,
    /// How many seeds each is looked for with
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The time after which a defect counts as not seen
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "60s")]
    budget: Duration,
    /// Whether what earlier runs showed decides about later ones
    #[arg(long, value_name = "on|off", value_parser = parse_guidance, default_value = "off")]
    guide: Guidance,
    /// Use so many threads
    #[arg(long, value_name = "J", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
}

/// What came of one look for a defect.
#[derive(Clone, Copy, Debug)]
struct Look {
    seen: bool,
    took: Duration,
    states: u64,
}

impl Zoo {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        println!(
            "| {:<26} | {:>7} | {:>8} | {:>8} | {:>8} | {:>8} |",
            "defect", "seen", "median s", "p95 s", "worst s", "states"
        );
        println!(
            "|:{:-<27}|{:->8}:|{0:->9}:|{0:->9}:|{0:->9}:|{0:->9}:|",
            "", ""
        );
        let mut all = Vec::new();
        let wanted = Defect::ALL.iter().copied();
        for defect in wanted.filter(|defect| self.only.is_none_or(|only| only == *defect)) {
            let looks = self.look_for(defect)?;
            print_row(defect.name(), &looks);
            all.extend(looks);
        }
        print_row("all", &all);
        Ok(if all.iter().all(|look| look.seen) {
            Ending::Clean
        } else {
            Ending::Unmeasured
        })
    }

    fn look_for(&self, defect: Defect) -> Result<Vec<Look>, Refusal> {
        (1..=self.seeds)
            .map(|seed| self.look(defect, seed))
            .collect()
    }

    fn look(&self, defect: Defect, seed: u64) -> Result<Look, Refusal> {
        let display = Display::start(Limit::Time(self.budget));
        let mut between = |_: &_| display.proceed();
        let sighting = sight(
            defect.into(),
            (seed, self.guide),
            self.jobs.into(),
            &mut between,
        )
        .map_err(Refusal::new)?;
        Ok(Look {
            seen: sighting.seen,
            took: display.finish(),
            states: sighting.states,
        })
    }
}

fn print_row(name: &str, looks: &[Look]) {
    let mut times: Vec<Duration> = looks.iter().map(|look| look.took).collect();
    let mut states: Vec<u64> = looks.iter().map(|look| look.states).collect();
    times.sort_unstable();
    states.sort_unstable();
    let seen = looks.iter().filter(|look| look.seen).count();
    println!(
        "| {name:<26} | {:>7} | {:>8.2} | {:>8.2} | {:>8.2} | {:>8} |",
        format!("{seen}/{}", looks.len()),
        percentile(&times, 50).as_secs_f64(),
        percentile(&times, 95).as_secs_f64(),
        percentile(&times, 100).as_secs_f64(),
        percentile(&states, 50),
    );
}

/// The smallest of the sorted values that so many of a hundred do not exceed.
fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u32> = (1..=20).collect();
        assert_eq!(percentile(&values, 50), 10);
        assert_eq!(percentile(&values, 95), 19);
        assert_eq!(percentile(&values, 100), 20);
        assert_eq!(percentile(&values[..1], 50), 1);
        assert_eq!(percentile::<u32>(&[], 95), 0);
    }
}
