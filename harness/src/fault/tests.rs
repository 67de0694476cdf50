use blkdebug::disks::Disk;
use blkdebug::record::{Effect, Tick};
use blkdebug::rule::{During, Fault, Repeat, Rule, State, Transition, When};
use blkdebug::volatile::Injected;
#[cfg(feature = "defects")]
use engine::defect::{Defect, Flaw};
use engine::device::{Cause, Event, OpKind};
use engine::error::{BadImage, Error, Problem, Refused, Structure};
use engine::image::Unmap;
#[cfg(feature = "defects")]
use engine::preallocation::Preallocation;

use super::campaign::{Plan, campaign};
use super::matrix::{Became, Fails, Past, Way, became, cell};
use crate::campaign::Proceed;
use crate::prng::Prng;
use crate::run::{Case, Life, Schedule, live};
#[cfg(feature = "defects")]
use crate::run::{Effort, run};
use crate::sim::Failure;
use crate::sim::world::Ending;
use crate::workload::generate::scenario;
use crate::workload::ops::{Answer, Operation, OperationId};
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

const WRITE: Operation = Operation::Write {
    offset: 4096,
    len_bytes: 4096,
};
#[cfg(feature = "defects")]
const GROW: Operation = Operation::Grow {
    virtual_bytes: 4 << 20,
    preallocation: Preallocation::Off,
};
/// Where the disk was not, there is neither cluster nor table yet.
#[cfg(feature = "defects")]
const FAR: Operation = Operation::Write {
    offset: 3 << 20,
    len_bytes: 4096,
};
const BESIDE: Operation = Operation::Write {
    offset: 16384,
    len_bytes: 4096,
};
const READ: Operation = Operation::Read {
    offset: 4096,
    len_bytes: 4096,
};

/// A plain image, these operations one after the other, and this rule.
fn plain(operations: &[Operation], rule: Rule) -> Scenario {
    let pins = "version=3,cluster_size=4k,refcount_bits=16,lazy_refcounts=off,backing=none,size=64k,concurrency=1,\
                overlap=off,snapshots=off,bitmaps=off,encrypt=off,compression=off,options=off,manage=off,abandoned=off,\
                data_file=off,preallocation=off,shrink=off,room=any,chain=off,kill=off,extended_l2=off";
    let drawn = scenario(&Prng::from_seed(1), &Pins::parse(pins).unwrap());
    Scenario {
        operations: operations.to_vec(),
        faults: vec![rule],
        ..drawn
    }
}

fn lived(scenario: Scenario) -> Life {
    let case = Case {
        scenario,
        schedule: Schedule::Given(Vec::new()),
    };
    live(&case).unwrap()
}

fn failing(event: Event) -> Rule {
    Rule {
        event: Some(event),
        during: During {
            from: Some(0),
            until: None,
        },
        ..Rule::new(Fault::Fail(Cause::IO))
    }
}

fn answers(life: &Life) -> Vec<Option<Answer>> {
    let history = life.lived.history.iter();
    let answers = history.map(|it| it.completed.map(|(_, answer)| answer));
    answers.collect()
}

fn classes(life: &Life) -> Vec<String> {
    let violations = life.violations().into_iter();
    violations.map(|it| it.class.to_string()).collect()
}

#[cfg(feature = "defects")]
#[test]
fn a_failure_that_nobody_is_told_of_is_seen() {
    let honest = plain(&[WRITE, WRITE], failing(Event::WriteAio));
    let flawed = Scenario {
        flaw: Some(Flaw::Defect(Defect::WriteErrorSwallowed)),
        ..honest.clone()
    };
    let life = lived(honest);
    assert_eq!(answers(&life), [Some(Answer::Failed), Some(Answer::Done)]);
    assert_eq!(classes(&life), [""; 0]);
    assert_eq!(classes(&lived(flawed)), ["progress/untold/write_aio"]);
}

#[test]
fn a_failure_without_a_cause_is_seen() {
    let mut life = lived(plain(&[WRITE, READ], failing(Event::WriteAio)));
    assert_eq!(classes(&life), [""; 0]);
    // The same failure, but the device had failed another request.
    life.injected[0].1.event = Event::L2Update;
    assert_eq!(classes(&life), ["progress/unfounded/device"]);
}

#[test]
fn a_request_of_nobody_is_seen() {
    let mut life = lived(plain(&[WRITE, READ], failing(Event::WriteAio)));
    life.injected[0].1.operation = Some(99);
    assert_eq!(classes(&life)[0], "progress/untold/write_aio");
}

#[test]
fn a_failure_of_another_operations_request_is_no_cause() {
    let rule = failing(Event::WriteAio);
    let mut life = lived(plain(&[WRITE, BESIDE], rule));
    assert_eq!(classes(&life), [""; 0]);
    life.injected[0].1.operation = Some(1);
    let both = ["progress/untold/write_aio", "progress/unfounded/device"];
    assert_eq!(classes(&life), both);
}

/// A guest's flush may put off the freeing of clusters, and nothing that it does before.
#[test]
fn a_flush_that_fails_to_write_refcounts_says_so() {
    let mut life = lived(plain(
        &[WRITE, Operation::Flush],
        failing(Event::WriteCompressed),
    ));
    assert_eq!(life.faults, 0, "nothing is written compressed");
    let requesters = life.lived.requesters[0].iter();
    let entries = life.lived.recordings[0].entries.iter();
    let mut flushes = entries
        .zip(requesters)
        .filter(|(entry, requester)| entry.op.kind() == OpKind::Flush && **requester == Some(1));
    let last = flushes.next_back().map(|(entry, _)| entry.clone());
    let last = last.expect("a guest's flush flushes");
    life.faults = 1;
    let mut at = |at: Tick, event| {
        life.injected = vec![(
            Disk::Image,
            Injected {
                request: None,
                event,
                after: None,
                kind: OpKind::Write,
                range: (0, 512),
                operation: Some(1),
                at,
                fault: Fault::Fail(Cause::IO),
            },
        )];
        classes(&life)
    };
    let before = Tick(last.submitted.0 - 1);
    let (behind, _) = last.completed.unwrap();
    let part = Event::RefblockUpdatePart;
    assert_eq!(at(behind, part), [""; 0]);
    assert_eq!(at(before, part), ["progress/untold/refblock_update_part"]);
    assert_eq!(at(behind, Event::RefblockAllocHookup).len(), 1);
}

/// What failed before the image was opened leaves nothing in doubt afterwards, nor does what failed as it was closed.
#[test]
fn doubt_ends_as_the_image_is_opened() {
    let operations = [WRITE, Operation::Reopen, READ];
    let rule = Rule {
        kind: Some(OpKind::Flush),
        ..failing(Event::FlushToDisk)
    };
    let mut life = lived(plain(&operations, rule));
    let (done, failed) = (Some(Answer::Done), Some(Answer::Failed));
    assert_eq!(answers(&life)[1..], [failed, done], "{:?}", life.injected);
    assert_eq!(life.injected[0].1.operation, Some(1));
    assert_eq!(classes(&life), [""; 0]);
    life.lived.failures.push(Failure {
        id: Some(OperationId(2)),
        error: Refused::Distrusted.into(),
    });
    assert_eq!(classes(&life), ["progress/unfounded/refused"]);
}

/// An image that makes no sense is explained by what a device lost, and only by that.
/// Flushes fail from operation 1 on, and forget what they were to make durable.
fn flushes_forget() -> Rule {
    Rule {
        kind: Some(OpKind::Flush),
        during: During {
            from: Some(1),
            until: None,
        },
        ..Rule::new(Fault::Forget(Cause::IO))
    }
}

#[test]
fn a_bad_image_is_explained_by_what_was_lost() {
    // Zeroes are written to a table, and to nothing else.
    let zeroes = Operation::WriteZeroes {
        offset: 4096,
        len_bytes: 4096,
        unmap: Unmap::Allow,
    };
    let operations = [zeroes, Operation::Flush, READ];
    let rule = flushes_forget();
    let life = || {
        let mut life = lived(plain(&operations, rule.clone()));
        assert_eq!(life.faults, 1);
        assert_eq!(classes(&life), [""; 0]);
        life.lived.failures.push(Failure {
            id: Some(OperationId(2)),
            error: Error::BadImage(BadImage {
                structure: Structure::L2Table,
                offset: 0,
                index: None,
                problem: Problem::Field("nonsense".into()),
            }),
        });
        life
    };
    let lost = life();
    assert_eq!(classes(&lost), [""; 0]);
    let mut kept = life();
    for entry in &mut kept.lived.recordings[0].entries {
        entry.effect = Effect::Whole;
    }
    assert_eq!(classes(&kept), ["progress/unfounded/bad-image"]);
    let mut of_data = life();
    for entry in &mut of_data.lived.recordings[0].entries {
        entry.event = Event::WriteAio;
    }
    assert_eq!(classes(&of_data), ["progress/unfounded/bad-image"]);
    if let Some(failure) = of_data.lived.failures.last_mut()
        && let Error::BadImage(bad) = &mut failure.error
    {
        bad.problem = Problem::Decompress;
    }
    assert_eq!(classes(&of_data), [""; 0]);
}

#[test]
fn an_image_in_doubt_is_refused_until_it_is_opened_again() {
    let operations = [
        WRITE,
        Operation::Flush,
        Operation::Flush,
        Operation::Reopen,
        WRITE,
        Operation::Flush,
    ];
    let rule = flushes_forget();
    let life = lived(plain(&operations, rule));
    let (done, failed) = (Some(Answer::Done), Some(Answer::Failed));
    assert_eq!(answers(&life), [done, failed, failed, failed, done, done]);
    assert_eq!(classes(&life), [""; 0]);
    // Who could not close the image leaves what a killed process leaves.
    assert_eq!((life.lived.revived.len(), life.later.len()), (1, 1));
    let became = became(&life, 0);
    assert_eq!(became, [Became::Told, Became::Reopened]);
}

#[test]
fn a_run_ends_where_the_power_goes_out() {
    let rule = Rule {
        fault: Fault::PowerCut(When::During),
        ..failing(Event::WriteAio)
    };
    let life = lived(plain(&[WRITE, READ], rule));
    assert_eq!(life.lived.ending, Ending::PowerLost);
    assert_eq!(answers(&life), [None]);
    assert_eq!(classes(&life), [""; 0]);
}

/// Each disk is in a state of its own, which its events change.
#[test]
fn a_rule_waits_for_a_state_that_an_event_brings_about() {
    let rule = Rule {
        state: Some(State(2)),
        repeat: Repeat::Always,
        ..failing(Event::WriteAio)
    };
    let mut scenario = plain(&[WRITE, Operation::Flush, WRITE], rule);
    scenario.transitions = vec![Transition {
        event: Event::FlushToOs,
        from: Some(State::default()),
        to: State(2),
    }];
    let (done, failed) = (Some(Answer::Done), Some(Answer::Failed));
    let life = lived(scenario.clone());
    assert_eq!(answers(&life), [done, done, failed]);
    assert_eq!(classes(&life), [""; 0]);
    scenario.transitions.clear();
    assert_eq!(answers(&lived(scenario)), [done; 3]);
}

#[test]
fn what_is_drawn_selects_by_everything_there_is() {
    let pins = Pins::parse("faults=on").unwrap();
    let drawn = (0..400).map(|seed| scenario(&Prng::from_seed(seed), &pins));
    let drawn: Vec<Scenario> = drawn.collect();
    let rules = || drawn.iter().flat_map(|scenario| &scenario.faults);
    let count = |selects: &dyn Fn(&Rule) -> bool| rules().filter(|rule| selects(rule)).count();
    assert!(count(&|rule| rule.state.is_some()) > 40);
    assert!(count(&|rule| rule.sector.is_some()) > 20);
    assert!(count(&|rule| rule.after.is_some()) > 20);
    assert!(count(&|rule| rule.disk == Disk::Data) > 5);
    assert!(count(&|rule| rule.disk == Disk::Backing) > 5);
    assert!(count(&|rule| matches!(rule.fault, Fault::ForgetSome(..))) > 40);
    for scenario in &drawn {
        let waits = scenario.faults.iter().any(|rule| rule.state.is_some());
        assert_eq!(waits, !scenario.transitions.is_empty());
    }
}

#[test]
fn a_full_device_has_room_again_once_it_is_told() {
    let rule = Rule {
        repeat: Repeat::Always,
        during: During {
            from: Some(0),
            until: Some(1),
        },
        ..Rule::new(Fault::Full(512))
    };
    let life = lived(plain(&[WRITE, WRITE, READ], rule));
    let (done, failed) = (Some(Answer::Done), Some(Answer::Failed));
    assert_eq!(answers(&life), [failed, done, done]);
    assert_eq!(classes(&life), [""; 0]);
}

#[test]
fn an_event_fails_for_good_until_the_fault_is_taken_away() {
    let way = |past| Way {
        past,
        fails: Fails::With(Cause::NO_SPACE),
        repeat: Repeat::Always,
    };
    let whole = cell(Event::WriteAio, way(Past::Whole));
    assert!(
        whole.found.is_empty() && whole.broken.is_empty(),
        "{whole:?}"
    );
    for became in whole.became.keys() {
        // Asked again, it fails again, and what is then asked with the fault gone succeeds.
        assert_eq!(became[..2], [Became::Told, Became::ToldAgain]);
        let last = became.last().unwrap();
        assert!(
            matches!(last, Became::Again | Became::Reopened),
            "{became:?}"
        );
    }
    let repaired = cell(Event::ReftableLoad, way(Past::PowerLoss));
    assert!(
        repaired.found.is_empty() && repaired.broken.is_empty(),
        "{repaired:?}"
    );
    for became in repaired.became.keys() {
        assert_eq!(became[0], Became::NotOpened);
        assert_eq!(became.last(), Some(&Became::Opened), "{became:?}");
    }
}

#[test]
fn what_cannot_fail_so_is_not_tried() {
    let yet = |event| {
        Way {
            past: Past::Whole,
            fails: Fails::ButHappens,
            repeat: Repeat::Once,
        }
        .applies_to(event)
    };
    assert!(!yet(Event::L2Load) && !yet(Event::FlushToDisk) && yet(Event::L2Update));
}

#[test]
fn a_campaign_of_faults_does_not_depend_on_the_number_of_threads() {
    let plan = Plan {
        seed: 3,
        faults: 60,
        pins: Pins::parse("operations=5").unwrap(),
    };
    let done = |jobs| campaign(&plan, jobs, &mut |_| Proceed::GoOn).unwrap();
    let (one, three) = (done(1), done(3));
    assert_eq!((one.digest, one.counts), (three.digest, three.counts));
    assert_eq!(one.injected, three.injected);
    assert!(
        one.counts.faults >= 60 && one.found.is_empty(),
        "{:?}",
        one.found
    );
    let counted: u64 = one.injected.values().sum();
    assert_eq!(counted, one.counts.faults);
}

/// What is broken on purpose, the workload that shows it, and the rule that makes it fail.
#[cfg(feature = "defects")]
fn mishandled() -> [(Defect, Vec<Operation>, Rule); 4] {
    use Operation::Flush;
    let persisting = Rule {
        fault: Fault::Persist(Cause::IO, None),
        during: During {
            from: Some(1),
            until: None,
        },
        ..failing(Event::L1Update)
    };
    let forgetting = Rule {
        fault: Fault::Forget(Cause::IO),
        during: During {
            from: Some(3),
            until: None,
        },
        ..failing(Event::FlushToDisk)
    };
    [
        (
            Defect::WriteErrorSwallowed,
            vec![WRITE],
            failing(Event::WriteAio),
        ),
        (
            Defect::CleanAfterFailedWrite,
            // The first write makes the table, which is linked at once.
            vec![WRITE, Flush, BESIDE, Flush, Flush],
            Rule {
                during: During {
                    from: Some(3),
                    until: None,
                },
                ..failing(Event::L2Update)
            },
        ),
        (
            Defect::FailedFlushTaken,
            vec![WRITE, Flush, BESIDE, Flush, Flush],
            forgetting,
        ),
        (Defect::HalfLinkedFreed, vec![GROW, FAR, Flush], persisting),
    ]
}

#[cfg(feature = "defects")]
#[test]
fn mishandled_errors_are_seen() {
    let mut effort = Effort::campaign();
    effort.states.states = 60;
    effort.inner_states.states = 4;
    for (defect, operations, rule) in mishandled() {
        let found = |flaw| {
            let scenario = Scenario {
                flaw,
                ..plain(&operations, rule.clone())
            };
            let case = Case {
                scenario,
                schedule: Schedule::Given(Vec::new()),
            };
            let outcome = run(&case, &effort).unwrap();
            assert!(outcome.counts.faults > 0, "{defect:?}");
            let findings = outcome.findings.into_iter();
            let classes = findings.map(|it| it.violation.class.to_string());
            classes.collect::<Vec<String>>()
        };
        assert_eq!(found(None), [""; 0], "{defect:?}");
        assert!(!found(Some(Flaw::Defect(defect))).is_empty(), "{defect:?}");
    }
}
