//! From a violation to what a person can use: a small case, the sentence behind it, and its trace.
//!
//! The class of the failure is kept throughout. A smaller case counts as failing if exploring its crash
//! states comes upon the class again; which state that is does not matter. Then as much as possible of
//! what was lost is put back, so that what is still lost is lost for a reason.

mod case;
mod explain;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use blkdebug::contract::Contract;
use rayon::prelude::*;

use crate::campaign::Found;
use crate::caught::{Panic, catch};
use crate::guest::Level;
use crate::minimise::{End, Limits, Tried, minimise};
use crate::oracle::verdict::NoFailureClass;
use crate::oracle::{Acceptance, FailureClass, Verdict, Violation};
use crate::prng::Prng;
use crate::run::{
    Case, Effort, Finding, From, Life, Outcome, Reach, Schedule, find, judge_accepting, live,
    replay,
};
use crate::trace::{Crash, Expected, Shown, Then, Trace};
use crate::workload::shape::Scenario;

use case::Small;

/// How long a search for a smaller case may go on. Work is what judging the crash states of a case is, since a case may
/// have a few of them or thousands, what coming by them is, and so much for each case that is tried; this much is some
/// seconds.
const LIMITS: Limits = Limits {
    attempts: 400,
    work: 12_000_000,
};
/// What it is to live through a case, in the same unit.
const A_LIFE: u64 = 2_000;
/// So many looks at a request that may be lost are one: where nothing is flushed, there are as many such at a cut as there
/// were cuts before.
const LOOKS: u64 = 3;

/// A case with more classes of states at a cut is not looked through.
const MOST_CLASSES: u64 = 1 << 12;

/// A violation, made small and explained.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// The case that still shows it.
    pub trace: Trace,
    /// The class of the failure, which is that of the case that was reduced.
    pub class: FailureClass,
    /// Which write must be durable before which, or what is wrong where the order of writes is not the
    /// cause; for people.
    pub sentence: String,
    /// What the oracle found.
    pub lines: Vec<String>,
    /// How little it takes to show.
    pub shown: Shown,
    /// Whether it shows on a disk that loses nothing that was completed, too.
    pub control: Control,
    /// How many cases were tried.
    pub attempts: usize,
    /// Why no more were.
    pub end: End,
}

/// What the same case comes to on the perfect disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It passes: the failure needs a power loss.
    Passes,
    /// It fails as well: losing unflushed writes is not what it takes.
    Fails,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passes => "it passes, so that losing unflushed writes is what it takes",
            Self::Fails => "it fails too, so that no unflushed write need be lost",
        })
    }
}

/// Why a violation could not be reduced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Irreducible {
    /// The violation did not show again, so that the harness contradicts itself.
    #[error("the violation did not show again when its case was run once more")]
    Vanished,
    /// There is nothing to reduce.
    #[error("the trace expects no violation, so there is nothing to make smaller")]
    Survives,
    /// What is damaged at rest hangs on every request before it.
    #[error("the trace damages an image at rest, and such a case is not made smaller")]
    AtRest,
    /// The trace names no class of failure.
    #[error("{0}")]
    Class(#[from] NoFailureClass),
    /// The harness itself panicked.
    #[error("the harness {0}")]
    Panic(Panic),
}

/// Makes a violation small and explains it.
pub fn reduce(found: &Found) -> Result<Reduced, Irreducible> {
    let start = Small::new(found.scenario.clone(), found.choices.clone());
    let class = &found.finding.violation.class;
    let crash = found.finding.crash.as_ref();
    search(class, crash, &start)
}

/// Makes the case of a trace small that shows what the trace expects.
pub fn reduce_trace(trace: &Trace) -> Result<Reduced, Irreducible> {
    let Expected::Violated(class) = &trace.expected else {
        return Err(Irreducible::Survives);
    };
    if trace.damage.is_some() {
        return Err(Irreducible::AtRest);
    }
    let class: FailureClass = class.parse()?;
    let start = Small::new(trace.scenario.clone(), trace.choices.clone());
    search(&class, trace.crash.as_ref(), &start)
}

/// Looks at the states that are worth it, and at all of them where the failure is in none of those: what it took every
/// state to find is not found again by trying some. Where there are too many of them as well, the case stays as it is.
fn search(
    class: &FailureClass,
    crash: Option<&Crash>,
    start: &Small,
) -> Result<Reduced, Irreducible> {
    let classes = Reach::Classes {
        from: From::Start,
        most: MOST_CLASSES,
    };
    let within = |reach| {
        let search = Search::of(class, crash, reach);
        catch(|| search.reduce(start.clone())).map_err(Irreducible::Panic)?
    };
    let mut reduced = within(Reach::Levels);
    // All states of the repairs of all states are too many to look for a smaller case among them.
    let is_late = crash.is_some_and(|crash| crash.then.is_some());
    if let Err(Irreducible::Vanished) = reduced
        && !is_late
    {
        reduced = within(classes);
    }
    if let (Err(Irreducible::Vanished), Some(crash)) = (&reduced, crash) {
        let search = Search::of(class, Some(crash), Reach::Levels);
        let as_it_is = || search.explain_as_it_is(crash, start);
        reduced = catch(as_it_is).map_err(Irreducible::Panic)?;
    }
    reduced
}

/// The search for one class of failure.
struct Search {
    class: FailureClass,
    effort: Effort,
}

impl Search {
    fn of(class: &FailureClass, crash: Option<&Crash>, reach: Reach) -> Self {
        // What comes after the first power loss is looked at only if that is where the failure was:
        // otherwise a case without operations, that fails in the work after recovery, would do.
        let (repair_every, serve_every) = match crash.and_then(|crash| crash.then.as_ref()) {
            None => (None, None),
            Some(Then::Repair { .. }) => (Some(1), None),
            Some(Then::Service { .. }) => (None, Some(1)),
        };
        let late = repair_every.is_some() || serve_every.is_some();
        let base = if late && reach == Reach::Levels {
            // What comes later is looked at once all states of the first power loss are judged, of which there should
            // then be no more than it took; and at each of them, where a campaign looks at a few.
            Effort {
                work: 2_000_000,
                ..Effort::campaign()
            }
        } else {
            Effort::minimise()
        };
        let effort = Effort {
            reach,
            repair_every,
            serve_every,
            ..base
        };
        Self {
            class: class.clone(),
            effort,
        }
    }

    fn reduce(mut self, start: Small) -> Result<Reduced, Irreducible> {
        self.learn_effort(&start)?;
        let minimised = minimise(start, LIMITS, &mut |variants: &[Small]| {
            self.attempt(variants)
        });
        let mut small = minimised.input;
        if minimised.end == End::Limit {
            small.scenario.contract = self.weakest(&small);
        }
        Ok(Reduced {
            attempts: minimised.attempts,
            end: minimised.end,
            ..self.explain(small)?
        })
    }

    /// A variant gets twice the work that it took to come upon the failure in the case that is to be made small: those in
    /// which it is not are most of what there is to do.
    fn learn_effort(&mut self, start: &Small) -> Result<(), Irreducible> {
        const LEAST: u64 = 200_000;
        let case = Case {
            scenario: start.scenario.clone(),
            schedule: Schedule::Given(start.choices.clone()),
        };
        let outcome = self.find(&case).ok_or(Irreducible::Vanished)?;
        let twice = outcome.counts.work.saturating_mul(2);
        self.effort.work = self.effort.work.min(twice.max(LEAST));
        Ok(())
    }

    /// The weakest contract under which a case fails. A search that came to its end has tried all.
    fn weakest(&self, small: &Small) -> Contract {
        let own = small.scenario.contract;
        let weaker = Contract::ALL
            .into_iter()
            .take_while(|contract| *contract < own);
        let fails = |contract: &Contract| {
            let case = Case {
                scenario: Scenario {
                    contract: *contract,
                    ..small.scenario.clone()
                },
                schedule: Schedule::Given(small.choices.clone()),
            };
            self.find(&case).is_some()
        };
        weaker.into_iter().find(fails).unwrap_or(own)
    }

    /// Tries variants side by side. Only what those up to the first that fails took is counted: whether others
    /// were begun is a matter of time.
    fn attempt(&self, variants: &[Small]) -> Tried<Small> {
        let work: Vec<AtomicU64> = variants.iter().map(|_| AtomicU64::new(0)).collect();
        let failing = variants
            .par_iter()
            .zip(&work)
            .enumerate()
            .find_map_first(|(index, (small, work))| Some((index, self.fails(small, work)?)));
        let counted = failing
            .as_ref()
            .map_or(variants.len(), |(index, _)| index + 1);
        Tried {
            work: work[..counted]
                .iter()
                .map(|work| work.load(Ordering::Relaxed))
                .sum(),
            failing,
        }
    }

    /// The same case with the schedule under which it fails, if it does. Adds what was judged to `work`.
    fn fails(&self, small: &Small, work: &AtomicU64) -> Option<Small> {
        schedules(small).into_iter().find_map(|schedule| {
            let case = Case {
                scenario: small.scenario.clone(),
                schedule,
            };
            let outcome = self.explore(&case)?;
            let exploring = outcome.tails / LOOKS;
            work.fetch_add(outcome.counts.work + exploring + A_LIFE, Ordering::Relaxed);
            self.shows(&outcome)
                .then(|| Small::new(case.scenario, outcome.choices))
        })
    }

    /// What comes of a case, if it shows the failure.
    fn find(&self, case: &Case) -> Option<Outcome> {
        self.explore(case).filter(|outcome| self.shows(outcome))
    }

    fn explore(&self, case: &Case) -> Option<Outcome> {
        let mut wanted = |violation: &Violation| violation.class == self.class;
        find(case, &self.effort, &mut wanted).ok()
    }

    fn shows(&self, outcome: &Outcome) -> bool {
        let mut findings = outcome.findings.iter();
        findings.any(|finding| finding.violation.class == self.class)
    }

    /// The mildest acceptance under which the state that a crash leaves still fails. What the run itself did is all that
    /// there is where it takes no crash.
    fn breaks(&self, case: &Case, life: &Life, crash: Option<&Crash>) -> Acceptance {
        let mildest_first = Acceptance::ALL.into_iter().rev();
        let fails = |acceptance: &Acceptance| match crash {
            Some(crash) => {
                let verdict = judge_accepting(case, life, crash, *acceptance);
                matches!(verdict, Ok(Verdict::Violated(_)))
            }
            None => {
                let missed = Level::ALL
                    .into_iter()
                    .find(|level| level.name() == self.class.kind);
                let is_let_pass = missed.is_some_and(|missed| {
                    missed != Level::Lost && acceptance.level().is_some_and(|mild| missed <= mild)
                });
                !is_let_pass
            }
        };
        mildest_first
            .into_iter()
            .find(fails)
            .unwrap_or(Acceptance::Strict)
    }

    fn explain(&self, small: Small) -> Result<Reduced, Irreducible> {
        let case = Case {
            scenario: small.scenario,
            schedule: Schedule::Given(small.choices.clone()),
        };
        let outcome = self.find(&case).ok_or(Irreducible::Vanished)?;
        let findings = outcome.findings.into_iter();
        let mut matching = findings.filter(|finding| finding.violation.class == self.class);
        let finding = matching.next().ok_or(Irreducible::Vanished)?;
        self.tell(case, small.choices, finding)
    }

    /// The power loss that was found, in the case in which it was found.
    fn explain_as_it_is(&self, crash: &Crash, start: &Small) -> Result<Reduced, Irreducible> {
        let trace = Trace {
            about: String::new(),
            scenario: start.scenario.clone(),
            choices: start.choices.clone(),
            crash: Some(crash.clone()),
            damage: None,
            expected: Expected::Violated(self.class.to_string()),
            shown: None,
            digest: None,
        };
        let replayed = replay(&trace).map_err(|_| Irreducible::Vanished)?;
        let Verdict::Violated(violation) = replayed.verdict else {
            return Err(Irreducible::Vanished);
        };
        if violation.class != self.class {
            return Err(Irreducible::Vanished);
        }
        let case = Case {
            scenario: trace.scenario,
            schedule: Schedule::Given(trace.choices.clone()),
        };
        let finding = Finding {
            violation,
            crash: trace.crash,
        };
        let reduced = self.tell(case, trace.choices, finding)?;
        let end = End::Limit;
        Ok(Reduced { end, ..reduced })
    }

    fn tell(
        &self,
        case: Case,
        choices: Vec<u32>,
        finding: Finding,
    ) -> Result<Reduced, Irreducible> {
        let life = live(&case).map_err(|_| Irreducible::Vanished)?;
        let told = explain::explain(&case, &life, finding);
        let perfect = Case {
            scenario: Scenario {
                contract: Contract::Perfect,
                ..case.scenario.clone()
            },
            schedule: case.schedule.clone(),
        };
        let control = match self.find(&perfect) {
            Some(_) => Control::Fails,
            None => Control::Passes,
        };
        let shown = Shown {
            contract: case.scenario.contract,
            breaks: self.breaks(&case, &life, told.crash.as_ref()),
        };
        let anyhow = || told.violation.lines.first().cloned().unwrap_or_default();
        let sentence = told.sentence.unwrap_or_else(anyhow);
        Ok(Reduced {
            trace: Trace {
                about: sentence.clone(),
                scenario: case.scenario,
                choices,
                crash: told.crash,
                damage: None,
                expected: Expected::Violated(self.class.to_string()),
                shown: Some(shown),
                digest: Some(life.lived.digest),
            },
            class: self.class.clone(),
            sentence,
            lines: told.violation.lines,
            shown,
            control,
            attempts: 0,
            end: End::Smallest,
        })
    }
}

/// The schedules to try. Where operations went away, the choices that were left mean something else:
/// then the plainest order comes first, and a few others last.
fn schedules(small: &Small) -> Vec<Schedule> {
    const OTHERS: u64 = 3;
    let given = Schedule::Given(small.choices.clone());
    if !small.fresh {
        return vec![given];
    }
    let mut schedules = vec![Schedule::Given(Vec::new())];
    if small.scenario.concurrency > 1 {
        schedules.push(given);
        let root = Prng::from_seed(0);
        let others = (0..OTHERS).map(|i| Box::new(root.fork_indexed("schedule", i)));
        schedules.extend(others.map(Schedule::Drawn));
    }
    schedules
}
