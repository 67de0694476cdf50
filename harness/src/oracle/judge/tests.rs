use std::cell::Cell;

use blkdebug::record::Clock;
use blkdebug::volatile::{Answering, VolatileDisk};
use engine::device::{Device, Event, Op, Request, drive};

use super::*;
use crate::caught::Panic;
use crate::guest::{Content as Start, Ledger};
use crate::oracle::sample::{COPIED, Sample};
use crate::oracle::structure::walk;
use crate::oracle::view::Content;
use crate::subject::{Failure, Tally};
use crate::workload::ops::{Answer, Happening, Moment, Operation, OperationId};
use crate::workload::stamp::{Writer, stamp};

/// A subject that does to the image what a test says, and reads what the tables say.
struct Fake<'a> {
    recover: &'a dyn Fn(&Disk) -> Result<(), Failure>,
    check: &'a dyn Fn(&Disk) -> Result<Tally, Failure>,
    /// Added to the first byte of everything that is read.
    misread: u8,
    /// Taken off the end of everything that is read.
    missing_bytes: usize,
    /// Whether it returns without a flush.
    hasty: bool,
}

struct Disk(VolatileDisk);

impl Disk {
    fn new(image: &PageImage) -> Self {
        Self(VolatileDisk::new(
            image.clone(),
            Clock::default(),
            Answering::AtOnce,
        ))
    }

    fn change(&self, change: impl FnOnce(&mut Sample)) {
        let before = self.0.current();
        let mut sample = Sample::new();
        sample.image = before.clone();
        change(&mut sample);
        for sector in 0..sample.image.len() / 512 {
            let after = sample.image.read_vec(sector * 512, 512);
            if after != before.read_vec(sector * 512, 512) {
                self.write(sector, after);
            }
        }
    }

    fn flush(&self) {
        let (event, op) = (Event::None, Op::Flush);
        drive(self.0.submit(Request { event, op }))
            .unwrap()
            .unwrap();
    }

    fn write(&self, sector: u64, data: Vec<u8>) {
        let op = Op::Write {
            offset: sector * 512,
            data,
            fua: false,
        };
        let event = Event::None;
        drive(self.0.submit(Request { event, op }))
            .unwrap()
            .unwrap();
    }

    fn attempt<T>(self, result: Result<T, Failure>) -> Attempt<T> {
        Attempt {
            result,
            image: self.0.current(),
            recording: self.0.recording(),
            data: None,
        }
    }
}

impl Fake<'_> {
    fn settle(&self, disk: &Disk) {
        if !self.hasty {
            disk.flush();
        }
    }
}

impl Subject for Fake<'_> {
    fn recover(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Vec<Vec<u8>>> {
        let disk = Disk::new(image);
        let result = (self.recover)(&disk);
        self.settle(&disk);
        let report = walk(image);
        let view = GuestView::new(image, &report, None).unwrap();
        let read = |range: &Range<u64>| {
            let mut data = Vec::new();
            for run in view.runs(range.start / 512..range.end / 512) {
                for sector in run.sectors.clone() {
                    match run.content(sector) {
                        Content::Bytes(bytes) => data.extend(bytes),
                        Content::Zeroes | Content::Unreadable => data.extend([0; 512]),
                    }
                }
            }
            data[0] = data[0].wrapping_add(self.misread);
            data.truncate(data.len() - self.missing_bytes);
            data
        };
        disk.attempt(result.map(|()| reads.iter().map(read).collect()))
    }

    fn check(&self, image: &PageImage, repair: Repair) -> Attempt<Tally> {
        assert_eq!(repair, Repair::All);
        let disk = Disk::new(image);
        let result = (self.check)(&disk);
        self.settle(&disk);
        disk.attempt(result)
    }

    fn serve(
        &self,
        _image: &PageImage,
        _operations: &[(OperationId, Operation)],
    ) -> Attempt<Vec<Happening>> {
        unreachable!("these tests do not serve")
    }
}

const HONEST: Fake<'_> = Fake {
    recover: &|_| Ok(()),
    check: &|_| Ok(Tally::default()),
    misread: 0,
    missing_bytes: 0,
    hasty: false,
};

/// Guest cluster 1 holds the stamps of operation 0, which is durable. Host cluster 5.
fn written() -> Sample {
    let mut sample = Sample::new();
    let data = sample.map(1, 0);
    for sector in 0..8 {
        let bytes = stamp(Writer::Operation(OperationId(0)), 8 + sector);
        sample
            .image
            .write(sample.offset(data) + sector * 512, &bytes);
    }
    sample
}

/// The same with a refcount that is too low, and marked dirty.
fn dirty() -> Sample {
    let mut sample = written().dirty();
    sample.count(5, 0);
    sample
}

fn history() -> Vec<Happening> {
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
    vec![happening(0, write, 1), happening(1, Operation::Flush, 3)]
}

/// Judges images by themselves, strictly.
fn judge_of<'a>(subject: &'a Fake<'_>) -> Judge<'a> {
    Judge {
        subject,
        backing: None,
        data: None,
        base: None,
        accept: None,
        observer: &(),
    }
}

fn judge_with(fake: &Fake<'_>, sample: &Sample, before: Option<&Sample>) -> Judgement {
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history());
    let judge = judge_of(fake);
    let before = before.map(|sample| Witness::new(sample.image.clone()));
    judge.judge(
        sample.image.clone(),
        &ledger.expect(Moment(4)),
        before.as_ref(),
    )
}

/// The class of the violation, or the name of another verdict.
fn verdict(fake: &Fake<'_>, sample: &Sample) -> String {
    name(&judge_with(fake, sample, None).verdict)
}

fn name(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Survived => "survived".into(),
        Verdict::Violated(violation) => {
            assert!(!violation.lines[0].is_empty());
            violation.class.to_string()
        }
        Verdict::NotMeasured(_) => "not measured".into(),
        Verdict::HarnessBroken(_) => "harness broken".into(),
    }
}

fn mend(sample: &mut Sample) {
    sample.count(5, 1);
    sample.long(72, 0);
}

/// Repairs what [`dirty`] breaks.
const REPAIR: &dyn Fn(&Disk) -> Result<(), Failure> = &|disk| {
    disk.change(mend);
    Ok(())
};

#[test]
fn a_sound_state_survives_without_a_repair() {
    let judgement = judge_with(&HONEST, &written(), None);
    assert_eq!(judgement.verdict, Verdict::Survived);
    assert!(judgement.repairs.is_empty() && judgement.recovered.is_none());
}

#[test]
fn the_structures_are_judged_before_anything_touches_them() {
    let mut sample = dirty();
    sample.long(72, 0);
    assert_eq!(verdict(&HONEST, &sample), "structure/refcount-too-low/data");
    sample.long(72, 2);
    sample.count(5, 1);
    assert_eq!(verdict(&HONEST, &sample), "structure/marked-corrupt/header");
    sample.long(72, 4);
    assert_eq!(verdict(&HONEST, &sample), "not measured");
}

#[test]
fn the_guest_is_judged_before_recovery() {
    let mut sample = written();
    sample.entry(1, 0);
    sample.count(5, 0);
    assert_eq!(verdict(&HONEST, &sample), "guest/lost/");
    let mut sample = written();
    sample.image.write(sample.offset(5), &[9; 100]);
    assert_eq!(verdict(&HONEST, &sample), "guest/stale-foreign/");
    sample.long(24, 4096);
    assert_eq!(verdict(&HONEST, &sample), "guest/size/header");
}

#[test]
fn what_was_found_legal_once_does_not_excuse_what_differs_from_it() {
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history());
    let judge = judge_of(&HONEST);
    let judged = |sample: &Sample, cut| {
        let expectation = ledger.expect(Moment(cut));
        name(
            &judge
                .judge(sample.image.clone(), &expectation, None)
                .verdict,
        )
    };
    // Not written yet, and not flushed yet.
    let mut empty = written();
    empty.image.write(empty.offset(5), &[0; 4096]);
    assert_eq!(judged(&empty, 2), "survived");
    assert_eq!(judged(&written(), 4), "survived");
    assert_eq!(judged(&written(), 4), "survived", "as it was");
    assert_eq!(judged(&empty, 4), "guest/lost/");
    for sector in 0..8 {
        let mut changed = written();
        let at = changed.offset(5) + sector * 512;
        changed.image.write(at, &[0; 512]);
        assert_eq!(judged(&changed, 4), "guest/lost/", "sector {sector}");
        changed.image.write(at, &[9; 512]);
        assert_eq!(
            judged(&changed, 4),
            "guest/stale-foreign/",
            "sector {sector}"
        );
    }
}

#[test]
fn the_message_shows_what_was_expected_and_what_was_found() {
    let mut sample = written();
    sample.image.write(sample.offset(5), &[0; 512]);
    let Verdict::Violated(violation) = judge_with(&HONEST, &sample, None).verdict else {
        panic!("a lost sector is a violation");
    };
    assert_eq!(
        violation.lines,
        [
            "guest sector 8 lost a durable write: it holds zeroes",
            "--- expected",
            "+++ found",
            "-guest sector 8: what operation 0 put into guest sector 8",
            "+guest sector 8: zeroes",
        ]
    );
    let mut sample = dirty();
    sample.long(72, 0);
    let Verdict::Violated(violation) = judge_with(&HONEST, &sample, None).verdict else {
        panic!("a low refcount is a violation");
    };
    assert_eq!(
        violation.lines,
        [
            "in the crash state: host cluster 5 (guest cluster 1): refcount 0, 1 references",
            "host cluster 5 (guest cluster 1): COPIED is set with 1 references and refcount 0",
            "--- expected",
            "+++ found",
            "-host cluster 5 (guest cluster 1): refcount 1",
            "+host cluster 5 (guest cluster 1): refcount 0",
        ]
    );
}

#[test]
fn levels_that_are_accepted_pass_and_losses_never_do() {
    let mut sample = written();
    sample.map(3, 0);
    let host = sample.map(4, 0);
    sample.image.write(
        sample.offset(host),
        &stamp(Writer::Operation(OperationId(0)), 9),
    );
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history());
    let judge = |sample: &Sample, accept| {
        let judge = Judge {
            accept,
            ..judge_of(&HONEST)
        };
        name(
            &judge
                .judge(sample.image.clone(), &ledger.expect(Moment(4)), None)
                .verdict,
        )
    };
    assert_eq!(judge(&sample, None), "guest/stale-own/");
    assert_eq!(judge(&sample, Some(Level::Zeros)), "guest/stale-own/");
    assert_eq!(judge(&sample, Some(Level::StaleOwn)), "survived");
    sample.image.write(sample.offset(5), &[0; 512]);
    assert_eq!(judge(&sample, Some(Level::Lost)), "guest/lost/");
}

#[test]
fn what_the_guest_had_not_written_yet_breaks_the_harness() {
    let mut history = history();
    history.push(Happening {
        id: OperationId(2),
        submitted: Moment(9),
        completed: None,
        ..history[0]
    });
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history);
    let mut sample = written();
    let future = stamp(Writer::Operation(OperationId(2)), 8);
    sample.image.write(sample.offset(5), &future);
    let judge = judge_of(&HONEST);
    let judged = |cut| {
        let expectation = ledger.expect(Moment(cut));
        name(
            &judge
                .judge(sample.image.clone(), &expectation, None)
                .verdict,
        )
    };
    assert_eq!(judged(4), "harness broken");
    assert_eq!(judged(9), "survived");
}

#[test]
fn recovery_must_come_about() {
    let failures: [(&dyn Fn() -> Failure, &str); 4] = [
        (
            &|| Failure::Error {
                kind: "bad-image".into(),
                message: "no".into(),
            },
            "repair/failed/bad-image",
        ),
        (
            &|| {
                Failure::Panic(Panic {
                    message: "oh".into(),
                    place: "a.rs:1".into(),
                })
            },
            "progress/panic/a.rs:1",
        ),
        (&|| Failure::Hang { requests: 7 }, "progress/hang/"),
        (&|| Failure::NotMeasured("no".into()), "not measured"),
    ];
    for (failure, class) in failures {
        let recover = |_: &Disk| Err(failure());
        let fake = Fake {
            recover: &recover,
            ..HONEST
        };
        assert_eq!(verdict(&fake, &written()), class);
        let check = |_: &Disk| Err(failure());
        let fake = Fake {
            check: &check,
            ..HONEST
        };
        let mut leaking = written();
        leaking.cluster();
        assert_eq!(verdict(&fake, &leaking), class);
        assert_eq!(verdict(&fake, &written()), "survived", "nothing to check");
    }
}

#[test]
fn a_dirty_image_is_perfect_after_one_recovery() {
    let fake = |recover| Fake { recover, ..HONEST };
    assert_eq!(verdict(&HONEST, &dirty()), "repair/still-dirty/data");
    assert_eq!(verdict(&fake(REPAIR), &dirty()), "survived");
    let judgement = judge_with(&fake(REPAIR), &dirty(), None);
    assert_eq!(judgement.repairs.len(), 1);
    assert!(judgement.recovered.unwrap().report.is_perfect());
    let only_clears = |disk: &Disk| {
        disk.change(|sample| sample.long(72, 0));
        Ok(())
    };
    assert_eq!(
        verdict(&fake(&only_clears), &dirty()),
        "repair/refcount-too-low/data"
    );
    let only_counts = |disk: &Disk| {
        disk.change(|sample| sample.count(5, 1));
        Ok(())
    };
    assert_eq!(
        verdict(&fake(&only_counts), &dirty()),
        "repair/still-dirty/header"
    );
    let counts_too_high = |disk: &Disk| {
        disk.change(|sample| {
            mend(sample);
            sample.count(9, 1);
        });
        Ok(())
    };
    // A check would put it right, and comes too late.
    let recounts = |disk: &Disk| {
        disk.change(|sample| sample.count(9, 0));
        Ok(Tally::default())
    };
    let wasteful = Fake {
        recover: &counts_too_high,
        check: &recounts,
        ..HONEST
    };
    assert_eq!(verdict(&wasteful, &dirty()), "repair/leaks/");
    let drops_copied = |disk: &Disk| {
        disk.change(|sample| {
            mend(sample);
            sample.entry(1, sample.offset(5));
        });
        Ok(())
    };
    assert_eq!(
        verdict(&fake(&drops_copied), &dirty()),
        "repair/copied-missing/"
    );
}

#[test]
fn a_repair_changes_no_guest_byte() {
    let loses = |disk: &Disk| {
        disk.change(|sample| {
            sample.long(72, 0);
            sample.entry(1, 0);
        });
        Ok(())
    };
    let fake = Fake {
        recover: &loses,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &dirty()), "repair/guest-changed/");
    let grows = |disk: &Disk| {
        disk.change(|sample| {
            mend(sample);
            sample.long(24, 9 * 4096);
        });
        Ok(())
    };
    let fake = Fake {
        recover: &grows,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &dirty()), "repair/size-changed/header");
}

#[test]
fn the_subject_reads_what_the_tables_say() {
    let fake = Fake {
        misread: 1,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &written()), "repair/misread/");
}

#[test]
fn leaks_are_repaired_by_a_check() {
    let mut leaking = written();
    leaking.cluster();
    assert_eq!(verdict(&HONEST, &leaking), "repair/leaks/");
    let mends = |disk: &Disk| {
        disk.change(|sample| sample.count(6, 0));
        Ok(Tally::default())
    };
    let fake = Fake {
        check: &mends,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &leaking), "survived");
    assert_eq!(judge_with(&fake, &leaking, None).repairs.len(), 1);
    let hasty = Fake {
        hasty: true,
        ..fake
    };
    assert_eq!(verdict(&hasty, &leaking), "repair/volatile/none");
    let gives_up = |disk: &Disk| {
        disk.change(|sample| sample.count(6, 0));
        Ok(Tally {
            errors: 0,
            leaks: 1,
        })
    };
    let fake = Fake {
        check: &gives_up,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &leaking), "repair/unfinished/check");
}

#[test]
fn a_second_recovery_writes_nothing() {
    let count = Cell::new(0);
    let restless = |disk: &Disk| {
        disk.change(mend);
        count.set(count.get() + 1);
        if count.get() == 2 {
            disk.write(40, vec![0; 512]);
        }
        Ok(())
    };
    let fake = Fake {
        recover: &restless,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &dirty()), "repair/not-idempotent/");
    assert_eq!(count.get(), 2);
    let rewrites = |disk: &Disk| {
        disk.write(0, disk.0.current().read_vec(0, 512));
        Ok(Tally::default())
    };
    let fake = Fake {
        recover: REPAIR,
        check: &rewrites,
        ..HONEST
    };
    assert_eq!(verdict(&fake, &dirty()), "repair/not-idempotent/");
}

#[test]
fn a_state_inside_a_repair_has_the_guest_bytes_of_before() {
    let fake = Fake {
        recover: REPAIR,
        ..HONEST
    };
    let judged = |state: &Sample| name(&judge_with(&fake, state, Some(&dirty())).verdict);
    assert_eq!(judged(&dirty()), "survived");
    assert_eq!(judged(&written()), "survived");
    // Legal for the ledger, which knows nothing of guest cluster 2, and still not what was there.
    let mut changed = written();
    let zero = changed.cluster();
    changed.entry(2, changed.offset(zero) | COPIED);
    assert_eq!(judged(&changed), "survived");
    changed.image.write(changed.offset(zero), &[1]);
    assert_eq!(judged(&changed), "guest/stale-foreign/");
    let mut cleaned_too_early = dirty();
    cleaned_too_early.long(72, 0);
    assert_eq!(
        judged(&cleaned_too_early),
        "structure/refcount-too-low/data"
    );
}

#[test]
fn an_interrupted_repair_that_falls_back_to_another_legal_value_is_noticed() {
    let mut history = history();
    history[1].completed = None;
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history);
    let before = Witness::new(written().image);
    let mut fallen = written();
    fallen.entry(1, 0);
    fallen.count(5, 0);
    let judge = judge_of(&HONEST);
    let expectation = ledger.expect(Moment(4));
    let judged = |before| {
        name(
            &judge
                .judge(fallen.image.clone(), &expectation, before)
                .verdict,
        )
    };
    assert_eq!(judged(None), "survived");
    assert_eq!(judged(Some(&before)), "repair/guest-changed/");
}

#[test]
fn a_clean_close_leaves_nothing_to_repair() {
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history());
    let expectation = ledger.expect(Moment(4));
    let mends = |disk: &Disk| {
        disk.change(|sample| sample.entry(1, sample.offset(5) | COPIED));
        Ok(Tally::default())
    };
    let fake = Fake {
        check: &mends,
        ..HONEST
    };
    let judge = judge_of(&fake);
    let closed = |sample: &Sample| {
        name(
            &judge
                .judge_closed(sample.image.clone(), &expectation, None)
                .verdict,
        )
    };
    assert_eq!(closed(&written()), "survived");
    let mut sample = written();
    sample.entry(1, sample.offset(5));
    assert_eq!(closed(&sample), "structure/copied-missing/");
    assert_eq!(
        verdict(&fake, &sample),
        "survived",
        "after a crash it is legal"
    );
}

#[test]
fn what_the_workload_did_not_touch_is_still_looked_at() {
    let mut base = written();
    let held = base.map(3, 0);
    for sector in 0..8 {
        let bytes = stamp(Writer::Image, 24 + sector);
        base.image.write(base.offset(held) + sector * 512, &bytes);
    }
    let mut initial = Start::zeroes();
    initial.stamp(24..32, Writer::Image);
    let ledger = Ledger::new(initial, 8 * 4096, &history());
    let witness = Witness::new(base.image.clone());
    let judged = |sample: &Sample, base: Option<&Witness>| {
        let judge = Judge {
            subject: &HONEST,
            backing: None,
            data: None,
            base,
            accept: None,
            observer: &(),
        };
        let expectation = ledger.expect(Moment(4));
        name(
            &judge
                .judge(sample.image.clone(), &expectation, None)
                .verdict,
        )
    };
    let mut moved = base.clone();
    let elsewhere = moved.map(3, 0);
    moved.count(held, 0);
    let bytes = moved.image.read_vec(moved.offset(held), 4096);
    moved.image.write(moved.offset(elsewhere), &bytes);
    let mut hit = base.clone();
    hit.image.write(hit.offset(held) + 5 * 512 + 9, &[1]);
    let mut gone = base.clone();
    gone.entry(3, 0);
    gone.count(held, 0);
    for base in [None, Some(&witness)] {
        assert_eq!(judged(&moved, base), "survived");
        assert_eq!(judged(&hit, base), "guest/stale-foreign/");
        assert_eq!(judged(&gone, base), "guest/zeros/");
    }
}

#[test]
fn a_read_that_yields_too_little_is_a_violation() {
    let short = Fake {
        missing_bytes: 512,
        ..HONEST
    };
    assert_eq!(verdict(&short, &written()), "repair/short-read/");
}

#[test]
fn the_header_goes_on_naming_the_backing_file() {
    let ledger = Ledger::new(Start::zeroes(), 8 * 4096, &history());
    let below = Backing::raw(PageImage::default());
    let judged = |subject: &Fake<'_>, sample: &Sample| {
        let judge = Judge {
            subject,
            backing: Some(&below),
            data: None,
            base: None,
            accept: None,
            observer: &(),
        };
        let image = sample.image.clone();
        name(&judge.judge(image, &ledger.expect(Moment(4)), None).verdict)
    };
    let backed = |mut sample: Sample| {
        sample.long(8, 0x200);
        sample.image.write(16, &4_u32.to_be_bytes());
        sample
    };
    assert_eq!(judged(&HONEST, &backed(written())), "survived");
    let lost = "structure/backing-lost/header";
    assert_eq!(judged(&HONEST, &written()), lost);
    let forgets = |disk: &Disk| {
        disk.change(|sample| {
            mend(sample);
            sample.long(8, 0);
        });
        Ok(())
    };
    let forgetful = Fake {
        recover: &forgets,
        ..HONEST
    };
    let lost = "repair/backing-lost/header";
    assert_eq!(judged(&forgetful, &backed(dirty())), lost);
}

#[test]
fn after_recovery_what_was_there_before_is_not_legal_again() {
    let mut before = Sample::new();
    let held = before.map(1, 0);
    for sector in 0..8 {
        let bytes = stamp(Writer::Image, 8 + sector);
        before
            .image
            .write(before.offset(held) + sector * 512, &bytes);
    }
    let (before, recovered) = (Witness::new(before.image), Witness::new(written().image));
    let mut initial = Start::zeroes();
    initial.stamp(8..16, Writer::Operation(OperationId(0)));
    let ledger = Ledger::new(initial, 8 * 4096, &[]);
    let judge = Judge {
        subject: &HONEST,
        backing: None,
        data: None,
        base: Some(&before),
        accept: None,
        observer: &(),
    };
    let judged = |image: &PageImage| {
        let expectation = ledger.expect(Moment(4));
        let judgement = judge.judge_in_service(&recovered, image.clone(), &expectation);
        name(&judgement.verdict)
    };
    assert_eq!(judged(&recovered.image), "survived");
    assert_eq!(judged(&before.image), "guest/stale-foreign/");
}

#[test]
fn a_durable_write_that_is_gone_is_lost_even_where_the_base_shows_the_same() {
    let mut base = Sample::new();
    base.map(1, 7);
    let witness = Witness::new(base.image.clone());
    let initial = witness
        .view(None, None)
        .unwrap()
        .content(std::iter::once(0..64));
    let ledger = Ledger::new(initial, 8 * 4096, &history());
    let judge = Judge {
        subject: &HONEST,
        backing: None,
        data: None,
        base: Some(&witness),
        accept: None,
        observer: &(),
    };
    let judged = |cut| {
        let expectation = ledger.expect(Moment(cut));
        name(&judge.judge(base.image.clone(), &expectation, None).verdict)
    };
    assert_eq!(judged(3), "survived");
    assert_eq!(judged(4), "guest/lost/");
}
