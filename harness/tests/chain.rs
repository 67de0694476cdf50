//! Chains in drawn workloads: their operations come to pass, into and over every file that there is.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::collections::BTreeMap;

use harness::prng::Prng;
use harness::run::{Case, Effort, Schedule, live, run};
use harness::trace::operation_text;
use harness::workload::generate::scenario;
use harness::workload::ops::{Answer, Operation};
use harness::workload::pin::Pins;

fn chained(seed: u64) -> Case {
    let prng = Prng::from_seed(seed);
    Case {
        scenario: scenario(&prng, &Pins::parse("chain=on").unwrap()),
        schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
    }
}

#[test]
fn drawn_operations_on_chains_are_carried_out() {
    let mut done = BTreeMap::new();
    let mut written = BTreeMap::new();
    for seed in 0..150 {
        let life = live(&chained(seed)).unwrap();
        assert_eq!(life.violations(), [], "seed {seed}");
        for happening in &life.lived.history {
            let on_chain = matches!(happening.operation, Operation::Chain(_));
            if on_chain {
                let text = operation_text(happening.operation);
                let (_, answer) = happening.completed.unwrap();
                assert_eq!(answer, Answer::Done, "seed {seed}: {text}");
                *done.entry(text).or_insert(0) += 1;
            }
        }
        for (disk, _) in life.last.others() {
            *written.entry(disk.name()).or_insert(0) += 1;
        }
    }
    for text in [
        "commit",
        "commit keep",
        "rebase none",
        "rebase backing",
        "rebase base",
        "rebase other",
        "repoint none",
        "repoint backing",
        "repoint base",
        "repoint other",
        "stream none",
        "stream base",
    ] {
        assert!(done.get(text).is_some_and(|count| *count >= 5), "{done:?}");
    }
    for disk in ["backing", "base", "other"] {
        let enough = written.get(disk).is_some_and(|count| *count >= 3);
        assert!(enough, "{written:?}");
    }
}

#[test]
fn a_power_loss_goes_through_all_files_of_a_chain() {
    let mut effort = Effort::campaign();
    effort.states.states = 60;
    effort.inner_states.states = 6;
    for seed in 0..12 {
        let case = chained(seed);
        let outcome = run(&case, &effort).unwrap();
        let findings: Vec<String> = outcome
            .findings
            .iter()
            .map(|finding| finding.violation.to_string())
            .collect();
        assert_eq!(findings, [""; 0], "seed {seed}");
        assert_eq!(outcome.broken, [""; 0], "seed {seed}");
        assert_eq!(run(&case, &effort).unwrap().digest, outcome.digest);
    }
}
