//! Judging the crash states of a life.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Recording, Tick};
use engine::device::{ContentHash, PageImage};
use xxhash_rust::xxh3::Xxh3;

use super::bench::{Bench, Judged};
use super::live::{Life, live};
use super::process;
use super::toggle::neighbours;
use super::{Case, Counts, Effort, FEWEST_STATES, Finding, From, Outcome, Reach};
use crate::crash::classes::{Classes, Covered, Task};
use crate::crash::explore::{Budget, Explored, Explorer};
use crate::crash::footprint::Footprint;
use crate::crash::state::{CrashState, Survivors};
use crate::guest::{Expectation, Ledger};
use crate::guide::observe::{Focus, Watch, Watcher};
use crate::oracle::{Judgement, Oracle, Service, Standing, Verdict, Violation};
use crate::pace::{Observer, Stage};
use crate::prng::Prng;
use crate::trace::{Crash, Then, in_repairs, operation_text};
use crate::workload::ops::Moment;

/// As many messages of a kind are kept.
const KEPT: usize = 4;

/// Runs a case and judges its states, until `stop` recognises a violation.
pub(super) fn examine(
    case: &Case,
    effort: &Effort,
    observer: &dyn Observer,
    watch: Option<&Watch<'_>>,
    stop: &mut dyn FnMut(&Violation) -> bool,
) -> Outcome {
    observer.begin(Stage::Live);
    let life = match live(case) {
        Ok(life) => life,
        Err(error) => return unprepared(&error.to_string()),
    };
    let bench = Bench::timed(case, &life, observer);
    let mut examination = Examination {
        case,
        effort,
        life: &life,
        bench: &bench,
        observer,
        draw: draw_for(case),
        expectations: Expectations::default(),
        passed: Vec::new(),
        outcome: Outcome::default(),
        digest: Xxh3::new(),
        watcher: watch.map(|watch| Watcher::new(watch, &life)),
        focus: watch.map_or(Focus::Anywhere, |watch| watch.focus),
        spent: 0,
        stop,
        stopped: false,
    };
    observer.begin(Stage::Explore);
    examination.run();
    observer.begin(Stage::Account);
    let Examination {
        mut outcome,
        digest,
        watcher,
        ..
    } = examination;
    if let Some(watcher) = watcher {
        outcome.seen = watcher.finish(&life, &bench.hits);
    }
    outcome.digest = digest.digest128();
    outcome.choices.clone_from(&life.lived.choices);
    outcome.widths.clone_from(&life.lived.widths);
    outcome
}

/// What of the exploration is sampled depends on the case's content alone, so that a replayed schedule
/// is explored as the drawn one was.
fn draw_for(case: &Case) -> Prng {
    // As traces spell them: that outlives what the types are called here.
    let operations = case.scenario.operations.iter();
    let texts: Vec<String> = operations.map(|it| operation_text(*it)).collect();
    let text = texts.join("\n");
    Prng::from_seed(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

fn unprepared(error: &str) -> Outcome {
    let line = format!("the image of the scenario cannot be made: {error}");
    let violation = Violation::new(Oracle::Progress, "failed", "stage", vec![line]);
    Outcome {
        tails: 0,
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
    fn of_life(&self, life: &'a Life, cut: Tick) -> Rc<Expectation<'a>> {
        self.at(cut, || life.expect(cut))
    }

    fn at(&self, cut: Tick, expect: impl FnOnce() -> Expectation<'a>) -> Rc<Expectation<'a>> {
        let mut known = self.0.borrow_mut();
        let expectation = known.entry(cut).or_insert_with(|| Rc::new(expect()));
        Rc::clone(expectation)
    }
}

struct Examination<'a> {
    case: &'a Case,
    effort: &'a Effort,
    life: &'a Life,
    bench: &'a Bench<'a>,
    observer: &'a dyn Observer,
    draw: Prng,
    expectations: Expectations<'a>,
    passed: Vec<Passed<'a>>,
    outcome: Outcome,
    digest: Xxh3,
    watcher: Option<Watcher<'a>>,
    focus: Focus<'a>,
    /// States that were judged around what is news.
    spent: u64,
    stop: &'a mut dyn FnMut(&Violation) -> bool,
    stopped: bool,
}

impl Examination<'_> {
    fn run(&mut self) {
        let life = self.life;
        self.outcome.counts.workloads = 1;
        self.outcome.counts.steps = life.lived.steps;
        self.outcome.counts.faults = life.faults;
        let injected = life.injected.iter();
        self.outcome.injected = injected
            .map(|(_, it)| (it.after.unwrap_or(it.event), it.fault.name()))
            .collect();
        self.digest.update(&life.lived.digest.to_le_bytes());
        for violation in life.violations() {
            self.report(violation, None);
        }
        if life.was_lied_to() {
            // Nobody was promised anything of what such a disk keeps.
            return;
        }
        for killed in process::kills(&life.lived.history) {
            self.examine_killed(killed);
        }
        if let Focus::Around(crash) = self.focus {
            self.toggle(crash, u64::MAX);
        } else if !self.stopped {
            self.look_at_news();
            match self.effort.reach {
                Reach::Classes { from, most } if has_classes(self.case.scenario.contract) => {
                    self.cover(from, most);
                }
                Reach::Levels | Reach::Classes { .. } => self.explore(),
            }
        }
        let operations = &self.case.scenario.operations;
        let closed = life.faults == 0 && life.ends_closed(operations);
        if !self.stopped && (closed || life.ends_closed_behind_faults()) {
            self.examine_closed();
        }
        self.go_on();
    }

    /// What a killed process leaves to the next one is like what a power loss leaves that takes nothing.
    fn examine_killed(&mut self, killed: Tick) {
        if self.stopped {
            return;
        }
        self.outcome.counts.states_generated += 1;
        self.outcome.counts.states_distinct += 1;
        self.visit(process::everything(self.life.recording(), killed));
    }

    /// An image that was closed in good order is clean, and stays so whatever the disk loses.
    fn examine_closed(&mut self) {
        let life = self.life;
        let end = life.recording().end();
        let expectation = self.expectations.of_life(life, end);
        let judged = self.bench.judge_closed(life.last.clone(), &expectation);
        self.settle_closed(judged);
        let hashes = |disks: &Disks<PageImage>| disks.map(|_, image| image.content_hash());
        let nothing = Survivors::from_parts(Vec::new());
        match CrashState::build(life.recording(), end, &nothing) {
            Ok(durable) if hashes(&durable.disks) == hashes(&life.last) => {}
            Ok(durable) => {
                let judged = self.bench.judge_closed(durable.disks, &expectation);
                self.settle_closed(judged);
            }
            Err(mismatch) => keep(&mut self.outcome.broken, mismatch.to_string()),
        }
    }

    /// What is wrong with an image that was closed in good order needs no power loss.
    fn settle_closed(&mut self, judged: Judged) {
        self.outcome.counts.states_generated += 1;
        self.outcome.counts.states_distinct += 1;
        let hash = judged.image.state.image.content_hash();
        self.settle(hash, judged.verdict, || None);
    }

    fn explore(&mut self) {
        let life = self.life;
        let contract = self.case.scenario.contract;
        let promises = life.promises();
        let mut sampling = self.draw.fork("crash");
        let expectations = Expectations(Rc::clone(&self.expectations.0));
        let budget = Budget {
            states: self.effort.states.states.saturating_sub(self.spent).max(1),
            ..self.effort.states
        };
        let mut allowance = Allowance::new(self.effort.work, FEWEST_STATES);
        let mut explorer = Explorer::new(life.recording(), contract, budget, &promises)
            .with_draw(move |bound| sampling.below(bound))
            .with_expectation(move |cut| expectations.of_life(life, cut).key());
        if self.effort.spares && !contract.destroys() {
            explorer = explorer.with_filter();
        }
        while let Some(state) = explorer.next() {
            let (before, cut) = (self.outcome.counts.work, state.cut);
            let footprint = self.visit(state);
            self.observer.begin(Stage::Explore);
            let confirmed = explorer.learn(footprint);
            self.audited(confirmed, cut);
            if self.stopped || !allowance.pay(self.outcome.counts.work - before) {
                break;
            }
        }
        self.count(explorer.explored());
    }

    /// Judges what is around requests that are news, for at most an eighth of what the run may cost.
    fn look_at_news(&mut self) {
        if !matches!(self.focus, Focus::News) {
            return;
        }
        let recording = self.life.recording();
        let Some(watcher) = &self.watcher else {
            return;
        };
        let crashes = watcher.news(recording);
        let share = (self.effort.states.states / 8)
            .checked_div(count(crashes.len()))
            .unwrap_or(0);
        for crash in crashes {
            self.spent += self.toggle(&crash, share);
        }
    }

    /// Judges the neighbours of a power loss, at most so many, and says how many. One that this life no longer has has
    /// none.
    fn toggle(&mut self, around: &Crash, most: u64) -> u64 {
        let life = self.life;
        let contract = self.case.scenario.contract;
        let mut draw = self.draw.fork("toggle");
        let Ok((cut, survivors)) = around.find(life.recording()) else {
            return 0;
        };
        let mut seen = BTreeSet::new();
        for (cut, near) in neighbours(life.recording(), contract, cut, &survivors, &mut draw) {
            if self.stopped || count(seen.len()) >= most {
                break;
            }
            self.outcome.counts.states_generated += 1;
            match CrashState::build(life.recording(), cut, &near) {
                Ok(state) if seen.insert((state.hash, cut)) => {
                    self.outcome.counts.states_distinct += 1;
                    self.visit(state);
                }
                Ok(_) => {}
                Err(mismatch) => keep(&mut self.outcome.broken, mismatch.to_string()),
            }
        }
        count(seen.len())
    }

    /// Judges a state of each class.
    fn cover(&mut self, from: From, most: u64) {
        let life = self.life;
        let last = life
            .lived
            .history
            .last()
            .filter(|_| from == From::LastOperation);
        let from = last.map_or_else(Tick::default, |last| last.submitted);
        let expectations = Expectations(Rc::clone(&self.expectations.0));
        let key = move |cut| expectations.of_life(life, cut).key();
        let (recording, contract) = (life.recording(), self.case.scenario.contract);
        let promises = life.promises();
        let mut classes = Classes::new(recording, contract, &promises, from, most, key);
        while !self.stopped
            && let Some(task) = classes.next()
        {
            match task {
                Task::Judge(state) => classes.learn(self.visit(state)),
                Task::Audit(state) => {
                    let cut = state.cut;
                    let footprint = self.visit(state);
                    self.audited(classes.confirms(footprint.as_ref()), cut);
                }
            }
            self.observer.begin(Stage::Explore);
        }
        self.count_classes(&classes.covered());
    }

    fn count_classes(&mut self, covered: &Covered) {
        let Covered {
            cuts,
            incomplete,
            states,
            classes,
            judged,
            audited,
        } = *covered;
        let counts = &mut self.outcome.counts;
        counts.cuts += cuts;
        counts.cuts_incomplete += incomplete;
        counts.states_covered = counts.states_covered.saturating_add(states);
        counts.states_audited += audited;
        counts.states_generated += classes + audited;
        counts.states_distinct += judged + audited;
    }

    /// Another state of a class that survived must survive, and be judged by the same sectors.
    fn audited(&mut self, confirmed: bool, cut: Tick) {
        if !confirmed {
            let how = format!(
                "at moment {} two crash states differ only in what the judgement of one did not read, and the other was \
                 judged by other sectors",
                cut.0
            );
            keep(&mut self.outcome.broken, how);
        }
    }

    /// Judges a state, and says what its verdict hangs on, where that is known.
    fn visit(&mut self, state: CrashState) -> Option<Footprint> {
        let life = self.life;
        let expectation = self.expectations.of_life(life, state.cut);
        let judged = self.bench.judge(state.disks, &expectation);
        self.outcome.counts.work += judged.work();
        let crash = || Crash::of(life.recording(), state.cut, &state.survivors);
        let survived = judged.verdict.survived();
        let repaired = judged.repairs().next().is_some();
        self.settle(state.hash, judged.verdict.clone(), || Some(crash()));
        if let Some(recovered) = &judged.image.recovered {
            let hash = recovered.image.content_hash();
            self.digest.update(&hash.0.to_le_bytes());
        }
        self.outcome.counts.repairs += u64::from(repaired);
        if let Some(watcher) = &mut self.watcher {
            watcher.judged(state.cut, &state.survivors, &judged.image);
        }
        if !survived {
            return None;
        }
        let footprint = self.footprint(&judged.image);
        self.outcome.counts.survived += 1;
        match judged.standing() {
            Standing::Right => {}
            Standing::Refused => self.outcome.counts.refused += 1,
            Standing::Undetectable => self.outcome.counts.undetectable += 1,
        }
        // Of what a disk destroys in the middle of a repair as well nothing is promised that is not of its first loss.
        let interrupt = repaired
            && !self.case.scenario.contract.destroys()
            && is_due(self.outcome.counts.repairs, self.effort.repair_every);
        let serve = is_due(self.outcome.counts.survived, self.effort.serve_every);
        if interrupt || serve {
            self.passed.push(Passed {
                crash: crash(),
                judged,
                expectation,
                interrupt,
                serve,
            });
        }
        footprint
    }

    /// What a verdict hangs on, where somebody wants to know.
    fn footprint(&self, judgement: &Judgement) -> Option<Footprint> {
        let asked = match self.effort.reach {
            Reach::Classes { .. } => true,
            Reach::Levels => self.effort.spares,
        };
        if asked { judgement.footprint() } else { None }
    }

    /// What may come after the first power loss, once all states of the first are judged: whatever is
    /// found with one power loss is told with one.
    fn go_on(&mut self) {
        let before = self.outcome.counts.work;
        for passed in std::mem::take(&mut self.passed) {
            if self.stopped {
                break;
            }
            if passed.interrupt {
                self.interrupt(&passed);
            }
            if passed.serve && !self.stopped {
                self.serve(&passed);
            }
            if self.has_done_enough(before) {
                break;
            }
        }
    }

    /// Whether the second power losses of a workload, which began when judging had been so much work, are by far more than
    /// the first may be. Where every state is asked for there is no such limit.
    fn has_done_enough(&self, before: u64) -> bool {
        const SECOND: u64 = 3;
        let most = self.effort.work.saturating_mul(SECOND);
        self.effort.reach == Reach::Levels && self.outcome.counts.work - before > most
    }

    /// Loses power inside the repair, inside the repair of what that leaves, and so on.
    fn interrupt(&mut self, passed: &Passed<'_>) {
        for (disk, attempt, recording) in passed.judged.repairs() {
            let nest = Nest {
                passed,
                disk,
                seen: RefCell::default(),
            };
            self.nest(&nest, &[], attempt, recording);
        }
    }

    /// Loses power inside an attempt to repair what the earlier ones left, which `way` tells.
    fn nest(
        &mut self,
        nest: &Nest<'_, '_>,
        way: &[(usize, Crash)],
        attempt: usize,
        recording: &Recording,
    ) {
        let contract = self.case.scenario.contract;
        if let Reach::Classes { most, .. } = self.effort.reach
            && has_classes(contract)
        {
            let mut classes = Classes::new(recording, contract, &[], Tick::default(), most, |_| 0);
            while !self.stopped
                && let Some(task) = classes.next()
            {
                match task {
                    Task::Judge(state) => {
                        let footprint = self.judge_nested(nest, way, attempt, recording, state);
                        classes.learn(footprint);
                    }
                    Task::Audit(state) => {
                        let cut = state.cut;
                        let footprint = self.judge_nested(nest, way, attempt, recording, state);
                        self.audited(classes.confirms(footprint.as_ref()), cut);
                    }
                }
                self.observer.begin(Stage::Explore);
            }
            self.count_classes(&classes.covered());
            return;
        }
        let index = self.outcome.counts.states_judged;
        let mut sampling = self.draw.fork_indexed("inner", index);
        // The deeper, the fewer: what an inner power loss leaves is mostly what an outer one left.
        let depth = u64::try_from(way.len()).expect("a few power losses");
        let budget = Budget {
            states: (self.effort.inner_states.states >> (2 * depth)).max(1),
            ..self.effort.inner_states
        };
        let mut allowance = Allowance::inner(self.effort);
        let mut explorer = Explorer::new(recording, contract, budget, &[])
            .with_draw(move |bound| sampling.below(bound));
        for state in explorer.by_ref() {
            let before = self.outcome.counts.work;
            self.judge_nested(nest, way, attempt, recording, state);
            self.observer.begin(Stage::Explore);
            if self.stopped || !allowance.pay(self.outcome.counts.work - before) {
                break;
            }
        }
        self.count(explorer.explored());
    }

    /// Judges what a power loss inside a repair left, unless another way has come to the same; says what the verdict
    /// hangs on.
    fn judge_nested(
        &mut self,
        nest: &Nest<'_, '_>,
        way: &[(usize, Crash)],
        attempt: usize,
        recording: &Recording,
        state: CrashState,
    ) -> Option<Footprint> {
        if let Some(known) = nest.seen.borrow().get(&state.hash) {
            self.outcome.counts.states_known += 1;
            return known.clone();
        }
        let Passed {
            judged,
            expectation,
            ..
        } = nest.passed;
        let mut longer = way.to_vec();
        longer.push((attempt, Crash::of(recording, state.cut, &state.survivors)));
        let image = state.disks.into_image();
        let again = self
            .bench
            .judge_repair(judged, nest.disk, image, expectation);
        self.outcome.counts.work += again.work();
        self.outcome.counts.states_nested += 1;
        if let Some(watcher) = &mut self.watcher {
            watcher.judged_nested(longer.len(), &again);
        }
        self.settle(state.hash, again.verdict.clone(), || nest.crash(&longer));
        let footprint = self.footprint(&again);
        let mut seen = nest.seen.borrow_mut();
        seen.insert(state.hash, footprint.clone());
        drop(seen);
        let deeper = u32::try_from(longer.len()).is_ok_and(|depth| depth < self.effort.depth);
        if deeper && again.verdict.survived() {
            for (attempt, recording) in again.repairs.iter().enumerate() {
                if !self.stopped {
                    self.nest(nest, &longer, attempt, recording);
                }
            }
        }
        footprint
    }

    /// Lets work go on after recovery, and loses power in that too.
    fn serve(&mut self, passed: &Passed<'_>) {
        let bench = self.bench;
        let recovered = passed.judged.recovered();
        let Service {
            verdict,
            recording,
            ledger,
        } = bench.serve(&passed.judged, &passed.expectation);
        let survived = verdict.survived();
        self.outcome.counts.served += 1;
        self.settle(recovered.image.content_hash(), verdict, || {
            Some(passed.then(Then::Service { crash: None }))
        });
        let Some(ledger) = ledger.filter(|_| survived && !self.stopped) else {
            return;
        };
        let expectations = Expectations::default();
        let expect = |cut: Tick| expectations.at(cut, || ledger.expect(Moment(cut.0)));
        let judge = |disks, cut: Tick| bench.judge_in_service(&passed.judged, disks, &expect(cut));
        let crash = |crash| passed.then(Then::Service { crash: Some(crash) });
        self.explore_inner(&Inner {
            recording: &recording,
            promises: &promises(&ledger),
            key: &|cut| expect(cut).key(),
            judge: &judge,
            crash: &crash,
        });
    }

    /// Loses power a second time.
    fn explore_inner(&mut self, inner: &Inner<'_>) {
        let index = self.outcome.counts.states_judged;
        let mut sampling = self.draw.fork_indexed("inner", index);
        let contract = self.case.scenario.contract;
        let budget = self.effort.inner_states;
        let mut allowance = Allowance::inner(self.effort);
        let mut explorer = Explorer::new(inner.recording, contract, budget, inner.promises)
            .with_draw(move |bound| sampling.below(bound))
            .with_expectation(inner.key);
        for state in explorer.by_ref() {
            if self.stopped {
                break;
            }
            let judgement = (inner.judge)(state.disks, state.cut);
            let work = judgement.work();
            self.outcome.counts.work += work;
            self.outcome.counts.states_nested += 1;
            self.settle(state.hash, judgement.verdict, || {
                let crash = Crash::of(inner.recording, state.cut, &state.survivors);
                Some((inner.crash)(Box::new(crash)))
            });
            self.observer.begin(Stage::Explore);
            if !allowance.pay(work) {
                break;
            }
        }
        self.count(explorer.explored());
    }

    fn count(&mut self, explored: Explored) {
        let Explored {
            cuts,
            generated,
            distinct,
            spared,
            audited,
            tails,
        } = explored;
        self.outcome.tails += tails;
        let counts = &mut self.outcome.counts;
        counts.cuts += cuts;
        counts.states_generated += generated;
        counts.states_distinct += distinct;
        counts.states_spared += spared;
        counts.states_audited += audited;
    }

    /// Counts and folds a verdict, and reports what is wrong.
    fn settle(
        &mut self,
        hash: ContentHash,
        verdict: Verdict,
        crash: impl FnOnce() -> Option<Crash>,
    ) {
        self.observer.begin(Stage::Account);
        self.outcome.counts.states_judged += 1;
        self.digest.update(&hash.0.to_le_bytes());
        match verdict {
            Verdict::Survived => self.digest.update(&[0]),
            Verdict::Violated(violation) => {
                self.digest.update(violation.class.to_string().as_bytes());
                self.report(violation, crash());
            }
            Verdict::NotMeasured(why) => {
                self.outcome.counts.not_measured += 1;
                self.outcome.counts.states_judged -= 1;
                keep(&mut self.outcome.not_measured, why);
            }
            Verdict::HarnessBroken(how) => keep(&mut self.outcome.broken, how),
        }
    }

    fn report(&mut self, violation: Violation, crash: Option<Crash>) {
        self.outcome.counts.violations += 1;
        self.stopped |= (self.stop)(&violation);
        let finding = Finding { violation, crash };
        let known = self.outcome.findings.iter_mut();
        let mut same = known.filter(|known| known.violation.class == finding.violation.class);
        match same.next() {
            None => self.outcome.findings.push(finding),
            // One power loss says more than two.
            Some(known) if known.is_late() && !finding.is_late() => *known = finding,
            Some(_) => {}
        }
    }
}

/// Whether all states of a contract are looked through by classes: a judgement of what was destroyed does not tell what
/// it hangs on.
fn has_classes(contract: Contract) -> bool {
    contract >= Contract::Epoch && !contract.destroys()
}

/// How much work a search may still be.
struct Allowance {
    work: u64,
    /// So many more states are visited whatever work they are.
    free: u64,
}

impl Allowance {
    fn new(work: u64, free: u64) -> Self {
        Self { work, free }
    }

    /// That of a second power loss, of which there are many for a workload.
    fn inner(effort: &Effort) -> Self {
        const SHARE: u64 = 16;
        Self::new(effort.work / SHARE, FEWEST_STATES / 4)
    }

    /// Whether anything is left once a state was so much work.
    fn pay(&mut self, work: u64) -> bool {
        self.work = self.work.saturating_sub(work);
        self.free = self.free.saturating_sub(1);
        self.work > 0 || self.free > 0
    }
}

/// A state that passed, to be looked at once more.
struct Passed<'a> {
    crash: Crash,
    judged: Judged,
    expectation: Rc<Expectation<'a>>,
    interrupt: bool,
    serve: bool,
}

impl Passed<'_> {
    /// The crash that left the state, and what came then.
    fn then(&self, then: Then) -> Crash {
        Crash {
            then: Some(then),
            ..self.crash.clone()
        }
    }
}

/// Power losses inside the repairs of one image of one state.
struct Nest<'a, 'l> {
    passed: &'a Passed<'l>,
    disk: Disk,
    /// What they left, whichever way, and what the verdict of each hangs on.
    seen: RefCell<BTreeMap<ContentHash, Option<Footprint>>>,
}

impl Nest<'_, '_> {
    /// The first power loss, and those inside the repairs, each in an attempt.
    fn crash(&self, way: &[(usize, Crash)]) -> Option<Crash> {
        let then = in_repairs(self.disk, way.to_vec());
        then.map(|then| self.passed.then(then))
    }
}

/// A second power loss: in which requests, and what to make of its states.
struct Inner<'a> {
    recording: &'a Recording,
    promises: &'a [Tick],
    /// Names what may be expected at a cut: a loss may have the bytes of an earlier, legal state.
    key: &'a dyn Fn(Tick) -> u128,
    judge: &'a dyn Fn(Disks<PageImage>, Tick) -> Judgement,
    crash: &'a dyn Fn(Box<Crash>) -> Crash,
}

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits 64 bits")
}

/// Whether the `count`th of its kind, from 1, is sampled.
fn is_due(count: u64, every: Option<u64>) -> bool {
    every.is_some_and(|every| (count - 1).is_multiple_of(every))
}

/// The moments at which the guest was promised durability.
fn promises(ledger: &Ledger) -> Vec<Tick> {
    ledger.promises().map(|moment| Tick(moment.0)).collect()
}

fn keep(messages: &mut Vec<String>, message: String) {
    if messages.len() < KEPT && !messages.contains(&message) {
        messages.push(message);
    }
}
