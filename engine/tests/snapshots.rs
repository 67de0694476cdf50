//! Internal snapshots, here and in QEMU: either goes on where the other stopped, and finds every
//! snapshot as it was taken.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::path::Path;

use engine::device::Event;
use engine::error::{Error, Refused, Structure};
use engine::image::{Access, Image, Unmap};
use engine::manage::{Manage, NewSnapshot, Resizing};
use engine::preallocation::Preallocation;
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header;
use engine::qcow2::snapshot::Snapshot;
use engine::qcow2::{CacheSizes, OpenOptions, Qcow2};
use kit::{Ram, have, must, run, text};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// What is done to a disk.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        sector: u64,
        sectors: u64,
        fill: u8,
    },
    Zero {
        sector: u64,
        sectors: u64,
        unmap: bool,
    },
    Create,
    Apply {
        which: usize,
    },
    Delete {
        which: usize,
    },
    Grow {
        sectors: u64,
    },
    Reopen,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Engine,
    Qemu,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    lazy: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let bits = prop_oneof![Just(9u32), Just(10), Just(12), Just(16)];
    (bits, 1u32..=6, any::<bool>(), 0u8..6).prop_map(|(cluster_bits, order, lazy, v2)| Shape {
        version: if v2 == 0 { 2 } else { 3 },
        cluster_bits,
        refcount_order: if v2 == 0 { 4 } else { order },
        lazy: lazy && v2 != 0,
    })
}

fn step() -> impl Strategy<Value = (Who, Step)> {
    let range = || (0u64..200, 1u64..30);
    let step = prop_oneof![
        5 => (range(), 1u8..).prop_map(|((sector, sectors), fill)| Step::Write {
            sector,
            sectors,
            fill
        }),
        2 => (range(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero {
            sector,
            sectors,
            unmap
        }),
        3 => Just(Step::Create),
        2 => any::<usize>().prop_map(|which| Step::Apply { which }),
        2 => any::<usize>().prop_map(|which| Step::Delete { which }),
        1 => (1u64..600).prop_map(|sectors| Step::Grow { sectors }),
        1 => Just(Step::Reopen),
    ];
    (prop_oneof![Just(Who::Engine), Just(Who::Qemu)], step)
}

/// A disk, and what it and its snapshots should hold.
struct Bench {
    shape: Shape,
    ram: Ram,
    image: Option<Qcow2>,
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    taken: usize,
}

fn len(sectors: u64) -> usize {
    usize::try_from(sectors * 512).unwrap()
}

impl Bench {
    fn new(shape: Shape) -> Self {
        let ram = Ram::empty();
        let options = CreateOptions {
            virtual_bytes: 100 * 512,
            version: shape.version,
            cluster_bits: shape.cluster_bits,
            refcount_order: shape.refcount_order,
            lazy_refcounts: shape.lazy,
            backing: None,
            ..CreateOptions::default()
        };
        run(create(&ram.port, &options)).unwrap();
        let mut bench = Self {
            shape,
            ram,
            image: None,
            disk: vec![0; 100 * 512],
            snapshots: Vec::new(),
            taken: 0,
        };
        bench.image = Some(bench.open());
        bench
    }

    fn open(&self) -> Qcow2 {
        let options = OpenOptions {
            caches: CacheSizes {
                l2_slices: 2,
                refcount_slices: 2,
                slice_bytes: 512,
            },
            ..OpenOptions::default()
        };
        run(Qcow2::open(self.ram.port.clone(), None, &options)).unwrap()
    }

    fn close(&mut self) {
        if let Some(image) = self.image.take() {
            run(image.close()).unwrap();
        }
    }

    fn image(&self) -> &Qcow2 {
        self.image.as_ref().unwrap()
    }

    fn manage(&self, operation: Manage) -> Result<(), Error> {
        run(self.image().manage(operation))
    }

    /// Hands the image to QEMU and takes it back.
    fn by_qemu(&mut self, path: &Path, program: &str, arguments: &[&str]) {
        self.close();
        self.ram.save(path);
        must(program, arguments);
        self.ram = Ram::load(path);
        self.image = Some(self.open());
    }

    fn clip(&self, sector: u64, sectors: u64) -> (u64, u64) {
        let end = u64::try_from(self.disk.len()).unwrap() / 512;
        let sector = sector.min(end - 1);
        (sector * 512, sectors.min(end - sector) * 512)
    }

    fn snapshot(&mut self, who: Who, path: &Path, verb: &str, name: &str) {
        match who {
            Who::Qemu => self.by_qemu(path, "qemu-img", &["snapshot", verb, name, text(path)]),
            Who::Engine => {
                let snapshot = name.to_owned();
                let operation = match verb {
                    "-c" => Manage::SnapshotCreate(NewSnapshot {
                        name: snapshot,
                        date_seconds: 1_700_000_000,
                        ..NewSnapshot::default()
                    }),
                    "-a" => Manage::SnapshotApply { snapshot },
                    _ => Manage::SnapshotDelete { snapshot },
                };
                self.manage(operation).unwrap();
            }
        }
    }

    fn take(&mut self, who: Who, step: Step, path: &Path) {
        match step {
            Step::Write {
                sector,
                sectors,
                fill,
            } => {
                let (offset, bytes) = self.clip(sector, sectors);
                let range = len(offset / 512)..len((offset + bytes) / 512);
                self.disk[range.clone()].fill(fill);
                if who == Who::Qemu {
                    let command = format!("write -P {fill} {offset} {bytes}");
                    self.by_qemu(
                        path,
                        "qemu-io",
                        &["-f", "qcow2", "-c", &command, text(path)],
                    );
                } else {
                    run(self.image().write(offset, vec![fill; range.len()])).unwrap();
                }
            }
            Step::Zero {
                sector,
                sectors,
                unmap,
            } => {
                let (offset, bytes) = self.clip(sector, sectors);
                self.disk[len(offset / 512)..len((offset + bytes) / 512)].fill(0);
                let unmap = if unmap { Unmap::Allow } else { Unmap::Keep };
                run(self.image().write_zeroes(offset, bytes, unmap)).unwrap();
            }
            Step::Create => {
                if (1 << (1u32 << self.shape.refcount_order.min(4))) - 1 <= self.snapshots.len() + 2
                {
                    // QEMU takes one reference more on the way back to a snapshot.
                    return;
                }
                let name = format!("s{}", self.taken);
                self.taken += 1;
                self.snapshot(who, path, "-c", &name);
                self.snapshots.push((name, self.disk.clone()));
            }
            Step::Apply { which } if !self.snapshots.is_empty() => {
                let (name, disk) = self.snapshots[which % self.snapshots.len()].clone();
                self.snapshot(who, path, "-a", &name);
                self.disk = disk;
            }
            Step::Delete { which } if !self.snapshots.is_empty() => {
                let (name, _) = self.snapshots.remove(which % self.snapshots.len());
                self.snapshot(who, path, "-d", &name);
            }
            Step::Grow { sectors } => {
                let virtual_bytes = u64::try_from(self.disk.len()).unwrap() + sectors * 512;
                let outcome = self.manage(Manage::grow(virtual_bytes));
                if self.shape.version == 2 && !self.snapshots.is_empty() {
                    assert_eq!(outcome, Err(Refused::ResizeWithSnapshots.into()));
                } else {
                    outcome.unwrap();
                    self.disk.resize(len(virtual_bytes / 512), 0);
                }
            }
            Step::Reopen => {
                self.close();
                self.image = Some(self.open());
            }
            Step::Apply { .. } | Step::Delete { .. } => {}
        }
    }

    /// Everybody finds what should be there.
    fn verify(&mut self, path: &Path) -> Result<(), TestCaseError> {
        let read = run(self.image().read(0, self.disk.len())).unwrap();
        prop_assert!(read == self.disk, "the disk is not what was written to it");
        self.close();
        for (name, disk) in &self.snapshots {
            prop_assert!(&shown(&self.ram, name) == disk, "snapshot {} changed", name);
        }
        let report = run(check(
            &self.ram.port,
            Repair::None,
            &CheckOptions::default(),
        ))
        .unwrap();
        prop_assert!(report.is_clean(), "{:?}", report.findings);
        self.ram.save(path);
        must("qemu-img", &["check", "-f", "qcow2", text(path)]);
        let raw = path.with_extension("raw");
        for (name, disk) in &self.snapshots {
            let options = ["convert", "-f", "qcow2", "-O", "raw", "-l", name];
            must(
                "qemu-img",
                &[&options[..], &[text(path), text(&raw)]].concat(),
            );
            // QEMU shows a snapshot with the size that the disk has now.
            let shown = std::fs::read(&raw).unwrap();
            let common = shown.len().min(disk.len());
            prop_assert!(shown[..common] == disk[..common], "QEMU reads {}", name);
        }
        must(
            "qemu-img",
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                text(path),
                text(&raw),
            ],
        );
        prop_assert!(
            std::fs::read(&raw).unwrap() == self.disk,
            "QEMU reads the disk"
        );
        Ok(())
    }
}

/// The disk that a snapshot shows.
fn shown(ram: &Ram, name: &str) -> Vec<u8> {
    let image = at_snapshot(ram, name).unwrap();
    run(image.read(0, len(image.virtual_bytes() / 512))).unwrap()
}

fn at_snapshot(ram: &Ram, name: &str) -> Result<Qcow2, Error> {
    let options = OpenOptions {
        access: Access::ReadOnly,
        snapshot: Some(name.into()),
        ..OpenOptions::default()
    };
    run(Qcow2::open(ram.port.clone(), None, &options))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn histories_with_snapshots_agree_with_qemu(
        shape in shape(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        if have("qemu-img") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image.qcow2");
            let mut bench = Bench::new(shape);
            for (who, step) in steps {
                bench.take(who, step, &path);
            }
            bench.verify(&path)?;
        }
    }
}

fn new_image(version: u32, refcount_order: u32) -> (Ram, Qcow2) {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 64 << 10,
        version,
        cluster_bits: 9,
        refcount_order,
        lazy_refcounts: false,
        backing: None,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    (ram, image)
}

fn take(image: &Qcow2, name: &str) -> Result<(), Error> {
    run(image.manage(Manage::SnapshotCreate(NewSnapshot {
        name: name.into(),
        ..NewSnapshot::default()
    })))
}

#[test]
fn a_refcount_that_cannot_go_up_refuses_the_snapshot_and_changes_nothing() {
    for (order, room) in [(0, 0), (1, 2), (2, 14)] {
        let (ram, image) = new_image(3, order);
        run(image.write(0, vec![1; 4096])).unwrap();
        for number in 0..room {
            take(&image, &number.to_string()).unwrap();
        }
        run(image.flush()).unwrap();
        let before = ram.bytes();
        assert_eq!(take(&image, "more"), Err(Refused::RefcountOverflow.into()));
        assert!(ram.bytes() == before, "refcounts of {} bits", 1 << order);
        assert_eq!(run(image.snapshots()).len(), room);
        run(image.write(512, vec![2; 512])).unwrap();
        run(image.close()).unwrap();
        let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

#[test]
fn a_disk_of_no_bytes_goes_back_and_forth() {
    let ram = Ram::empty();
    run(create(&ram.port, &CreateOptions::default())).unwrap();
    let open = || run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    let close = |image: Qcow2| {
        run(image.close()).unwrap();
        let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    };
    let apply = |snapshot: &str| {
        let image = open();
        let snapshot = snapshot.into();
        run(image.manage(Manage::SnapshotApply { snapshot })).unwrap();
        close(image);
    };
    let image = open();
    take(&image, "nothing").unwrap();
    close(image);
    apply("nothing");
    let image = open();
    let resizing = Resizing::Grow(Preallocation::Off);
    run(image.manage(Manage::Resize {
        virtual_bytes: 1 << 20,
        resizing,
    }))
    .unwrap();
    run(image.write(0, vec![7; 512])).unwrap();
    take(&image, "something").unwrap();
    close(image);
    apply("nothing");
    assert_eq!(open().virtual_bytes(), 0);
    apply("something");
    let image = open();
    assert_eq!(run(image.read(0, 512)).unwrap(), [7; 512]);
    for snapshot in ["nothing", "something"] {
        let snapshot = snapshot.into();
        run(image.manage(Manage::SnapshotDelete { snapshot })).unwrap();
    }
    close(image);
}

#[test]
fn a_snapshot_is_found_by_its_id_before_its_name() {
    let (ram, image) = new_image(3, 4);
    for (fill, name) in [(1, "2"), (2, "x"), (3, "x")] {
        run(image.write(0, vec![fill; 512])).unwrap();
        take(&image, name).unwrap();
    }
    run(image.close()).unwrap();
    let ids: Vec<String> = run(image.snapshots())
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(ids, ["1", "2", "3"]);
    for (name, fill) in [("1", 1), ("2", 2), ("x", 2), ("3", 3)] {
        assert_eq!(shown(&ram, name)[..512], [fill; 512], "{name}");
    }
    assert_eq!(
        at_snapshot(&ram, "y").unwrap_err(),
        Refused::NoSuchSnapshot("y".into()).into()
    );
    let writable = OpenOptions {
        snapshot: Some("1".into()),
        ..OpenOptions::default()
    };
    assert!(run(Qcow2::open(ram.port.clone(), None, &writable)).is_err());
}

#[test]
fn vm_state_goes_with_its_snapshot() {
    let (ram, image) = new_image(3, 4);
    let state: Vec<u8> = (0..50_u8).flat_map(|n| vec![n; 512]).collect();
    run(image.write(0, vec![1; 1024])).unwrap();
    run(image.write_vm_state(512, state.clone())).unwrap();
    run(image.manage(Manage::SnapshotCreate(NewSnapshot {
        name: "running".into(),
        date_seconds: 7,
        date_nanoseconds: 8,
        vm_clock_nanoseconds: 9,
        vm_state_bytes: 51 * 512,
        icount: Some(10),
    })))
    .unwrap();
    assert_eq!(run(image.read_vm_state(512, 512)).unwrap(), [0; 512]);
    run(image.write(0, vec![2; 1024])).unwrap();
    run(image.write_vm_state(0, vec![9; 1024])).unwrap();
    run(image.close()).unwrap();
    assert_eq!(
        run(image.snapshots()),
        [Snapshot {
            id: "1".into(),
            name: "running".into(),
            vm_state_bytes: 51 * 512,
            date_seconds: 7,
            date_nanoseconds: 8,
            vm_clock_nanoseconds: 9,
            icount: Some(10),
            virtual_bytes: 64 << 10,
        }]
    );
    let past = at_snapshot(&ram, "running").unwrap();
    assert_eq!(run(past.read_vm_state(512, state.len())).unwrap(), state);
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    run(image.manage(Manage::SnapshotApply {
        snapshot: "running".into(),
    }))
    .unwrap();
    assert_eq!(run(image.read_vm_state(0, 512)).unwrap(), [0; 512]);
    assert_eq!(run(image.read_vm_state(512, state.len())).unwrap(), state);
    run(image.close()).unwrap();
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    if have("qemu-img") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        ram.save(&path);
        must("qemu-img", &["check", text(&path)]);
        let list = must("qemu-img", &["snapshot", "-l", text(&path)]);
        assert!(
            list.contains("running") && list.contains("25.5 KiB"),
            "{list}"
        );
    }
}

/// A copied VM state cluster lies beyond the disk's end, where copy-on-write used to see only zeroes.
#[test]
fn vm_state_survives_a_write_to_a_part_of_its_cluster() {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 64 << 10,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    run(image.write_vm_state(0, vec![1; 4096])).unwrap();
    take(&image, "shares it").unwrap();
    run(image.write_vm_state(512, vec![2; 512])).unwrap();
    let state = run(image.read_vm_state(0, 4096)).unwrap();
    assert!(state[..512] == [1; 512] && state[512..1024] == [2; 512]);
    assert!(state[1024..] == [1; 3072]);
}

/// The image with its one snapshot `count` times, under the names 1 to `count`, which are the ids too. All have the
/// same L1 table; refcounts are left to a repair.
fn with_copies(ram: &Ram, count: u32) -> Ram {
    const HEAD: usize = 40;
    let header = run(header::read(&ram.port)).unwrap();
    let mut bytes = ram.bytes();
    let entry = bytes[usize::try_from(header.snapshots_offset.0).unwrap()..].to_vec();
    let extra = usize::from(entry[39]);
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let offset = u64::try_from(bytes.len()).unwrap();
    for number in 1..=count {
        let name = number.to_string();
        let len = u16::try_from(name.len()).unwrap().to_be_bytes();
        bytes.extend_from_slice(&entry[..12]);
        bytes.extend_from_slice(&[len, len].concat());
        bytes.extend_from_slice(&entry[16..HEAD + extra]);
        bytes.extend_from_slice(name.repeat(2).as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes[60..64].copy_from_slice(&count.to_be_bytes());
    bytes[64..72].copy_from_slice(&offset.to_be_bytes());
    Ram::from_bytes(&bytes)
}

#[test]
fn an_image_takes_65536_snapshots_and_not_one_more() {
    let options = CreateOptions {
        virtual_bytes: 64 << 10,
        cluster_bits: 12,
        refcount_order: 5,
        ..CreateOptions::default()
    };
    let ram = Ram::empty();
    run(create(&ram.port, &options)).unwrap();
    let open =
        |ram: &Ram| run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    let image = open(&ram);
    run(image.write(0, vec![7; 4096])).unwrap();
    take(&image, "first").unwrap();
    run(image.close()).unwrap();
    let ram = with_copies(&ram, 65_535);
    let checked = |repair| run(check(&ram.port, repair, &CheckOptions::default())).unwrap();
    assert!(checked(Repair::All).is_clean());

    let image = open(&ram);
    run(image.write(0, vec![8; 4096])).unwrap();
    take(&image, "last").unwrap();
    assert_eq!(run(image.snapshots()).len(), 65_536);
    assert_eq!(
        take(&image, "one more"),
        Err(Refused::TableFull(Structure::SnapshotTable).into())
    );
    let snapshot = "4711".into();
    run(image.manage(Manage::SnapshotDelete { snapshot })).unwrap();
    take(&image, "in its place").unwrap();
    run(image.close()).unwrap();
    for (name, byte) in [("1", 7), ("65535", 7), ("last", 8), ("in its place", 8)] {
        assert!(shown(&ram, name)[..4096] == vec![byte; 4096], "{name}");
    }
    let report = checked(Repair::None);
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn what_an_entry_says_beyond_what_is_known_is_kept() {
    let (ram, image) = new_image(3, 4);
    run(image.write(0, vec![1; 512])).unwrap();
    take(&image, "foreign").unwrap();
    run(image.close()).unwrap();
    let header = run(header::read(&ram.port)).unwrap();
    let at = usize::try_from(header.snapshots_offset.0).unwrap();
    let mut bytes = ram.bytes();
    // 24 bytes of extra data become 30, and the id and the name follow them.
    bytes[at + 36..at + 40].copy_from_slice(&30_u32.to_be_bytes());
    bytes[at + 64..at + 78].copy_from_slice(b"future1foreign");
    let ram = Ram::from_bytes(&bytes);
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    take(&image, "second").unwrap();
    run(image.close()).unwrap();
    let header = run(header::read(&ram.port)).unwrap();
    let moved = usize::try_from(header.snapshots_offset.0).unwrap();
    assert_ne!(moved, at);
    let after = ram.bytes();
    assert_eq!(after[moved..moved + 80], bytes[at..at + 80]);
    assert_eq!(shown(&ram, "foreign")[..512], [1; 512]);
}

#[test]
fn going_back_needs_no_reference_more_than_it_leaves() {
    let (ram, image) = new_image(3, 1);
    run(image.write(0, vec![1; 4096])).unwrap();
    take(&image, "one").unwrap();
    run(image.write(512, vec![2; 512])).unwrap();
    take(&image, "two").unwrap();
    for name in ["one", "two", "two"] {
        let snapshot = name.into();
        run(image.manage(Manage::SnapshotApply { snapshot })).unwrap();
    }
    assert_eq!(run(image.read(512, 512)).unwrap(), [2; 512]);
    run(image.close()).unwrap();
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn going_back_counts_no_reference_that_was_given_up_and_not_flushed() {
    let (ram, image) = new_image(3, 1);
    run(image.write(0, vec![1; 4096])).unwrap();
    for name in ["one", "two"] {
        take(&image, name).unwrap();
    }
    // The disk and two snapshots: a count of two bits goes no further. The disk then leaves the cluster.
    run(image.write(0, vec![2; 4096])).unwrap();
    let snapshot = "one".into();
    run(image.manage(Manage::SnapshotApply { snapshot })).unwrap();
    assert_eq!(run(image.read(0, 4096)).unwrap(), [1; 4096]);
    run(image.close()).unwrap();
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn repair_takes_back_a_compressed_claim_in_a_table_that_only_a_snapshot_has() {
    let (ram, image) = new_image(3, 4);
    run(image.write(0, vec![1; 512])).unwrap();
    take(&image, "one").unwrap();
    run(image.write(0, vec![2; 512])).unwrap();
    run(image.close()).unwrap();
    drop(image);
    let at = ram.port.at(Event::None);
    let word = |offset: u64| {
        let sector = run(at.read(offset / 512 * 512, 512)).unwrap();
        let within = usize::try_from(offset % 512).unwrap();
        u64::from_be_bytes(sector[within..within + 8].try_into().unwrap())
    };
    let offset = |word: u64| word & 0x00ff_ffff_ffff_fe00;
    let table = offset(word(word(word(64))));
    let data = offset(word(table));
    let mut bytes = run(at.read(table, 512)).unwrap();
    bytes[40..48].copy_from_slice(&(3 << 62 | data).to_be_bytes());
    run(at.write(table, bytes)).unwrap();
    let report = run(check(&ram.port, Repair::All, &CheckOptions::default())).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let again = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert_eq!((again.found.corruptions, again.found.leaks), (0, 0));
}
