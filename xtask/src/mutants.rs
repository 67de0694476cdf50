//! `mutants`: leaves out each barrier of the engine, and demands that it is missed.
//!
//! What comes of it is the barrier map: which rule asks for each, how soon its absence is seen, and the smallest
//! trace that needs it. A barrier that nothing needs costs a flush for nothing, or hides what the harness cannot see.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use engine::barrier::Barrier;
use harness::canary::{hunt_damage, is_about_damage};

use crate::canary::{complaints, hunt_within};
use crate::terminal::{Display, Limit, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// Leave out each barrier of the engine and demand that it is missed.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Mutants {
    /// Only the barrier of this name
    #[arg(long, value_name = "NAME", value_parser = parse_barrier)]
    only: Option<Barrier>,
    /// The time that each may take to be missed
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "60s")]
    budget: Duration,
    /// Use so many threads
    #[arg(long, value_name = "J", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Where the minimised traces go
    #[arg(long, value_name = "DIR", default_value = "reports/mutants")]
    out: PathBuf,
}

fn parse_barrier(name: &str) -> Result<Barrier, String> {
    Barrier::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Barrier::ALL.iter().map(|barrier| barrier.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl Mutants {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        source::writable_directory(&self.out)?;
        println!(
            "| {:>2} | {:<24} | {:>4} | {:>7} | {:>6} | {:>7} | {:>3} | {:>5} | {:<32} |",
            "no", "barrier", "rule", "seconds", "runs", "states", "ops", "bytes", "missed as"
        );
        println!(
            "|{:->3}:|:{:-<25}|{:->5}:|{:->8}:|{:->7}:|{:->8}:|{:->4}:|{:->6}:|:{:-<33}|",
            "", "", "", "", "", "", "", "", ""
        );
        let (mut killed, mut asked) = (0, 0);
        let wanted = Barrier::ALL.iter().copied();
        for barrier in wanted.filter(|barrier| self.only.is_none_or(|only| only == *barrier)) {
            asked += 1;
            if self.leave_out(barrier)? {
                killed += 1;
            }
        }
        println!("\n{killed} of {asked} barriers are missed");
        Ok(if killed == asked {
            Ending::Clean
        } else {
            Ending::Unmeasured
        })
    }

    /// Leaves out one barrier; says whether it was missed as it should be.
    fn leave_out(&self, barrier: Barrier) -> Result<bool, Refusal> {
        if is_about_damage(barrier.into()) {
            return Ok(self.leave_out_of_damaged(barrier));
        }
        let (hunt, took) = hunt_within(self.budget, barrier.into(), self.jobs.into())?;
        let Some(reduced) = &hunt.found else {
            let verdict = format!("NOT MISSED: {}", barrier.describe());
            print_row(
                barrier,
                took,
                [hunt.runs, hunt.states],
                ("-", "-"),
                &verdict,
            );
            return Ok(false);
        };
        let complaints = complaints(&hunt, took, self.budget);
        let class = reduced.class.to_string();
        let told: Vec<&str> = std::iter::once(&*class)
            .chain(complaints.iter().copied())
            .collect();
        let verdict = told.join(", ");
        let operations = reduced.trace.scenario.operations.len().to_string();
        let bytes = reduced.trace.to_json().len().to_string();
        let counts = [hunt.runs, hunt.states];
        print_row(barrier, took, counts, (&operations, &bytes), &verdict);
        violation::save(reduced, barrier.name(), "mutants", &self.out)?;
        Ok(complaints.is_empty())
    }

    /// The same on damaged images, of which there are no traces.
    fn leave_out_of_damaged(&self, barrier: Barrier) -> bool {
        let display = Display::start(Limit::Time(self.budget));
        let hunt = hunt_damage(barrier.into(), &mut || display.proceed());
        let took = display.elapsed();
        display.finish();
        let verdict = match &hunt.problem {
            None => format!("NOT MISSED: {}", barrier.describe()),
            Some(problem) if hunt.passes_without => format!("a damaged image: {problem}"),
            Some(problem) => format!("a damaged image: {problem}, FAILS WITHOUT IT"),
        };
        print_row(barrier, took, [hunt.images, 0], ("-", "-"), &verdict);
        hunt.problem.is_some() && hunt.passes_without && took <= self.budget
    }
}

fn print_row(
    barrier: Barrier,
    took: Duration,
    [runs, states]: [u64; 2],
    (operations, bytes): (&str, &str),
    verdict: &str,
) {
    println!(
        "| {:>2} | {:<24} | {:>4} | {:>7.2} | {:>6} | {:>7} | {operations:>3} | {bytes:>5} | {verdict:<32} |",
        barrier.number(),
        barrier.name(),
        barrier.rule(),
        took.as_secs_f64(),
        runs,
        states,
    );
}
