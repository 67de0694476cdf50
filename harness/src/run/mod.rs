//! One run: a case lives through its workload, and each crash state that it could have left is judged.
//!
//! scenario -> stage -> world -> recording -> crash states -> verdicts. Everything is a function of the
//! case and of the effort; nothing is drawn but from the case's own generator.

mod bench;
mod examine;
mod live;
mod owed;
mod process;
mod replay;
mod toggle;

use engine::device::Event;
use serde::{Deserialize, Serialize};

use crate::caught::Panic;
use crate::crash::explore::Budget;
use crate::guide::observe::{Seen, Watch};
use crate::oracle::Violation;
use crate::pace::Observer;
use crate::prng::Prng;
use crate::trace::Crash;
use crate::workload::shape::Scenario;

pub use bench::{Bench, Judged};
pub use live::{Life, live};
pub use process::Process;
pub(crate) use replay::judge_accepting;
pub use replay::{Replayed, Step, Unreplayable, replay};

/// What is run: a scenario and who decides its schedule.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the run starts from.
    pub scenario: Scenario,
    /// Who decides.
    pub schedule: Schedule,
}

/// Who decides about the order of steps.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// Draws from this generator.
    Drawn(Box<Prng>),
    /// These choices, and then the plainest step.
    Given(Vec<u32>),
}

/// How much of a run's crash states is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Which states of the workload's recording are visited.
    pub reach: Reach,
    /// How the states of the workload's recording are explored.
    pub states: Budget,
    /// Of a workload's own states no more are visited once judging them has been so much work, as
    /// [`crate::oracle::Judgement::work`] counts it, and a second power loss gets a share of that: a state of a large image
    /// tells no more than one of a small image, and costs a hundred times as much. At least [`FEWEST_STATES`] are visited.
    pub work: u64,
    /// How the states of a second power loss are explored: inside a repair, or in the work after it.
    pub inner_states: Budget,
    /// Of so many repaired states one has its repair interrupted, the first always; `None` for none.
    pub repair_every: Option<u64>,
    /// So many power losses follow one another at most, each inside the repair of what the one before left.
    pub depth: u32,
    /// Of so many surviving states one serves a guest afterwards, the first always; `None` for none.
    pub serve_every: Option<u64>,
    /// Exploring ends at the first violation.
    pub first_only: bool,
    /// Of the states that no judgement can tell from one that survived, a hundredth is judged; else all are.
    pub spares: bool,
}

/// However much work they are, so many states are visited.
pub const FEWEST_STATES: u64 = 16;

/// Which crash states of a workload are visited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Those worth visiting at every cut, level by level.
    #[default]
    Levels,
    /// Under `epoch`, every subset of whole requests at each cut, under `epoch-torn` of their sectors; a state for each
    /// class of them that no judgement can tell apart. As [`Self::Levels`] under the contracts that leave less open,
    /// and where the disk destroys what was durable.
    Classes {
        /// Where the cuts begin.
        from: From,
        /// A cut with more classes is given up, and counted.
        most: u64,
    },
}

/// Where the cuts of a workload begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the opening of the image.
    Start,
    /// At the submission of the last operation. The states before it are those of a shorter workload.
    LastOperation,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was done.
    pub counts: Counts,
    /// The requests that may be lost, as often as they were looked at to come by the states.
    pub tails: u64,
    /// What is wrong: the first violation of each class.
    pub findings: Vec<Finding>,
    /// Why some states could not be judged; the first few.
    pub not_measured: Vec<String>,
    /// How the harness contradicted itself; the first few.
    pub broken: Vec<String>,
    /// The choices that were made.
    pub choices: Vec<u32>,
    /// How many steps there were to choose from, for each of them.
    pub widths: Vec<u32>,
    /// Folds every step, every byte written, and every state with its verdict.
    pub digest: u128,
    /// The requests that went wrong by rule: the event of each, or the one that it followed, and the kind of fault.
    pub injected: Vec<(Event, &'static str)>,
    /// What was new about it, where it was watched.
    pub seen: Seen,
}

/// A violation, and when the power went out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub violation: Violation,
    /// The power loss; `None` where the run itself went wrong.
    pub crash: Option<Crash>,
}

impl Finding {
    /// Whether it took more than one power loss, or work after it, to get there.
    pub fn is_late(&self) -> bool {
        self.crash
            .as_ref()
            .is_some_and(|crash| crash.then.is_some())
    }
}

/// What was done, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Workloads that lived to their end.
    pub workloads: u64,
    /// Steps of all schedules.
    pub steps: u64,
    /// Moments at which the power was cut.
    pub cuts: u64,
    /// Cuts of which every state was asked for, and which had too many.
    pub cuts_incomplete: u64,
    /// Crash states that those stand for which were judged as one of their class.
    pub states_covered: u128,
    /// Judged states that another of their class has stood for already.
    pub states_audited: u64,
    /// Crash states that were generated, equal ones included.
    pub states_generated: u64,
    /// Crash states that differed, by content or by what may be expected of them.
    pub states_distinct: u64,
    /// Distinct states that were judged, those of a second power loss included.
    pub states_judged: u64,
    /// Judged states that were left by a second power loss, inside a repair or in the work after it.
    pub states_nested: u64,
    /// States that were not judged, since they differ from a judged one only where its judgement read nothing.
    pub states_spared: u64,
    /// States of a power loss inside a repair to which another way had led already.
    pub states_known: u64,
    /// Judged states of a first power loss that passed.
    pub survived: u64,
    /// Those of the survivors of which something was destroyed and refused, and nothing read wrong.
    pub refused: u64,
    /// Those of the survivors of which something was destroyed and read wrong, as nobody can know.
    pub undetectable: u64,
    /// Judged states that recovery had to repair.
    pub repairs: u64,
    /// Judged states on which work went on after recovery.
    pub served: u64,
    /// States that could not be judged.
    pub not_measured: u64,
    /// Requests of the image's disk that went wrong by rule.
    pub faults: u64,
    /// Violations, those of a class already reported included.
    pub violations: u64,
    /// How much work judging was, as [`crate::oracle::Judgement::work`] counts it.
    pub work: u64,
}

impl Effort {
    /// What campaigns do.
    pub fn campaign() -> Self {
        Self {
            reach: Reach::Levels,
            states: Budget {
                states: 400,
                every_parts: 4,
                samples: 4,
                torn_masks: 1,
            },
            work: 160_000,
            inner_states: Budget {
                states: 24,
                every_parts: 3,
                samples: 2,
                torn_masks: 1,
            },
            repair_every: Some(32),
            depth: 3,
            serve_every: Some(64),
            first_only: false,
            spares: true,
        }
    }

    /// What a minimiser does with each candidate.
    pub fn minimise() -> Self {
        Self {
            states: Budget {
                states: 4000,
                every_parts: 6,
                samples: 8,
                torn_masks: 1,
            },
            work: 20_000_000,
            repair_every: Some(4),
            ..Self::campaign()
        }
    }
}

impl Counts {
    /// Adds what another run did.
    pub fn add(&mut self, other: &Self) {
        let Self {
            workloads,
            steps,
            cuts,
            cuts_incomplete,
            states_covered,
            states_audited,
            states_generated,
            states_distinct,
            states_judged,
            states_nested,
            states_spared,
            states_known,
            survived,
            refused,
            undetectable,
            repairs,
            served,
            not_measured,
            faults,
            violations,
            work,
        } = other;
        self.workloads += workloads;
        self.steps += steps;
        self.cuts += cuts;
        self.cuts_incomplete += cuts_incomplete;
        self.states_covered = self.states_covered.saturating_add(*states_covered);
        self.states_audited += states_audited;
        self.states_generated += states_generated;
        self.states_distinct += states_distinct;
        self.states_judged += states_judged;
        self.states_nested += states_nested;
        self.states_spared += states_spared;
        self.states_known += states_known;
        self.survived += survived;
        self.refused += refused;
        self.undetectable += undetectable;
        self.repairs += repairs;
        self.served += served;
        self.not_measured += not_measured;
        self.faults += faults;
        self.violations += violations;
        self.work = self.work.saturating_add(*work);
    }
}

/// Runs a case. A panic of the harness itself comes back as one.
pub fn run(case: &Case, effort: &Effort) -> Result<Outcome, Panic> {
    run_timed(case, effort, &())
}

/// The same, which tells somebody where it stands.
pub fn run_timed(case: &Case, effort: &Effort, observer: &dyn Observer) -> Result<Outcome, Panic> {
    let stop = &mut |_: &_| effort.first_only;
    crate::caught::catch(|| examine::examine(case, effort, observer, None, stop))
}

/// Runs a case, and takes note of what is new about it.
pub fn watch(case: &Case, effort: &Effort, watch: &Watch<'_>) -> Result<Outcome, Panic> {
    let stop = &mut |_: &_| effort.first_only;
    crate::caught::catch(|| examine::examine(case, effort, &(), Some(watch), stop))
}

/// Runs a case until a violation is found that `wanted` recognises.
pub fn find(
    case: &Case,
    effort: &Effort,
    wanted: &mut dyn FnMut(&Violation) -> bool,
) -> Result<Outcome, Panic> {
    crate::caught::catch(|| examine::examine(case, effort, &(), None, wanted))
}

#[cfg(test)]
mod tests;
