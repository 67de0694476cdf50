use engine::qcow2::OpenOptions;

use super::*;
use crate::caught::Panic;
use crate::guest::{Content, Ledger};
use crate::oracle::sample::{COPIED, Sample};
use crate::subject::{Answers, EngineSubject, Tally};
use crate::workload::ops::{Answer, Happening, Moment, Operation, OperationId};
use crate::workload::stamp::{Writer, stamp};

/// What a subject does otherwise than the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oddity {
    None,
    /// It reads zeroes where the engine fails.
    Hides,
    /// Its check drops a mapping.
    Drops,
    Panics,
    Hangs,
    /// It does not work on.
    Refuses(&'static str),
}

struct Odd {
    engine: EngineSubject,
    oddity: Oddity,
}

impl Odd {
    fn failure(&self) -> Option<Failure> {
        match self.oddity {
            Oddity::None | Oddity::Hides | Oddity::Drops => None,
            Oddity::Refuses(kind) => Some(Failure::Error {
                kind: kind.into(),
                message: "it does not want to".into(),
            }),
            Oddity::Panics => Some(Failure::Panic(Panic {
                message: "it panics".into(),
                place: "here".into(),
            })),
            Oddity::Hangs => Some(Failure::Hang { requests: 7 }),
        }
    }
}

impl crate::subject::Subject for Odd {
    fn recover(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Vec<Vec<u8>>> {
        self.engine.recover(image, reads)
    }

    fn read_each(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Answers> {
        let attempt = self.engine.read_each(image, reads);
        let zeroes =
            |range: &Range<u64>| vec![0; usize::try_from(range.end - range.start).unwrap()];
        let result = match (self.oddity, attempt.result) {
            (Oddity::Hides, Ok(answers)) => Ok(answers
                .into_iter()
                .zip(reads)
                .map(|(answer, range)| answer.or_else(|_| Ok(zeroes(range))))
                .collect()),
            (_, result) => result,
        };
        Attempt { result, ..attempt }
    }

    fn check(&self, image: &PageImage, repair: Repair) -> Attempt<Tally> {
        let mut attempt = self.engine.check(image, repair);
        if self.oddity == Oddity::Drops {
            attempt.image.write(4 * 4096 + 8, &[0; 8]);
        }
        match self.failure() {
            Some(failure) => Attempt {
                result: Err(failure),
                ..attempt
            },
            None => attempt,
        }
    }

    fn serve(
        &self,
        image: &PageImage,
        operations: &[(OperationId, Operation)],
    ) -> Attempt<Vec<Happening>> {
        let attempt = self.engine.serve(image, operations);
        match self.failure() {
            Some(failure) => Attempt {
                result: Err(failure),
                ..attempt
            },
            None => attempt,
        }
    }
}

/// Guest cluster 1 holds the stamps of operation 0, which is durable. Host cluster 5.
fn written() -> Sample {
    let mut sample = Sample::new();
    let data = sample.map(1, 0);
    for sector in 0..8 {
        let bytes = stamp(Writer::Operation(OperationId(0)), 8 + sector);
        let at = sample.offset(data) + sector * 512;
        sample.image.write(at, &bytes);
    }
    sample
}

/// A judge, and what cluster 1 may show.
fn with_judge<T>(oddity: Oddity, with: impl FnOnce(&Judge<'_>, &Expectation<'_>) -> T) -> T {
    let happening = |id: u32, operation, at| Happening {
        id: OperationId(id),
        operation,
        submitted: Moment(at),
        completed: Some((Moment(at + 1), Answer::Done)),
    };
    let write = Operation::Write {
        offset: 4096,
        len_bytes: 4096,
    };
    let history = [happening(0, write, 1), happening(1, Operation::Flush, 3)];
    let ledger = Ledger::new(Content::zeroes(), 8 * 4096, &history);
    let judge = Judge {
        subject: &Odd {
            engine: EngineSubject::new(OpenOptions::default(), None),
            oddity,
        },
        backing: None,
        data: None,
        base: None,
        accept: None,
        observer: &(),
    };
    with(&judge, &ledger.expect(Moment(4)))
}

fn judgement(sample: &Sample, ruins: &[(u64, Ruin)], oddity: Oddity) -> Judgement {
    let damage = Damage {
        image: Destroyed::of(ruins),
        ..Damage::default()
    };
    with_judge(oddity, |judge, expectation| {
        judge.judge_damaged(sample.image.clone(), expectation, &damage)
    })
}

/// The verdict's class or `survived`.
fn class(verdict: Verdict) -> String {
    match verdict {
        Verdict::Survived => "survived".into(),
        Verdict::Violated(violation) => violation.class.to_string(),
        verdict @ (Verdict::NotMeasured(_) | Verdict::HarnessBroken(_)) => {
            panic!("{verdict:?}")
        }
    }
}

/// The verdict's class or `survived`, and what the state came to.
fn judged(sample: &Sample, ruins: &[(u64, Ruin)], oddity: Oddity) -> (String, Standing) {
    let judgement = judgement(sample, ruins, oddity);
    (class(judgement.verdict), judgement.standing)
}

/// The class of what came of work on an image, or `survived`.
fn served(sample: &Sample, ruins: &[(u64, Ruin)], oddity: Oddity) -> String {
    let image = Witness::new(sample.image.clone());
    let damage = Damage {
        image: Destroyed::of(ruins),
        ..Damage::default()
    };
    with_judge(oddity, |judge, expectation| {
        class(judge.serve_damaged(&image, expectation, &damage).verdict)
    })
}

const SILENT: &str = "guest/silently-wrong/";
const L2_SECTOR: u64 = 4 * 8;
const DATA_SECTOR: u64 = 5 * 8 + 3;

#[test]
fn what_is_whole_is_right() {
    let (class, standing) = judged(&written(), &[], Oddity::None);
    assert_eq!((class.as_str(), standing), ("survived", Standing::Right));
}

#[test]
fn a_sector_of_data_is_excused_only_where_the_disk_destroyed_it() {
    let mut sample = written();
    sample.image.write(DATA_SECTOR * 512, &[0xA5; 512]);
    for ruin in [Ruin::Garbage, Ruin::Stale] {
        let (class, standing) = judged(&sample, &[(DATA_SECTOR, ruin)], Oddity::None);
        assert_eq!(
            (class.as_str(), standing),
            ("survived", Standing::Undetectable)
        );
    }
    assert_eq!(judged(&sample, &[], Oddity::None).0, SILENT);
    let beside = [(DATA_SECTOR + 1, Ruin::Garbage)];
    assert_eq!(judged(&sample, &beside, Oddity::None).0, SILENT);
}

#[test]
fn garbage_must_not_pass_for_a_table() {
    let mut sample = written();
    sample.image.write(L2_SECTOR * 512, &[0xA5; 512]);
    let ruins = [(L2_SECTOR, Ruin::Garbage)];
    let (class, standing) = judged(&sample, &ruins, Oddity::None);
    assert_eq!((class.as_str(), standing), ("survived", Standing::Refused));
    assert_eq!(judged(&sample, &ruins, Oddity::Hides).0, SILENT);
}

#[test]
fn garbage_that_points_to_nothing_is_refused() {
    let mut sample = written();
    // It says "zeroes", with a cluster in reserve at a place that no file has.
    sample.entry(1, 0x00a5_5aa5_5aa5_5001 & !0xffe);
    let (class, standing) = judged(&sample, &[(L2_SECTOR, Ruin::Garbage)], Oddity::None);
    assert_eq!((class.as_str(), standing), ("survived", Standing::Refused));
}

#[test]
fn a_table_that_is_nowhere_is_refused() {
    let mut sample = written();
    sample.long(sample.offset(Sample::L1), 0x0000_5aa5_5a5a_5000);
    let ruins = [(Sample::L1 * 8, Ruin::Garbage)];
    let (class, standing) = judged(&sample, &ruins, Oddity::None);
    assert_eq!((class.as_str(), standing), ("survived", Standing::Refused));
}

#[test]
fn an_older_table_is_excused_and_a_wrong_one_is_not() {
    let mut sample = written();
    sample.entry(1, 0);
    let (class, standing) = judged(&sample, &[(L2_SECTOR, Ruin::Stale)], Oddity::None);
    assert_eq!(
        (class.as_str(), standing),
        ("survived", Standing::Undetectable)
    );
    assert_eq!(
        judged(&sample, &[(L2_SECTOR, Ruin::Garbage)], Oddity::None).0,
        SILENT
    );
    assert_eq!(judged(&sample, &[], Oddity::None).0, SILENT);
}

#[test]
fn what_stands_beside_the_way_excuses_nothing() {
    let mut sample = written();
    sample.entry(1, 0);
    let beside = [
        (L2_SECTOR + 1, Ruin::Stale),
        (Sample::REFBLOCK * 8, Ruin::Stale),
        (DATA_SECTOR, Ruin::Stale),
    ];
    assert_eq!(judged(&sample, &beside, Oddity::None).0, SILENT);
}

#[test]
fn a_repair_that_claims_success_keeps_what_was_whole() {
    let mut sample = written();
    sample.count(5, 0);
    let ruins = [(Sample::REFBLOCK * 8, Ruin::Stale)];
    assert_eq!(judged(&sample, &ruins, Oddity::None).0, "survived");
    assert_eq!(judged(&sample, &ruins, Oddity::Drops).0, SILENT);
}

#[test]
fn a_panic_and_a_hang_are_never_excused() {
    let mut sample = written();
    sample.entry(1, 0x1000 | COPIED);
    let ruins = [(L2_SECTOR, Ruin::Garbage), (0, Ruin::Stale)];
    assert_eq!(
        judged(&sample, &ruins, Oddity::Panics).0,
        "progress/panic/here"
    );
    assert_eq!(judged(&sample, &ruins, Oddity::Hangs).0, "progress/hang/");
}

#[test]
fn judging_what_was_destroyed_is_work() {
    let whole = judgement(&written(), &[], Oddity::None);
    assert!(whole.work() > 0);
    let mut sample = written();
    sample.image.write(L2_SECTOR * 512, &[0xA5; 512]);
    let spoilt = judgement(&sample, &[(L2_SECTOR, Ruin::Garbage)], Oddity::None);
    assert!(spoilt.work() > 0);
}

#[test]
fn work_on_a_plain_image_is_not_refused() {
    let sample = written();
    assert!(Witness::new(sample.image.clone()).report.is_perfect());
    assert_eq!(served(&sample, &[], Oddity::None), "survived");
    for kind in ["bad-image in the compressed data", "device"] {
        let found = served(
            &sample,
            &[(DATA_SECTOR, Ruin::Garbage)],
            Oddity::Refuses(kind),
        );
        assert_eq!(found, format!("service/failed/{kind}"));
    }
}

#[test]
fn a_ruined_header_that_the_walk_finds_no_fault_with_may_be_refused_as_such() {
    let sample = written();
    for ruin in [Ruin::Garbage, Ruin::Stale] {
        let refuses = |kind| served(&sample, &[(1, ruin)], Oddity::Refuses(kind));
        assert_eq!(refuses("bad-image in the header extension"), "survived");
        assert_eq!(refuses("unsupported"), "survived");
        assert_eq!(refuses("device"), "service/failed/device");
    }
    // Nothing but a header says what an image needs.
    let refuses = |sector| {
        let ruins = [(sector, Ruin::Stale)];
        served(&sample, &ruins, Oddity::Refuses("unsupported"))
    };
    assert_eq!(refuses(L2_SECTOR), "service/failed/unsupported");
    assert_eq!(refuses(DATA_SECTOR), "service/failed/unsupported");
}

/// An image with one empty bitmap that guest writes mark, and the sector that its record stands in.
fn with_bitmap(kind: u8) -> (Sample, u64) {
    let mut sample = written();
    let (directory, table) = (sample.cluster(), sample.cluster());
    let (directory, table) = (sample.offset(directory), sample.offset(table));
    // Autoclear bit 0, and the extension behind the header.
    sample.long(88, 1);
    sample.long(104, 0x2385_2875_0000_0018);
    sample.long(112, 1 << 32);
    sample.long(120, 32);
    sample.long(128, directory);
    sample.long(directory, table);
    let (entries, flags) = (1, 2);
    sample.long(directory + 8, entries << 32 | flags);
    sample
        .image
        .write(directory + 16, &[kind, 16, 0, 1, 0, 0, 0, 0, b'b']);
    (sample, directory / 512)
}

#[test]
fn a_bitmap_of_a_kind_that_the_disk_made_up_may_be_refused() {
    let served = |kind, ruin| {
        let (sample, record) = with_bitmap(kind);
        assert!(Witness::new(sample.image.clone()).report.is_perfect());
        let ruins = [(record + ruin, Ruin::Garbage)];
        served(&sample, &ruins, Oddity::Refuses("unsupported"))
    };
    assert_eq!(served(9, 0), "survived");
    assert_eq!(served(9, 1), "service/failed/unsupported");
    assert_eq!(served(1, 0), "service/failed/unsupported");
}
