//! Smaller disks: what lies beyond the end is given up, for ever.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, Refused};
use engine::image::Image;
use engine::manage::{BitmapState, Manage, NewSnapshot};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header;
use engine::qcow2::{LazyRefcounts, OpenOptions, Qcow2};
use kit::{Ram, call, have, must, run, text};

fn open(ram: &Ram, lazy: LazyRefcounts) -> Qcow2 {
    let options = OpenOptions {
        lazy_refcounts: Some(lazy),
        ..OpenOptions::default()
    };
    run(Qcow2::open(ram.port.clone(), None, &options)).unwrap()
}

fn must_be_clean(ram: &Ram) {
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// A disk that is full of a byte.
fn full(options: &CreateOptions, lazy: LazyRefcounts) -> (Ram, Qcow2) {
    let ram = Ram::empty();
    run(create(&ram.port, options)).unwrap();
    let image = open(&ram, lazy);
    let len = usize::try_from(options.virtual_bytes).unwrap();
    run(image.write(0, vec![0xaa; len])).unwrap();
    run(image.flush()).unwrap();
    (ram, image)
}

fn shapes() -> Vec<CreateOptions> {
    let mut shapes = Vec::new();
    for (cluster_bits, extended_l2, version) in
        [(9, false, 3), (9, false, 2), (12, false, 3), (14, true, 3)]
    {
        for refcount_order in if version == 2 { 4..=4 } else { 0..=6 } {
            shapes.push(CreateOptions {
                virtual_bytes: 300 << cluster_bits,
                version,
                cluster_bits,
                refcount_order,
                extended_l2,
                ..CreateOptions::default()
            });
        }
    }
    shapes
}

#[test]
fn a_shrunk_disk_keeps_what_is_left_and_shows_zeroes_when_it_grows_again() {
    for options in shapes() {
        for lazy in [LazyRefcounts::On, LazyRefcounts::Off] {
            let cluster = 1u64 << options.cluster_bits;
            for left in [512, cluster, 70 * cluster + 512, 128 * cluster, 0] {
                let (ram, image) = full(&options, lazy);
                let before = ram.device.snapshot().len();
                run(image.manage(Manage::shrink(left))).unwrap();
                assert_eq!(image.virtual_bytes(), left);
                let after = ram.device.snapshot().len();
                assert!(after <= before, "{after} of {before}");
                run(image.manage(Manage::grow(options.virtual_bytes))).unwrap();
                let len = usize::try_from(options.virtual_bytes).unwrap();
                let mut expected = vec![0xaa; usize::try_from(left).unwrap()];
                expected.resize(len, 0);
                assert!(
                    run(image.read(0, len)).unwrap() == expected,
                    "{options:?} {left}"
                );
                run(image.write(options.virtual_bytes - 512, vec![7; 512])).unwrap();
                run(image.close()).unwrap();
                must_be_clean(&ram);
                let image = open(&ram, lazy);
                expected[len - 512..].fill(7);
                assert!(
                    run(image.read(0, len)).unwrap() == expected,
                    "{options:?} {left}"
                );
            }
        }
    }
}

#[test]
fn the_l1_table_and_the_file_become_as_short_as_they_can() {
    let options = CreateOptions {
        virtual_bytes: 6 << 20,
        cluster_bits: 9,
        refcount_order: 6,
        ..CreateOptions::default()
    };
    let (ram, image) = full(&options, LazyRefcounts::Off);
    run(image.manage(Manage::shrink(512))).unwrap();
    run(image.close()).unwrap();
    must_be_clean(&ram);
    let header = run(header::read(&ram.port)).unwrap();
    assert_eq!((header.virtual_bytes, header.l1_entries), (512, 1));
    let names = |at: usize| ram.bytes()[at..at + 8] != [0; 8];
    let table = usize::try_from(header.reftable_offset.0).unwrap();
    let entries = usize::try_from(header.reftable_clusters).unwrap() * 64;
    let blocks = (0..entries)
        .filter(|index| names(table + 8 * index))
        .count();
    let len = ram.device.snapshot().len();
    assert!(
        len.is_multiple_of(512) && len < 8 << 20,
        "{len} bytes, {blocks} blocks"
    );
}

#[test]
fn snapshots_keep_what_the_disk_gives_up() {
    for cluster_bits in [9, 12] {
        let options = CreateOptions {
            virtual_bytes: 300 << cluster_bits,
            cluster_bits,
            ..CreateOptions::default()
        };
        let (ram, image) = full(&options, LazyRefcounts::Off);
        let snapshot = NewSnapshot {
            name: "before".into(),
            ..NewSnapshot::default()
        };
        run(image.manage(Manage::SnapshotCreate(snapshot))).unwrap();
        run(image.manage(Manage::shrink(100 << cluster_bits))).unwrap();
        run(image.manage(Manage::grow(200 << cluster_bits))).unwrap();
        run(image.write(150 << cluster_bits, vec![7; 512])).unwrap();
        must_be_clean_when_closed(&ram, &image);
        let image = open(&ram, LazyRefcounts::Off);
        let snapshot = "before".to_owned();
        run(image.manage(Manage::SnapshotApply { snapshot })).unwrap();
        let len = usize::try_from(options.virtual_bytes).unwrap();
        assert_eq!(image.virtual_bytes(), options.virtual_bytes);
        assert!(run(image.read(0, len)).unwrap() == vec![0xaa; len]);
        must_be_clean_when_closed(&ram, &image);
    }
}

fn must_be_clean_when_closed(ram: &Ram, image: &Qcow2) {
    run(image.close()).unwrap();
    must_be_clean(ram);
}

#[test]
fn version_2_with_snapshots_keeps_its_size() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        version: 2,
        ..CreateOptions::default()
    };
    let (_ram, image) = full(&options, LazyRefcounts::Off);
    run(image.manage(Manage::SnapshotCreate(NewSnapshot::default()))).unwrap();
    let refused = run(image.manage(Manage::shrink(512)));
    assert_eq!(refused, Err(Error::Refused(Refused::ResizeWithSnapshots)));
}

#[test]
fn bitmaps_become_as_long_as_the_disk() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    let (ram, image) = full(&options, LazyRefcounts::Off);
    run(image.manage(Manage::BitmapCreate {
        name: "dirty".into(),
        granularity_bytes: 4096,
        state: BitmapState::Enabled,
    }))
    .unwrap();
    run(image.write(64 << 10, vec![7; 512])).unwrap();
    run(image.write(900 << 10, vec![7; 512])).unwrap();
    run(image.manage(Manage::shrink(512 << 10))).unwrap();
    let dirty = run(image.dirty_ranges("dirty")).unwrap();
    assert_eq!((dirty.len(), &dirty[0]), (1, &(64 << 10..68 << 10)));
    must_be_clean_when_closed(&ram, &image);
}

#[test]
fn a_size_in_the_wrong_direction_is_refused() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    let (_ram, image) = full(&options, LazyRefcounts::Off);
    for operation in [
        Manage::shrink(2 << 20),
        Manage::grow(512 << 10),
        Manage::shrink(1000),
    ] {
        let refused = run(image.manage(operation));
        assert!(matches!(refused, Err(Error::Refused(Refused::Option(_)))));
    }
    assert_eq!(image.virtual_bytes(), 1 << 20);
}

#[test]
fn qemu_img_finds_a_shrunk_image_clean_and_as_long_as_its_own() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    for options in shapes() {
        if options.extended_l2 {
            continue;
        }
        let cluster = 1u64 << options.cluster_bits;
        for left in [cluster, 70 * cluster, 128 * cluster] {
            let (ram, image) = full(&options, LazyRefcounts::Off);
            run(image.close()).unwrap();
            ram.save(&theirs);
            let size = left.to_string();
            must(
                "qemu-img",
                &["resize", "-q", "--shrink", text(&theirs), &size],
            );
            let image = open(&ram, LazyRefcounts::Off);
            run(image.manage(Manage::shrink(left))).unwrap();
            run(image.close()).unwrap();
            ram.save(&ours);
            let checked = call("qemu-img", &["check", text(&ours)]);
            assert!(checked.status.success(), "{options:?} {left}: {checked:?}");
            must("qemu-img", &["compare", text(&ours), text(&theirs)]);
            let len = |path| std::fs::metadata(path).unwrap().len();
            assert!(
                len(&ours) <= len(&theirs),
                "{options:?} {left}: {} and {}",
                len(&ours),
                len(&theirs)
            );
            // Whoever grows it finds zeroes, cluster by cluster.
            let full = options.virtual_bytes.to_string();
            must("qemu-img", &["resize", "-q", text(&ours), &full]);
            let read = format!("read -P 0 {left} {}", options.virtual_bytes - left);
            let read = must("qemu-io", &["-c", &read, text(&ours)]);
            assert!(!read.contains("failed"), "{options:?} {left}: {read}");
        }
    }
}
