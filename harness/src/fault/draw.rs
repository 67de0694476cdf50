//! Faults in drawn workloads, and what is asked of the image once they are gone.
//!
//! They are drawn apart from everything else, so that a workload without them stays what it was.

use blkdebug::class::Class;
use blkdebug::disks::Disk;
use blkdebug::mask::Shape;
use blkdebug::rule::{Chance, During, Fault, Repeat, Rule, State, Tear, Transition, When};
use engine::device::{Cause, Event, OpKind};

use super::events::{Raised, raised};
use crate::prng::Prng;
use crate::workload::ops::Operation;
use crate::workload::shape::{Scenario, Start};

/// Interrupted: what may well succeed when it is asked again.
pub const TRANSIENT: Cause = Cause::Os(4);
/// The causes that requests fail with.
pub const CAUSES: [Cause; 3] = [Cause::IO, Cause::NO_SPACE, TRANSIENT];

/// What most workloads come to, and most hangs on.
const COMMON: [Event; 8] = [
    Event::L1Update,
    Event::L2Update,
    Event::L2AllocWrite,
    Event::RefblockUpdatePart,
    Event::RefblockLoad,
    Event::FlushToDisk,
    Event::WriteAio,
    Event::None,
];

/// The state that drawn rules wait for.
const LATER: State = State(2);

/// Puts faults into a scenario: one or two rules that are gone before some operation, that operation once more, and at
/// the end a reopening, some of the operations again, and another reopening.
pub fn add(prng: &Prng, scenario: &mut Scenario) {
    let mut draw = prng.fork("faults");
    let count = scenario.operations.len();
    // Most faults last for most of the workload: there is more to go wrong.
    let gone = draw.index(count + 1).max(draw.index(count + 1));
    let mut again = vec![Operation::Reopen];
    if count > 0 {
        for _ in 0..draw.between(1, 3) {
            again.push(scenario.operations[draw.index(count)]);
        }
    }
    again.extend([Operation::Flush, Operation::Reopen]);
    if let Some(retried) = gone.checked_sub(1) {
        insert(scenario, gone, scenario.operations[retried]);
    }
    for operation in again {
        insert(scenario, scenario.operations.len(), operation);
    }
    let until = u64::try_from(gone).expect("a workload is short");
    if draw.chance(1, 2) {
        let storm = storm(&mut draw, until);
        scenario.faults.push(storm);
    }
    for _ in 0..draw.between(1, 3) {
        let rule = rule(&mut draw, scenario, until);
        scenario.faults.push(rule);
    }
    let waits = |rule: &Rule| rule.state.is_some();
    if scenario.faults.iter().any(waits) {
        scenario.transitions = transitions(&mut draw);
    }
}

/// Into the state that rules wait for, and perhaps out of it again.
fn transitions(draw: &mut Prng) -> Vec<Transition> {
    let into = Transition {
        event: *draw.pick(&COMMON),
        from: Some(State::default()),
        to: LATER,
    };
    let mut transitions = vec![into];
    for to in [State::default(), State(LATER.0 + 1)] {
        if draw.chance(1, 3) {
            transitions.push(Transition {
                event: *draw.pick(&COMMON),
                from: Some(LATER),
                to,
            });
        }
    }
    transitions
}

/// Puts an operation into a workload where that means anything: no snapshot is taken twice, and so on.
pub(super) fn insert(scenario: &mut Scenario, at: usize, operation: Operation) {
    scenario.operations.insert(at, operation);
    if scenario.check().is_err() {
        scenario.operations.remove(at);
    }
}

/// A device on which any request may fail, for some time.
fn storm(draw: &mut Prng, until: u64) -> Rule {
    let fault = if draw.chance(1, 2) {
        Fault::Fail(*draw.pick(&CAUSES))
    } else {
        Fault::Persist(*draw.pick(&CAUSES), None)
    };
    Rule {
        during: During {
            from: (until > 0).then(|| draw.below(until).min(draw.below(until))),
            until: Some(until),
        },
        chance: Some(Chance {
            one_in: draw.between(2, 12),
            seed: draw.below(1 << 16),
        }),
        repeat: Repeat::Always,
        ..Rule::new(fault)
    }
}

fn rule(draw: &mut Prng, scenario: &Scenario, until: u64) -> Rule {
    let fault = fault(draw);
    let mut rule = Rule::new(fault);
    rule.disk = disk(draw, scenario);
    select(draw, &mut rule);
    rule.skip = match draw.below(6) {
        0..4 => 0,
        4 => draw.below(4),
        _ => draw.below(40),
    };
    if draw.chance(1, 2) {
        rule.repeat = Repeat::Always;
        rule.during.until = Some(until);
        if draw.chance(1, 3) {
            rule.chance = Some(Chance {
                one_in: draw.between(2, 6),
                seed: draw.below(1 << 16),
            });
        }
    }
    if draw.chance(1, 3) && until > 0 {
        rule.during.from = Some(draw.below(until));
    }
    if draw.chance(1, 8) {
        rule.state = Some(LATER);
    }
    if draw.chance(1, 12) {
        // What is written again and again stands at the beginning.
        let most = 1 << draw.between(1, 8);
        rule.sector = Some(draw.below(most));
    }
    if matches!(rule.fault, Fault::Full(_) | Fault::EndAt(_)) {
        rule = Rule {
            repeat: Repeat::Always,
            skip: 0,
            chance: None,
            during: During {
                until: Some(until),
                ..rule.during
            },
            ..plain(rule)
        };
    }
    rule
}

/// A rule that hits any request, as a device does that has run out of space.
fn plain(rule: Rule) -> Rule {
    Rule {
        event: None,
        after: None,
        kind: None,
        class: None,
        sector: None,
        ..rule
    }
}

/// The image's own file in most cases.
fn disk(draw: &mut Prng, scenario: &Scenario) -> Disk {
    let Start::New(shape) = &scenario.image else {
        return Disk::Image;
    };
    let other = if shape.data_file.is_some() {
        Disk::Data
    } else if shape.backing.is_some() {
        Disk::Backing
    } else {
        Disk::Image
    };
    if draw.chance(1, 4) {
        other
    } else {
        Disk::Image
    }
}

fn select(draw: &mut Prng, rule: &mut Rule) {
    if rule.disk != Disk::Image {
        return;
    }
    match draw.weighted(&[6, 3, 2, 1, 6]) {
        0 => {
            let is_raised = |event: &Event| !matches!(raised(*event), Raised::Never(_));
            let events: Vec<Event> = Event::ALL.into_iter().filter(is_raised).collect();
            let event = *draw.pick(&events);
            if raised(event) == Raised::Alone || draw.chance(1, 8) {
                rule.after = Some(event);
            } else {
                rule.event = Some(event);
            }
        }
        1 => rule.class = Some(*draw.pick(&Class::ALL)),
        2 => rule.kind = Some(*draw.pick(&OpKind::ALL)),
        3 => {}
        _ => rule.event = Some(*draw.pick(&COMMON)),
    }
}

fn fault(draw: &mut Prng) -> Fault {
    let cause = *draw.pick(&CAUSES);
    match draw.weighted(&[12, 4, 4, 3, 2, 1, 2, 1, 3]) {
        0 => Fault::Fail(cause),
        1 => Fault::Persist(cause, None),
        2 => Fault::Persist(cause, Some(Tear::Shape(*draw.pick(&Shape::ALL)))),
        3 => Fault::Forget(cause),
        4 => Fault::Full(draw.below(128) * 512),
        5 => Fault::EndAt(draw.below(512) * 512),
        6 => Fault::PowerCut(*draw.pick(&When::ALL)),
        7 => Fault::Duplicate(0),
        _ => Fault::ForgetSome(
            cause,
            Chance {
                one_in: draw.between(2, 5),
                seed: draw.below(1 << 16),
            },
        ),
    }
}
