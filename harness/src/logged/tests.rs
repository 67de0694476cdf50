use std::fs;
use std::path::Path;
use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::disks::{Disk, Disks};
use blkdebug::log_writes::{Flags, Log, Logged, SectorSize, SuperBlock, write_entry, write_super};
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, RequestId, Tick};
use engine::device::{Cause, Event, PageImage, Port, RamDevice, SectorRun, drive};
use engine::qcow2::create::{CreateOptions, create};

use super::explore::{Explored, Unexplorable};
use super::versions::{Versions, Window};
use super::*;
use crate::campaign::Proceed;
use crate::guest::Level;
use crate::oracle::Witness;

/// The entries of a log with their data.
type Parts = Vec<(Logged, Vec<u8>)>;

/// A log that QEMU recorded, and the disk before.
fn corpus(name: &str) -> (Vec<u8>, PageImage) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/logs");
    let read = |kind: &str| fs::read(folder.join(format!("{name}.{kind}"))).unwrap();
    (read("log"), PageImage::from_bytes(&read("base")))
}

fn parts(bytes: &[u8]) -> Parts {
    let log = Log::open(bytes).unwrap();
    let part = |read: Result<_, _>| {
        let (place, entry): (blkdebug::log_writes::Place, Logged) = read.unwrap();
        let mut data = vec![0; usize::try_from(place.data_bytes).unwrap()];
        log.read_data(&place, 0, &mut data).unwrap();
        (entry, data)
    };
    log.entries().map(part).collect()
}

fn log_of(sector: SectorSize, parts: &Parts) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = SuperBlock::new(u64::try_from(parts.len()).unwrap(), sector);
    write_super(&mut bytes, &head).unwrap();
    for (entry, data) in parts {
        write_entry(&mut bytes, sector, entry, data).unwrap();
    }
    bytes
}

fn imported(bytes: &[u8], base: PageImage, discards: Discards) -> Imported {
    let how = How {
        discards,
        ..How::default()
    };
    import(&Log::open(bytes).unwrap(), base, &how).unwrap()
}

fn plan() -> Plan<'static> {
    Plan {
        seed: 1,
        contract: Contract::EpochTorn,
        states: 20_000,
        accept: None,
        backing: None,
    }
}

fn explored(imported: &Imported, plan: &Plan<'_>) -> Explored {
    let explored = explore(imported, plan, &mut |_| Proceed::GoOn).unwrap();
    assert_eq!(explored.broken, [""; 0]);
    assert_eq!(explored.not_measured, [""; 0]);
    assert!(explored.progress.judged > 20, "{:?}", explored.progress);
    explored
}

fn classes(explored: &Explored) -> Vec<String> {
    explored
        .findings
        .iter()
        .map(|finding| finding.violation.class.to_string())
        .collect()
}

/// What QEMU logs says everything that a recording of it says, so that either makes the other.
#[test]
fn qemus_logs_come_back_from_their_recordings() {
    for name in [
        "qemu-plain",
        "qemu-lazy",
        "qemu-lazy-snapshot",
        "qemu-discard",
        "qemu-snapshots",
        "qemu-lazy-reuse",
        "qemu-lazy-retaken",
        "qemu-lazy-two-owners",
    ] {
        let (bytes, base) = corpus(name);
        let imported = imported(&bytes, base, Discards::Advice);
        let mut again = Vec::new();
        let exported = export(&imported.recording, Disk::Image, &mut again).unwrap();
        assert_eq!(
            exported,
            Exported {
                entries: imported.entries,
                ..Exported::default()
            }
        );
        assert!(again == bytes, "{name} is not the same again");
    }
}

#[test]
fn what_qemu_ordered_survives_every_power_loss() {
    for name in ["qemu-plain", "qemu-lazy", "qemu-snapshots"] {
        let (bytes, base) = corpus(name);
        let imported = imported(&bytes, base, Discards::Zeroes);
        let [once, twice] = [(), ()].map(|()| explored(&imported, &plan()));
        assert_eq!(classes(&once), [""; 0], "{name}: {:?}", once.findings);
        assert!(once.progress.repairs > 0 && once.progress.nested > 0 && once.progress.served > 0);
        assert_eq!(
            once.digest, twice.digest,
            "the same log comes to the same digest"
        );
    }
}

/// With lazy refcounts QEMU 10.0.2 links a whole cluster that takes the place of a snapshot's without a flush behind its
/// data: what was durable there reads zeroes, or whatever stood in the new cluster.
#[test]
fn qemu_loses_flushed_data_beside_a_snapshot() {
    let (bytes, base) = corpus("qemu-lazy-snapshot");
    let imported = imported(&bytes, base, Discards::Advice);
    let strict = explored(&imported, &plan());
    assert_eq!(classes(&strict), ["guest/zeros/"]);
    let finding = &strict.findings[0];
    let sentence = finding.sentence.as_ref().unwrap();
    assert!(
        sentence.contains("the log's write #12") && sentence.contains("the log's write #11"),
        "{sentence}"
    );
    let milder = Plan {
        accept: Some(Level::Zeros),
        ..plan()
    };
    assert_eq!(classes(&explored(&imported, &milder)), [""; 0]);
    // A disk that keeps the order of its writes hides it.
    let ordered = Plan {
        contract: Contract::Prefix,
        ..plan()
    };
    let prefix = explore(&imported, &ordered, &mut |_| Proceed::GoOn).unwrap();
    assert_eq!(classes(&prefix), [""; 0]);
}

/// The same where the new cluster held other data of the guest's before, which it gave up: these show at another place.
/// They were written to that cluster, but before it was taken.
#[test]
fn what_stood_in_a_cluster_before_it_was_taken_is_not_legal() {
    let (bytes, base) = corpus("qemu-lazy-reuse");
    let explored = explored(&imported(&bytes, base, Discards::Advice), &plan());
    assert_eq!(classes(&explored), ["guest/stale-own/"]);
}

/// The same where the cluster comes back to the guest cluster that had it before: what stood there in its first life is as
/// foreign to it as what anything else held there.
#[test]
fn what_a_cluster_held_before_it_was_given_up_is_not_legal_where_it_is_taken_again() {
    let (bytes, base) = corpus("qemu-lazy-retaken");
    let explored = explored(&imported(&bytes, base, Discards::Advice), &plan());
    let classes = classes(&explored);
    assert!(
        classes.iter().any(|class| class == "guest/lost/"),
        "{classes:?}"
    );
}

/// With lazy refcounts QEMU 10.0.2 gives a host cluster to another guest cluster while a durable table still names it for the
/// one that gave it up. Here both mappings stand in one table, so that only a tear comes between them.
#[test]
fn qemu_gives_one_cluster_to_two_owners() {
    let (bytes, base) = corpus("qemu-lazy-two-owners");
    let imported = imported(&bytes, base, Discards::Advice);
    for (contract, is_found) in [(Contract::EpochTorn, true), (Contract::Epoch, false)] {
        let explored = explored(&imported, &Plan { contract, ..plan() });
        let mut findings = explored.findings.iter();
        let found = findings.find(|finding| {
            finding.violation.class.to_string() == "structure/two-owners/data+data"
        });
        assert_eq!(found.is_some(), is_found, "{:?}", classes(&explored));
        if let Some(finding) = found {
            let sentence = finding.sentence.as_ref().unwrap();
            assert!(sentence.contains("the log's write #69"), "{sentence}");
        }
    }
}

/// QEMU 10.0.2 gives host clusters up before the mapping that names them is gone. A file reads zeroes there then.
#[test]
fn qemu_discards_what_a_durable_mapping_still_names() {
    let (bytes, base) = corpus("qemu-discard");
    let advice = explored(&imported(&bytes, base.clone(), Discards::Advice), &plan());
    assert_eq!(classes(&advice), ["guest/stale-foreign/"]);
    let zeroes = explored(&imported(&bytes, base, Discards::Zeroes), &plan());
    assert_eq!(classes(&zeroes), [""; 0]);
}

/// Leaves entry `index` out of a log.
fn without(name: &str, index: usize) -> (Vec<u8>, PageImage) {
    let (bytes, base) = corpus(name);
    let mut parts = parts(&bytes);
    assert!(
        parts[index].0.flags.has(Flags::FLUSH),
        "entry {index} is a flush"
    );
    parts.remove(index);
    (log_of(SectorSize::SMALL, &parts), base)
}

#[test]
fn a_flush_that_is_taken_out_is_missed() {
    for (name, index, class) in [
        ("qemu-plain", 3, "structure/beyond-end/l2-table"),
        ("qemu-plain", 8, "structure/refcount-too-low/data"),
        ("qemu-lazy", 8, "structure/refcount-too-low/data"),
        ("qemu-snapshots", 26, "guest/snapshots/snapshot-table"),
    ] {
        let (bytes, base) = without(name, index);
        let explored = explored(&imported(&bytes, base, Discards::Advice), &plan());
        let found = classes(&explored);
        assert!(
            found.iter().any(|found| found == class),
            "{name} without entry {index}: {found:?}"
        );
    }
}

/// The L2 table that names new clusters, moved in front of the refcounts and data that it needs.
#[test]
fn a_write_that_is_moved_forward_is_found() {
    let (bytes, base) = corpus("qemu-plain");
    let mut parts = parts(&bytes);
    let table = parts.remove(9);
    assert!(parts[8].0.flags.has(Flags::FLUSH) && table.0.sector_count == 1);
    parts.insert(6, table);
    let moved = log_of(SectorSize::SMALL, &parts);
    let explored = explored(&imported(&moved, base, Discards::Advice), &plan());
    let found = classes(&explored);
    assert!(
        found.iter().any(|class| class.starts_with("structure/")),
        "{found:?}"
    );
    let told = explored.findings[0].cut.clone();
    assert!(
        told.starts_with("power lost") || told.starts_with("behind the flush"),
        "{told}"
    );
}

/// What was written to a cluster before the last time, and before any table names it, is no version. It is legal.
#[test]
fn data_that_no_version_shows_are_legal_if_they_were_written_there() {
    let (bytes, base) = corpus("qemu-lazy-snapshot");
    let mut parts = parts(&bytes);
    let (entry, data) = parts[11].clone();
    parts.insert(11, (entry, vec![0x77; data.len()]));
    let twice = log_of(SectorSize::SMALL, &parts);
    let explored = explored(&imported(&twice, base, Discards::Advice), &plan());
    assert_eq!(classes(&explored), ["guest/zeros/"]);
}

/// A snapshot that only a later moment has, a disk of another size, a value that was durable and is back.
#[test]
fn what_belongs_to_another_moment_is_found() {
    let (bytes, base) = corpus("qemu-snapshots");
    let snapshots = imported(&bytes, base, Discards::Advice);
    let versions = Versions::of(&snapshots.recording, None);
    let last = versions.count() - 1;
    let class = |versions: &Versions<'_>, found: &Witness, floor, last| {
        let violation = versions.check(found, Window { floor, last }, None);
        violation.map(|violation| violation.class.to_string())
    };
    let at_end = versions.witness(last);
    assert_eq!(class(&versions, &at_end, last, last), None);
    assert_eq!(class(&versions, &at_end, 0, last), None);
    assert_eq!(
        class(&versions, &at_end, 0, 1).as_deref(),
        Some("guest/snapshots/snapshot-table")
    );

    let larger = Witness::new(new_image(1 << 20));
    assert_eq!(
        class(&versions, &larger, 0, last).as_deref(),
        Some("guest/size/header")
    );

    let (bytes, base) = corpus("qemu-plain");
    let plain = imported(&bytes, base, Discards::Advice);
    let versions = Versions::of(&plain.recording, None);
    let last = versions.count() - 1;
    let at_start = versions.witness(0);
    assert_eq!(
        class(&versions, &at_start, last, last).as_deref(),
        Some("guest/lost/")
    );
    let at_end = versions.witness(last);
    assert_eq!(
        class(&versions, &at_end, 0, 1).as_deref(),
        Some("guest/stale-own/")
    );
}

fn new_image(virtual_bytes: u64) -> PageImage {
    let ram = Rc::new(RamDevice::default());
    let options = CreateOptions {
        virtual_bytes,
        ..CreateOptions::default()
    };
    drive(create(&Port::new(Rc::<RamDevice>::clone(&ram)), &options))
        .unwrap()
        .unwrap();
    ram.snapshot()
}

/// A log that begins with an empty disk holds no image at first; nothing is promised of that time.
#[test]
fn a_log_from_before_the_image_is_passed_over_up_to_it() {
    let (bytes, base) = corpus("qemu-plain");
    let mut parts = parts(&bytes);
    let sectors = base.len().div_ceil(512);
    let whole = base.read_vec(0, usize::try_from(sectors * 512).unwrap());
    let (tail, head) = (whole[512..].to_vec(), whole[..512].to_vec());
    let made = [
        (Logged::write(1, sectors - 1), tail),
        (Logged::flush(), Vec::new()),
        (Logged::write(0, 1), head),
        (Logged::flush(), Vec::new()),
    ];
    parts.splice(0..0, made);
    let bytes = log_of(SectorSize::SMALL, &parts);
    let from_nothing = imported(&bytes, PageImage::default(), Discards::Zeroes);
    let explored = explored(&from_nothing, &plan());
    assert_eq!((explored.unborn, classes(&explored)), (4, Vec::new()));

    let never = imported(
        &log_of(SectorSize::SMALL, &vec![(Logged::flush(), Vec::new())]),
        PageImage::default(),
        Discards::Advice,
    );
    let refused = explore(&never, &plan(), &mut |_| Proceed::GoOn).unwrap_err();
    assert!(matches!(refused, Unexplorable::NoImage(_)), "{refused}");
    let refused = explore(
        &from_nothing,
        &Plan {
            contract: Contract::Liar,
            ..plan()
        },
        &mut |_| Proceed::GoOn,
    )
    .unwrap_err();
    assert_eq!(refused, Unexplorable::Destroys(Contract::Liar));
}

/// Marks, FUA, and a flush that comes with data, as Linux logs them: the flush goes first.
#[test]
fn linuxs_entries_mean_what_its_documentation_says() {
    let parts = vec![
        (Logged::write(0, 1), vec![1; 512]),
        (Logged::mark("fsync"), Vec::new()),
        (
            Logged::write(1, 1).flagged(Flags::FLUSH.with(Flags::FUA)),
            vec![2; 512],
        ),
        (Logged::discard(0, 8), Vec::new()),
        (Logged::write(4, 1).flagged(Flags::METADATA), vec![3; 512]),
    ];
    let imported = imported(
        &log_of(SectorSize::SMALL, &parts),
        PageImage::default(),
        Discards::Advice,
    );
    let entries = imported.recording.entries.iter();
    let told: Vec<String> = entries
        .map(|entry| {
            let fua = if entry.op.is_fua() { " fua" } else { "" };
            format!(
                "{} {:?}{fua} #{}",
                entry.op.kind().name(),
                entry.op.sectors(),
                entry.ordinal
            )
        })
        .collect();
    // The discard is clipped to what the disk has by then.
    assert_eq!(
        told,
        [
            "write 0..1 #0",
            "flush 0..0 #2",
            "write 1..2 fua #2",
            "discard 0..2 #3",
            "write 4..5 #4"
        ]
    );
    assert_eq!(
        imported.marks,
        [Mark {
            at: Tick(3),
            name: "fsync".into()
        }]
    );
    assert_eq!(imported.finished().len(), 5 * 512);
}

#[test]
fn sectors_smaller_and_larger_than_a_disks_own_are_put_together() {
    let small = SectorSize::new(32).unwrap();
    let parts = vec![
        (Logged::write(15, 3), (0..96).collect()),
        (Logged::discard(0, 20), Vec::new()),
    ];
    let tiny = imported(
        &log_of(small, &parts),
        PageImage::from_bytes(&[9; 1024]),
        Discards::Zeroes,
    );
    let mut expected = vec![9; 1024];
    expected[480..576].copy_from_slice(&(0..96).collect::<Vec<u8>>());
    expected[..512].fill(0);
    assert_eq!(tiny.finished().read_vec(0, 1024), expected);

    let large = SectorSize::new(4096).unwrap();
    let big = imported(
        &log_of(large, &vec![(Logged::write(2, 1), vec![7; 4096])]),
        PageImage::default(),
        Discards::Advice,
    );
    assert_eq!(big.recording.entries[0].op.sectors(), 16..24);
}

#[test]
fn what_is_too_much_is_refused_with_a_way_out() {
    let far = vec![
        (Logged::flush(), Vec::new()),
        (Logged::write(1 << 30, 1), vec![1; 512]),
    ];
    let log = log_of(SectorSize::SMALL, &far);
    let error = import(
        &Log::open(log.as_slice()).unwrap(),
        PageImage::default(),
        &How::default(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("--entries 1"), "{error}");
    let how = How {
        entries: Some(1),
        ..How::default()
    };
    assert_eq!(
        import(
            &Log::open(log.as_slice()).unwrap(),
            PageImage::default(),
            &how
        )
        .unwrap()
        .entries,
        1
    );
}

/// A discard takes a few bytes of a log, and its sectors as much memory as written ones.
#[test]
fn discards_of_too_much_are_refused_with_a_way_out() {
    let much = vec![
        (Logged::write(1 << 22, 1), vec![1; 512]),
        (Logged::discard(0, 1 << 22), Vec::new()),
    ];
    let log = log_of(SectorSize::SMALL, &much);
    let refused = |entries| {
        let how = How {
            entries,
            ..How::default()
        };
        let log = Log::open(log.as_slice()).unwrap();
        let imported = import(&log, PageImage::default(), &how).unwrap();
        explore(&imported, &plan(), &mut |_| Proceed::GoOn)
            .err()
            .unwrap()
            .to_string()
    };
    let error = refused(None);
    assert!(error.contains("--entries 1"), "{error}");
    let error = refused(Some(1));
    assert!(
        error.contains("never comes to a sound qcow2 image"),
        "{error}"
    );
}

fn request(
    index: usize,
    op: RecordedOp,
    submitted: u64,
    answered: Option<(u64, Result<(), Cause>)>,
) -> Entry {
    Entry {
        id: RequestId(index),
        disk: Disk::Image,
        event: Event::None,
        ordinal: 0,
        op,
        submitted: Tick(submitted),
        completed: answered.map(|(at, answer)| (Tick(at), answer)),
        effect: Effect::Whole,
        repeats: None,
    }
}

/// A flush covers what had been completed when it was submitted. Whoever reads a log takes it to cover all that stands
/// before it, so that a write that was in flight then has to stand behind it.
#[test]
fn a_flush_is_logged_where_it_was_submitted() {
    let write = |sector: u64, fua| RecordedOp::Write {
        run: Rc::new(SectorRun::new(sector, vec![1; 512])),
        fua,
    };
    let mut entries = vec![
        request(0, write(0, false), 1, Some((3, Ok(())))),
        request(1, write(1, false), 2, Some((5, Ok(())))),
        request(2, RecordedOp::Flush, 4, Some((6, Ok(())))),
        request(3, write(2, true), 7, Some((8, Ok(())))),
        request(
            4,
            RecordedOp::SetLen { len_bytes: 4096 },
            9,
            Some((10, Ok(()))),
        ),
        request(5, RecordedOp::Flush, 11, Some((12, Err(Cause::IO)))),
        request(6, write(3, false), 13, None),
        request(
            7,
            RecordedOp::WriteZeroes {
                sectors: 4..6,
                unmap: true,
            },
            14,
            Some((15, Ok(()))),
        ),
    ];
    entries[0].effect = Effect::Torn(blkdebug::mask::SectorMask::from_fn(1, |_| true));
    let recording = Recording {
        bases: Disks::one(PageImage::default()),
        entries,
    };
    let mut bytes = Vec::new();
    let exported = export(&recording, Disk::Image, &mut bytes).unwrap();
    assert_eq!(
        exported,
        Exported {
            entries: 6,
            unanswered: 1,
            undone: 1,
            lengths: 1
        }
    );
    let logged: Vec<String> = parts(&bytes)
        .iter()
        .map(|(entry, data)| {
            format!(
                "{} {}+{} {}",
                entry.flags,
                entry.sector,
                data.len(),
                entry.name()
            )
        })
        .collect();
    let expected = [
        "write 0+512 ",
        "flush 0+0 ",
        "write 1+512 ",
        "fua 2+512 ",
        "mark 0+0 qrash-set-len=4096",
        "write 4+1024 ",
    ];
    assert_eq!(logged, expected);
    // The mark comes back as what it stands for.
    let again = imported(&bytes, PageImage::default(), Discards::Advice);
    assert!(again.marks.is_empty());
    assert_eq!(again.finished().len(), 4096);
}
