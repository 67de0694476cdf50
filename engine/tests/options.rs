//! Options of an open image: what they change in the file, and what they must not change for the guest.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::cell::RefCell;
use std::rc::Rc;

use engine::device::{Completion, Device, Event, Op, PageImage, Port, RamDevice, Request};
use engine::error::{Error, Problem, Refused, Structure};
use engine::image::{Access, Image, StatusKind, Unmap};
use engine::manage::{Manage, NewSnapshot};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header::{Header, incompatible};
use engine::qcow2::refblock::set_refcount;
use engine::qcow2::{
    CacheSizes, DiscardedCluster, Discards, GuestDiscards, OpenOptions, OverlapChecks, Pass, Qcow2,
    Region,
};
use engine::zeroes::DetectZeroes;
use kit::{Ram, run};

const CLUSTER: u64 = 4096;
const LEN: usize = 4096;

/// A device in memory that remembers what it was advised to give back, and what was loaded.
struct Watched {
    ram: RamDevice,
    discards: RefCell<Vec<u64>>,
    loads: RefCell<usize>,
}

impl Device for Watched {
    fn submit(&self, request: Request) -> Completion {
        if let Op::Discard { offset, len_bytes } = request.op {
            assert_eq!(len_bytes, CLUSTER, "clusters go one by one");
            self.discards.borrow_mut().push(offset);
        }
        if request.event == Event::L2Load {
            *self.loads.borrow_mut() += 1;
        }
        self.ram.submit(request)
    }

    fn len(&self) -> u64 {
        self.ram.len()
    }
}

struct Stage {
    device: Rc<Watched>,
    image: Qcow2,
}

impl Stage {
    fn new(options: &OpenOptions) -> Self {
        Self::of_version(3, options)
    }

    fn of_version(version: u32, options: &OpenOptions) -> Self {
        let ram = Ram::empty();
        let shape = CreateOptions {
            virtual_bytes: 64 * CLUSTER,
            cluster_bits: 12,
            version,
            ..CreateOptions::default()
        };
        run(create(&ram.port, &shape)).unwrap();
        Self::on(ram.device.snapshot(), options).unwrap()
    }

    fn on(image: PageImage, options: &OpenOptions) -> Result<Self, Error> {
        let device = Rc::new(Watched {
            ram: RamDevice::new(image),
            discards: RefCell::default(),
            loads: RefCell::default(),
        });
        let port = Port::new(Rc::<Watched>::clone(&device));
        let image = run(Qcow2::open(port, None, options))?;
        Ok(Self { device, image })
    }

    fn write(&self, cluster: u64, fill: u8) {
        run(self.image.write(cluster * CLUSTER, vec![fill; LEN])).unwrap();
    }

    fn discard(&self, cluster: u64) {
        run(self.image.discard(cluster * CLUSTER, CLUSTER)).unwrap();
    }

    fn flush(&self) {
        run(self.image.flush()).unwrap();
    }

    fn read(&self, cluster: u64) -> Vec<u8> {
        run(self.image.read(cluster * CLUSTER, LEN)).unwrap()
    }

    /// What a cluster of the guest's is made of, and where it stands.
    fn status(&self, cluster: u64) -> (StatusKind, Option<u64>) {
        let status = run(self.image.status(cluster * CLUSTER, CLUSTER)).unwrap();
        (status.kind, status.host_offset)
    }

    /// What was given back since the last call.
    fn discards(&self) -> Vec<u64> {
        self.device.discards.take()
    }

    fn bytes(&self) -> Vec<u8> {
        let image = self.device.ram.snapshot();
        image.read_vec(0, usize::try_from(image.len()).unwrap())
    }
}

fn discarding(discards: Discards) -> OpenOptions {
    OpenOptions {
        discards,
        ..OpenOptions::default()
    }
}

fn keeping() -> OpenOptions {
    discarding(Discards {
        cluster: DiscardedCluster::Kept,
        ..Discards::default()
    })
}

fn snapshot(name: &str) -> Manage {
    Manage::SnapshotCreate(NewSnapshot {
        name: name.into(),
        ..NewSnapshot::default()
    })
}

#[test]
fn the_file_is_told_of_what_the_guest_gave_up_and_not_of_what_a_write_replaced() {
    let stage = Stage::new(&OpenOptions::default());
    for cluster in 0..3 {
        stage.write(cluster, 7);
    }
    let places: Vec<u64> = (0..3).map(|at| stage.status(at).1.unwrap()).collect();
    stage.discard(0);
    run(stage.image.write_zeroes(CLUSTER, CLUSTER, Unmap::Allow)).unwrap();
    assert!(stage.discards().is_empty(), "nothing is unlinked durably");
    stage.flush();
    assert_eq!(stage.discards(), places[..2]);

    // A copy-on-write leaves the old cluster; so does the snapshot's deletion, which tells of it.
    run(stage.image.manage(snapshot("s"))).unwrap();
    stage.write(2, 8);
    stage.flush();
    assert!(stage.discards().is_empty());
    let name = || "s".to_owned();
    run(stage
        .image
        .manage(Manage::SnapshotDelete { snapshot: name() }))
    .unwrap();
    assert!(stage.discards().contains(&places[2]));
}

#[test]
fn each_source_can_be_left_out() {
    let quiet = Discards {
        request: Pass::No,
        snapshot: Pass::No,
        ..Discards::default()
    };
    for (discards, told) in [(quiet, false), (Discards::ALL_PASSED, true)] {
        let stage = Stage::new(&discarding(discards));
        stage.write(0, 7);
        stage.write(1, 7);
        stage.discard(0);
        stage.flush();
        assert_eq!(!stage.discards().is_empty(), told);
        run(stage.image.manage(Manage::MakeEmpty)).unwrap();
        assert_eq!(!stage.discards().is_empty(), told);
        assert_eq!(stage.read(1), [0; LEN]);
    }
    // What a write replaces, by request.
    let stage = Stage::new(&discarding(Discards::ALL_PASSED));
    run(stage.image.write_compressed(0, vec![5; LEN])).unwrap();
    stage.write(0, 6);
    stage.flush();
    assert_eq!(stage.discards().len(), 1);
}

#[test]
fn ignored_discards_change_nothing_and_zeroes_keep_their_space() {
    let stage = Stage::new(&discarding(Discards {
        guest: GuestDiscards::Ignored,
        ..Discards::default()
    }));
    stage.write(0, 7);
    stage.write(1, 7);
    let before = (stage.status(0), stage.status(1).1);
    stage.discard(0);
    run(stage.image.write_zeroes(CLUSTER, CLUSTER, Unmap::Allow)).unwrap();
    stage.flush();
    assert_eq!(stage.status(0), before.0);
    assert_eq!(stage.status(1), (StatusKind::Zero, before.1));
    assert_eq!(stage.read(0), [7; LEN]);
    assert!(stage.discards().is_empty());
}

#[test]
fn a_kept_cluster_is_emptied_when_the_zeroes_are_durable_and_taken_again() {
    let stage = Stage::new(&keeping());
    stage.write(0, 7);
    stage.write(1, 7);
    let place = stage.status(0).1;
    stage.discard(0);
    assert_eq!(stage.status(0), (StatusKind::Zero, place));
    assert!(stage.discards().is_empty(), "the entry is not durable yet");
    stage.flush();
    assert_eq!(stage.discards(), [place.unwrap()]);
    // A second discard finds nothing to give up.
    stage.discard(0);
    stage.flush();
    assert!(stage.discards().is_empty());

    stage.write(0, 9);
    stage.flush();
    assert_eq!(stage.status(0), (StatusKind::Data, place));
    assert_eq!(stage.read(0), [9; LEN]);

    // Zeroes that may lose their space are treated alike; others are not.
    run(stage.image.write_zeroes(0, CLUSTER, Unmap::Keep)).unwrap();
    stage.flush();
    assert!(stage.discards().is_empty());
    run(stage.image.write_zeroes(CLUSTER, CLUSTER, Unmap::Allow)).unwrap();
    let second = stage.status(1).1.unwrap();
    stage.flush();
    assert_eq!(stage.discards(), [second]);
}

#[test]
fn what_a_write_takes_again_is_not_emptied_under_it() {
    let stage = Stage::new(&keeping());
    stage.write(0, 7);
    stage.flush();
    stage.discard(0);
    stage.write(0, 9);
    stage.flush();
    stage.flush();
    assert!(stage.discards().is_empty());
    assert_eq!(stage.read(0), [9; LEN]);
    // Nor is a cluster that went elsewhere meanwhile.
    stage.discard(0);
    run(stage.image.manage(Manage::MakeEmpty)).unwrap();
    let _ = stage.discards();
    stage.write(5, 5);
    stage.flush();
    assert!(stage.discards().is_empty());
    assert_eq!(stage.read(5), [5; LEN]);
}

#[test]
fn what_a_snapshot_shares_is_neither_kept_nor_emptied() {
    let stage = Stage::new(&keeping());
    stage.write(0, 7);
    run(stage.image.manage(snapshot("s"))).unwrap();
    stage.discard(0);
    stage.flush();
    assert_eq!(stage.status(0), (StatusKind::Zero, None));
    assert!(stage.discards().is_empty());
    let snapshot = "s".into();
    run(stage.image.manage(Manage::SnapshotApply { snapshot })).unwrap();
    assert_eq!(stage.read(0), [7; LEN]);
}

#[test]
fn version_2_keeps_no_cluster() {
    let stage = Stage::of_version(2, &keeping());
    stage.write(0, 7);
    let place = stage.status(0).1.unwrap();
    stage.discard(0);
    stage.flush();
    assert_eq!(stage.status(0).0, StatusKind::Unallocated);
    assert_eq!(stage.discards(), [place]);
}

#[test]
fn a_write_of_zeroes_is_told_from_others() {
    for (detect_zeroes, expected) in [
        (DetectZeroes::Off, StatusKind::Data),
        (DetectZeroes::On, StatusKind::Zero),
        (DetectZeroes::Unmap, StatusKind::Zero),
    ] {
        let stage = Stage::new(&OpenOptions {
            detect_zeroes,
            ..OpenOptions::default()
        });
        for cluster in 0..4 {
            stage.write(cluster, 7);
        }
        stage.write(0, 0);
        let kept = stage.status(0).1.is_some();
        assert_eq!(stage.status(0).0, expected);
        assert_eq!(kept, detect_zeroes != DetectZeroes::Unmap);
        // One byte is enough to make it data.
        let mut nearly = vec![0; LEN];
        nearly[LEN - 1] = 1;
        run(stage.image.write(CLUSTER, nearly.clone())).unwrap();
        assert_eq!(stage.status(1).0, StatusKind::Data);
        // A part of a cluster leaves the rest alone.
        run(stage.image.write(2 * CLUSTER + 512, vec![0; 1024])).unwrap();
        let mut part = vec![7; LEN];
        part[512..1536].fill(0);
        assert_eq!(stage.read(2), part);
        assert_eq!(stage.read(0), [0; LEN]);
        assert_eq!(stage.read(1), nearly);
        assert_eq!(stage.read(3), [7; LEN]);
        // Compressed data go to what is vacant; zeroes go anywhere.
        let compressed = run(stage.image.write_compressed(3 * CLUSTER, vec![0; LEN]));
        assert_eq!(compressed.is_ok(), detect_zeroes != DetectZeroes::Off);
    }
}

/// An image whose guest cluster 0 is mapped to where this structure stands, and that has a snapshot.
fn bent(structure: Region) -> Option<PageImage> {
    let stage = Stage::new(&OpenOptions::default());
    stage.write(0, 7);
    run(stage.image.manage(snapshot("s"))).unwrap();
    stage.write(0, 8);
    run(stage.image.close()).unwrap();
    let mut bytes = stage.bytes();
    let header = Header::decode(&bytes, 1 << 40).unwrap();
    let word = |bytes: &[u8], offset: u64| {
        let at = usize::try_from(offset).unwrap();
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let pointer = |bytes: &[u8], offset: u64| word(bytes, offset) & 0x00ff_ffff_ffff_fe00;
    let l2 = pointer(&bytes, header.l1_offset.0);
    let inactive_l1 = word(&bytes, header.snapshots_offset.0);
    let target = match structure {
        Region::ActiveL1 => header.l1_offset.0,
        Region::ActiveL2 => l2,
        Region::RefcountTable => header.reftable_offset.0,
        Region::RefcountBlock => pointer(&bytes, header.reftable_offset.0),
        Region::SnapshotTable => header.snapshots_offset.0,
        Region::InactiveL1 => inactive_l1,
        Region::InactiveL2 => pointer(&bytes, inactive_l1),
        // An entry with offset 0 maps nothing, and there is no bitmap here.
        Region::MainHeader | Region::BitmapDirectory => return None,
    };
    let at = usize::try_from(l2).unwrap();
    bytes[at..at + 8].copy_from_slice(&(target | 1 << 63).to_be_bytes());
    Some(PageImage::from_bytes(&bytes))
}

fn checking(overlap_checks: OverlapChecks) -> OpenOptions {
    OpenOptions {
        overlap_checks,
        ..OpenOptions::default()
    }
}

#[test]
fn a_write_over_metadata_is_refused_where_that_metadata_is_checked() {
    for region in Region::ALL {
        let Some(image) = bent(region) else {
            continue;
        };
        for (name, checks) in OverlapChecks::TEMPLATES {
            let stage = Stage::on(image.clone(), &checking(checks)).unwrap();
            let before = stage.bytes();
            let outcome = run(stage.image.write(0, vec![9; 512]));
            assert_eq!(outcome.is_err(), checks.has(region), "{region:?} {name}");
            if let Err(error) = outcome {
                let Error::BadImage(bad) = error else {
                    panic!("{region:?} {name}: {error}");
                };
                assert!(matches!(bad.problem, Problem::Overlap { .. }));
                // Marked, and good for nothing any more.
                let header = Header::decode(&stage.bytes(), 1 << 40).unwrap();
                assert!(header.incompatible & incompatible::CORRUPT != 0);
                assert_eq!(stage.bytes()[512..], before[512..], "nothing else changed");
                let refused = Err(Refused::FoundCorrupt.into());
                assert_eq!(run(stage.image.read(0, 512)).map(drop), refused);
                assert_eq!(run(stage.image.write(8 * CLUSTER, vec![1; 512])), refused);
            }
        }
        // One kind alone, and all but that one.
        let only = Stage::on(image.clone(), &checking(OverlapChecks::none().with(region)));
        assert!(run(only.unwrap().image.write(0, vec![9; 512])).is_err());
        let others = Stage::on(image, &checking(OverlapChecks::all().without(region)));
        run(others.unwrap().image.write(0, vec![9; 512])).unwrap();
    }
}

#[test]
fn an_image_that_was_marked_before_can_be_read() {
    let image = bent(Region::SnapshotTable).unwrap();
    let stage = Stage::on(image, &OpenOptions::default()).unwrap();
    run(stage.image.write(0, vec![9; 512])).unwrap_err();
    let marked = stage.device.ram.snapshot();
    let reading = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let stage = Stage::on(marked.clone(), &reading).unwrap();
    run(stage.image.read(0, 512)).unwrap();
    assert!(Stage::on(marked, &OpenOptions::default()).is_err());
}

#[test]
fn refcounts_that_call_metadata_free_are_found_out() {
    let stage = Stage::new(&OpenOptions::default());
    stage.write(0, 7);
    run(stage.image.close()).unwrap();
    let mut bytes = stage.bytes();
    let header = Header::decode(&bytes, 1 << 40).unwrap();
    let table = usize::try_from(header.reftable_offset.0).unwrap();
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap());
    let at = usize::try_from(block).unwrap();
    let index = usize::try_from(block / CLUSTER).unwrap();
    set_refcount(&mut bytes[at..at + LEN], index, 4, 0);
    let image = PageImage::from_bytes(&bytes);
    let stage = Stage::on(image, &OpenOptions::default()).unwrap();
    let error = run(stage.image.write(CLUSTER, vec![7; LEN])).unwrap_err();
    let Error::BadImage(bad) = error else {
        panic!("{error}");
    };
    assert_eq!(bad.structure, Structure::RefcountBlock);
    assert_eq!(stage.bytes()[512..], bytes[512..]);
}

#[test]
fn an_l2_table_that_a_snapshot_has_too_is_not_changed_in_place() {
    let stage = Stage::new(&OpenOptions::default());
    stage.write(0, 7);
    run(stage.image.manage(snapshot("s"))).unwrap();
    run(stage.image.close()).unwrap();
    // Both L1 tables name the one L2 table, and the active one claims it for itself.
    let mut bytes = stage.bytes();
    let header = Header::decode(&bytes, 1 << 40).unwrap();
    bytes[usize::try_from(header.l1_offset.0).unwrap()] |= 0x80;
    let image = PageImage::from_bytes(&bytes);
    let stage = Stage::on(image.clone(), &checking(OverlapChecks::all())).unwrap();
    let error = run(stage.image.write(CLUSTER, vec![9; LEN])).unwrap_err();
    let Error::BadImage(bad) = error else {
        panic!("{error}");
    };
    assert_eq!(bad.structure, Structure::InactiveL2Table);
    let stage = Stage::on(image, &OpenOptions::default()).unwrap();
    run(stage.image.write(CLUSTER, vec![9; LEN])).unwrap();
}

#[test]
fn only_what_is_idle_and_written_leaves_the_caches() {
    let stage = Stage::new(&OpenOptions {
        caches: CacheSizes {
            l2_slices: 16,
            refcount_slices: 16,
            slice_bytes: 512,
        },
        ..OpenOptions::default()
    });
    let loads = || *stage.device.loads.borrow();
    stage.write(0, 7);
    let before = loads();
    // Not written yet: it stays, however idle.
    for _ in 0..3 {
        run(stage.image.drop_idle()).unwrap();
    }
    assert_eq!(stage.read(0), [7; LEN]);
    assert_eq!(loads(), before);
    stage.flush();
    // Used since the last time: it stays once more, and then it goes.
    run(stage.image.drop_idle()).unwrap();
    assert_eq!(stage.read(0), [7; LEN]);
    assert_eq!(loads(), before);
    run(stage.image.drop_idle()).unwrap();
    run(stage.image.drop_idle()).unwrap();
    assert_eq!(stage.read(0), [7; LEN]);
    assert_eq!(loads(), before + 1);
}
