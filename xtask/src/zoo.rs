//! `zoo`: how soon each planted defect is seen, over many seeds.
//!
//! One hunt may be lucky. The time to detection over many seeds says how much a campaign of a given length is
//! worth, and which defects it is weakest against. What is seen can be made small as well: then the table says how small,
//! in what time, and whether the trace comes to the same each time it is run.

use std::time::Duration;

use clap::Args;
use engine::defect::Defect;
use harness::campaign::Found;
use harness::canary::{Sighting, sight};
use harness::guide::Guidance;
use harness::reduce::reduce;
use harness::run::replay;
use harness::trace::Trace;

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
    /// Make what the first seed shows small, and replay the trace so many times
    #[arg(long, value_name = "REPLAYS", num_args = 0..=1, default_missing_value = "1000")]
    minimise: Option<u32>,
    /// Whether what earlier runs showed decides about later ones
    #[arg(long, value_name = "on|off", value_parser = parse_guidance, default_value = "off")]
    guide: Guidance,
    /// Look for them with so many threads; what is seen is made small with one for each core
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
        let wanted = Defect::ALL.iter().copied();
        let wanted = wanted.filter(|defect| self.only.is_none_or(|only| only == *defect));
        match self.minimise {
            None => self.tell_how_soon(wanted),
            Some(replays) => self.tell_how_small(wanted, replays),
        }
    }

    fn tell_how_soon(&self, wanted: impl Iterator<Item = Defect>) -> Result<Ending, Refusal> {
        println!(
            "| {:<26} | {:>7} | {:>8} | {:>8} | {:>8} | {:>8} |",
            "defect", "seen", "median s", "p95 s", "worst s", "states"
        );
        println!(
            "|:{:-<27}|{:->8}:|{0:->9}:|{0:->9}:|{0:->9}:|{0:->9}:|",
            "", ""
        );
        let mut all = Vec::new();
        for defect in wanted {
            let looks = self.look_for(defect)?;
            print_row(defect.name(), &looks);
            all.extend(looks);
        }
        print_row("all", &all);
        Ok(ending(all.iter().all(|look| look.seen)))
    }

    fn tell_how_small(
        &self,
        wanted: impl Iterator<Item = Defect>,
        replays: u32,
    ) -> Result<Ending, Refusal> {
        println!(
            "| {:<26} | {:>3} | {:>4} | {:>5} | {:>7} | {:>5} | {:<14} | class",
            "defect", "ops", "lost", "tried", "seconds", "bytes", "replays"
        );
        println!(
            "|:{:-<27}|----:|-----:|------:|--------:|------:|:{0:-<15}|:------",
            ""
        );
        let mut all = Vec::new();
        let mut failed = false;
        for defect in wanted {
            let (sighting, _) = self.sight(defect, 1)?;
            let small = sighting
                .found
                .as_ref()
                .map(|found| Small::of(found, replays));
            match small.transpose()? {
                Some(small) => {
                    small.print_row(defect.name());
                    failed |= !small.is_replayed();
                    all.push(small);
                }
                None => {
                    println!("| {:<26} | not seen", defect.name());
                    failed = true;
                }
            }
        }
        Small::print_median(&all);
        Ok(ending(!failed))
    }

    fn look_for(&self, defect: Defect) -> Result<Vec<Look>, Refusal> {
        (1..=self.seeds)
            .map(|seed| self.look(defect, seed))
            .collect()
    }

    fn look(&self, defect: Defect, seed: u64) -> Result<Look, Refusal> {
        let (sighting, took) = self.sight(defect, seed)?;
        Ok(Look {
            seen: sighting.found.is_some(),
            took,
            states: sighting.states,
        })
    }

    fn sight(&self, defect: Defect, seed: u64) -> Result<(Sighting, Duration), Refusal> {
        let display = Display::start(Limit::Time(self.budget));
        let mut between = |_: &_| display.proceed();
        let sighting = sight(
            defect.into(),
            (seed, self.guide),
            self.jobs.into(),
            &mut between,
        )
        .map_err(Refusal::new)?;
        Ok((sighting, display.finish()))
    }
}

fn ending(all_well: bool) -> Ending {
    if all_well {
        Ending::Clean
    } else {
        Ending::Unmeasured
    }
}

/// What was seen, made small.
#[derive(Clone, Debug)]
struct Small {
    class: String,
    operations: usize,
    lost: usize,
    attempts: usize,
    took: Duration,
    bytes: usize,
    /// Of so many replays so many came to the same as the first.
    replays: (u32, u32),
}

impl Small {
    fn of(found: &Found, replays: u32) -> Result<Self, Refusal> {
        let display = Display::start(Limit::Runs(1));
        let reduced = reduce(found).map_err(Refusal::new)?;
        let took = display.finish();
        // What is replayed is what a file would say.
        let text = reduced.trace.to_json();
        let none = |path: &str| Err(format!("a drawn image is in no file such as {path}"));
        let trace = Trace::from_json(&text, &none).map_err(Refusal::new)?;
        let first = replay(&trace).map_err(Refusal::new)?;
        let same = |_: &u32| {
            first.is_as(&trace.expected)
                && replay(&trace).is_ok_and(|again| again.is_same_as(&first))
        };
        Ok(Self {
            class: reduced.class.to_string(),
            operations: trace.scenario.operations.len(),
            lost: first.lost,
            attempts: reduced.attempts,
            took,
            bytes: text.len(),
            replays: ((0..replays).filter(same).map(|_| 1).sum(), replays),
        })
    }

    fn is_replayed(&self) -> bool {
        self.replays.0 == self.replays.1
    }

    fn print_row(&self, name: &str) {
        let (same, replays) = self.replays;
        println!(
            "| {name:<26} | {:>3} | {:>4} | {:>5} | {:>7.2} | {:>5} | {:<14} | {}",
            self.operations,
            self.lost,
            self.attempts,
            self.took.as_secs_f64(),
            self.bytes,
            format!("{same} of {replays}"),
            self.class,
        );
    }

    /// The medians, and the worst.
    fn print_median(all: &[Self]) {
        for (name, percent) in [("median", 50), ("worst", 100)] {
            let of = |measure: fn(&Self) -> usize| {
                let mut values: Vec<usize> = all.iter().map(measure).collect();
                values.sort_unstable();
                percentile(&values, percent)
            };
            let mut times: Vec<Duration> = all.iter().map(|small| small.took).collect();
            times.sort_unstable();
            println!(
                "| {name:<26} | {:>3} | {:>4} | {:>5} | {:>7.2} | {:>5} |",
                of(|small| small.operations),
                of(|small| small.lost),
                of(|small| small.attempts),
                percentile(&times, percent).as_secs_f64(),
                of(|small| small.bytes),
            );
        }
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
