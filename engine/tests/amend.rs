//! Changing version, refcounts, backing file and content as a whole, against qemu-img on real files.

#![allow(clippy::unwrap_used, reason = "tests")]

mod kit;

use std::rc::Rc;

use engine::error::{Error, Refused};
use engine::image::{Image, Unmap};
use engine::manage::{Amend, BackingName, Manage};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::header::{self, Extension, Header};
use engine::qcow2::{OpenOptions, Qcow2};
use engine::raw::Raw;

use kit::{Ram, have, must, run, text};

const SIZE: u64 = 3 << 20;

fn raw_backing(len_bytes: usize) -> Rc<dyn Image> {
    let ram = Ram::from_bytes(&vec![0xbb; len_bytes]);
    Rc::new(Raw::open(ram.port, engine::image::Access::ReadOnly))
}

/// An image with data, zeroes and holes, of which some would read from a backing file.
fn worked_on(options: &CreateOptions, backing: Option<Rc<dyn Image>>) -> (Ram, Vec<u8>) {
    let ram = Ram::empty();
    run(create(&ram.port, options)).unwrap();
    let image = open(&ram, backing);
    run(image.write(0, vec![0x11; 200 << 10])).unwrap();
    run(image.write_zeroes(64 << 10, 64 << 10, Unmap::Allow)).unwrap();
    run(image.write_zeroes(128 << 10, 32 << 10, Unmap::Keep)).unwrap();
    run(image.write_zeroes(1 << 20, 512 << 10, Unmap::Allow)).unwrap();
    run(image.discard(16 << 10, 16 << 10)).unwrap();
    run(image.write(SIZE - 4096, vec![0x22; 4096])).unwrap();
    run(image.flush()).unwrap();
    let content = read_all(&image);
    run(image.close()).unwrap();
    (ram, content)
}

fn open(ram: &Ram, backing: Option<Rc<dyn Image>>) -> Qcow2 {
    run(Qcow2::open(
        ram.port.clone(),
        backing,
        &OpenOptions::default(),
    ))
    .unwrap()
}

fn read_all(image: &Qcow2) -> Vec<u8> {
    let len = usize::try_from(image.virtual_bytes()).unwrap();
    run(image.read(0, len)).unwrap()
}

fn must_be_clean(ram: &Ram) {
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn header_of(ram: &Ram) -> Header {
    run(header::read(&ram.port)).unwrap()
}

fn options(cluster_bits: u32, version: u32) -> CreateOptions {
    CreateOptions {
        virtual_bytes: SIZE,
        cluster_bits,
        version,
        ..CreateOptions::default()
    }
}

fn version(version: u32) -> Manage {
    Manage::Amend(Amend {
        version: Some(version),
        ..Amend::default()
    })
}

fn width(refcount_order: u32) -> Manage {
    Manage::Amend(Amend {
        refcount_order: Some(refcount_order),
        ..Amend::default()
    })
}

fn lazy(lazy: bool) -> Manage {
    Manage::Amend(Amend {
        lazy_refcounts: Some(lazy),
        ..Amend::default()
    })
}

fn name(len: usize, format: &str) -> Manage {
    Manage::SetBacking(Some(BackingName {
        name: "n".repeat(len),
        format: Some(format.into()),
    }))
}

#[test]
fn every_width_follows_every_other_and_the_image_stays_sound() {
    for cluster_bits in [9, 10, 12, 16] {
        let (ram, content) = worked_on(&options(cluster_bits, 3), None);
        for order in [0, 6, 3, 5, 1, 2, 4, 6, 0, 4] {
            let image = open(&ram, None);
            run(image.manage(width(order))).unwrap();
            assert_eq!(read_all(&image), content);
            run(image.write(2 << 20, vec![0x33; 5000 / 512 * 512])).unwrap();
            run(image.discard(2 << 20, 64 << 10)).unwrap();
            run(image.close()).unwrap();
            must_be_clean(&ram);
            assert_eq!(header_of(&ram).geometry.refcount_order(), order);
        }
    }
}

#[test]
fn a_count_that_does_not_fit_refuses_another_width_and_changes_nothing() {
    let mut bytes = kit::small(9, 4, 3);
    let header = Header::decode(&bytes, 1 << 20).unwrap();
    let block = usize::try_from(header.reftable_offset.0).unwrap() + 512;
    // A leak of the header's cluster: counted twice.
    engine::qcow2::refblock::set_refcount(&mut bytes[block..block + 512], 0, 4, 2);
    let ram = Ram::from_bytes(&bytes);
    let image = open(&ram, None);
    let error = run(image.manage(width(0))).unwrap_err();
    assert_eq!(error, Error::Refused(Refused::RefcountOverflow));
    run(image.close()).unwrap();
    assert_eq!(ram.bytes()[..512], bytes[..512]);
    let image = open(&ram, None);
    run(image.manage(width(1))).unwrap();
    run(image.close()).unwrap();
    assert_eq!(header_of(&ram).geometry.refcount_order(), 1);
}

#[test]
fn versions_change_up_and_down_with_and_without_a_backing_file() {
    for cluster_bits in [9, 12, 16] {
        for backed in [false, true] {
            let mut options = options(cluster_bits, 3);
            let below = || backed.then(|| raw_backing(2 << 20));
            options.backing = backed.then(|| Backing {
                name: "below.raw".into(),
                format: BackingFormat::Raw,
            });
            let (ram, content) = worked_on(&options, below());
            for wanted in [2, 3, 2, 2, 3, 3] {
                let image = open(&ram, below());
                run(image.manage(version(wanted))).unwrap();
                assert_eq!(read_all(&image), content);
                run(image.close()).unwrap();
                must_be_clean(&ram);
                let header = header_of(&ram);
                assert_eq!(header.version, wanted);
                assert_eq!(header.backing_name.is_some(), backed);
                let image = open(&ram, below());
                assert_eq!(read_all(&image), content);
                run(image.close()).unwrap();
            }
        }
    }
}

#[test]
fn what_a_version_cannot_have_is_refused_before_anything_changes() {
    let (ram, _) = worked_on(&options(16, 2), None);
    let before = ram.bytes();
    let image = open(&ram, None);
    for refused in [
        width(3),
        lazy(true),
        version(4),
        Manage::Amend(Amend {
            version: Some(3),
            refcount_order: Some(7),
            ..Amend::default()
        }),
    ] {
        assert!(matches!(
            run(image.manage(refused)),
            Err(Error::Refused(Refused::Option(_)))
        ));
    }
    assert_eq!(ram.bytes(), before);
    let all = Manage::Amend(Amend {
        version: Some(3),
        refcount_order: Some(3),
        lazy_refcounts: Some(true),
    });
    run(image.manage(all)).unwrap();
    assert!(run(image.manage(version(2))).is_err());
    run(image.close()).unwrap();
    let header = header_of(&ram);
    assert_eq!((header.version, header.geometry.refcount_order()), (3, 3));
    assert_eq!(header.compatible, 1);
    must_be_clean(&ram);
}

#[test]
fn lazy_refcounts_are_switched_while_the_image_is_dirty() {
    let (ram, content) = worked_on(&options(12, 3), None);
    let image = open(&ram, None);
    run(image.manage(lazy(true))).unwrap();
    run(image.write(2 << 20, vec![0x44; 8192])).unwrap();
    assert_eq!(header_of(&ram).incompatible, 1);
    run(image.manage(lazy(false))).unwrap();
    assert_eq!(header_of(&ram).incompatible, 0);
    assert_eq!(header_of(&ram).compatible, 0);
    run(image.write(2 << 20, vec![0; 8192])).unwrap();
    run(image.flush()).unwrap();
    assert_eq!(header_of(&ram).incompatible, 0);
    assert_eq!(read_all(&image), content);
    run(image.close()).unwrap();
    must_be_clean(&ram);
}

#[test]
fn names_of_every_length_follow_each_other_and_unknown_extensions_stay() {
    let unknown = Extension {
        kind: 0x1234_5678,
        data: (0..77).collect(),
    };
    for cluster_bits in [10, 11, 12, 16] {
        let (ram, _) = worked_on(&options(cluster_bits, 3), None);
        let mut header = header_of(&ram);
        header.extensions.push(unknown.clone());
        let bytes = header.encode();
        run(ram.port.at(engine::device::Event::None).write(0, bytes)).unwrap();
        for len in [1, 300, 299, 7, 250, 1023, 1022, 3, 1023] {
            let image = open(&ram, None);
            let outcome = run(image.manage(name(len, "raw")));
            run(image.close()).unwrap();
            let header = header_of(&ram);
            assert_eq!(header.extensions.last(), Some(&unknown));
            if outcome.is_ok() {
                assert_eq!(header.backing_name.as_ref().map(Vec::len), Some(len));
                assert_eq!(header.extension(engine::qcow2::extension::FILLER), None);
            } else {
                assert!(cluster_bits < 12, "{len}: {outcome:?}");
            }
        }
        let image = open(&ram, None);
        run(image.manage(Manage::SetBacking(None))).unwrap();
        run(image.close()).unwrap();
        let header = header_of(&ram);
        assert_eq!(header.backing_name, None);
        assert_eq!(header.extensions.last(), Some(&unknown));
        must_be_clean(&ram);
    }
}

#[test]
fn an_emptied_image_shows_its_backing_file_and_holds_nothing() {
    for (cluster_bits, version) in [(9, 3), (12, 2), (16, 3)] {
        let (ram, _) = worked_on(&options(cluster_bits, version), Some(raw_backing(2 << 20)));
        let image = open(&ram, Some(raw_backing(2 << 20)));
        run(image.write(2 << 20, vec![0x55; 1 << 20])).unwrap();
        run(image.manage(Manage::MakeEmpty)).unwrap();
        let mut expected = vec![0xbb; 2 << 20];
        expected.resize(3 << 20, 0);
        assert_eq!(read_all(&image), expected);
        run(image.write(4096, vec![0x66; 4096])).unwrap();
        run(image.close()).unwrap();
        must_be_clean(&ram);
        let image = open(&ram, Some(raw_backing(2 << 20)));
        expected[4096..8192].fill(0x66);
        assert_eq!(read_all(&image), expected);
        run(image.close()).unwrap();
    }
}

#[test]
fn a_compressed_cluster_is_freed_once_for_each_mapping() {
    for version in [2, 3] {
        let ram = Ram::from_bytes(&kit::small(12, 4, version));
        let image = open(&ram, None);
        run(image.manage(Manage::MakeEmpty)).unwrap();
        assert_eq!(read_all(&image).iter().find(|byte| **byte != 0), None);
        run(image.close()).unwrap();
        must_be_clean(&ram);
    }
}

/// Every change on a file that qemu-img made and that it checks afterwards; and the other way round.
#[test]
fn qemu_img_finds_nothing_wrong_with_what_was_amended() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let below = path("below.raw");
    std::fs::write(&below, vec![0xbb; 2 << 20]).unwrap();
    for cluster in ["512", "4096", "65536"] {
        let file = path(&format!("image-{cluster}.qcow2"));
        let copy = path("copy.raw");
        let created = format!("cluster_size={cluster}");
        let (file_text, below_text) = (text(&file), text(&below));
        must(
            "qemu-img",
            &[
                "create", "-q", "-f", "qcow2", "-o", &created, "-b", below_text, "-F", "raw",
                file_text, "3M",
            ],
        );
        let work = "write -P 1 0 300k";
        must(
            "qemu-io",
            &[
                "-c",
                work,
                "-c",
                "write -z 64k 128k",
                "-c",
                "write -zu 1M 512k",
                file_text,
            ],
        );
        must(
            "qemu-img",
            &["convert", "-O", "raw", file_text, text(&copy)],
        );
        let changes = [
            width(6),
            lazy(true),
            width(0),
            lazy(false),
            width(4),
            version(2),
            version(3),
            Manage::SetBacking(Some(BackingName {
                name: below_text.into(),
                format: Some("raw".into()),
            })),
        ];
        for change in changes {
            let ram = Ram::load(&file);
            let image = open(&ram, Some(raw_backing(2 << 20)));
            run(image.manage(change.clone())).unwrap();
            run(image.close()).unwrap();
            ram.save(&file);
            must("qemu-img", &["check", "-q", file_text]);
            must("qemu-img", &["compare", "-q", file_text, text(&copy)]);
        }
        for option in [
            "refcount_bits=8",
            "refcount_bits=16",
            "compat=0.10",
            "compat=1.1",
            "lazy_refcounts=on",
        ] {
            must("qemu-img", &["amend", "-q", "-o", option, file_text]);
            let ram = Ram::load(&file);
            must_be_clean(&ram);
        }
        let info = must("qemu-img", &["info", "--output=json", file_text]);
        assert!(info.contains(below_text), "{info}");
    }
}
