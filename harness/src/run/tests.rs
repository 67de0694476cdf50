use super::*;
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
        assert!(counts.states_judged + counts.not_measured >= counts.states_distinct);
    }
}
