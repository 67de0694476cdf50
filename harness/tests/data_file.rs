//! Images whose data stand in a file of their own, in campaigns: both files lose power together.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use blkdebug::disks::Disk;
use harness::prng::Prng;
use harness::run::{Case, Effort, Schedule, live, run};
use harness::workload::generate::scenario;
use harness::workload::pin::Pins;

fn case(seed: u64, options: &str) -> Case {
    let prng = Prng::from_seed(seed);
    Case {
        scenario: scenario(&prng, &Pins::parse(options).unwrap()),
        schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
    }
}

#[test]
fn a_power_loss_goes_through_image_and_data_file() {
    let mut effort = Effort::campaign();
    effort.states.states = 60;
    effort.inner_states.states = 6;
    for options in ["data_file=on,chain=off", "data_file=raw,chain=off"] {
        let mut written = 0;
        for seed in 0..8 {
            let case = case(seed, options);
            let life = live(&case).unwrap();
            assert_eq!(life.violations(), [], "{options}, seed {seed}");
            written += u32::from(life.last.get(Disk::Data).is_some());
            let outcome = run(&case, &effort).unwrap();
            let findings: Vec<String> = outcome
                .findings
                .iter()
                .map(|finding| finding.violation.to_string())
                .collect();
            assert_eq!(findings, [""; 0], "{options}, seed {seed}");
            assert_eq!(outcome.broken, [""; 0], "{options}, seed {seed}");
        }
        assert!(written >= 6, "{options}: {written} of 8");
    }
}
