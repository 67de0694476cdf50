//! Judging the crash states of a life.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkdebug::record::{Recording, Tick};
use engine::device::ContentHash;
use xxhash_rust::xxh3::Xxh3;

use super::live::{Life, live, planted};
use super::{Case, Counts, Effort, Finding, Outcome};
use crate::crash::explore::{Explored, Explorer};
use crate::crash::state::CrashState;
use crate::guest::Expectation;
use crate::oracle::{FailureClass, Judge, Judgement, Oracle, Verdict, Violation, Witness};
use crate::prng::Prng;
use crate::sim::stage::{BackingFile, open_options};
use crate::subject::EngineSubject;
use crate::trace::{Crash, RepairCrash};
use crate::workload::ops::{Answer, Moment, Operation};

/// As many messages of a kind are kept.
const KEPT: usize = 4;

/// Runs a case and judges its states, until `stop` recognises a violation.
pub(super) fn examine(
    case: &Case,
    effort: &Effort,
    stop: &mut dyn FnMut(&Violation) -> bool,
) -> Outcome {
    let life = match live(case) {
        Ok(life) => life,
        Err(error) => return unprepared(&error.to_string()),
    };
    let backing = life.stage.backing.as_ref().map(BackingFile::view);
    let options = open_options(case.scenario.caches, planted(&case.scenario));
    let subject = EngineSubject::new(options, backing.clone());
    let judge = Judge {
        subject: &subject,
        backing: backing.as_ref(),
        accept: None,
        observer: &(),
    };
    let mut examination = Examination {
        case,
        effort,
        life: &life,
        judge,
        draw: draw_for(case),
        expectations: Expectations::default(),
        classes: BTreeSet::new(),
        outcome: Outcome::default(),
        digest: Xxh3::new(),
        stop,
        stopped: false,
    };
    examination.run();
    let Examination {
        mut outcome,
        digest,
        ..
    } = examination;
    outcome.digest = digest.digest128();
    outcome.choices.clone_from(&life.lived.choices);
    outcome
}

/// What of the exploration is sampled depends on the case's content alone, so that a replayed schedule
/// is explored as the drawn one was.
fn draw_for(case: &Case) -> Prng {
    let text = format!("{:?}", case.scenario.operations);
    Prng::from_seed(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

fn unprepared(error: &str) -> Outcome {
    let line = format!("the image of the scenario cannot be made: {error}");
    let violation = Violation::new(Oracle::Progress, "failed", "stage", vec![line]);
    Outcome {
        counts: Counts {
            violations: 1,
            ..Counts::default()
        },
        findings: vec![Finding {
            violation,
            crash: None,
        }],
        ..Outcome::default()
    }
}

/// What is legal at each cut, worked out once.
#[derive(Default)]
struct Expectations<'a>(Rc<RefCell<BTreeMap<Tick, Rc<Expectation<'a>>>>>);

impl<'a> Expectations<'a> {
    fn at(&self, life: &'a Life, cut: Tick) -> Rc<Expectation<'a>> {
        let mut known = self.0.borrow_mut();
        let expectation = known
            .entry(cut)
            .or_insert_with(|| Rc::new(life.ledger.expect(Moment(cut.0))));
        Rc::clone(expectation)
    }
}

struct Examination<'a> {
    case: &'a Case,
    effort: &'a Effort,
    life: &'a Life,
    judge: Judge<'a>,
    draw: Prng,
    expectations: Expectations<'a>,
    classes: BTreeSet<FailureClass>,
    outcome: Outcome,
    digest: Xxh3,
    stop: &'a mut dyn FnMut(&Violation) -> bool,
    stopped: bool,
}

impl Examination<'_> {
    fn run(&mut self) {
        let life = self.life;
        self.outcome.counts.workloads = 1;
        self.outcome.counts.steps = life.lived.steps;
        self.outcome.counts.faults = life.faults;
        self.digest.update(&life.lived.digest.to_le_bytes());
        for violation in life.violations() {
            self.report(violation, None);
        }
        if !self.stopped {
            self.explore();
        }
        if !self.stopped && life.faults == 0 && life.ends_closed(&self.case.scenario.operations) {
            let end = self.expectations.at(life, life.recording().end());
            let judgement = self.judge.judge_closed(life.last.clone(), &end);
            self.settle(life.last.content_hash(), judgement, None);
        }
    }

    fn explore(&mut self) {
        let life = self.life;
        let contract = self.case.scenario.contract;
        let promises = promises(life);
        let mut sampling = self.draw.fork("crash");
        let expectations = Expectations(Rc::clone(&self.expectations.0));
        let mut explorer = Explorer::new(life.recording(), contract, self.effort.states, &promises)
            .with_draw(move |bound| sampling.below(bound))
            .with_expectation(move |cut| expectations.at(life, cut).key());
        for state in explorer.by_ref() {
            self.visit(state);
            if self.stopped {
                break;
            }
        }
        let Explored {
            cuts,
            generated,
            distinct,
        } = explorer.explored();
        self.outcome.counts.cuts += cuts;
        self.outcome.counts.states_generated += generated;
        self.outcome.counts.states_distinct += distinct;
    }

    fn visit(&mut self, state: CrashState) {
        let expectation = self.expectations.at(self.life, state.cut);
        let judgement = self.judge.judge(state.image, &expectation, None);
        let survived = judgement.verdict.survived();
        let Judgement {
            state: witness,
            repairs,
            verdict,
            recovered,
        } = judgement;
        let crash =
            (!survived).then(|| Crash::of(self.life.recording(), state.cut, &state.survivors));
        let settled = Judgement {
            state: witness,
            repairs: Vec::new(),
            verdict,
            recovered,
        };
        let witness = self.settle(state.hash, settled, crash);
        if repairs.is_empty() || self.stopped {
            return;
        }
        self.outcome.counts.repairs += 1;
        if survived && self.outcome.counts.repairs % self.effort.repair_every == 1 {
            let outer = || Crash::of(self.life.recording(), state.cut, &state.survivors);
            for (attempt, recording) in repairs.iter().enumerate() {
                self.explore_repair(attempt, recording, &witness, &expectation, &outer);
            }
        }
    }

    /// Loses power inside a repair.
    fn explore_repair(
        &mut self,
        attempt: usize,
        recording: &Recording,
        before: &Witness,
        expectation: &Expectation<'_>,
        outer: &dyn Fn() -> Crash,
    ) {
        let index = self.outcome.counts.repairs;
        let mut sampling = self.draw.fork_indexed("repair", index);
        let contract = self.case.scenario.contract;
        let mut explorer = Explorer::new(recording, contract, self.effort.repair_states, &[])
            .with_draw(move |bound| sampling.below(bound));
        for state in explorer.by_ref() {
            if self.stopped {
                break;
            }
            let judgement = self.judge.judge(state.image, expectation, Some(before));
            let crash = (!judgement.verdict.survived()).then(|| Crash {
                in_repair: Some(RepairCrash {
                    attempt,
                    crash: Box::new(Crash::of(recording, state.cut, &state.survivors)),
                }),
                ..outer()
            });
            self.outcome.counts.states_nested += 1;
            self.settle(state.hash, judgement, crash);
        }
        let explored = explorer.explored();
        self.outcome.counts.cuts += explored.cuts;
        self.outcome.counts.states_generated += explored.generated;
        self.outcome.counts.states_distinct += explored.distinct;
    }

    /// Counts and folds a judgement, and reports what is wrong.
    fn settle(&mut self, hash: ContentHash, judgement: Judgement, crash: Option<Crash>) -> Witness {
        self.outcome.counts.states_judged += 1;
        self.digest.update(&hash.0.to_le_bytes());
        match judgement.verdict {
            Verdict::Survived => self.digest.update(&[0]),
            Verdict::Violated(violation) => {
                self.digest.update(violation.class.to_string().as_bytes());
                self.report(violation, crash);
            }
            Verdict::NotMeasured(why) => {
                self.outcome.counts.not_measured += 1;
                self.outcome.counts.states_judged -= 1;
                keep(&mut self.outcome.not_measured, why);
            }
            Verdict::HarnessBroken(how) => keep(&mut self.outcome.broken, how),
        }
        judgement.state
    }

    fn report(&mut self, violation: Violation, crash: Option<Crash>) {
        self.outcome.counts.violations += 1;
        self.stopped |= (self.stop)(&violation);
        if self.classes.insert(violation.class.clone()) {
            self.outcome.findings.push(Finding { violation, crash });
        }
    }
}

/// The moments at which the guest was promised durability.
fn promises(life: &Life) -> Vec<Tick> {
    let promise = |operation: Operation| match operation {
        Operation::Flush | Operation::Grow { .. } | Operation::Reopen => true,
        Operation::Read { .. }
        | Operation::Write { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Discard { .. } => false,
    };
    life.lived
        .history
        .iter()
        .filter(|happening| promise(happening.operation))
        .filter_map(|happening| match happening.completed {
            Some((moment, Answer::Done)) => Some(Tick(moment.0)),
            Some((_, Answer::Failed)) | None => None,
        })
        .collect()
}

fn keep(messages: &mut Vec<String>, message: String) {
    if messages.len() < KEPT && !messages.contains(&message) {
        messages.push(message);
    }
}
