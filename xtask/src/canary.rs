//! `canary`: plants known defects, and demands that each is found.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use engine::defect::{Defect, Flaw};
use harness::canary::Hunt;

use crate::terminal::{Display, Limit, default_jobs, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// A minimised canary has at most so many operations.
const MOST_OPERATIONS: usize = 8;

/// Plant each known defect in the engine and demand that it is found, minimised and replayed.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Canary {
    /// Only the defect of this name
    #[arg(long, value_name = "NAME", value_parser = parse_defect)]
    only: Option<Defect>,
    /// The time that each may take to be found
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "10s")]
    budget: Duration,
    /// Use so many threads [default: one for each core]
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Where the minimised traces go
    #[arg(long, value_name = "DIR", default_value = "reports/canaries")]
    out: PathBuf,
}

pub(crate) fn parse_defect(name: &str) -> Result<Defect, String> {
    Defect::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Defect::ALL.iter().map(|defect| defect.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Hunts a flaw for so long at most; says how long it took.
pub(crate) fn hunt_within(
    budget: Duration,
    flaw: Flaw,
    jobs: usize,
) -> Result<(Hunt, Duration), Refusal> {
    let display = Display::start(Limit::Time(budget));
    let mut took = Duration::ZERO;
    let mut between = |_: &_| {
        took = display.elapsed();
        display.proceed()
    };
    let hunt = harness::canary::hunt(flaw, jobs, &mut between).map_err(Refusal::new)?;
    display.finish();
    Ok((hunt, took))
}

/// What is not as it should be about a flaw that was found.
pub(crate) fn complaints(hunt: &Hunt, took: Duration, budget: Duration) -> Vec<&'static str> {
    let checks = [
        (took <= budget, "TOO LATE"),
        (hunt.replays, "DOES NOT REPLAY"),
        (hunt.passes_without, "FAILS WITHOUT IT"),
    ];
    let failed = checks.into_iter().filter(|(holds, _)| !holds);
    failed.map(|(_, complaint)| complaint).collect()
}

impl Canary {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        source::writable_directory(&self.out)?;
        let wanted: Vec<Defect> = match self.only {
            Some(defect) => vec![defect],
            None => Defect::ALL.to_vec(),
        };
        println!(
            "{:<26} {:>7} {:>6} {:>8} {:>4}  found as",
            "defect", "seconds", "runs", "states", "ops"
        );
        let (mut hunted, mut missed) = (0, 0);
        for defect in wanted {
            hunted += 1;
            if !self.hunt(defect)? {
                missed += 1;
            }
        }
        println!("{} of {hunted} canaries found", hunted - missed);
        Ok(if missed == 0 {
            Ending::Clean
        } else {
            Ending::Unmeasured
        })
    }

    /// Hunts one defect; says whether it was found as it should be.
    fn hunt(&self, defect: Defect) -> Result<bool, Refusal> {
        let jobs = self.jobs.map_or_else(default_jobs, usize::from);
        let (hunt, took) = hunt_within(self.budget, defect.into(), jobs)?;
        let seconds = took.as_secs_f64();
        let start = format!(
            "{:<26} {seconds:>7.2} {:>6} {:>8}",
            defect.name(),
            hunt.runs,
            hunt.states
        );
        let Some(reduced) = &hunt.found else {
            println!("{start}    -  NOT FOUND: {}", defect.describe());
            return Ok(false);
        };
        let operations = reduced.trace.scenario.operations.len();
        let mut complaints = complaints(&hunt, took, self.budget);
        if operations > MOST_OPERATIONS {
            complaints.push("TOO LARGE");
        }
        let class = reduced.class.to_string();
        let told: Vec<&str> = std::iter::once(&*class)
            .chain(complaints.iter().copied())
            .collect();
        println!("{start} {operations:>4}  {}", told.join("  "));
        violation::save(reduced, defect.name(), "canary", &self.out)?;
        Ok(complaints.is_empty())
    }
}
