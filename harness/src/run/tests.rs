use blkdebug::record::{Recording, Tick};

use super::*;
use crate::crash::durability::Frontier;
use crate::crash::state::{CrashState, Survivors};
use crate::trace::{Expected, Trace, in_repairs};
use crate::workload::generate::scenario;
use crate::workload::pin::Pins;

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
        let accounted = counts.states_judged + counts.not_measured + counts.states_known;
        assert!(accounted >= counts.states_distinct);
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
    let expectation = life.ledger.expect(Tick(0));
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
