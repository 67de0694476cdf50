//! Many drawn workloads with drawn faults.
//!
//! Runs are numbered, done in batches of a fixed size and folded in order, so that counts, findings and digest do not
//! depend on the number of threads.

use std::collections::BTreeMap;

use engine::device::Event;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use crate::campaign::{Found, NoThreads, Proceed, threads};
use crate::caught::Panic;
use crate::crash::explore::Budget;
use crate::prng::Prng;
use crate::run::{Case, Counts, Effort, Outcome, Schedule, run};
use crate::workload::generate;
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

/// Runs are done and folded so many at a time.
const BATCH_RUNS: u64 = 64;

/// What a campaign of faults does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the generators start.
    pub seed: u64,
    /// It ends behind the batch with which so many requests have gone wrong.
    pub faults: u64,
    /// What is not drawn.
    pub pins: Pins,
}

/// How far a campaign of faults is.
#[derive(Clone, Debug, Default)]
pub struct Campaign {
    /// Runs done.
    pub runs: u64,
    /// What they did.
    pub counts: Counts,
    /// How many requests went wrong, by event and kind of fault.
    pub injected: BTreeMap<(Event, &'static str), u64>,
    /// What was found, in order of runs.
    pub found: Vec<Found>,
    /// How the harness contradicted itself, or could not judge; the first few.
    pub broken: Vec<String>,
    /// Folds every step and every byte of all runs, in order.
    pub digest: u128,
}

impl Plan {
    fn case(&self, run: u64) -> Case {
        let prng = Prng::from_seed(self.seed).fork_indexed("faults", run);
        let pins = Pins {
            faults: Some(true),
            ..self.pins
        };
        Case {
            scenario: generate::scenario(&prng, &pins),
            schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
        }
    }
}

/// Few crash states of each of many runs: what errors leave behind shows soon.
fn effort() -> Effort {
    let campaign = Effort::campaign();
    Effort {
        states: Budget {
            states: 12,
            ..campaign.states
        },
        work: 8_000,
        inner_states: Budget {
            states: 2,
            ..campaign.inner_states
        },
        repair_every: Some(256),
        depth: 1,
        serve_every: Some(256),
        ..campaign
    }
}

/// Carries out a plan on `jobs` threads, until enough requests went wrong or something is found. After every batch
/// `between` is told how far it is, and decides.
pub fn campaign(
    plan: &Plan,
    jobs: usize,
    between: &mut dyn FnMut(&Campaign) -> Proceed,
) -> Result<Campaign, NoThreads> {
    let threads = threads(jobs)?;
    let mut campaign = Campaign::default();
    while campaign.counts.faults < plan.faults && campaign.found.is_empty() {
        let runs = campaign.runs..campaign.runs + BATCH_RUNS;
        let batch: Vec<(Scenario, Result<Outcome, Panic>)> = threads.install(|| {
            let runs = runs.clone().into_par_iter();
            let done = runs.map(|number| {
                let case = plan.case(number);
                let outcome = run(&case, &effort());
                (case.scenario, outcome)
            });
            done.collect()
        });
        for (number, (scenario, outcome)) in runs.clone().zip(batch) {
            campaign.fold(number, &scenario, outcome);
        }
        campaign.runs = runs.end;
        if between(&campaign) == Proceed::Stop {
            break;
        }
    }
    Ok(campaign)
}

impl Campaign {
    fn fold(&mut self, number: u64, scenario: &Scenario, outcome: Result<Outcome, Panic>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(panic) => {
                self.keep(format!("run {number}: the harness {panic}"));
                return;
            }
        };
        let words = [self.digest.to_le_bytes(), outcome.digest.to_le_bytes()];
        self.digest = xxh3_128(&words.concat());
        self.counts.add(&outcome.counts);
        for key in outcome.injected {
            *self.injected.entry(key).or_default() += 1;
        }
        for how in outcome.broken.iter().chain(&outcome.not_measured) {
            self.keep(format!("run {number}: {how}"));
        }
        for finding in outcome.findings {
            self.found.push(Found {
                run: number,
                scenario: scenario.clone(),
                choices: outcome.choices.clone(),
                finding,
            });
        }
    }

    fn keep(&mut self, message: String) {
        const KEPT: usize = 8;
        if self.broken.len() < KEPT {
            self.broken.push(message);
        }
    }
}
