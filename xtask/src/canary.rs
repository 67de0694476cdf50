//! `canary`: plants known defects, and demands that each is found.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use engine::defect::Defect;
use harness::campaign::Proceed;

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
        let display = Display::start(Limit::Time(self.budget));
        let mut found_after = Duration::ZERO;
        let mut between = |_: &_| {
            found_after = display.elapsed();
            if display.is_over() {
                Proceed::Stop
            } else {
                Proceed::GoOn
            }
        };
        let hunt =
            harness::canary::hunt(defect.into(), jobs, &mut between).map_err(Refusal::new)?;
        display.finish();
        let seconds = found_after.as_secs_f64();
        let start = format!(
            "{:<26} {seconds:>7.2} {:>6} {:>8}",
            defect.name(),
            hunt.runs,
            hunt.states
        );
        let Some(reduced) = hunt.found else {
            println!("{start}    -  NOT FOUND: {}", defect.describe());
            return Ok(false);
        };
        let operations = reduced.trace.scenario.operations.len();
        let mut complaints = String::new();
        if found_after > self.budget {
            complaints.push_str("  TOO LATE");
        }
        if operations > MOST_OPERATIONS {
            complaints.push_str("  TOO LARGE");
        }
        if !hunt.replays {
            complaints.push_str("  DOES NOT REPLAY");
        }
        if !hunt.passes_without {
            complaints.push_str("  FAILS WITHOUT IT");
        }
        println!("{start} {operations:>4}  {}{complaints}", reduced.class);
        violation::save(&reduced, defect.name(), "canary", &self.out)?;
        Ok(complaints.is_empty())
    }
}
