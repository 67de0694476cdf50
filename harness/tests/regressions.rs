//! What once broke in the qcow2 engine, found by reading it with bad intent. Each test tells the story
//! and holds the promise that was broken.

#![allow(
    clippy::unwrap_used,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test fails by panic, and its numbers are small"
)]

use std::rc::Rc;

use blkdebug::record::Clock;
use blkdebug::rule::{Fault, Rule, Rules, State, Transition};
use blkdebug::volatile::{Answering, VolatileDisk};
use engine::device::{Cause, Event, OpKind, PageImage, Port, RamDevice, drive};
use engine::image::Image;
use engine::qcow2::check::{CheckOptions, CheckReport, Repair, check};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::entry::{Compressed, Copied, L1Entry, Mapping};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::Header;
use engine::qcow2::refblock::set_refcount;
use engine::qcow2::unit::HostOffset;
use engine::qcow2::{CacheSizes, LazyRefcounts, OpenOptions, Qcow2};

fn run<T>(future: impl Future<Output = T>) -> T {
    drive(future).expect("completes at once")
}

fn made(virtual_bytes: u64, cluster_bits: u32, refcount_order: u32) -> Vec<u8> {
    let ram = Rc::new(RamDevice::default());
    let options = CreateOptions {
        virtual_bytes,
        cluster_bits,
        refcount_order,
        ..CreateOptions::default()
    };
    run(create(&Port::new(ram.clone()), &options)).unwrap();
    bytes(&ram.snapshot())
}

fn bytes(image: &PageImage) -> Vec<u8> {
    image.read_vec(0, usize::try_from(image.len()).unwrap())
}

fn ram(bytes: &[u8]) -> (Rc<RamDevice>, Port) {
    let ram = Rc::new(RamDevice::new(PageImage::from_bytes(bytes)));
    (ram.clone(), Port::new(ram))
}

fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes, bytes.len() as u64).unwrap()
}

fn checked(port: &Port, repair: Repair) -> CheckReport {
    run(check(port, repair, &CheckOptions::default())).unwrap()
}

fn small(lazy: LazyRefcounts) -> OpenOptions {
    OpenOptions {
        lazy_refcounts: Some(lazy),
        caches: CacheSizes {
            l2_slices: 1,
            refcount_slices: 1,
            slice_bytes: 512,
        },
        ..OpenOptions::default()
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4096];
    let mut c = flate2::Compress::new(flate2::Compression::default(), false);
    c.compress(data, &mut out, flate2::FlushCompress::Finish)
        .unwrap();
    out.truncate(c.total_out() as usize);
    out
}

/// One EIO while a compressed cluster over two host clusters is freed: its first host cluster is
/// freed twice, and with it the compressed neighbour that lives there.
#[test]
fn one_failed_read_does_not_free_a_neighbour() {
    let mut image = made(64 * 512, 9, 6);
    let h = header(&image);
    let geometry = Geometry::new(9, 6).unwrap();
    let table = 10 * 512;
    let l1 = L1Entry::Table {
        offset: HostOffset(table as u64),
        copied: Copied::Yes,
    }
    .encode()
    .0;
    put(&mut image, h.l1_offset.0 as usize, &l1.to_be_bytes());
    let long = Compressed {
        offset: HostOffset(63 * 512 + 256),
        len_bytes: 768,
    };
    let neighbour = Compressed {
        offset: HostOffset(63 * 512),
        len_bytes: 512,
    };
    put(&mut image, table, &[0; 512]);
    put(
        &mut image,
        table,
        &Mapping::Compressed(long)
            .encode(geometry)
            .word
            .to_be_bytes(),
    );
    put(
        &mut image,
        table + 8,
        &Mapping::Compressed(neighbour)
            .encode(geometry)
            .word
            .to_be_bytes(),
    );
    put(&mut image, 63 * 512, &deflate(&[0xbb; 512]));
    put(&mut image, 63 * 512 + 256, &deflate(&[0xaa; 512]));
    put(&mut image, 64 * 512, &[0; 512]);
    let mut second = vec![0; 512];
    set_refcount(&mut second, 0, 6, 1);
    set_refcount(&mut second, 1, 6, 1);
    put(&mut image, 65 * 512, &second);
    put(
        &mut image,
        h.reftable_offset.0 as usize + 8,
        &(65u64 * 512).to_be_bytes(),
    );
    let first_at = u64::from_be_bytes(
        image[h.reftable_offset.0 as usize..][..8]
            .try_into()
            .unwrap(),
    ) as usize;
    let block = &mut image[first_at..first_at + 512];
    set_refcount(block, 10, 6, 1);
    set_refcount(block, 63, 6, 2);
    let (_, port) = ram(&image);
    let report = checked(&port, Repair::None);
    assert!(report.is_clean(), "{report:?}");

    let rule = Rule {
        event: Some(Event::RefblockLoad),
        kind: Some(OpKind::Read),
        skip: 1,
        ..Rule::new(Fault::Fail(Cause::NO_SPACE))
    };
    let disk = Rc::new(
        VolatileDisk::new(
            PageImage::from_bytes(&image),
            Clock::default(),
            Answering::AtOnce,
        )
        .with_rules(Rules::new(vec![rule], vec![])),
    );
    let q = run(Qcow2::open(
        Port::new(disk.clone()),
        None,
        &small(LazyRefcounts::Off),
    ))
    .unwrap();
    assert_eq!(run(q.read(512, 512)).unwrap(), [0xbb; 512]);
    run(q.discard(0, 512)).unwrap();
    // What was unlinked is durable, and its space goes back: there the fault hits, half-way through.
    run(q.flush()).unwrap();
    assert_eq!(disk.hits(), 1);
    // The rest goes back now, and what is free is taken.
    for cluster in 5..8 {
        run(q.write(cluster * 512, vec![5; 512])).unwrap();
    }
    assert_eq!(
        run(q.read(512, 512)).ok(),
        Some(vec![0xbb; 512]),
        "guest cluster 1 was never touched"
    );
}

/// The flush after a hookup fails and drops the hookup. Writing goes on, since links of fresh
/// clusters under the dirty bit need no barrier.
#[test]
fn after_a_failed_flush_nothing_is_mapped_that_no_refcount_block_covers() {
    let image = made(64 * 12 * 512, 9, 4);
    let rule = Rule {
        event: Some(Event::FlushToDisk),
        kind: Some(OpKind::Flush),
        state: Some(State(2)),
        ..Rule::new(Fault::Fail(Cause::NO_SPACE))
    };
    let hook = Transition {
        event: Event::RefblockAllocHookup,
        from: None,
        to: State(2),
    };
    let disk = Rc::new(
        VolatileDisk::new(
            PageImage::from_bytes(&image),
            Clock::default(),
            Answering::AtOnce,
        )
        .with_rules(Rules::new(vec![rule], vec![hook])),
    );
    let q = run(Qcow2::open(
        Port::new(disk.clone()),
        None,
        &small(LazyRefcounts::On),
    ))
    .unwrap();
    for table in 0..12 {
        run(q.write(table * 64 * 512, vec![1; 512])).unwrap();
    }
    run(q.flush()).unwrap();
    let mut late = None;
    for cluster in 0..64 * 12 {
        if cluster % 64 != 0 {
            let _ = run(q.write(cluster * 512, vec![2; 512]));
            if disk.hits() > 0 && late.is_none() {
                late = Some(cluster);
            }
        }
    }
    assert!(late.is_some());
    // The power goes. Of what no flush covered, everything survives but the hookup, and the length
    // from the refcount block on.
    let mut left = bytes(&disk.current());
    let h = header(&left);
    left[h.reftable_offset.0 as usize + 8..][..8].fill(0);
    left.truncate(257 * 512);
    let (_, port) = ram(&left);
    let opened = run(Qcow2::open(port, None, &OpenOptions::default()));
    assert!(opened.is_ok(), "repair at open fails: {:?}", opened.err());
}

/// Two flushes. The first fails and may have dropped what it was to make durable; the second one, asked for before anybody
/// hears of that, would succeed, and lift the mark of what is durable over what the first dropped. So it waits.
#[test]
fn a_flush_beside_a_failed_one_is_not_believed() {
    use std::task::{Context, Waker};
    let image = made(1 << 20, 16, 4);
    let rule = Rule {
        event: Some(Event::FlushToDisk),
        state: Some(State(2)),
        ..Rule::new(Fault::Fail(Cause::IO))
    };
    let hook = Transition {
        event: Event::FlushToOs,
        from: None,
        to: State(2),
    };
    let disk = Rc::new(
        VolatileDisk::new(
            PageImage::from_bytes(&image),
            Clock::default(),
            Answering::OnCommand,
        )
        .with_rules(Rules::new(vec![rule], vec![hook])),
    );
    let mut context = Context::from_waker(Waker::noop());
    let finish = |mut future: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        while future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
        {
            disk.complete(disk.in_flight()[0].id);
        }
    };
    let holder = Rc::new(std::cell::RefCell::new(None));
    let into = Rc::clone(&holder);
    let port = Port::new(disk.clone());
    finish(Box::pin(async move {
        let q = Qcow2::open(port, None, &small(LazyRefcounts::On))
            .await
            .unwrap();
        q.write(0, vec![1; 512]).await.unwrap();
        *into.borrow_mut() = Some(Rc::new(q));
    }));
    let q: Rc<Qcow2> = holder.borrow_mut().take().unwrap();
    let mut first = q.flush();
    let mut second = q.flush();
    // Write back what the first has to, until its flush of the device is under way.
    loop {
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        let pending = disk.in_flight();
        assert_eq!(pending.len(), 1, "a file is flushed once at a time");
        if pending[0].kind == OpKind::Flush {
            break;
        }
        disk.complete(pending[0].id);
    }
    disk.complete(disk.in_flight()[0].id);
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert_eq!(disk.in_flight_count(), 0);
    let failed = |answer| matches!(answer, std::task::Poll::Ready(Err(_)));
    assert!(failed(first.as_mut().poll(&mut context)));
    assert!(failed(second.as_mut().poll(&mut context)));
    let mut third = q.flush();
    let c = third.as_mut().poll(&mut context);
    assert!(
        !matches!(c, std::task::Poll::Ready(Ok(()))),
        "a flush after a failed flush succeeds without a request"
    );
}

#[test]
fn close_after_a_failed_close_leaves_the_image_clean_or_says_that_it_does_not() {
    let image = made(1 << 20, 16, 4);
    let rule = Rule {
        event: Some(Event::None),
        kind: Some(OpKind::Write),
        skip: 1,
        ..Rule::new(Fault::Fail(Cause::NO_SPACE))
    };
    let disk = Rc::new(
        VolatileDisk::new(
            PageImage::from_bytes(&image),
            Clock::default(),
            Answering::AtOnce,
        )
        .with_rules(Rules::new(vec![rule], vec![])),
    );
    let q = run(Qcow2::open(
        Port::new(disk.clone()),
        None,
        &small(LazyRefcounts::On),
    ))
    .unwrap();
    run(q.write(0, vec![1; 512])).unwrap();
    assert!(run(q.close()).is_err());
    let again = run(q.close());
    let dirty = header(&bytes(&disk.current())).is_dirty();
    assert!(
        again.is_err() || !dirty,
        "close said {again:?}, dirty {dirty}"
    );
}

/// A process is killed with a new refcount block and its table entry in the disk's cache. The next one
/// reads both there, finds the image clean, and links clusters that the block counts. All it flushes is
/// its own writes, unless it flushes before it builds on what it found.
#[test]
fn an_image_opened_for_writing_is_flushed_before_anything_builds_on_it() {
    for lazy in [LazyRefcounts::Off, LazyRefcounts::On] {
        let image = PageImage::from_bytes(&made(1 << 20, 9, 6));
        let disk = Rc::new(VolatileDisk::new(
            image,
            Clock::default(),
            Answering::AtOnce,
        ));
        let opened = run(Qcow2::open(Port::new(disk.clone()), None, &small(lazy)));
        let first = opened.unwrap();
        run(first.write(0, vec![1; 512 * 64])).unwrap();
        drop(first);
        let before = disk.recording().entries.len();
        run(Qcow2::open(Port::new(disk.clone()), None, &small(lazy))).unwrap();
        let recording = disk.recording();
        let kinds: Vec<OpKind> = recording.entries[before..]
            .iter()
            .map(|entry| entry.op.kind())
            .collect();
        let last = kinds.iter().rposition(|kind| *kind != OpKind::Read);
        assert_eq!(
            last.map(|last| kinds[last]),
            Some(OpKind::Flush),
            "{kinds:?}"
        );
    }
}
