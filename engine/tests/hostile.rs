//! Bytes from anywhere: reading, checking and repairing them ends, without panic and in bounds.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::device::PageImage;
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::{Extension, Header, HeaderSector};
use engine::qcow2::probe;
use engine::qcow2::unit::HostOffset;
use kit::{Ram, run, small};
use proptest::prelude::*;

/// Checks, repairs, and checks again what is left: a repair that claims success has to be right.
fn survives(ram: &Ram) {
    let options = CheckOptions::default();
    let Ok(_) = run(check(&ram.port, Repair::None, &options)) else {
        return;
    };
    let Ok(repaired) = run(check(&ram.port, Repair::All, &options)) else {
        return;
    };
    let again = run(check(&ram.port, Repair::None, &options)).unwrap();
    if repaired.is_clean() {
        assert!(
            again.findings.is_empty(),
            "{repaired:?}
 then {again:?}"
        );
    }
    let before = ram.device.snapshot().content_hash();
    run(check(&ram.port, Repair::All, &options)).unwrap();
    assert_eq!(
        ram.device.snapshot().content_hash(),
        before,
        "a second repair writes nothing: {repaired:?}
 then {again:?}"
    );
    let _ = run(check(&ram.port, Repair::Leaks, &options));
}

fn geometry() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        6 => (Just(9u32), 0..=6u32),
        2 => (10..=12u32, 0..=6u32),
        1 => (13..=16u32, 0..=6u32),
    ]
}

#[test]
fn the_image_that_is_bent_here_is_sound_before() {
    for cluster_bits in [9, 10, 12, 16, 21] {
        for refcount_order in 0..=6 {
            let ram = Ram::from_bytes(&small(cluster_bits, refcount_order, 3));
            let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
            assert!(report.findings.is_empty(), "{report:#?}");
            assert_eq!(report.totals.allocated_clusters, 4);
        }
    }
}

/// Values that overflow, wrap, misalign, or point at what is there already.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        (0u32..64).prop_map(|bit| !0 << bit),
        (0u64..64).prop_map(|cluster| cluster * 512),
        (0u64..64).prop_map(|cluster| (cluster * 512) | (1 << 63)),
        (0u64..64).prop_map(|cluster| (cluster * 512) | 1),
        (0u64..64).prop_map(|cluster| (cluster * 512) | (1 << 62)),
        0u64..1024,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        probe(&bytes);
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn a_header_of_random_fields_ends(
        tail in prop::collection::vec(any::<u8>(), 0..3000), fields in prop::collection::vec((0usize..14, extreme()), 0..6),
    ) {
        let mut bytes = small(9, 4, 3);
        bytes.extend(tail);
        for (field, value) in fields {
            bytes[8 * field..8 * field + 8].copy_from_slice(&value.to_be_bytes());
        }
        bytes[..8].copy_from_slice(&[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn a_bent_image_ends(
        (cluster_bits, refcount_order) in geometry(), version in 2u32..=3, dirty: bool,
        words in prop::collection::vec((any::<prop::sample::Index>(), extreme()), 0..8),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u32..8), 0..4),
    ) {
        let refcount_order = if version == 2 { 4 } else { refcount_order };
        let mut bytes = small(cluster_bits, refcount_order, version);
        if dirty && version == 3 {
            bytes[79] |= 1;
        }
        // Words of the tables; the header has a test of its own, and data may be anything.
        let tables = bytes.len() / 8 - 16;
        for (index, value) in words {
            let at = 128 + index.index(tables) * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        for (index, bit) in flips {
            let at = 128 + index.index(tables * 8);
            bytes[at] ^= 1 << bit;
        }
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn bent_tables_end(
        refcount_order in 0u32..=6, dirty: bool,
        words in prop::collection::vec((0usize..5, 0usize..4, extreme()), 1..6),
    ) {
        let mut bytes = small(9, refcount_order, 3);
        bytes[79] |= u8::from(dirty);
        let header = Header::decode(&bytes, 1 << 20).unwrap();
        let first = bytes.len() - 6 * 512;
        let reftable = usize::try_from(header.reftable_offset.0).unwrap();
        let l1 = usize::try_from(header.l1_offset.0).unwrap();
        for (table, word, value) in words {
            let at = [reftable, reftable + 512, l1, first, first + 512][table] + word * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn a_truncated_image_ends((cluster_bits, refcount_order) in geometry(), keep: prop::sample::Index, dirty: bool) {
        let mut bytes = small(cluster_bits, refcount_order, 3);
        if dirty {
            bytes[79] |= 1;
        }
        bytes.truncate(keep.index(bytes.len()));
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn snapshots_and_bitmaps_of_anything_end(
        count in 0u32..4, bitmaps in 0u32..3, fields in prop::collection::vec((0usize..64, extreme()), 0..12),
    ) {
        let mut bytes = small(9, 4, 3);
        let table = u64::try_from(bytes.len()).unwrap();
        bytes.extend([0; 512]);
        for (field, value) in fields {
            let at = bytes.len() - 512 + field * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        bytes[60..64].copy_from_slice(&count.to_be_bytes());
        bytes[64..72].copy_from_slice(&table.to_be_bytes());
        if bitmaps > 0 {
            bytes[95] |= 1;
            bytes[112..120].copy_from_slice(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]);
            bytes[120..124].copy_from_slice(&bitmaps.to_be_bytes());
            bytes[128..136].copy_from_slice(&512u64.to_be_bytes());
            bytes[136..144].copy_from_slice(&table.to_be_bytes());
        }
        survives(&Ram::from_bytes(&bytes));
    }

    #[test]
    fn a_header_comes_back_as_it_was_written(
        version in 2u32..=3, cluster_bits in 10u32..=21, refcount_order in 0u32..=6, span in 0u64..1000,
        bits in (0u64..4, any::<u64>(), any::<u64>()), name in prop::option::of(prop::collection::vec(any::<u8>(), 1..100)),
        extensions in prop::collection::vec((1u32.., prop::collection::vec(any::<u8>(), 0..40)), 0..4),
        patch in (0u64..1 << 40, 1u64..64),
    ) {
        let refcount_order = if version == 2 { 4 } else { refcount_order };
        let geometry = Geometry::new(cluster_bits, refcount_order).unwrap();
        let v3 = |bits| if version == 3 { bits } else { 0 };
        let mut header = Header {
            version,
            geometry,
            virtual_bytes: span * 512,
            l1_offset: HostOffset(3 << cluster_bits),
            l1_entries: geometry.l1_entries_for(span * 512) + 1,
            reftable_offset: HostOffset(1 << cluster_bits),
            reftable_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: v3(bits.0),
            compatible: v3(bits.1),
            autoclear: v3(bits.2),
            encryption: None,
            compression: engine::qcow2::compress::Compression::Zlib,
            header_bytes: if version == 2 { 72 } else { 112 },
            backing_at: 0,
            backing_name: name,
            extensions: extensions.into_iter().map(|(kind, data)| Extension { kind, data }).collect(),
        };
        let mut bytes = header.encode();
        if let Some(name) = &header.backing_name {
            // The name comes last.
            header.backing_at = u64::try_from(bytes.len() - name.len()).unwrap();
        }
        prop_assert_eq!(&Header::decode(&bytes, 1 << 30).unwrap(), &header);
        prop_assert!(probe(&bytes));

        let mut sector = HeaderSector::new(&bytes);
        header.l1_offset = HostOffset((patch.0 + 3) << cluster_bits & 0x00ff_ffff_0000_0000 | 1 << 30);
        header.l1_entries += patch.1;
        header.reftable_offset = HostOffset(1 << 22);
        header.reftable_clusters = 2;
        sector.set_l1(header.l1_offset, header.l1_entries);
        sector.set_reftable(header.reftable_offset, header.reftable_clusters);
        if version == 3 {
            header.incompatible ^= 1;
            header.autoclear ^= 1 << 60;
            sector.set_incompatible(header.incompatible);
            sector.set_autoclear(header.autoclear);
        }
        let len = bytes.len().min(512);
        bytes[..len].copy_from_slice(&sector.bytes()[..len]);
        prop_assert_eq!(&Header::decode(&bytes, 1 << 30).unwrap(), &header);
    }
}

#[test]
fn a_sparse_file_of_exabytes_is_checked_in_bounds() {
    let mut image = PageImage::from_bytes(&small(16, 4, 3));
    image.set_len(1 << 60);
    // The first L1 entry leads far out, to a table of nothing.
    let header = Header::decode(&image.read_vec(0, 1 << 16), 1 << 60).unwrap();
    image.write(header.l1_offset.0, &(1u64 << 55 | 1 << 63).to_be_bytes());
    survives(&Ram::new(image));
}

#[test]
fn tables_that_all_name_one_table_are_walked_once() {
    let options = CreateOptions {
        virtual_bytes: (4 << 20) * 64 * 512,
        cluster_bits: 9,
        backing: Some(Backing {
            name: "b".into(),
            format: BackingFormat::Raw,
        }),
        ..CreateOptions::default()
    };
    let ram = Ram::empty();
    run(create(&ram.port, &options)).unwrap();
    let mut bytes = ram.bytes();
    let header = Header::decode(&bytes, 1 << 30).unwrap();
    let end = u64::try_from(bytes.len()).unwrap();
    bytes.extend([0xff; 512]);
    let l1 = usize::try_from(header.l1_offset.0).unwrap();
    for word in bytes[l1..l1 + (32 << 20)].chunks_exact_mut(8) {
        word.copy_from_slice(&end.to_be_bytes());
    }
    survives(&Ram::from_bytes(&bytes));
}
