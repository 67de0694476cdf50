//! Many runs of one seed, over as many threads as one likes.
//!
//! Runs are numbered, and each is a function of the seed, of its number and of what the batches before it have
//! shown. They are done in batches of a fixed size and folded in order, so that counts, findings and digest do
//! not depend on how many threads there are. A campaign ends with the batch in which something was found;
//! whoever has a clock can end it after any batch, and go on from there another time.

use blkdebug::contract::Contract;
use engine::defect::Flaw;
use engine::qcow2::geometry::Geometry;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use crate::caught::Panic;
use crate::guide::mutate::{self, Ground, Stock};
use crate::guide::observe::{Focus, Watch};
use crate::guide::signature::signature;
use crate::guide::way::Way;
use crate::guide::{Guidance, Guide, Kept, Report};
use crate::prng::Prng;
use crate::run::{Case, Counts, Effort, Finding, Outcome, Schedule, watch};
use crate::trace::Crash;
use crate::workload::generate;
use crate::workload::given::Given;
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

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
    /// Whether what earlier runs showed decides about later ones.
    pub guidance: Guidance,
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
    /// Folds every step and every byte of all runs, in order.
    pub digest: u128,
    /// What was learned from the runs.
    pub guide: Guide,
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

/// Why no run follows in a campaign, however many are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// So many violations were found.
    Found(u64),
    /// The harness contradicted itself first so.
    Broken(String),
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
    let mut told = |campaign: &Campaign| between(&campaign.progress);
    carry_on(plan, jobs, Campaign::default(), &mut told)
}

/// The same from where a campaign of this plan has stopped. It comes to what it had come to without the stop, if
/// that was behind a whole batch ([`Campaign::is_between_batches`]). What ends a campaign behind a batch keeps it from
/// going on as well: `between` is asked before the first batch too, unless there were no runs yet.
pub fn carry_on(
    plan: &Plan,
    jobs: usize,
    mut campaign: Campaign,
    between: &mut dyn FnMut(&Campaign) -> Proceed,
) -> Result<Campaign, NoThreads> {
    let threads = threads(jobs)?;
    loop {
        let next = campaign.progress.runs;
        if next > 0 && between(&campaign) == Proceed::Stop {
            break;
        }
        if next >= plan.runs || campaign.end().is_some() {
            break;
        }
        let end = plan.runs.min(next + BATCH_RUNS);
        let guide = &campaign.guide;
        let proposals: Vec<Proposal> = threads.install(|| {
            let runs = (next..end).into_par_iter();
            runs.map(|run| plan.propose(guide, run, 0)).collect()
        });
        let accepted: Vec<Proposal> = proposals
            .into_iter()
            .map(|proposal| plan.accept(&mut campaign.guide, proposal))
            .collect();
        let guide = &campaign.guide;
        let batch: Vec<Done> = threads.install(|| {
            let runs = accepted.into_par_iter();
            runs.map(|proposal| plan.run(guide, proposal)).collect()
        });
        for done in batch {
            campaign.fold(done);
        }
        campaign.guide.trim();
        campaign.progress.runs = end;
    }
    Ok(campaign)
}

/// What a run is going to be.
struct Proposal {
    run: u64,
    attempt: u64,
    case: Case,
    way: Way,
    /// The kept run that it goes on from.
    from: Option<usize>,
    /// A power loss of that run whose neighbours are judged.
    around: Option<Crash>,
    /// Whether it is drawn because the neighbour that was tried meant nothing.
    senseless: bool,
}

/// One run, done.
struct Done {
    run: u64,
    scenario: Scenario,
    way: Way,
    outcome: Result<Outcome, Panic>,
    again: Option<Result<Outcome, Panic>>,
}

impl Plan {
    /// The case of run number `index` where nothing is known of the runs before.
    pub fn case(&self, index: u64) -> Case {
        self.drawn(&self.prng(index))
    }

    fn prng(&self, run: u64) -> Prng {
        Prng::from_seed(self.seed).fork_indexed("run", run)
    }

    fn drawn(&self, prng: &Prng) -> Case {
        let drawn = match &self.given {
            None => generate::scenario(prng, &self.pins),
            Some((given, virtual_bytes, geometry)) => {
                generate::scenario_on(prng, &self.pins, given.clone(), *virtual_bytes, *geometry)
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

    /// What run number `run` could be; each attempt is another.
    fn propose(&self, guide: &Guide, run: u64, attempt: u64) -> Proposal {
        let mut prng = self.prng(run);
        if attempt > 0 {
            prng = prng.fork_indexed("again", attempt);
        }
        let mut draw = prng.fork("guide");
        let way = match self.guidance {
            Guidance::Off => Way::Drawn,
            Guidance::On => guide.yields.choose(&mut draw),
        };
        let from = guide.pick(way, &mut draw);
        let near = from.map(|at| self.near(guide, at, way, &prng, &mut draw));
        let senseless = matches!(near, Some(None));
        match (near.flatten(), from) {
            (Some((case, around)), Some(_)) => Proposal {
                run,
                attempt,
                case,
                way,
                from,
                around,
                senseless,
            },
            (None, _) | (Some(_), None) => Proposal {
                run,
                attempt,
                case: self.drawn(&prng),
                way: Way::Drawn,
                from: None,
                around: None,
                senseless,
            },
        }
    }

    /// What a kept run leads to in this way, if that means anything.
    fn near(
        &self,
        guide: &Guide,
        at: usize,
        way: Way,
        prng: &Prng,
        draw: &mut Prng,
    ) -> Option<(Case, Option<Crash>)> {
        let kept = &guide.kept[at];
        let same = |choices| Case {
            scenario: kept.scenario.clone(),
            schedule: Schedule::Given(choices),
        };
        match way {
            Way::Drawn => None,
            Way::Toggle => Some((same(kept.choices.clone()), kept.crash.clone())),
            Way::Schedule => Some((same(mutate::choices(draw, &kept.choices)), None)),
            Way::Neighbour => Some((self.neighbour(guide, kept, prng, draw)?, None)),
        }
    }

    /// The workload of a kept run, changed a little.
    fn neighbour(&self, guide: &Guide, kept: &Kept, prng: &Prng, draw: &mut Prng) -> Option<Case> {
        let given = self.given.as_ref();
        let given = given.map(|(_, virtual_bytes, geometry)| Ground {
            virtual_bytes: *virtual_bytes,
            geometry: *geometry,
        });
        let other = if draw.chance(1, 2) {
            self.drawn(&prng.fork("other")).scenario
        } else {
            guide.kept[draw.index(guide.kept.len())].scenario.clone()
        };
        let stock = Stock {
            pins: &self.pins,
            parent: (&kept.scenario, Ground::of(&kept.scenario, given)?),
            other: (&other, Ground::of(&other, given)?),
        };
        let scenario = mutate::neighbour(draw, &stock);
        scenario.check().ok()?;
        let schedule = if scenario.concurrency > 1 && draw.chance(1, 3) {
            Schedule::Given(mutate::choices(draw, &kept.choices))
        } else {
            Schedule::Drawn(Box::new(prng.fork("schedule")))
        };
        Some(Case { scenario, schedule })
    }

    /// Replaces a workload that was run before, and takes note of what is going to be run.
    fn accept(&self, guide: &mut Guide, mut proposal: Proposal) -> Proposal {
        const ATTEMPTS: u64 = 8;
        loop {
            guide.counts.senseless += u64::from(proposal.senseless);
            let Proposal { run, case, .. } = &proposal;
            let is_new = guide.is_new(signature(case, proposal.around.as_ref(), *run));
            if is_new || proposal.attempt == ATTEMPTS {
                guide.counts.run_again += u64::from(!is_new);
                break;
            }
            guide.counts.repeated += 1;
            proposal = self.propose(guide, proposal.run, proposal.attempt + 1);
        }
        if let Some(from) = proposal.from {
            guide.count_pick(from, proposal.way);
        }
        proposal
    }

    fn run(&self, guide: &Guide, proposal: Proposal) -> Done {
        let Proposal {
            run,
            case,
            around,
            way,
            ..
        } = proposal;
        let for_what = Watch {
            known: &guide.features,
            focus: match (&around, self.guidance) {
                (Some(crash), _) => Focus::Around(crash),
                (None, Guidance::On) => Focus::News,
                (None, Guidance::Off) => Focus::Anywhere,
            },
        };
        let twice = run % TWICE_EVERY == TWICE_EVERY / 2;
        Done {
            run,
            outcome: watch(&case, &self.effort, &for_what),
            again: twice.then(|| watch(&case, &self.effort, &for_what)),
            scenario: case.scenario,
            way,
        }
    }
}

impl Campaign {
    /// Whether it can go on from here as if it had not stopped.
    pub fn is_between_batches(&self) -> bool {
        self.progress.runs.is_multiple_of(BATCH_RUNS)
    }

    /// Why it has ended by itself, if it has. It holds as well for one that was read, of which no violation is told.
    pub fn end(&self) -> Option<End> {
        let violations = self.progress.counts.violations;
        match self.broken.first() {
            _ if violations > 0 => Some(End::Found(violations)),
            Some(how) => Some(End::Broken(how.clone())),
            None => None,
        }
    }

    fn fold(&mut self, done: Done) {
        let Done {
            run,
            scenario,
            way,
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
        let words = [self.digest.to_le_bytes(), outcome.digest.to_le_bytes()];
        self.digest = xxh3_128(&words.concat());
        self.guide.learn(&Report {
            run,
            scenario: &scenario,
            choices: &outcome.choices,
            way,
            states: outcome.counts.states_judged,
            seen: &outcome.seen,
        });
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
            guidance: Guidance::On,
        }
    }

    #[test]
    fn nothing_depends_on_the_number_of_threads() {
        let mut go_on = |_: &Progress| Proceed::GoOn;
        let one = campaign(&plan(5), 1, &mut go_on).unwrap();
        let three = campaign(&plan(5), 3, &mut go_on).unwrap();
        assert_eq!(one.digest, three.digest);
        assert_eq!(one.progress.counts, three.progress.counts);
        assert!(one.guide == three.guide, "the same was learned");
        let neighbours = one.guide.yields.of(Way::Neighbour).runs;
        assert!(neighbours > 0, "what was learned decided about runs");
        let other = campaign(&plan(6), 1, &mut go_on).unwrap();
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn whoever_has_a_clock_can_end_it_after_a_batch() {
        let campaign = campaign(&plan(5), 1, &mut |_| Proceed::Stop).unwrap();
        assert_eq!(campaign.progress.runs, BATCH_RUNS);
    }
}
