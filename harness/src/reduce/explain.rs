//! Finding the sentence behind a failing state of a case.

use blkdebug::disks::Disks;
use blkdebug::record::{Recording, Tick};
use engine::device::PageImage;

use crate::crash::explain::{self, Explanation, Failing, Relation};
use crate::crash::state::CrashState;
use crate::guest::Ledger;
use crate::oracle::{Verdict, Violation};
use crate::run::{Bench, Case, Finding, Life};
use crate::trace::{Crash, Then, in_repairs};
use crate::workload::ops::Moment;

/// A failing state in which only what matters is lost.
pub(super) struct Told {
    pub(super) violation: Violation,
    pub(super) crash: Option<Crash>,
    pub(super) sentence: Option<String>,
}

/// A power loss whose survivors are varied.
struct Varied<'a> {
    recording: &'a Recording,
    promises: Vec<Tick>,
    crash: &'a Crash,
}

/// Lets survive what can, and names what is still in the wrong order.
pub(super) fn explain(case: &Case, life: &Life, finding: Finding) -> Told {
    match tell(case, life, &finding) {
        Some(told) => told,
        None => Told {
            violation: finding.violation,
            crash: finding.crash,
            sentence: None,
        },
    }
}

fn tell(case: &Case, life: &Life, finding: &Finding) -> Option<Told> {
    let crash = finding.crash.as_ref()?;
    let bench = Bench::of(case, life);
    let (cut, survivors) = crash.find(life.recording()).ok()?;
    let expectation = life.expect(cut);
    let first = |disks| bench.judge(disks, &expectation);
    let outer = Varied {
        recording: life.recording(),
        promises: life.promises(),
        crash,
    };
    let Some(then) = &crash.then else {
        let mut judge = |disks, _| first(disks).verdict;
        let (told, relation) = vary(&outer, finding, &mut judge)?;
        // Where the disk destroys what was durable, the order of writes is not the cause.
        let destroys = case.scenario.contract.destroys();
        return Some(Told {
            crash: Some(told.crash?),
            sentence: relation.filter(|_| !destroys),
            violation: told.violation,
        });
    };
    let state = CrashState::build(life.recording(), cut, &survivors).ok()?;
    let before = first(state.disks);
    match then {
        Then::Repair { disk, .. } => {
            // The last of the power losses is the one that is varied.
            let mut way = Vec::new();
            let mut last = before.of(*disk)?.clone();
            let mut next = then;
            while let Then::Repair { attempt, crash, .. } = next {
                let Some(deeper) = &crash.then else {
                    let inner = Varied {
                        recording: last.repairs.get(*attempt)?,
                        promises: Vec::new(),
                        crash,
                    };
                    let mut again = |disks: Disks<PageImage>, _| {
                        let image = disks.into_image();
                        bench
                            .judge_repair(&before, *disk, image, &expectation)
                            .verdict
                    };
                    let (told, sentence) = vary(&inner, finding, &mut again)?;
                    way.push((*attempt, told.crash?));
                    let then = in_repairs(*disk, way)?;
                    return Some(within(outer.crash, then, told.violation, sentence));
                };
                let recording = last.repairs.get(*attempt)?;
                let (cut, survivors) = crash.find(recording).ok()?;
                let state = CrashState::build(recording, cut, &survivors).ok()?;
                let image = state.disks.into_image();
                last = bench.judge_repair(&before, *disk, image, &expectation);
                way.push((*attempt, (**crash).clone()));
                next = deeper;
            }
            None
        }
        Then::Service { crash: None } => None,
        Then::Service { crash: Some(crash) } => {
            let service = bench.serve(&before, &expectation);
            let ledger = service.ledger?;
            let inner = Varied {
                recording: &service.recording,
                promises: promises(&ledger),
                crash,
            };
            let mut again = |disks: Disks<PageImage>, cut: Tick| {
                let expectation = ledger.expect(Moment(cut.0));
                bench.judge_in_service(&before, disks, &expectation).verdict
            };
            let (told, sentence) = vary(&inner, finding, &mut again)?;
            let then = Then::Service {
                crash: Some(Box::new(told.crash?)),
            };
            Some(within(outer.crash, then, told.violation, sentence))
        }
    }
}

fn within(outer: &Crash, then: Then, violation: Violation, sentence: Option<String>) -> Told {
    let crash = Crash {
        then: Some(then),
        ..outer.clone()
    };
    Told {
        violation,
        crash: Some(crash),
        sentence,
    }
}

/// Varies the survivors of one power loss under the same judgement.
fn vary(
    varied: &Varied<'_>,
    finding: &Finding,
    judge: &mut dyn FnMut(Disks<PageImage>, Tick) -> Verdict,
) -> Option<(Told, Option<String>)> {
    let (cut, survivors) = varied.crash.find(varied.recording).ok()?;
    let failing = Failing {
        recording: varied.recording,
        cut,
        survivors: &survivors,
        promises: &varied.promises,
    };
    let class = &finding.violation.class;
    let Explanation { state, relation } = explain::explain(failing, &mut |state| {
        let verdict = judge(state.disks.clone(), state.cut);
        matches!(verdict, Verdict::Violated(violation) if violation.class == *class)
    })
    .ok()??;
    let crash = Crash::of(varied.recording, state.cut, &state.survivors);
    let Verdict::Violated(violation) = judge(state.disks, state.cut) else {
        return None;
    };
    let sentence = (relation != Relation::Anyhow).then(|| relation.to_string());
    let told = Told {
        violation,
        crash: Some(crash),
        sentence: None,
    };
    Some((told, sentence))
}

fn promises(ledger: &Ledger) -> Vec<Tick> {
    ledger.promises().map(|moment| Tick(moment.0)).collect()
}
