//! Many runs of one seed, over as many threads as one likes.
//!
//! Runs are numbered, and each is a function of the seed and its number. They are done in batches of a
//! fixed size and folded in order, so that counts, findings and digest do not depend on how many
//! threads there are. A campaign ends with the batch in which something was found; whoever has a clock
//! can end it after any batch.

use blkdebug::contract::Contract;
use engine::defect::Flaw;
use engine::qcow2::geometry::Geometry;
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use crate::caught::Panic;
use crate::prng::Prng;
use crate::run::{Case, Counts, Effort, Finding, Outcome, Schedule, run};
use crate::workload::generate;
use crate::workload::pin::Pins;
use crate::workload::shape::{Given, Scenario};

/// Runs are done and folded so many at a time.
pub const BATCH_RUNS: u64 = 16;
/// One run in so many is done twice, and must come to the same.
const TWICE_EVERY: u64 = 100;
const STACK_BYTES: usize = 16 << 20;

/// What a campaign does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the generators start.
    pub seed: u64,
    /// How many runs, if nothing ends the campaign earlier.
    pub runs: u64,
    /// What is not drawn.
    pub pins: Pins,
    /// The storage contract; drawn for each run where there is none.
    pub contract: Option<Contract>,
    /// The image to start from, with its disk's size and its geometry; new ones where there is none.
    pub given: Option<(Given, u64, Geometry)>,
    /// What to plant in the engine.
    pub flaw: Option<Flaw>,
    /// How much of each run is judged.
    pub effort: Effort,
}

/// How far a campaign is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Runs done.
    pub runs: u64,
    /// What they did.
    pub counts: Counts,
}

/// What came of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Campaign {
    /// How far it got.
    pub progress: Progress,
    /// What was found, in order of runs.
    pub found: Vec<Found>,
    /// Why some states could not be judged; the first few.
    pub not_measured: Vec<String>,
    /// How the harness contradicted itself; the first few.
    pub broken: Vec<String>,
    /// Folds every step and every byte of all runs.
    pub digest: u128,
}

/// A violation and the case that showed it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The number of the run.
    pub run: u64,
    /// What it started from.
    pub scenario: Scenario,
    /// Its schedule.
    pub choices: Vec<u32>,
    /// What is wrong.
    pub finding: Finding,
}

/// Whether a campaign goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proceed {
    /// It does.
    GoOn,
    /// It ends here.
    Stop,
}

/// Threads could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {jobs} threads: {source}")]
pub struct NoThreads {
    jobs: usize,
    source: rayon::ThreadPoolBuildError,
}

/// So many threads, each with room for a run.
pub(crate) fn threads(jobs: usize) -> Result<rayon::ThreadPool, NoThreads> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(jobs)
        .stack_size(STACK_BYTES)
        .build()
        .map_err(|source| NoThreads { jobs, source })
}

/// Carries out a plan on `jobs` threads. After every batch `between` is told how far it is, and decides.
pub fn campaign(
    plan: &Plan,
    jobs: usize,
    between: &mut dyn FnMut(&Progress) -> Proceed,
) -> Result<Campaign, NoThreads> {
    let threads = threads(jobs)?;
    let mut campaign = Campaign::default();
    let mut digest = Xxh3::new();
    let mut next = 0;
    while next < plan.runs {
        let end = plan.runs.min(next + BATCH_RUNS);
        let batch: Vec<Done> =
            threads.install(|| (next..end).into_par_iter().map(|i| plan.run(i)).collect());
        for done in batch {
            campaign.fold(done, &mut digest);
        }
        next = end;
        campaign.progress.runs = next;
        let proceed = between(&campaign.progress);
        let enough = !campaign.found.is_empty() || !campaign.broken.is_empty();
        if enough || proceed == Proceed::Stop {
            break;
        }
    }
    campaign.digest = digest.digest128();
    Ok(campaign)
}

/// One run, done.
struct Done {
    run: u64,
    scenario: Scenario,
    outcome: Result<Outcome, Panic>,
    again: Option<Result<Outcome, Panic>>,
}

impl Plan {
    /// The case of run number `index`.
    pub fn case(&self, index: u64) -> Case {
        let prng = Prng::from_seed(self.seed).fork_indexed("run", index);
        let drawn = match &self.given {
            None => generate::scenario(&prng, &self.pins),
            Some((given, virtual_bytes, geometry)) => {
                generate::scenario_on(&prng, &self.pins, given.clone(), *virtual_bytes, *geometry)
            }
        };
        Case {
            scenario: Scenario {
                contract: self.contract.unwrap_or(drawn.contract),
                flaw: self.flaw,
                ..drawn
            },
            schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
        }
    }

    fn run(&self, index: u64) -> Done {
        let case = self.case(index);
        let twice = index % TWICE_EVERY == TWICE_EVERY / 2;
        Done {
            run: index,
            outcome: run(&case, &self.effort),
            again: twice.then(|| run(&case, &self.effort)),
            scenario: case.scenario,
        }
    }
}

impl Campaign {
    fn fold(&mut self, done: Done, digest: &mut Xxh3) {
        let Done {
            run,
            scenario,
            outcome,
            again,
        } = done;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(panic) => {
                keep(&mut self.broken, format!("run {run}: the harness {panic}"));
                return;
            }
        };
        if let Some(again) = again
            && again.map(|again| again.digest) != Ok(outcome.digest)
        {
            let text = format!("run {run} came to something else when it was done again");
            keep(&mut self.broken, text);
        }
        digest.update(&outcome.digest.to_le_bytes());
        self.progress.counts.add(&outcome.counts);
        for how in outcome.broken {
            keep(&mut self.broken, format!("run {run}: {how}"));
        }
        for why in outcome.not_measured {
            keep(&mut self.not_measured, format!("run {run}: {why}"));
        }
        for finding in outcome.findings {
            self.found.push(Found {
                run,
                scenario: scenario.clone(),
                choices: outcome.choices.clone(),
                finding,
            });
        }
    }
}

fn keep(messages: &mut Vec<String>, message: String) {
    const KEPT: usize = 8;
    if messages.len() < KEPT {
        messages.push(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        let mut effort = Effort::campaign();
        effort.states.states = 20;
        effort.inner_states.states = 4;
        Plan {
            seed,
            runs: 70,
            pins: Pins::parse("lazy_refcounts=off,operations=6").unwrap(),
            contract: None,
            given: None,
            flaw: None,
            effort,
        }
    }

    #[test]
    fn nothing_depends_on_the_number_of_threads() {
        let mut go_on = |_: &Progress| Proceed::GoOn;
        let one = campaign(&plan(5), 1, &mut go_on).unwrap();
        let three = campaign(&plan(5), 3, &mut go_on).unwrap();
        assert_eq!(one.digest, three.digest);
        assert_eq!(one.progress.counts, three.progress.counts);
        let other = campaign(&plan(6), 1, &mut go_on).unwrap();
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn whoever_has_a_clock_can_end_it_after_a_batch() {
        let campaign = campaign(&plan(5), 1, &mut |_| Proceed::Stop).unwrap();
        assert_eq!(campaign.progress.runs, BATCH_RUNS);
    }
}
