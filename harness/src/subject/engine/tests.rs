use blkdebug::record::{RecordedOp, Recording, SectorContent};
use engine::device::Event;
use engine::error::Refused;
use engine::image::Unmap;
use engine::preallocation::Preallocation;
use engine::qcow2::LazyRefcounts;
use engine::qcow2::create::{self, BackingFormat, CreateOptions};

use super::*;
use crate::guest::{Content, Ledger};
use crate::oracle::judge::{Judge, Witness, reads};
use crate::oracle::verdict::Verdict;
use crate::workload::stamp::{Writer, stamp_range};

const VIRTUAL_BYTES: u64 = 256 * 1024;

fn fresh(cluster_bits: u32, backed: bool) -> PageImage {
    let disk = Rc::new(RamDevice::default());
    let options = CreateOptions {
        virtual_bytes: VIRTUAL_BYTES,
        cluster_bits,
        backing: backed.then(|| create::Backing {
            name: "below".into(),
            format: BackingFormat::Raw,
        }),
        ..CreateOptions::default()
    };
    let port = Port::new(Rc::<RamDevice>::clone(&disk));
    drive(create::create(&port, &options)).unwrap().unwrap();
    disk.snapshot()
}

fn subject(lazy: LazyRefcounts, backing: Option<Backing>) -> EngineSubject {
    let options = OpenOptions {
        lazy_refcounts: Some(lazy),
        ..OpenOptions::default()
    };
    EngineSubject::new(options, backing)
}

fn workload() -> Vec<(OperationId, Operation)> {
    let write = |offset, len_bytes| Operation::Write { offset, len_bytes };
    let operations = [
        write(512, 1024),
        write(60 * 1024, 9 * 1024),
        Operation::Flush,
        write(512, 512),
        Operation::Discard {
            offset: 60 * 1024,
            len_bytes: 8 * 1024,
        },
        write(200 * 1024, 4096),
        Operation::WriteZeroes {
            offset: 0,
            len_bytes: 64 * 1024,
            unmap: Unmap::Allow,
        },
        write(61 * 1024, 1024),
        Operation::Flush,
        Operation::Grow {
            virtual_bytes: VIRTUAL_BYTES * 3,
            preallocation: Preallocation::Off,
        },
        write(VIRTUAL_BYTES * 3 - 1024, 1024),
    ];
    (0..).map(OperationId).zip(operations).collect()
}

/// Every state that a disk without a cache could leave, with the moment of its cut.
fn prefixes(recording: &Recording) -> Vec<(Moment, PageImage)> {
    let mut image = recording.bases.image().clone();
    let mut states = vec![(Moment(0), image.clone())];
    for entry in recording.entries.iter().filter(|e| e.changes_content()) {
        if let RecordedOp::SetLen { len_bytes } = entry.op {
            image.set_len(len_bytes);
        }
        for (sector, index) in entry.op.sectors().zip(0..) {
            match entry.op.content(index) {
                SectorContent::Zero => image.write_zeroes(sector * 512, 512),
                SectorContent::Bytes(bytes, hash) => image.put_sector(sector, bytes, hash),
            }
        }
        states.push((Moment(entry.completed.unwrap().0.0), image.clone()));
    }
    states
}

fn every_prefix_survives(subject: &EngineSubject, base: &PageImage, initial: &Content) {
    let served = subject.serve(base, &workload());
    let history = served.result.unwrap();
    let ledger = Ledger::new(initial.clone(), VIRTUAL_BYTES, &history);
    let judge = Judge {
        subject,
        backing: subject.backing.as_ref(),
        data: None,
        base: None,
        accept: None,
        observer: &(),
    };
    let states = prefixes(&served.recording);
    assert!(states.len() > 10);
    for (cut, image) in states {
        let expectation = ledger.expect(cut);
        let judgement = judge.judge(image, &expectation, None);
        assert_eq!(judgement.verdict, Verdict::Survived, "cut {cut:?}");
        for (_, inside) in judgement.repairs.iter().flat_map(prefixes) {
            let inner = judge.judge(inside, &expectation, Some(&judgement.state));
            assert_eq!(
                inner.verdict,
                Verdict::Survived,
                "inside the repair of cut {cut:?}"
            );
        }
        let recovered = judgement.recovered.unwrap_or(judgement.state);
        let service = judge.judge_service(&recovered, &expectation);
        assert_eq!(
            service.verdict,
            Verdict::Survived,
            "service after cut {cut:?}"
        );
    }
    let end = ledger.expect_served();
    let closed = judge.judge_closed(served.image, &end, None);
    assert_eq!(closed.verdict, Verdict::Survived);
}

#[test]
fn every_prefix_of_a_run_survives() {
    for cluster_bits in [9, 12, 16] {
        let subject = subject(LazyRefcounts::Off, None);
        every_prefix_survives(&subject, &fresh(cluster_bits, false), &Content::zeroes());
    }
}

#[test]
fn every_prefix_of_a_run_over_a_backing_file_survives() {
    let below = stamp_range(Writer::Backing, 0, 128 * 1024);
    let mut initial = Content::zeroes();
    initial.stamp(0..256, Writer::Backing);
    let backing = Backing::raw(PageImage::from_bytes(&below));
    let subject = subject(LazyRefcounts::Off, Some(backing));
    every_prefix_survives(&subject, &fresh(12, true), &initial);
}

#[test]
fn every_prefix_of_a_run_with_lazy_refcounts_survives() {
    let subject = subject(LazyRefcounts::On, None);
    every_prefix_survives(&subject, &fresh(12, false), &Content::zeroes());
}

#[test]
fn service_that_loses_a_write_is_a_violation() {
    let subject = subject(LazyRefcounts::Off, None);
    let ledger = Ledger::new(Content::zeroes(), VIRTUAL_BYTES, &[]);
    let expectation = ledger.expect(Moment(0));
    let judge = Judge {
        subject: &Forgetful(subject),
        backing: None,
        data: None,
        base: None,
        accept: None,
        observer: &(),
    };
    let recovered = Witness::new(fresh(12, false));
    let service = judge.judge_service(&recovered, &expectation);
    let Verdict::Violated(violation) = service.verdict else {
        panic!("a lost write is a violation");
    };
    assert_eq!(violation.class.to_string(), "service/lost/");
}

/// Forgets the last write it is asked for, and says that it is done.
struct Forgetful(EngineSubject);

impl Subject for Forgetful {
    fn recover(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Vec<Vec<u8>>> {
        self.0.recover(image, reads)
    }

    fn check(&self, image: &PageImage, repair: Repair) -> Attempt<Tally> {
        self.0.check(image, repair)
    }

    fn serve(
        &self,
        image: &PageImage,
        operations: &[(OperationId, Operation)],
    ) -> Attempt<Vec<Happening>> {
        let mut attempt = self.0.serve(image, &operations[..operations.len() - 1]);
        if let Ok(history) = &mut attempt.result {
            let (id, operation) = operations[operations.len() - 1];
            let last = history[history.len() - 1];
            history.push(Happening {
                id,
                operation,
                submitted: Moment(last.submitted.0 + 2),
                completed: Some((Moment(last.submitted.0 + 3), Answer::Done)),
            });
        }
        attempt
    }
}

#[test]
fn errors_panics_and_hangs_are_answers() {
    let image = PageImage::zeroed(4096);
    let subject = subject(LazyRefcounts::Off, None);
    let refused = subject.attempt::<(), _>(&image, async |_| Err(Refused::ReadOnly.into()));
    assert!(matches!(refused.result, Err(Failure::Error { kind, .. }) if kind == "refused"));
    let panicked = subject.attempt::<(), _>(&image, async |_| panic!("oh"));
    let Err(Failure::Panic(panic)) = panicked.result else {
        panic!("a panic is an answer");
    };
    assert_eq!(panic.message, "oh");
    assert!(panic.place.contains("tests.rs:"));
    let endless = subject.attempt::<(), _>(&image, async |disk| {
        loop {
            disk.image.port().at(Event::None).flush().await?;
        }
    });
    assert!(matches!(endless.result, Err(Failure::Hang { requests }) if requests > 1000));
    let stuck = subject.attempt::<(), _>(&image, async |_| std::future::pending().await);
    assert_eq!(stuck.result, Err(Failure::Hang { requests: 0 }));
}

#[test]
fn what_was_written_is_there_even_where_the_work_failed() {
    let image = PageImage::zeroed(4096);
    let subject = subject(LazyRefcounts::Off, None);
    let attempt = subject.attempt::<(), _>(&image, async |disk| {
        disk.image
            .port()
            .at(Event::None)
            .write(0, vec![1; 512])
            .await?;
        Err(Refused::ReadOnly.into())
    });
    assert_eq!(attempt.image.read_vec(0, 1), [1]);
    assert_eq!(attempt.recording.entries.len(), 1);
    assert_eq!(image.read_vec(0, 1), [0], "the state itself is not written");
}

#[test]
fn an_image_is_settled_that_is_another_only_where_nobody_read() {
    let subject = subject(LazyRefcounts::Off, None);
    let image = fresh(16, false);
    let opened = subject.recover(&image, &[]);
    let read = Footprint::of(reads(&opened.recording).collect());
    subject.settle(&image, read.clone());
    assert_eq!(subject.is_settled(&image).as_deref(), Some(&read));
    let within = read.ranges().next().unwrap().start;
    for (sector, is_settled) in [(within, false), (image.len() / 512 - 1, true)] {
        let mut other = image.clone();
        other.write(sector * 512 + 100, &[0xA5]);
        assert_eq!(subject.is_settled(&other).is_some(), is_settled, "{sector}");
    }
}

#[test]
fn what_is_settled_is_known_beside_the_same_files_alone() {
    let backing = |fill| Some(Backing::raw(PageImage::from_bytes(&[fill; 1024])));
    let data = |fill, len| Some(PageImage::from_bytes(&vec![fill; len]));
    let image = fresh(9, true);
    let subject = subject(LazyRefcounts::On, None);
    let first = subject.beside(backing(1), data(1, 512));
    first.settle(&image, Footprint::of(std::iter::once(0..2).collect()));
    let cases = [
        (subject.beside(backing(1), data(1, 512)), true),
        (subject.beside(backing(2), data(1, 512)), false),
        (subject.beside(None, data(1, 512)), false),
        // What a data file holds is looked at by nobody who is asked for nothing of it.
        (subject.beside(backing(1), data(2, 512)), true),
        (subject.beside(backing(1), data(1, 1024)), false),
        (subject.beside(backing(1), None), false),
    ];
    for (case, (other, known)) in cases.iter().enumerate() {
        assert_eq!(other.is_settled(&image).is_some(), *known, "{case}");
    }
}

#[test]
fn what_lies_below_stays_open_until_it_is_another_or_something_fails() {
    let backing = |fill| Some(Backing::raw(PageImage::from_bytes(&[fill; 1024])));
    let image = fresh(9, true);
    let subject = subject(LazyRefcounts::Off, backing(1));
    let below = || {
        let memory = subject.memory.borrow();
        memory.below.as_ref().map(|below| Rc::clone(&below.image))
    };
    let shown = |subject: &EngineSubject| {
        let attempt = subject.recover(&image, &[0..512, 512..1024]);
        let first = below().expect("it stays open");
        (attempt.result.unwrap()[1][0], first)
    };
    let (one, first) = shown(&subject);
    let (again, second) = shown(&subject);
    assert!(Rc::ptr_eq(&first, &second));
    let (other, third) = shown(&subject.beside(backing(2), None));
    assert!(!Rc::ptr_eq(&first, &third));
    assert_eq!((one, again, other), (1, 1, 2));
    subject
        .recover(&PageImage::default(), &[])
        .result
        .unwrap_err();
    assert!(below().is_none());
}
