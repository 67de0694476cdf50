//! Preallocated disks: as large as qemu-img makes them, and zero until they are written.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use engine::device::{Completion, Device, FileDevice, Op, Port, RamDevice, Reply, Request};
use engine::error::{Error, Refused};
use engine::image::{Access, Image, Unmap};
use engine::luks::Secret;
use engine::manage::{Manage, Resizing};
use engine::preallocation::Preallocation;
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, NewEncryption, create};
use engine::qcow2::{OpenOptions, Qcow2};
use engine::raw::{self, Raw};
use kit::{Ram, call, create_in_qemu, have, must, run, text};

const MODES: [Preallocation; 3] = [
    Preallocation::Metadata,
    Preallocation::Falloc,
    Preallocation::Full,
];

fn open(ram: &Ram) -> Qcow2 {
    run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap()
}

fn grow(image: &Qcow2, virtual_bytes: u64, mode: Preallocation) {
    let resizing = Resizing::Grow(mode);
    let operation = Manage::Resize {
        virtual_bytes,
        resizing,
    };
    run(image.manage(operation)).unwrap();
}

fn must_be_clean(ram: &Ram) {
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn must_be_zero(image: &Qcow2, from: u64) {
    let len = usize::try_from(image.virtual_bytes() - from).unwrap();
    assert!(
        run(image.read(from, len))
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

/// Sizes around the seams of clusters and tables.
fn shapes() -> Vec<CreateOptions> {
    let mut shapes = Vec::new();
    for (cluster_bits, version, extended_l2) in [
        (9, 3, false),
        (12, 2, false),
        (12, 3, false),
        (16, 3, false),
        (16, 3, true),
        (18, 3, false),
    ] {
        let cluster = 1u64 << cluster_bits;
        let span = (cluster * cluster / 8).min(1 << 20);
        for virtual_bytes in [
            0,
            512,
            cluster,
            3 * cluster + 512,
            span,
            span + 512,
            3 * span,
        ] {
            shapes.push(CreateOptions {
                virtual_bytes,
                version,
                cluster_bits,
                extended_l2,
                ..CreateOptions::default()
            });
        }
    }
    shapes
}

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks()
}

#[test]
fn a_preallocated_image_is_as_long_as_qemu_imgs_and_maps_as_much() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    for shape in shapes() {
        for preallocation in MODES {
            let options = CreateOptions {
                preallocation,
                ..shape.clone()
            };
            let _ = std::fs::remove_file(&ours);
            let port = Port::new(Rc::new(FileDevice::create_new(&ours).unwrap()));
            run(create(&port, &options)).unwrap();
            drop(port);
            let (compat, extended) = (
                if options.version == 2 { "0.10" } else { "1.1" },
                if options.extended_l2 { "on" } else { "off" },
            );
            let list = format!(
                "compat={compat},cluster_size={},extended_l2={extended},preallocation={}",
                1u64 << options.cluster_bits,
                preallocation.name()
            );
            let size = options.virtual_bytes.to_string();
            create_in_qemu(&theirs, &list, &size);
            let len = |path| std::fs::metadata(path).unwrap().len();
            // Theirs may end within the last cluster: at its last subcluster, or at its last table.
            // Of nothing, theirs takes a cluster.
            if preallocation.takes_space() && options.virtual_bytes == 0 {
                continue;
            }
            let theirs_len = len(&theirs).next_multiple_of(1 << options.cluster_bits);
            assert_eq!(len(&ours), theirs_len, "{options:?}");
            if preallocation.takes_space() {
                assert!(
                    blocks(&ours) * 512 >= options.virtual_bytes,
                    "{options:?}: {} blocks",
                    blocks(&ours)
                );
            }
            let checked = call("qemu-img", &["check", "-f", "qcow2", text(&ours)]);
            assert!(checked.status.success(), "{options:?}: {checked:?}");
            let allocated = |path| {
                let json = must("qemu-img", &["check", "--output=json", text(path)]);
                let json: serde_json::Value = serde_json::from_str(&json).unwrap();
                json["allocated-clusters"].clone()
            };
            assert_eq!(allocated(&ours), allocated(&theirs), "{options:?}");
            let files = [text(&ours), text(&theirs)];
            must("qemu-img", &[&["compare"], &files[..]].concat());
        }
    }
}

#[test]
fn a_preallocated_disk_reads_as_zeroes_and_takes_writes_in_place() {
    for shape in shapes() {
        for preallocation in MODES {
            let ram = Ram::empty();
            let options = CreateOptions {
                preallocation,
                ..shape.clone()
            };
            run(create(&ram.port, &options)).unwrap();
            must_be_clean(&ram);
            let image = open(&ram);
            must_be_zero(&image, 0);
            let len = ram.device.snapshot().len();
            if options.virtual_bytes > 0 {
                let last = options.virtual_bytes - 512;
                run(image.write(last, vec![7; 512])).unwrap();
                assert_eq!(run(image.read(last, 512)).unwrap(), [7; 512]);
            }
            run(image.close()).unwrap();
            assert_eq!(ram.device.snapshot().len(), len, "{options:?}");
            must_be_clean(&ram);
        }
    }
}

/// Memory that takes no advice: what is freed keeps its content.
#[derive(Debug, Default)]
struct Keeping(RamDevice);

impl Device for Keeping {
    fn submit(&self, request: Request) -> Completion {
        if matches!(request.op, Op::Discard { .. }) {
            return Completion::ready(Ok(Reply::Done));
        }
        self.0.submit(request)
    }

    fn len(&self) -> u64 {
        self.0.len()
    }
}

#[test]
fn what_a_larger_disk_preallocates_reads_as_zeroes_on_recycled_clusters_too() {
    for (cluster_bits, extended_l2, version) in
        [(9, false, 3), (12, false, 2), (12, false, 3), (14, true, 3)]
    {
        for mode in MODES {
            let device = Rc::new(Keeping::default());
            let port = Port::new(device.clone());
            let cluster = 1u64 << cluster_bits;
            let options = CreateOptions {
                virtual_bytes: 40 * cluster + 512,
                version,
                cluster_bits,
                extended_l2,
                ..CreateOptions::default()
            };
            run(create(&port, &options)).unwrap();
            let ways = OpenOptions::default();
            let image = run(Qcow2::open(port.clone(), None, &ways)).unwrap();
            let all = usize::try_from(options.virtual_bytes).unwrap();
            run(image.write(0, vec![0xaa; all])).unwrap();
            run(image.flush()).unwrap();
            run(image.write_zeroes(0, 20 * cluster, Unmap::Allow)).unwrap();
            run(image.flush()).unwrap();
            let larger = 70 * cluster;
            grow(&image, larger, mode);
            must_be_zero(&image, options.virtual_bytes);
            let len = device.len();
            run(image.write(larger - 512, vec![7; 512])).unwrap();
            run(image.close()).unwrap();
            assert_eq!(device.len(), len, "it had its place already");
            must_be_clean(&Ram::new(device.0.snapshot()));
            let image = run(Qcow2::open(port, None, &ways)).unwrap();
            let read = run(image.read(20 * cluster, 512)).unwrap();
            assert_eq!(read, [0xaa; 512]);
        }
    }
}

#[test]
fn beneath_extended_tables_the_backing_file_still_shows() {
    let beneath = Ram::from_bytes(&vec![0xbb; 64 << 10]);
    let backing =
        || -> Rc<dyn Image> { Rc::new(Raw::open(beneath.port.clone(), Access::ReadOnly)) };
    for mode in MODES {
        let ram = Ram::empty();
        let options = CreateOptions {
            virtual_bytes: 32 << 10,
            cluster_bits: 14,
            extended_l2: true,
            preallocation: mode,
            backing: Some(Backing {
                name: "beneath".into(),
                format: BackingFormat::Raw,
            }),
            ..CreateOptions::default()
        };
        run(create(&ram.port, &options)).unwrap();
        let image = run(Qcow2::open(
            ram.port.clone(),
            Some(backing()),
            &OpenOptions::default(),
        ))
        .unwrap();
        assert_eq!(run(image.read(0, 32 << 10)).unwrap(), vec![0xbb; 32 << 10]);
        grow(&image, 128 << 10, mode);
        must_be_zero(&image, 32 << 10);
        assert_eq!(run(image.read(0, 32 << 10)).unwrap(), vec![0xbb; 32 << 10]);
        run(image.close()).unwrap();
        must_be_clean(&ram);
    }
}

#[test]
fn an_encrypted_disk_reads_as_zeroes_too() {
    let secrets = [Secret::new(b"a secret".to_vec())];
    for mode in MODES {
        let ram = Ram::empty();
        let options = CreateOptions {
            virtual_bytes: 200 << 10,
            cluster_bits: 12,
            preallocation: mode,
            encryption: Some(NewEncryption::Aes),
            ..CreateOptions::default()
        };
        run(create(&ram.port, &options)).unwrap();
        let ways = OpenOptions::default();
        let open = Qcow2::open_with_secrets(ram.port.clone(), None, &ways, &secrets);
        let image = run(open).unwrap();
        must_be_zero(&image, 0);
        run(image.write(4096, vec![7; 512])).unwrap();
        grow(&image, 300 << 10, mode);
        must_be_zero(&image, 8192);
        let mut expected = vec![7; 512];
        expected.resize(4096, 0);
        assert_eq!(run(image.read(4096, 4096)).unwrap(), expected);
        run(image.close()).unwrap();
        must_be_clean(&ram);
    }
}

#[test]
fn what_could_not_read_as_zeroes_is_refused() {
    let ram = Ram::from_bytes(b"precious");
    let old = CreateOptions {
        virtual_bytes: 1 << 20,
        version: 2,
        preallocation: Preallocation::Metadata,
        encryption: Some(NewEncryption::Aes),
        ..CreateOptions::default()
    };
    let hidden = CreateOptions {
        version: 3,
        encryption: None,
        backing: Some(Backing {
            name: "beneath".into(),
            format: BackingFormat::Raw,
        }),
        ..old.clone()
    };
    for (options, part) in [(old, "version 3"), (hidden, "extended L2")] {
        let error = run(create(&ram.port, &options)).unwrap_err();
        assert!(matches!(&error, Error::Refused(Refused::Option(text)) if text.contains(part)));
        assert_eq!(ram.bytes(), b"precious");
    }
}

#[test]
fn raw_files_are_preallocated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    for mode in [Preallocation::Falloc, Preallocation::Full] {
        let _ = std::fs::remove_file(&path);
        let port = Port::new(Rc::new(FileDevice::create_new(&path).unwrap()));
        run(raw::create(&port, 200 << 10, mode)).unwrap();
        assert!(blocks(&path) >= 400, "{} blocks", blocks(&path));
        let image = Raw::open(port, Access::ReadWrite);
        run(image.write(0, vec![7; 512])).unwrap();
        let resizing = Resizing::Grow(mode);
        let virtual_bytes = 400 << 10;
        run(image.manage(Manage::Resize {
            virtual_bytes,
            resizing,
        }))
        .unwrap();
        assert!(blocks(&path) >= 800, "{} blocks", blocks(&path));
        run(image.manage(Manage::shrink(1024))).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
        assert_eq!(run(image.read(0, 512)).unwrap(), [7; 512]);
    }
    let precious = Ram::from_bytes(b"precious");
    let port = precious.port.clone();
    let refused = run(raw::create(&port, 1 << 20, Preallocation::Metadata));
    assert!(matches!(refused, Err(Error::Refused(Refused::Option(_)))));
    assert_eq!(precious.bytes(), b"precious", "a refusal touches nothing");
}

/// Memory that remembers what it was asked.
#[derive(Debug, Default)]
struct Noting {
    memory: RamDevice,
    asked: RefCell<Vec<Op>>,
}

impl Device for Noting {
    fn submit(&self, request: Request) -> Completion {
        self.asked.borrow_mut().push(request.op.clone());
        self.memory.submit(request)
    }

    fn len(&self) -> u64 {
        self.memory.len()
    }
}

#[test]
fn the_first_sector_comes_last_so_that_a_power_loss_leaves_no_image_or_all_of_it() {
    for shape in shapes() {
        for preallocation in MODES {
            let options = CreateOptions {
                preallocation,
                ..shape.clone()
            };
            let device = Rc::new(Noting::default());
            run(create(&Port::new(device.clone()), &options)).unwrap();
            let asked = device.asked.borrow();
            let [
                before @ ..,
                Op::Flush,
                Op::Write {
                    offset: 0, data, ..
                },
                Op::Flush,
            ] = asked.as_slice()
            else {
                unreachable!("{options:?} ends with a flush, the first sector, and a flush");
            };
            assert_eq!(data.len(), 512);
            // Whatever the file held, it is no image from here on.
            assert!(matches!(
                before,
                [Op::SetLen { len_bytes: 0 }, Op::Flush, ..]
            ));
            let touches_start =
                |op: &Op| op.range().0 == 0 && !matches!(op, Op::SetLen { .. } | Op::Flush);
            assert!(!before.iter().any(touches_start), "{options:?}");
        }
    }
}
