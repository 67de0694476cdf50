//! From a violation to what a person can use: a small case, the sentence behind it, and its trace.
//!
//! The class of the failure is kept throughout. A smaller case counts as failing if exploring its crash
//! states comes upon the class again; which state that is does not matter. Then as much as possible of
//! what was lost is put back, so that what is still lost is lost for a reason.

mod case;
mod explain;

use blkdebug::contract::Contract;
use rayon::prelude::*;

use crate::campaign::{Found, Threads};
use crate::minimise::minimise;
use crate::oracle::{FailureClass, Violation};
use crate::prng::Prng;
use crate::run::{Case, Effort, Finding, Outcome, Schedule, find, live};
use crate::trace::{Expected, Then, Trace};
use crate::workload::shape::Scenario;

use case::Small;

/// How long a search for a smaller case may go on, in cases tried.
pub const ATTEMPTS: usize = 400;

/// A violation, made small and explained.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The case that still shows it.
    pub trace: Trace,
    /// What is wrong there.
    pub violation: Violation,
    /// Which write must be durable before which; `None` where the order of writes is not the cause.
    pub sentence: Option<String>,
    /// Whether it shows on a disk that loses nothing that was completed, too.
    pub control: Control,
    /// How many cases were tried.
    pub attempts: usize,
}

/// What the same case comes to on the perfect disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It passes: the failure needs a power loss.
    Passes,
    /// It fails as well: losing unflushed writes is not what it takes.
    Fails,
}

/// The violation did not show again, so that the harness contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the violation did not show again when its case was run once more")]
pub struct Vanished;

/// Makes a violation small and explains it.
pub fn explain_found(
    found: &Found,
    attempts: usize,
    threads: &Threads,
) -> Result<Explained, Vanished> {
    let search = Search::of(&found.finding);
    let start = Small::new(found.scenario.clone(), found.choices.clone());
    let minimised = threads.install(|| {
        minimise(start, attempts, &mut |variants: &[Small]| {
            variants
                .par_iter()
                .enumerate()
                .find_map_first(|(index, small)| Some((index, search.fails(small)?)))
        })
    });
    let mut explained = search.explain(minimised.input)?;
    explained.attempts = minimised.attempts;
    Ok(explained)
}

/// Makes the case of a trace small, if it shows what the trace expects.
pub fn explain_trace(
    trace: &Trace,
    class: &FailureClass,
    attempts: usize,
    threads: &Threads,
) -> Result<Explained, Vanished> {
    let finding = Finding {
        violation: Violation {
            class: class.clone(),
            lines: Vec::new(),
        },
        crash: trace.crash.clone(),
    };
    let found = Found {
        run: 0,
        scenario: trace.scenario.clone(),
        choices: trace.choices.clone(),
        finding,
    };
    explain_found(&found, attempts, threads)
}

/// The search for one class of failure.
struct Search {
    class: FailureClass,
    effort: Effort,
}

impl Search {
    fn of(finding: &Finding) -> Self {
        let mut effort = Effort::minimise();
        match finding.crash.as_ref().and_then(|crash| crash.then.as_ref()) {
            None => {}
            Some(Then::Repair { .. }) => effort.repair_every = 1,
            Some(Then::Service { .. }) => effort.serve_every = 1,
        }
        Self {
            class: finding.violation.class.clone(),
            effort,
        }
    }

    /// The same case with the schedule under which it fails, if it does.
    fn fails(&self, small: &Small) -> Option<Small> {
        schedules(small).into_iter().find_map(|schedule| {
            let case = Case {
                scenario: small.scenario.clone(),
                schedule,
            };
            let outcome = self.find(&case)?;
            Some(Small::new(case.scenario, outcome.choices))
        })
    }

    fn find(&self, case: &Case) -> Option<Outcome> {
        let mut wanted = |violation: &Violation| violation.class == self.class;
        let outcome = find(case, &self.effort, &mut wanted).ok()?;
        outcome
            .findings
            .iter()
            .any(|finding| wanted(&finding.violation))
            .then_some(outcome)
    }

    fn explain(&self, small: Small) -> Result<Explained, Vanished> {
        let case = Case {
            scenario: small.scenario,
            schedule: Schedule::Given(small.choices.clone()),
        };
        let outcome = self.find(&case).ok_or(Vanished)?;
        let findings = outcome.findings.into_iter();
        let mut matching = findings.filter(|finding| finding.violation.class == self.class);
        let finding = matching.next().ok_or(Vanished)?;
        let life = live(&case).map_err(|_| Vanished)?;
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
        let about = match &told.sentence {
            Some(sentence) => sentence.clone(),
            None => told.violation.lines.first().cloned().unwrap_or_default(),
        };
        Ok(Explained {
            trace: Trace {
                about,
                scenario: case.scenario,
                choices: small.choices,
                crash: told.crash,
                expected: Expected::Violated(self.class.to_string()),
                digest: Some(life.lived.digest),
            },
            violation: told.violation,
            sentence: told.sentence,
            control,
            attempts: 0,
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
