//! `pace`: how many crash states are judged a second on one core, and where the time goes.

#![allow(clippy::disallowed_methods, reason = "the command line has the clock")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use blkdebug::contract::Contract;
use clap::Args;
use harness::campaign::Plan;
use harness::guide::Guidance;
use harness::pace::{Observer, Stage};
use harness::run::{Case, Counts, Effort, Schedule, run_timed};
use harness::workload::pin::{OPTIONS, Pins};
use harness::workload::sized::sized;
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
    /// Judge also what the recovery-read filter spares, being like a state that survived in all that its judgement read
    #[arg(long, conflicts_with = "sizes")]
    every: bool,
    /// Measure one workload on disks with 1, 10 and 100 MiB of data instead, with a few and with many crash states
    #[arg(long, conflicts_with_all = ["runs", "seed", "options"])]
    sizes: bool,
}

impl Pace {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        if self.sizes {
            measure_sizes()
        } else {
            self.measure_stages()
        }
    }

    fn measure_stages(&self) -> Result<Ending, Refusal> {
        let plan = Plan {
            seed: self.seed,
            runs: self.runs,
            pins: self.options.unwrap_or_default(),
            contract: Some(Contract::EpochTorn),
            given: None,
            flaw: None,
            effort: Effort {
                spares: !self.every,
                ..Effort::campaign()
            },
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
        Ok(ending(&counts))
    }
}

fn ending(counts: &Counts) -> Ending {
    if counts.violations == 0 {
        Ending::Clean
    } else {
        Ending::Violation
    }
}

/// What a crash state costs by the size of the disk, and by how many there are.
fn measure_sizes() -> Result<Ending, Refusal> {
    println!(
        "| {:>9} | {:>7} | {:>8} | {:>12} |",
        "guest MiB", "states", "seconds", "us per state"
    );
    println!("|{:->10}:|{:->8}:|{:->9}:|{:->13}:|", "", "", "", "");
    let mut all = Counts::default();
    for mebibytes in [1, 10, 100] {
        let case = Case {
            scenario: sized(mebibytes << 20),
            schedule: Schedule::Given(Vec::new()),
        };
        for states in [250, 500, 1000, 2000] {
            let counts = measure_size(&case, states, mebibytes)?;
            all.add(&counts);
        }
    }
    Ok(ending(&all))
}

fn measure_size(case: &Case, states: u64, mebibytes: u64) -> Result<Counts, Refusal> {
    let mut effort = Effort {
        work: u64::MAX,
        repair_every: None,
        serve_every: None,
        ..Effort::campaign()
    };
    effort.states.states = states;
    let watch = Watch::start();
    let outcome = run_timed(case, &effort, &watch).map_err(Refusal::new)?;
    // To make the image takes no part in judging.
    let spent: Duration = watch.stop()[1..].iter().sum();
    let judged = outcome.counts.states_judged;
    println!(
        "| {mebibytes:>9} | {judged:>7} | {:>8.3} | {:>12.2} |",
        spent.as_secs_f64(),
        each(spent, judged)
    );
    Ok(outcome.counts)
}

/// The time that each stage took.
///
/// The clock that is read is the wall's: the thread's own costs a call into the kernel, which is a tenth of what a stage is.
/// Even so, to read it at every stage of every state would be more than one in a hundred of what is measured: one state
/// in [`Self::TIMED`] is timed, and stands for the others. The whole is the processor's time, so that other work on the
/// machine does not count.
#[derive(Debug)]
struct Watch {
    stage: Cell<Stage>,
    since: Cell<Instant>,
    /// States that were begun.
    states: Cell<u64>,
    /// Whether the one at hand is timed.
    timed: Cell<bool>,
    spent: [Cell<Duration>; Stage::ALL.len()],
    started: Instant,
    processor: Duration,
}

impl Watch {
    const TIMED: u64 = 32;

    fn start() -> Self {
        Self {
            stage: Cell::new(Stage::Live),
            since: Cell::new(Instant::now()),
            states: Cell::new(0),
            timed: Cell::new(true),
            spent: Default::default(),
            started: Instant::now(),
            processor: processor_time(),
        }
    }

    /// What each stage had of the processor's time, were the processor taken away from all alike.
    fn stop(self) -> [Duration; Stage::ALL.len()] {
        self.begin(Stage::Live);
        let mut spent = self.spent.map(Cell::into_inner);
        let processor = processor_time().saturating_sub(self.processor);
        let passed = self.started.elapsed();
        let (live, judging) = spent.split_first_mut().expect("there are stages");
        // Every workload is timed, and not every state.
        *live = live.mul_f64(processor.as_secs_f64() / passed.as_secs_f64().max(1e-9));
        let rest = processor.saturating_sub(*live).as_secs_f64();
        let timed: Duration = judging.iter().sum();
        for stage in judging {
            *stage = stage.mul_f64(rest / timed.as_secs_f64().max(1e-9));
        }
        spent
    }
}

/// The processor's time that this thread has had.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

impl Observer for Watch {
    fn begin(&self, stage: Stage) {
        let was_timed = match stage {
            Stage::Live => self.timed.replace(true),
            Stage::Explore => {
                let state = self.states.get();
                self.states.set(state + 1);
                self.timed.replace(state.is_multiple_of(Self::TIMED))
            }
            Stage::StructureBefore
            | Stage::GuestBefore
            | Stage::Recover
            | Stage::StructureAfter
            | Stage::GuestAfter
            | Stage::Check
            | Stage::Again
            | Stage::Serve
            | Stage::Account => self.timed.get(),
        };
        let ended = self.stage.replace(stage);
        if !was_timed && !self.timed.get() {
            return;
        }
        let now = Instant::now();
        let since = self.since.replace(now);
        if was_timed {
            let place = Stage::ALL.iter().position(|one| *one == ended);
            let spent = &self.spent[place.expect("all stages are listed")];
            spent.set(spent.get() + now.saturating_duration_since(since));
        }
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
    println!();
    let told = judged + counts.states_spared;
    println!(
        "states spared     {} (as one that passed where that was read)",
        counts.states_spared
    );
    println!("judged or spared  {:.0} a second", 1e6 / each(all, told));
}

/// Microseconds for each of so many.
fn each(time: Duration, count: u64) -> f64 {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    time.as_secs_f64() * 1e6 / f64::from(count)
}
