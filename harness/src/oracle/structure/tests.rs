use proptest::prelude::*;

use super::*;
use crate::oracle::sample::{COMPRESSED, COPIED, Sample};
use crate::oracle::view::GuestView;
use crate::prng::Prng;
use crate::sim::stage::Stage;
use crate::workload::generate::scenario;
use crate::workload::pin::Pins;
use crate::workload::shape::{Extent, Start};

/// The rules and sites of everything that is found, in order.
fn rules(sample: &Sample) -> Vec<String> {
    let report = walk(&sample.image);
    assert_eq!(report.not_measured, None);
    report
        .findings
        .iter()
        .map(|finding| format!("{} {}", finding.rule(), finding.site()))
        .collect()
}

#[test]
fn every_geometry_is_read_right() {
    for cluster_bits in 9..=21 {
        for refcount_order in 0..=6 {
            let mut sample = Sample::with(3, cluster_bits, refcount_order);
            let data = sample.map(3, 7);
            let report = walk(&sample.image);
            assert!(
                report.is_perfect(),
                "{cluster_bits} {refcount_order} {report:?}"
            );
            assert_eq!(report.mapped.len(), 1);
            sample.count(data, 0);
            assert_eq!(
                rules(&sample),
                ["refcount-too-low data", "false-copied data"]
            );
            if refcount_order > 0 {
                let most = u64::MAX >> (64 - (1 << refcount_order));
                sample.count(data, most);
                assert_eq!(rules(&sample), ["false-copied data"]);
                assert_eq!(walk(&sample.image).miscounts[0].refcount, most);
            }
        }
    }
}

#[test]
fn a_low_refcount_is_legal_only_under_the_dirty_bit() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.count(data, 0);
    sample.count(Sample::L2, 0);
    let found = rules(&sample);
    assert!(found.contains(&"refcount-too-low data".into()));
    assert!(found.contains(&"refcount-too-low l2-table".into()));
    let dirty = sample.dirty();
    assert_eq!(rules(&dirty), [""; 0]);
    assert_eq!(walk(&dirty.image).low_count, 2);
    assert!(!walk(&dirty.image).is_perfect());
}

#[test]
fn a_leak_is_legal_and_counted() {
    let mut sample = Sample::new();
    sample.cluster();
    sample.count(100, 1);
    let report = walk(&sample.image);
    assert_eq!((report.finding_count, report.leak_count), (0, 2));
    assert!(!report.is_perfect());
}

#[test]
fn copied_calls_for_one_reference_and_a_refcount_of_one() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.count(data, 2);
    assert_eq!(rules(&sample), ["false-copied data"]);
    assert_eq!(
        rules(&sample.clone().dirty()),
        [""; 0],
        "counts may be anything"
    );
    sample.entry(0, sample.offset(data));
    assert_eq!(rules(&sample), [""; 0]);
    assert_eq!(walk(&sample.image).copied_missing, 0);
    sample.count(data, 1);
    assert_eq!(rules(&sample), [""; 0]);
    let report = walk(&sample.image);
    assert_eq!(report.copied_missing, 1);
    assert!(!report.is_perfect());
}

#[test]
fn copied_without_a_cluster_is_idle() {
    let mut sample = Sample::new();
    sample.entry(0, COPIED);
    assert_eq!(rules(&sample), ["idle-copied l2-table"]);
    sample.entry(0, COPIED | 1);
    assert_eq!(rules(&sample), ["idle-copied l2-table"]);
    sample.entry(0, 1);
    assert_eq!(rules(&sample), [""; 0]);
}

#[test]
fn no_cluster_has_two_owners_dirty_or_not() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.entry(1, sample.offset(data));
    sample.entry(0, sample.offset(data));
    sample.count(data, 2);
    assert_eq!(rules(&sample), ["two-owners data+data"]);
    assert_eq!(rules(&sample.clone().dirty()), ["two-owners data+data"]);
    sample.count(data, 1);
    assert_eq!(
        walk(&sample.image).copied_missing,
        0,
        "none of the two could claim it"
    );

    let mut sample = Sample::new();
    sample.entry(0, sample.offset(Sample::REFBLOCK));
    sample.count(Sample::REFBLOCK, 2);
    assert_eq!(rules(&sample), ["two-owners refcount-block+data"]);
    assert_eq!(rules(&sample.dirty()), ["two-owners refcount-block+data"]);

    let mut sample = Sample::new();
    sample.long(sample.offset(Sample::L1), sample.offset(Sample::REFTABLE));
    sample.count(Sample::REFTABLE, 2);
    let found = rules(&sample);
    assert!(
        found.contains(&"two-owners refcount-table+l2-table".into()),
        "{found:?}"
    );
}

#[test]
fn a_table_that_is_used_twice_has_two_owners_and_its_entries_count_once() {
    let mut sample = Sample::new();
    sample.map(0, 1);
    sample.image.write(36, &2_u32.to_be_bytes());
    for index in 0..2 {
        sample.long(
            sample.offset(Sample::L1) + index * 8,
            sample.offset(Sample::L2),
        );
    }
    sample.count(Sample::L2, 2);
    assert_eq!(rules(&sample), ["two-owners l2-table+l2-table"]);
}

#[test]
fn what_is_mapped_beyond_the_disk_is_counted_and_not_shown() {
    let mut sample = Sample::new();
    let beyond = sample.map(8, 1);
    let report = walk(&sample.image);
    assert!(report.is_perfect() && report.mapped.is_empty());
    sample.count(beyond, 0);
    assert_eq!(
        rules(&sample),
        ["refcount-too-low data", "false-copied data"]
    );
}

#[test]
fn mappings_start_within_the_file() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.image.set_len(sample.offset(data) + 512);
    assert_eq!(
        rules(&sample),
        [""; 0],
        "the last cluster may end beyond the end"
    );
    sample.image.set_len(sample.offset(data));
    assert_eq!(rules(&sample), ["beyond-end data"]);
    let mut sample = sample.dirty();
    assert_eq!(rules(&sample), [""; 0], "the extension may be lost");
    let last_counted = (4096 * 8 / 16) - 1;
    sample.entry(1, sample.offset(last_counted));
    assert_eq!(rules(&sample), [""; 0]);
    sample.entry(1, sample.offset(last_counted + 1));
    assert_eq!(
        rules(&sample),
        ["beyond-end data"],
        "no refcount block is named for it"
    );
}

#[test]
fn metadata_starts_within_the_file_dirty_or_not() {
    let mut sample = Sample::new();
    sample.long(sample.offset(Sample::L1), sample.offset(20) | COPIED);
    sample.count(20, 1);
    sample.count(Sample::L2, 0);
    assert_eq!(rules(&sample), ["beyond-end l2-table"]);
    assert_eq!(rules(&sample.dirty()), ["beyond-end l2-table"]);
    let mut sample = Sample::new();
    sample.long(sample.offset(Sample::REFTABLE) + 8, sample.offset(20));
    sample.count(20, 1);
    assert_eq!(rules(&sample), ["beyond-end refcount-block"]);
    assert_eq!(rules(&sample.dirty()), ["beyond-end refcount-block"]);
    for (pointer, rule) in [
        (48, "beyond-end refcount-table"),
        (40, "beyond-end l1-table"),
    ] {
        let mut sample = Sample::new();
        sample.long(pointer, sample.offset(5));
        assert!(rules(&sample).contains(&rule.into()));
        assert_eq!(rules(&sample.dirty()), [rule]);
    }
}

#[test]
fn entries_are_aligned_and_keep_reserved_bits_zero() {
    for (place, reserved) in [
        (Sample::L1, 1),
        (Sample::L1, 1 << 56),
        (Sample::L2, 2),
        (Sample::L2, 1 << 61),
        (Sample::REFTABLE, 1),
    ] {
        let mut sample = Sample::new();
        let at = sample.offset(place) + 16;
        let table = ["refcount-table", "", "l1-table", "l2-table"];
        let table = table[usize::try_from(place - 1).unwrap()];
        if place == Sample::L1 {
            sample.image.write(36, &3_u32.to_be_bytes());
        }
        sample.long(at, reserved);
        assert_eq!(rules(&sample), [format!("reserved-bits {table}")]);
        assert_eq!(
            rules(&sample.clone().dirty()),
            [format!("reserved-bits {table}")]
        );
        sample.long(at, 512);
        assert_eq!(rules(&sample), [format!("unaligned {table}")]);
        sample.long(at, 0);
        assert_eq!(rules(&sample), [""; 0]);
    }
}

#[test]
fn only_version_3_knows_zero_clusters() {
    for (version, expected) in [(2, "reserved-bits l2-table"), (3, "")] {
        let mut sample = Sample::with(version, 12, 4);
        sample.entry(2, 1);
        let found = rules(&sample);
        assert_eq!(found.first().map_or("", String::as_str), expected);
    }
}

#[test]
fn a_reserved_cluster_of_a_zero_entry_is_a_reference() {
    let mut sample = Sample::new();
    let data = sample.map(0, 9);
    sample.entry(0, sample.offset(data) | COPIED | 1);
    assert!(walk(&sample.image).is_perfect());
    sample.count(data, 0);
    assert_eq!(
        rules(&sample),
        ["refcount-too-low data", "false-copied data"]
    );
}

#[test]
fn a_snapshot_shares_tables_and_data() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.snapshot();
    assert_eq!(
        rules(&sample),
        [
            "refcount-too-low l2-table",
            "false-copied l2-table",
            "refcount-too-low data",
            "false-copied data"
        ]
    );
    sample.count(Sample::L2, 2);
    sample.count(data, 2);
    assert_eq!(
        rules(&sample),
        ["false-copied l2-table", "false-copied data"]
    );
    sample.long(sample.offset(Sample::L1), sample.offset(Sample::L2));
    sample.entry(0, sample.offset(data));
    assert!(walk(&sample.image).is_perfect());
}

#[test]
fn a_snapshot_may_keep_data_that_the_active_table_replaced() {
    let mut sample = Sample::new();
    let data = sample.map(0, 1);
    sample.snapshot();
    let (l2, own) = (sample.cluster(), sample.cluster());
    sample.long(sample.offset(Sample::L1), sample.offset(l2) | COPIED);
    sample.long(sample.offset(l2), sample.offset(own) | COPIED);
    assert!(
        walk(&sample.image).is_perfect(),
        "{:?}",
        walk(&sample.image)
    );
    // The snapshot's copy of COPIED is nobody's business, but its references count.
    sample.count(data, 0);
    assert_eq!(rules(&sample), ["refcount-too-low data"]);
    // A cluster of the active disk at another place in the snapshot's tree has two owners.
    sample.count(data, 1);
    sample.count(own, 2);
    sample.entry(1, sample.offset(own));
    sample.long(sample.offset(l2), sample.offset(own));
    assert_eq!(rules(&sample), ["two-owners data+data"]);
}

#[test]
fn compressed_clusters_share_host_clusters_with_each_other_only() {
    let mut sample = Sample::new();
    let host = sample.cluster();
    let descriptor = |offset: u64| COMPRESSED | offset;
    sample.entry(0, descriptor(sample.offset(host)));
    sample.entry(1, descriptor(sample.offset(host) + 100));
    assert_eq!(rules(&sample), ["refcount-too-low compressed-data"]);
    sample.count(host, 2);
    assert!(walk(&sample.image).is_perfect());
    sample.entry(1, descriptor(sample.offset(host)) | COPIED);
    assert_eq!(rules(&sample), ["idle-copied l2-table"]);
    sample.entry(1, sample.offset(host));
    assert_eq!(rules(&sample), ["two-owners data+compressed-data"]);
}

#[test]
fn a_compressed_cluster_counts_every_host_cluster_it_touches() {
    let mut sample = Sample::new();
    let (one, two) = (sample.cluster(), sample.cluster());
    let offset_bits = 62 - (12 - 8);
    let last_sector = sample.offset(two) - 512;
    sample.entry(0, COMPRESSED | 1 << offset_bits | last_sector);
    assert!(walk(&sample.image).is_perfect());
    sample.entry(0, COMPRESSED | last_sector);
    assert_eq!(walk(&sample.image).leak_count, 1);
    sample.count(one, 0);
    assert_eq!(rules(&sample), ["refcount-too-low compressed-data"]);
}

#[test]
fn a_header_that_cannot_be_right_is_one_finding() {
    let offsets = |at, value: u64| (at, value.to_be_bytes().to_vec());
    for (at, bytes) in [
        (0, vec![0; 4]),
        (4, vec![0, 0, 0, 4]),
        (20, vec![0, 0, 0, 8]),
        (20, vec![0, 0, 0, 22]),
        (96, vec![0, 0, 0, 7]),
        (79, vec![16]),
        (36, vec![0, 0, 0, 0]),
        (36, vec![255; 4]),
        (56, vec![0; 4]),
        (56, vec![255; 4]),
        offsets(40, 512),
        offsets(48, 512),
        offsets(48, 0),
    ] {
        let mut sample = Sample::new();
        sample.image.write(at, &bytes);
        assert_eq!(rules(&sample), ["header header"], "{bytes:?} at {at}");
    }
    assert_eq!(walk(&PageImage::default()).finding_count, 1);
}

#[test]
fn what_is_not_judged_is_said() {
    for (at, byte) in [(78, 1), (79, 32)] {
        let mut sample = Sample::new();
        sample.image.write(at, &[byte]);
        let report = walk(&sample.image);
        assert!(report.not_measured.is_some(), "{at}");
    }
}

#[test]
fn a_bit_for_bitmaps_without_any_is_a_finding() {
    let mut sample = Sample::new();
    sample.image.write(95, &[1]);
    let report = walk(&sample.image);
    assert_eq!(report.findings[0].rule(), "bitmap");
}

#[test]
fn one_table_behind_every_l1_entry_is_followed_once() {
    let mut sample = Sample::with(3, 9, 4);
    let first = sample.cluster();
    for _ in 1..1024 {
        sample.cluster();
    }
    let entries: u32 = 64 * 1024;
    sample.image.write(36, &entries.to_be_bytes());
    sample.long(40, sample.offset(first));
    for index in 0..u64::from(entries) {
        sample.long(sample.offset(first) + index * 8, sample.offset(Sample::L2));
    }
    for guest_cluster in 0..64 {
        sample.entry(guest_cluster, sample.offset(Sample::L2));
    }
    let report = walk(&sample.image);
    assert!(report.finding_count > 0);
    assert!(report.mapped.len() <= 64);
}

#[test]
fn endless_tables_are_not_measured() {
    let mut sample = Sample::with(3, 21, 4);
    sample.image.set_len(1 << 60);
    sample.image.write(36, &(4u32 << 20).to_be_bytes());
    for index in 0..4096 {
        sample.long(
            sample.offset(Sample::L1) + index * 8,
            sample.offset(1000 + index),
        );
    }
    assert!(walk(&sample.image).not_measured.is_some());
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_report(
        cluster_bits in 9u32..14,
        version in 2u32..=3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..12),
    ) {
        let mut sample = Sample::with(version, cluster_bits, 4);
        sample.map(0, 1);
        sample.snapshot();
        for (at, value) in changes {
            let words = usize::try_from(sample.image.len() / 8).unwrap();
            // The header, and the first words of each table, are where it hurts.
            let word = at.index(words);
            let word = if value & 1 == 0 { word % 16 } else { word / 16 * 16 };
            let value = if value & 2 == 0 { value } else { value >> (value % 64) };
            sample.long(u64::try_from(word * 8).unwrap(), value);
        }
        let report = walk(&sample.image);
        if let Some(view) = GuestView::new(&sample.image, &report, None) {
            for range in view.mapped_sectors() {
                for run in view.runs(range) {
                    let _ = run.content(run.sectors.start);
                }
            }
        }
    }
}

#[test]
fn each_cluster_has_its_place_in_an_external_data_file() {
    let external = |guest_cluster, word| {
        let mut sample = Sample::new();
        sample.long(72, 1 << 2);
        sample.entry(guest_cluster, word);
        walk(&sample.image)
    };
    for cluster in [0, 3] {
        let report = external(cluster, (cluster << 12) | COPIED);
        assert!(report.is_perfect(), "{:?}", report.findings);
        let mapping = Mapping::Data(cluster << 12);
        let guest_cluster = cluster;
        assert_eq!(
            report.mapped,
            [Mapped {
                guest_cluster,
                mapping
            }]
        );
    }
    for word in [3 << 12, 2 << 12 | COPIED, COMPRESSED | 5 << 12] {
        let rules: Vec<&str> = external(3, word)
            .findings
            .iter()
            .map(Finding::rule)
            .collect();
        assert_eq!(rules, ["misplaced"], "{word:#x}");
    }
}

/// A disk of three clusters, of which the snapshots `s0` and `s1` have one and two.
fn shared(refcount_bits: u32) -> PageImage {
    let pins = format!(
        "version=3,cluster_size=512,size=4k,room=any,backing=none,compression=off,encrypt=off,snapshots=on,\
         bitmaps=off,chain=off,data_file=off,preallocation=off,abandoned=off,refcount_bits={refcount_bits}"
    );
    let drawn = scenario(&Prng::from_seed(1), &Pins::parse(&pins).unwrap());
    let Start::New(mut shape) = drawn.image else {
        unreachable!("drawn scenarios start with new images");
    };
    shape.snapshots = 2;
    let cluster = |number: u64| Extent {
        offset: number * 512,
        len_bytes: 512,
    };
    shape.filled = (0..3).map(cluster).collect();
    shape.packed.clear();
    Stage::prepare(&Start::New(shape)).unwrap().image
}

#[test]
fn there_is_room_where_the_refcounts_are_wide_enough() {
    let narrow = shared(2);
    assert!(
        !has_room(&narrow, Gain::Disk),
        "three references are the most"
    );
    // What the disk has already, its own reference to it goes along.
    assert!(has_room(&narrow, Gain::Snapshot("s0")));
    assert!(has_room(&narrow, Gain::Snapshot("nobody")));
    assert!(has_room(&shared(4), Gain::Disk));
    assert!(has_room(&PageImage::zeroed(4096), Gain::Disk));
}
