//! What a header says that nobody here knows: kept, cleared or refused, as the format has it for each kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::Error;
use engine::image::{Access, Image};
use engine::manage::{Amend, BackingName, BitmapState, Manage, NewSnapshot};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::extension::FEATURE_NAMES;
use engine::qcow2::header::{Extension, Header};
use engine::qcow2::{OpenOptions, Qcow2, refblock};
use kit::{Ram, run};

/// A compatible and an autoclear feature that do not exist.
const COMPATIBLE: u64 = 1 << 5;
const AUTOCLEAR: u64 = 1 << 7;

/// Extensions that do not exist, of lengths that need padding, and one that reaches behind the first
/// sector.
fn unknown() -> Vec<Extension> {
    let data = |len: u8, seed: u8| (0..len).map(|at| at.wrapping_mul(31) ^ seed).collect();
    vec![
        Extension {
            kind: 0x1122_3344,
            data: data(13, 1),
        },
        Extension {
            kind: 0xdead_beef,
            data: Vec::new(),
        },
        Extension {
            kind: 0x1122_3344,
            data: data(251, 2),
        },
    ]
}

fn header_of(ram: &Ram) -> Header {
    let bytes = ram.bytes();
    Header::decode(&bytes, u64::try_from(bytes.len()).unwrap()).unwrap()
}

/// An image whose header says more than is known, `change` being done to it besides.
fn strange(lazy_refcounts: bool, change: impl FnOnce(&mut Header)) -> Ram {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 12,
        lazy_refcounts,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let mut header = header_of(&ram);
    header.extensions.extend(unknown());
    header.compatible |= COMPATIBLE;
    header.autoclear |= AUTOCLEAR;
    change(&mut header);
    let mut bytes = ram.bytes();
    let head = header.encode();
    bytes[..head.len()].copy_from_slice(&head);
    Ram::from_bytes(&bytes)
}

fn open(ram: &Ram, access: Access) -> Result<Qcow2, Error> {
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    run(Qcow2::open(ram.port.clone(), None, &options))
}

/// The unknown extensions, in file order.
fn found(header: &Header) -> Vec<Extension> {
    let kinds = [0x1122_3344, 0xdead_beef];
    let all = header.extensions.iter();
    all.filter(|one| kinds.contains(&one.kind))
        .cloned()
        .collect()
}

fn amend(version: Option<u32>, refcount_order: Option<u32>, lazy: Option<bool>) -> Manage {
    Manage::Amend(Amend {
        version,
        refcount_order,
        lazy_refcounts: lazy,
    })
}

fn backing(len: usize) -> Manage {
    Manage::SetBacking(Some(BackingName {
        name: "b".repeat(len),
        format: Some("raw".into()),
    }))
}

/// Everything that rewrites a header, or a part of it.
fn rewritings() -> Vec<Manage> {
    let name = || "bits".to_owned();
    let snapshot = || "then".to_owned();
    vec![
        Manage::grow(64 << 20),
        amend(None, None, Some(true)),
        amend(None, None, Some(false)),
        amend(None, Some(6), None),
        amend(None, Some(4), None),
        backing(1),
        backing(1023),
        backing(7),
        Manage::SetBacking(None),
        Manage::BitmapCreate {
            name: name(),
            granularity_bytes: 4096,
            state: BitmapState::Enabled,
        },
        Manage::BitmapSetState {
            name: name(),
            state: BitmapState::Disabled,
        },
        Manage::BitmapClear { name: name() },
        backing(40),
        Manage::BitmapRemove { name: name() },
        Manage::SnapshotCreate(NewSnapshot {
            name: snapshot(),
            ..NewSnapshot::default()
        }),
        Manage::SnapshotApply {
            snapshot: snapshot(),
        },
        Manage::SnapshotDelete {
            snapshot: snapshot(),
        },
        Manage::MakeEmpty,
    ]
}

#[test]
fn unknown_extensions_and_compatible_bits_stay_through_every_rewriting() {
    for lazy in [false, true] {
        let ram = strange(lazy, |_| {});
        for operation in rewritings() {
            let image = open(&ram, Access::ReadWrite).unwrap();
            run(image.write(8192, vec![3; 5000 / 512 * 512])).unwrap();
            run(image.manage(operation.clone())).unwrap();
            run(image.flush()).unwrap();
            run(image.close()).unwrap();
            let header = header_of(&ram);
            assert_eq!(found(&header), unknown(), "{operation:?}");
            assert_ne!(header.compatible & COMPATIBLE, 0, "{operation:?}");
        }
        let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
    }
}

#[test]
fn unknown_extensions_stay_where_the_version_changes() {
    let ram = strange(false, |_| {});
    for version in [2, 3] {
        let image = open(&ram, Access::ReadWrite).unwrap();
        run(image.manage(amend(Some(version), None, None))).unwrap();
        run(image.close()).unwrap();
        let header = header_of(&ram);
        assert_eq!((header.version, found(&header)), (version, unknown()));
    }
}

#[test]
fn repair_leaves_what_it_does_not_know() {
    let ram = strange(true, |_| {});
    let image = open(&ram, Access::ReadWrite).unwrap();
    run(image.write(0, vec![1; 4096])).unwrap();
    run(image.flush()).unwrap();
    drop(image);
    assert!(header_of(&ram).is_dirty());
    run(check(&ram.port, Repair::All, &CheckOptions::default())).unwrap();
    let header = header_of(&ram);
    assert!(!header.is_dirty());
    assert_eq!(found(&header), unknown());
    assert_ne!(header.compatible & COMPATIBLE, 0);
}

#[test]
fn a_repair_that_writes_clears_unknown_autoclear_bits_and_no_other_does() {
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let ram = strange(false, |_| {});
        let sound = ram.bytes();
        run(check(&ram.port, repair, &CheckOptions::default())).unwrap();
        assert!(ram.bytes() == sound, "{repair:?} of a sound image");

        let mut leaky = sound.clone();
        let table = usize::try_from(header_of(&ram).reftable_offset.0).unwrap();
        let block = usize::try_from(u64::from_be_bytes(
            leaky[table..table + 8].try_into().unwrap(),
        ))
        .unwrap();
        refblock::set_refcount(&mut leaky[block..block + 4096], 99, 4, 1);
        let ram = Ram::from_bytes(&leaky);
        let report = run(check(&ram.port, repair, &CheckOptions::default())).unwrap();
        assert_eq!(report.found.leaks, 1, "{repair:?}");
        let header = header_of(&ram);
        let kept = if repair == Repair::None { AUTOCLEAR } else { 0 };
        assert_eq!(
            (header.autoclear, header.compatible & COMPATIBLE),
            (kept, COMPATIBLE)
        );
    }
}

#[test]
fn unknown_autoclear_bits_go_when_the_image_is_opened_for_writing_and_not_before() {
    let ram = strange(false, |_| {});
    let before = ram.bytes();
    drop(open(&ram, Access::ReadOnly).unwrap());
    assert!(ram.bytes() == before, "reading changes nothing");
    drop(open(&ram, Access::ReadWrite).unwrap());
    let header = header_of(&ram);
    assert_eq!(header.autoclear, 0);
    assert_ne!(header.compatible & COMPATIBLE, 0);
    assert_eq!(found(&header), unknown());
}

#[test]
fn unknown_incompatible_bits_are_refused_by_the_names_that_the_image_has_for_them() {
    let ram = strange(false, |header| {
        header.incompatible |= 1 << 9 | 1 << 33;
        let mut entry = vec![0; 48];
        entry[1] = 9;
        entry[2..11].copy_from_slice(b"time warp");
        let table = &mut header.extensions;
        let names = table.iter_mut().find(|one| one.kind == FEATURE_NAMES);
        match names {
            Some(names) => names.data.extend(entry),
            None => table.insert(
                0,
                Extension {
                    kind: FEATURE_NAMES,
                    data: entry,
                },
            ),
        }
    });
    let before = ram.bytes();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let Err(error @ Error::Unsupported(_)) = open(&ram, access) else {
            panic!("an image with unknown features was opened");
        };
        let text = error.to_string();
        assert!(
            text.contains("time warp, Unknown incompatible feature: 200000000"),
            "{text}"
        );
    }
    assert!(ram.bytes() == before);
}
