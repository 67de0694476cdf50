//! `pace`: how many crash states are judged a second on one core, and where the time goes.

use std::cell::Cell;
use std::time::Duration;

use blkdebug::contract::Contract;
use clap::Args;
use harness::campaign::Plan;
use harness::guide::Guidance;
use harness::pace::{Observer, Stage};
use harness::run::{Counts, Effort, run_timed};
use harness::workload::pin::{OPTIONS, Pins};
use rustix::time::{ClockId, clock_gettime};

use crate::{Ending, Refusal};

/// Measure how many crash states are judged a second on one core, and where the time goes.
///
/// The workloads are those of `fuzz` with the same seed and options, one after the other on one thread, whose
/// processor time is what counts. A state counts that was reopened, walked, repaired, walked again and read back.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Pace {
    /// Where the generators start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many workloads
    #[arg(long, value_name = "R", default_value_t = 320, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Fix what would be drawn, as name=value,..
    #[arg(long, value_name = "OPTIONS", value_parser = Pins::parse, long_help = format!(
        "Fix what would be drawn, as name=value,..\n\nOptions: {OPTIONS}"))]
    options: Option<Pins>,
}

impl Pace {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let plan = Plan {
            seed: self.seed,
            runs: self.runs,
            pins: self.options.unwrap_or_default(),
            contract: Some(Contract::EpochTorn),
            given: None,
            flaw: None,
            effort: Effort::campaign(),
            guidance: Guidance::Off,
        };
        let watch = Watch::start();
        let mut counts = Counts::default();
        for index in 0..plan.runs {
            watch.begin(Stage::Live);
            let outcome = run_timed(&plan.case(index), &plan.effort, &watch);
            let outcome = outcome.map_err(|panic| Refusal::new(format!("run {index}: {panic}")))?;
            counts.add(&outcome.counts);
        }
        let spent = watch.stop();
        print(&counts, &spent);
        Ok(if counts.violations == 0 {
            Ending::Clean
        } else {
            Ending::Violation
        })
    }
}

/// The time that each stage took.
#[derive(Debug)]
struct Watch {
    stage: Cell<Stage>,
    since: Cell<Duration>,
    spent: [Cell<Duration>; Stage::ALL.len()],
}

impl Watch {
    fn start() -> Self {
        Self {
            stage: Cell::new(Stage::Live),
            since: Cell::new(now()),
            spent: Default::default(),
        }
    }

    fn stop(self) -> [Duration; Stage::ALL.len()] {
        self.begin(Stage::Live);
        self.spent.map(Cell::into_inner)
    }
}

/// The processor's time that this thread has had: other work on the machine does not count.
fn now() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

impl Observer for Watch {
    fn begin(&self, stage: Stage) {
        let now = now();
        let ended = self.stage.replace(stage);
        let place = Stage::ALL.iter().position(|one| *one == ended);
        let spent = &self.spent[place.expect("all stages are listed")];
        spent.set(spent.get() + now.saturating_sub(self.since.replace(now)));
    }
}

fn print(counts: &Counts, spent: &[Duration]) {
    let all: Duration = spent.iter().sum();
    let judged = counts.states_judged;
    println!(
        "| {:<16} | {:>6} | {:>12} |",
        "stage", "share", "us per state"
    );
    println!("|:{:-<17}|{:->7}:|{:->13}:|", "", "", "");
    for (stage, time) in Stage::ALL.iter().zip(spent) {
        let share = 100.0 * time.as_secs_f64() / all.as_secs_f64();
        println!(
            "| {:<16} | {share:>5.1}% | {:>12.2} |",
            stage.name(),
            each(*time, judged)
        );
    }
    println!(
        "| {:<16} | {:>5.1}% | {:>12.2} |",
        "all",
        100.0,
        each(all, judged)
    );
    println!();
    println!("workloads         {}", counts.workloads);
    println!(
        "states judged     {judged} ({} of them inside a repair)",
        counts.states_nested
    );
    println!("states repaired   {}", counts.repairs);
    println!("processor seconds {:.2}", all.as_secs_f64());
    println!("states a second   {:.0}", 1e6 / each(all, judged));
    println!("violations        {}", counts.violations);
}

/// Microseconds for each of so many.
fn each(time: Duration, count: u64) -> f64 {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    time.as_secs_f64() * 1e6 / f64::from(count)
}
