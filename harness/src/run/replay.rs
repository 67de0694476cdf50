//! Running a trace again: the one crash that it names, or every crash state of its run.

use blkdebug::contract::Contract;
use blkdebug::disks::Disks;
use blkdebug::record::{Entry, Recording, RequestName, Tick};
use engine::device::PageImage;

use super::bench::Bench;
use super::live::{Life, live};
use super::{Case, Effort, Schedule, find};
use crate::caught::{Panic, catch};
use crate::crash::state::{CrashState, Mismatch, Survivors};
use crate::oracle::{Acceptance, Judgement, Verdict};
use crate::sim::stage::StageError;
use crate::trace::{Crash, Expected, Misplaced, Then, Trace, operation_text};
use crate::workload::ops::{Happening, Moment};

/// What came of a trace.
#[derive(Debug)]
pub struct Replayed {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the run was the one that the trace was written from, byte by byte; `None` where the trace
    /// does not say.
    pub same_run: Option<bool>,
    /// The digest of the run.
    pub digest: u128,
    /// What happened, in order, up to the power loss.
    pub steps: Vec<Step>,
    /// What became of each volatile request, one line each.
    pub survivors: String,
    /// How many volatile requests did not survive whole, at all power losses together.
    pub lost: usize,
    /// What the power loss left, on each disk that was written to.
    pub crashed: Option<Disks<PageImage>>,
    /// What recovery made of that.
    pub recovered: Option<PageImage>,
}

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub moment: u64,
    /// What.
    pub text: String,
}

/// Why a trace could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreplayable {
    /// The engine cannot make what the run starts with.
    #[error("the image of the trace cannot be made: {0}")]
    Stage(#[from] StageError),
    /// The run no longer does what the trace names.
    #[error("the trace no longer fits the engine: {0}")]
    Misplaced(#[from] Misplaced),
    /// The survivors do not fit.
    #[error("the trace no longer fits the engine: {0}")]
    Mismatch(#[from] Mismatch),
    /// There is nothing to be damaged.
    #[error("the trace no longer fits the engine: its damage changes nothing")]
    NoWound,
    /// The first power loss leaves nothing to repair any more.
    #[error("the trace no longer fits the engine: recovery makes no attempt {0} that writes")]
    NoRepair(usize),
    /// Work goes on only after a repair that was not interrupted.
    #[error("the trace lets work go on inside a repair")]
    ServiceInRepair,
    /// A disk that destroys loses power once.
    #[error(
        "the trace loses power a second time, and nothing is promised of that on a disk that is `{0}`: judge it under \
             `epoch-torn`, or leave the second power loss out"
    )]
    NothingPromised(Contract),
    /// This build has no defects to plant.
    #[error("the trace needs the defect {0} planted, and this build has none")]
    NoDefects(&'static str),
    /// The harness itself panicked.
    #[error("the harness {0}")]
    Panic(Panic),
}

impl Replayed {
    /// Whether this is what the trace expects.
    pub fn is_as(&self, expected: &Expected) -> bool {
        match (&self.verdict, expected) {
            (Verdict::Survived, Expected::Survived) => true,
            (Verdict::Violated(violation), Expected::Violated(class)) => {
                violation.class.to_string() == *class
            }
            _ => false,
        }
    }
}

impl Replayed {
    /// Whether nothing at all is different.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let crashed = |of: &Self| {
            of.crashed
                .as_ref()
                .map(|disks| disks.map(|_, it| it.content_hash()))
        };
        self.verdict == other.verdict
            && (self.digest, self.same_run) == (other.digest, other.same_run)
            && self.steps == other.steps
            && (self.lost, &self.survivors) == (other.lost, &other.survivors)
            && crashed(self) == crashed(other)
            && self.recovered == other.recovered
    }

    /// Says what became of the volatile requests of one more power loss.
    fn tell_survivors(
        &mut self,
        recording: &Recording,
        cut: Tick,
        survivors: &Survivors,
    ) -> Result<(), Unreplayable> {
        let survivors = survivors.fit(&survivors.frontier(recording, cut))?;
        self.lost += survivors
            .parts()
            .iter()
            .filter(|part| !part.is_whole())
            .count();
        self.survivors = survivors.describe(recording);
        Ok(())
    }

    /// A life of which nothing is judged yet.
    fn of(life: &Life) -> Self {
        Self {
            verdict: Verdict::Survived,
            same_run: None,
            digest: life.lived.digest,
            steps: Vec::new(),
            survivors: String::new(),
            lost: 0,
            crashed: None,
            recovered: None,
        }
    }

    /// The state of a second power loss, with its steps behind those of the first.
    fn second(
        &mut self,
        recording: &Recording,
        crash: &Crash,
        during: &str,
        contract: Contract,
    ) -> Result<CrashState, Unreplayable> {
        let (cut, survivors) = crash.find(recording)?;
        survivors.destroy_by(recording, cut, contract)?;
        let requests = recording.entries.iter().flat_map(request_steps);
        let named = requests.map(|step| Step {
            text: format!("{during}: {}", step.text),
            ..step
        });
        self.steps.extend(sorted(named, cut));
        self.tell_survivors(recording, cut, &survivors)?;
        Ok(CrashState::build(recording, cut, &survivors)?)
    }
}

/// Runs a trace.
pub fn replay(trace: &Trace) -> Result<Replayed, Unreplayable> {
    if let Some(flaw) = trace.scenario.flaw
        && !cfg!(feature = "defects")
    {
        return Err(Unreplayable::NoDefects(flaw.name()));
    }
    catch(|| replay_caught(trace)).map_err(Unreplayable::Panic)?
}

fn replay_caught(trace: &Trace) -> Result<Replayed, Unreplayable> {
    let case = Case {
        scenario: trace.scenario.clone(),
        schedule: Schedule::Given(trace.choices.clone()),
    };
    let life = live(&case)?;
    let mut replayed = Replayed {
        same_run: trace.digest.map(|digest| digest == life.lived.digest),
        ..Replayed::of(&life)
    };
    if let Some(wound) = trace.damage {
        replayed.steps = steps(&life, Tick(u64::MAX));
        let judged =
            crate::fault::silent::judge(&case, &life, wound).ok_or(Unreplayable::NoWound)?;
        replayed.verdict = judged.verdict;
        replayed.crashed = Some(judged.disks);
    } else if let Some(crash) = &trace.crash {
        judge_crash(&Bench::of(&case, &life), &case, &life, crash, &mut replayed)?;
    } else {
        replayed.steps = steps(&life, Tick(u64::MAX));
        replayed.verdict = judge_run(&case, &life, &trace.expected)?;
    }
    Ok(replayed)
}

/// What the state that a crash leaves comes to where so much is let pass.
pub(crate) fn judge_accepting(
    case: &Case,
    life: &Life,
    crash: &Crash,
    acceptance: Acceptance,
) -> Result<Verdict, Unreplayable> {
    let bench = Bench::of(case, life).accepting(acceptance.level());
    let mut replayed = Replayed::of(life);
    judge_crash(&bench, case, life, crash, &mut replayed)?;
    Ok(replayed.verdict)
}

/// Judges the run itself and every crash state of it.
fn judge_run(case: &Case, life: &Life, expected: &Expected) -> Result<Verdict, Unreplayable> {
    if let Some(violation) = life.violations().into_iter().next() {
        return Ok(violation.into());
    }
    let mut wanted = |violation: &_| is_expected(violation, expected);
    let outcome = find(case, &Effort::minimise(), &mut wanted).map_err(Unreplayable::Panic)?;
    if let Some(how) = outcome.broken.into_iter().next() {
        return Ok(Verdict::HarnessBroken(how));
    }
    let mut violations: Vec<_> = outcome.findings.into_iter().map(|f| f.violation).collect();
    let asked_for = violations.iter().position(|v| is_expected(v, expected));
    if !violations.is_empty() {
        return Ok(violations.swap_remove(asked_for.unwrap_or(0)).into());
    }
    Ok(match outcome.not_measured.into_iter().next() {
        Some(why) => Verdict::NotMeasured(why),
        None => Verdict::Survived,
    })
}

fn is_expected(violation: &crate::oracle::Violation, expected: &Expected) -> bool {
    match expected {
        Expected::Survived => true,
        Expected::Violated(class) => violation.class.to_string() == *class,
    }
}

/// Judges the state that one crash leaves.
fn judge_crash(
    bench: &Bench<'_>,
    case: &Case,
    life: &Life,
    crash: &Crash,
    replayed: &mut Replayed,
) -> Result<(), Unreplayable> {
    let (cut, survivors) = crash.find(life.recording())?;
    let contract = case.scenario.contract;
    survivors.destroy_by(life.recording(), cut, contract)?;
    let loses_again = match &crash.then {
        None | Some(Then::Service { crash: None }) => false,
        Some(Then::Repair { .. } | Then::Service { crash: Some(_) }) => true,
    };
    if contract.destroys() && loses_again {
        return Err(Unreplayable::NothingPromised(contract));
    }
    let expectation = life.expect(cut);
    let state = CrashState::build(life.recording(), cut, &survivors)?;
    replayed.steps = steps(life, cut);
    replayed.tell_survivors(life.recording(), cut, &survivors)?;
    let judged = bench.judge(state.disks, &expectation);
    let mut crashed = judged.disks.clone();
    let recovered = |judgement: &Judgement| {
        let recovered = judgement.recovered.as_ref();
        recovered.map(|witness| witness.image.clone())
    };
    replayed.verdict = judged.verdict.clone();
    replayed.recovered = recovered(&judged.image);
    match &crash.then {
        None => {}
        Some(then @ Then::Repair { disk, .. }) => {
            let mut last = judged.of(*disk).cloned();
            let mut next = Some(then);
            while let Some(then) = next {
                let Then::Repair { attempt, crash, .. } = then else {
                    return Err(Unreplayable::ServiceInRepair);
                };
                let of_last = last.as_ref().and_then(|last| last.repairs.get(*attempt));
                let recording = of_last.ok_or(Unreplayable::NoRepair(*attempt))?;
                let state = replayed.second(recording, crash, "repair", contract)?;
                let image = state.disks.into_image();
                crashed.put(*disk, image.clone());
                let again = bench.judge_repair(&judged, *disk, image, &expectation);
                replayed.verdict = again.verdict.clone();
                replayed.recovered = recovered(&again);
                last = Some(again);
                next = crash.then.as_ref();
            }
        }
        Some(Then::Service { crash }) => {
            let service = bench.serve(&judged, &expectation);
            replayed.verdict = service.verdict;
            if let (Some(crash), Some(ledger)) = (crash, &service.ledger) {
                let second = replayed.second(&service.recording, crash, "service", contract)?;
                let expectation = ledger.expect(Moment(second.cut.0));
                for (disk, image) in second.disks.iter() {
                    crashed.put(disk, image.clone());
                }
                let again = bench.judge_in_service(&judged, second.disks, &expectation);
                replayed.verdict = again.verdict.clone();
                replayed.recovered = recovered(&again);
            }
        }
    }
    replayed.crashed = Some(crashed);
    Ok(())
}

/// What happened up to `cut`, in order.
fn steps(life: &Life, cut: Tick) -> Vec<Step> {
    let requests = life.recording().entries.iter().flat_map(request_steps);
    let operations = life.lived.history.iter().flat_map(operation_steps);
    sorted(requests.chain(operations), cut)
}

fn sorted(steps: impl Iterator<Item = Step>, cut: Tick) -> Vec<Step> {
    let mut steps: Vec<Step> = steps.filter(|step| step.moment <= cut.0).collect();
    steps.sort_by_key(|step| step.moment);
    steps
}

fn request_steps(entry: &Entry) -> Vec<Step> {
    let name: RequestName = entry.name();
    let sectors = match entry.op.sector_count() {
        0 => String::new(),
        count => format!(", {count} sectors"),
    };
    let submission = Step {
        moment: entry.submitted.0,
        text: format!("{name}{sectors}: submitted"),
    };
    let completion = entry.completed.map(|(tick, answer)| Step {
        moment: tick.0,
        text: match answer {
            Ok(()) => format!("{name}: completed"),
            Err(cause) => format!("{name}: failed, {cause}"),
        },
    });
    std::iter::once(submission).chain(completion).collect()
}

fn operation_steps(happening: &Happening) -> Vec<Step> {
    let name = format!(
        "operation {} ({})",
        happening.id.0,
        operation_text(happening.operation)
    );
    let submission = Step {
        moment: happening.submitted.0,
        text: format!("{name}: submitted"),
    };
    let completion = happening.completed.map(|(moment, answer)| Step {
        moment: moment.0,
        text: format!("{name}: {answer:?}").to_lowercase(),
    });
    std::iter::once(submission).chain(completion).collect()
}
