//! Images whose data stand in a file of their own, in campaigns: both files lose power together.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use blkdebug::disks::Disk;
use engine::image::Unmap;
use engine::manage::{Amend, RawPromise};
use engine::preallocation::Preallocation;
use harness::prng::Prng;
use harness::run::{Case, Effort, Schedule, live, run};
use harness::workload::generate::scenario;
use harness::workload::ops::{Answer, DataFileOperation, Operation};
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

/// What may be asked of an image as a whole, one after the other, with guest data around it; the last is refused.
fn managed(raw: RawPromise) -> Vec<Operation> {
    let write = |offset| Operation::Write {
        offset,
        len_bytes: 3 << 10,
    };
    let grow = |virtual_bytes, preallocation| Operation::Grow {
        virtual_bytes,
        preallocation,
    };
    let rename = |bytes| DataFileOperation {
        name_bytes: Some(bytes),
        raw: RawPromise::Keep,
    };
    let withdraw = DataFileOperation {
        name_bytes: None,
        raw,
    };
    vec![
        write(0),
        Operation::DataFile(rename(300)),
        write(5 << 10),
        grow(40 << 10, Preallocation::Off),
        write(33 << 10),
        Operation::Shrink {
            virtual_bytes: 7 << 10,
        },
        grow(36 << 10, Preallocation::Metadata),
        Operation::DataFile(withdraw),
        Operation::WriteZeroes {
            offset: 0,
            len_bytes: 2 << 10,
            unmap: Unmap::Allow,
        },
        write(1 << 10),
        Operation::Empty,
        write(6 << 10),
        Operation::DataFile(rename(0)),
        Operation::Amend(Amend {
            version: Some(2),
            ..Amend::default()
        }),
    ]
}

#[test]
fn what_is_asked_of_the_image_as_a_whole_happens_on_both_files_or_on_none() {
    let mut effort = Effort::campaign();
    effort.inner_states.states = 6;
    for (content, raw) in [("on", RawPromise::Keep), ("raw", RawPromise::Withdraw)] {
        for seed in 0..6 {
            let options = format!(
                "data_file={content},manage=off,size=32k,cluster_size=1k,backing=none,bitmaps=off,\
                 concurrency=1,options=off,shrink=off"
            );
            let mut case = case(seed, &options);
            case.scenario.operations = managed(raw);
            case.scenario.check().unwrap();
            let life = live(&case).unwrap();
            assert_eq!(life.violations(), [], "{content}, seed {seed}");
            let history = &life.lived.history;
            let answers: Vec<Answer> = history.iter().map(|it| it.completed.unwrap().1).collect();
            let (refused, done) = answers.split_last().unwrap();
            assert_eq!(*refused, Answer::Failed, "version 2 has no data files");
            assert!(done.iter().all(|answer| *answer == Answer::Done));
            let outcome = run(&case, &effort).unwrap();
            let findings = outcome.findings.iter();
            let findings: Vec<String> = findings.map(|it| it.violation.to_string()).collect();
            assert_eq!(findings, [""; 0], "{content}, seed {seed}");
            assert_eq!(outcome.broken, [""; 0], "{content}, seed {seed}");
        }
    }
}
