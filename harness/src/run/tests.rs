use blkdebug::record::{Recording, Tick};

use super::*;
use crate::crash::durability::Frontier;
use crate::crash::state::{CrashState, Survivors};
use crate::trace::{Expected, Trace, in_repairs};
use crate::workload::generate::scenario;
use crate::workload::ops::{Answer, Operation, OperationId};
use crate::workload::pin::Pins;
use crate::workload::shape::Start;
use crate::workload::stamp::{SectorValue, Writer};

fn drawn(seed: u64) -> Case {
    let prng = Prng::from_seed(seed);
    Case {
        scenario: scenario(&prng, &Pins::default()),
        schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
    }
}

fn small() -> Effort {
    let mut effort = Effort::campaign();
    effort.states.states = 60;
    effort.inner_states.states = 6;
    effort
}

#[test]
fn a_run_is_a_function_of_its_case() {
    for seed in 0..20 {
        let case = drawn(seed);
        let (one, two) = (run(&case, &small()).unwrap(), run(&case, &small()).unwrap());
        assert_eq!(one.digest, two.digest);
        assert_eq!(one.counts, two.counts);
    }
}

#[test]
fn a_schedule_given_by_its_choices_is_the_drawn_one() {
    for seed in 0..20 {
        let case = drawn(seed);
        let outcome = run(&case, &small()).unwrap();
        let given = Case {
            schedule: Schedule::Given(outcome.choices.clone()),
            ..case
        };
        assert_eq!(run(&given, &small()).unwrap().digest, outcome.digest);
    }
}

#[test]
fn every_state_of_a_budget_is_judged_or_accounted_for() {
    for seed in 0..20 {
        let counts = run(&drawn(seed), &small()).unwrap().counts;
        assert!(counts.states_distinct >= 3, "{counts:?}");
        let accounted = [
            counts.states_judged,
            counts.states_spared,
            counts.not_measured,
            counts.states_known,
        ];
        assert!(accounted.iter().sum::<u64>() >= counts.states_distinct);
        assert!(counts.states_judged > counts.states_audited);
    }
}

/// An image whose counts are gone, opened and left.
fn abandoned(seed: u64) -> Case {
    let pins = Pins::parse("abandoned=on,operations=1");
    let prng = Prng::from_seed(seed);
    Case {
        scenario: scenario(&prng, &pins.unwrap()),
        schedule: Schedule::Given(Vec::new()),
    }
}

#[test]
fn power_is_lost_inside_the_repair_of_what_a_repair_left() {
    let nested = |case: &Case, depth| {
        let mut inner_states = small().inner_states;
        inner_states.states = 256;
        let effort = Effort {
            inner_states,
            depth,
            repair_every: Some(1),
            serve_every: None,
            ..small()
        };
        let outcome = run(case, &effort).unwrap();
        assert_eq!(outcome.findings, []);
        let Counts {
            states_nested,
            states_known,
            ..
        } = outcome.counts;
        states_nested + states_known
    };
    let nested = |depth| {
        (1..6)
            .map(|seed| nested(&abandoned(seed), depth))
            .sum::<u64>()
    };
    // Whether anything new is left there is for the engine to say; a repair that is begun again mostly comes by the
    // same states.
    let [one, two, three] = [1, 2, 3].map(nested);
    assert!(0 < one && one < two && two <= three, "{one} {two} {three}");
}

#[test]
fn a_trace_tells_of_power_losses_inside_repairs_of_repairs() {
    let case = abandoned(1);
    let life = live(&case).unwrap();
    let bench = Bench::of(&case, &life);
    let nothing = |recording: &Recording| {
        let nothing = Survivors::nothing(&Frontier::at(recording, Tick(0)));
        let state = CrashState::build(recording, Tick(0), &nothing).unwrap();
        (Crash::of(recording, Tick(0), &nothing), state)
    };
    let (crash, state) = nothing(life.recording());
    let expectation = life.expect(Tick(0));
    let judged = bench.judge(state.disks, &expectation);
    let (disk, attempt, repair) = judged.repairs().next().unwrap();
    // A repair of which nothing is left is to be done again.
    let (inner, _) = nothing(repair);
    let then = in_repairs(disk, vec![(attempt, inner.clone()), (attempt, inner)]);
    let trace = Trace {
        about: String::new(),
        scenario: case.scenario,
        choices: Vec::new(),
        crash: Some(Crash { then, ..crash }),
        damage: None,
        expected: Expected::Survived,
        shown: None,
        digest: None,
    };
    let text = trace.to_json();
    let read = Trace::from_json(&text, &|_| Err("there is no other file".into())).unwrap();
    assert_eq!(read, trace);
    let replayed = replay(&read).unwrap();
    assert!(
        replayed.is_as(&Expected::Survived),
        "{:?}",
        replayed.verdict
    );
}

/// A write into a disk of zeroes, and a kill in the middle of that or of the flush behind it.
fn killed(seed: u64) -> Case {
    let pins = "version=3,cluster_size=512,size=4k,room=any,manage=off,backing=none,compression=off,encrypt=off,\
                snapshots=off,bitmaps=off,chain=off,data_file=off,options=off,preallocation=off,shrink=off,\
                abandoned=off,kill=off,concurrency=1";
    let prng = Prng::from_seed(1);
    let mut scenario = scenario(&prng, &Pins::parse(pins).unwrap());
    let Start::New(shape) = &mut scenario.image else {
        unreachable!("drawn scenarios start with new images");
    };
    shape.filled.clear();
    let write = Operation::Write {
        offset: 0,
        len_bytes: 512,
    };
    scenario.operations = vec![write, Operation::Flush, Operation::Kill];
    Case {
        scenario,
        schedule: Schedule::Drawn(Box::new(Prng::from_seed(seed))),
    }
}

#[test]
fn whatever_the_next_process_finds_is_durable_and_nothing_else_is() {
    let written = SectorValue::Stamp {
        writer: Writer::Operation(OperationId(0)),
        sector: 0,
    };
    let mut found = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let case = killed(seed);
        let life = live(&case).unwrap();
        let [process] = &life.later[..] else {
            panic!("one kill, one more process");
        };
        let kill = life.lived.history[2].submitted;
        let flushed = matches!(life.lived.history[1].completed, Some((_, Answer::Done)));
        let legal = |cut| life.expect(cut).legal(0);
        // Zeroes were there at the start; until a flush is answered nobody was promised that they are replaced.
        assert!(flushed || legal(kill).contains(&SectorValue::Zero));
        let [after] = legal(process.since)[..] else {
            panic!("what was found is one value");
        };
        assert!(legal(kill).contains(&after));
        found.insert(after);
        assert!(life.promises().contains(&process.since));
        let outcome = run(&case, &small()).unwrap();
        assert_eq!((outcome.findings, outcome.broken), (vec![], vec![]));
    }
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [SectorValue::Zero, written]
    );
}

#[test]
fn what_a_kill_leaves_is_judged_even_where_no_power_loss_is() {
    let mut effort = small();
    effort.states.states = 0;
    effort.serve_every = None;
    let case = killed(0);
    let judged = |case: &Case| run(case, &effort).unwrap().counts.states_judged;
    let mut without = case.clone();
    without.scenario.operations.pop();
    assert_eq!(judged(&case), judged(&without) + 1);
}
