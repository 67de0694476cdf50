//! Finding the sentence behind a failing state of a case.

use blkdebug::disks::Disk;
use blkdebug::record::{Recording, Tick};
use engine::device::PageImage;

use crate::crash::explain::{self, Explanation, Failing, Relation};
use crate::guest::Ledger;
use crate::oracle::{Judge, Verdict, Violation};
use crate::run::{Case, Finding, Life, Subjects};
use crate::trace::{Crash, Then};
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
    let subjects = Subjects::of(case, life);
    let judge = subjects.judge();
    let (cut, survivors) = crash.find(life.recording()).ok()?;
    let expectation = life.ledger.expect(Moment(cut.0));
    let first = |image| judge.judge(image, &expectation, None);
    let outer = Varied {
        recording: life.recording(),
        promises: promises(&life.ledger),
        crash,
    };
    let Some(then) = &crash.then else {
        let mut judge = |image, _| first(image).verdict;
        let (told, relation) = vary(&outer, finding, &mut judge)?;
        return Some(Told {
            crash: Some(told.crash?),
            sentence: relation,
            violation: told.violation,
        });
    };
    let state = crate::crash::state::CrashState::build(life.recording(), cut, &survivors).ok()?;
    let before = first(state.disks.into_image());
    match then {
        Then::Repair {
            disk: _,
            attempt,
            crash,
        } => {
            let inner = Varied {
                recording: before.repairs.get(*attempt)?,
                promises: Vec::new(),
                crash,
            };
            let mut again = |image, _| {
                judge
                    .judge(image, &expectation, Some(&before.state))
                    .verdict
            };
            let (told, sentence) = vary(&inner, finding, &mut again)?;
            let then = Then::Repair {
                disk: Disk::Image,
                attempt: *attempt,
                crash: Box::new(told.crash?),
            };
            Some(within(outer.crash, then, told.violation, sentence))
        }
        Then::Service { crash: None } => None,
        Then::Service { crash: Some(crash) } => {
            let recovered = before.recovered.as_ref().unwrap_or(&before.state);
            let service = judge.judge_service(recovered, &expectation);
            let ledger = service.ledger?;
            let inner = Varied {
                recording: &service.recording,
                promises: promises(&ledger),
                crash,
            };
            let mut again = |image, cut: Tick| judge_served(&judge, &ledger, image, cut);
            let (told, sentence) = vary(&inner, finding, &mut again)?;
            let then = Then::Service {
                crash: Some(Box::new(told.crash?)),
            };
            Some(within(outer.crash, then, told.violation, sentence))
        }
    }
}

fn judge_served(judge: &Judge<'_>, ledger: &Ledger, image: PageImage, cut: Tick) -> Verdict {
    let expectation = ledger.expect(Moment(cut.0));
    judge.judge(image, &expectation, None).verdict
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
    judge: &mut dyn FnMut(PageImage, Tick) -> Verdict,
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
        let verdict = judge(state.disks.image().clone(), state.cut);
        matches!(verdict, Verdict::Violated(violation) if violation.class == *class)
    })
    .ok()??;
    let crash = Crash::of(varied.recording, state.cut, &state.survivors);
    let Verdict::Violated(violation) = judge(state.disks.into_image(), state.cut) else {
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
