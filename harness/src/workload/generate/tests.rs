use std::collections::BTreeSet;

use engine::qcow2::{DiscardedCluster, GuestDiscards, OverlapChecks};
use engine::zeroes::DetectZeroes;

use super::*;
use crate::trace::operation_text;
use crate::workload::shape::OptionShape;

fn drawn(count: u64, pins: &Pins) -> impl Iterator<Item = Scenario> {
    (0..count).map(|run| scenario(&Prng::from_seed(11).fork_indexed("run", run), pins))
}

fn shape(scenario: &Scenario) -> &ImageShape {
    match &scenario.image {
        Start::New(shape) => shape,
        Start::Given(_) => unreachable!("drawn scenarios start with new images"),
    }
}

#[test]
fn every_scenario_means_something() {
    for scenario in drawn(2000, &Pins::default()) {
        scenario.check().unwrap();
    }
}

#[test]
fn no_operation_reaches_beyond_the_disk_of_its_time() {
    for scenario in drawn(2000, &Pins::default()) {
        let mut end = shape(&scenario).virtual_bytes;
        for operation in &scenario.operations {
            if let Some(range) = operation.range() {
                assert!(range.end() <= end, "{operation:?} in {end}");
            }
            if let Operation::Grow { virtual_bytes, .. } = *operation {
                assert!(virtual_bytes > end);
                end = virtual_bytes;
            }
            if let Operation::Shrink { virtual_bytes } = *operation {
                assert!(virtual_bytes < end);
                end = virtual_bytes;
            }
        }
    }
}

#[test]
fn every_geometry_and_kind_of_operation_is_drawn() {
    let mut clusters = BTreeSet::new();
    let mut orders = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for scenario in drawn(3000, &Pins::default()) {
        clusters.insert(shape(&scenario).geometry.cluster_bits());
        orders.insert(shape(&scenario).geometry.refcount_order());
        kinds.extend(scenario.operations.iter().copied().map(kind));
    }
    assert_eq!(clusters, (9..=21).collect());
    assert_eq!(orders, (0..=6).collect());
    let expected = "amend bitmap commit data-file discard drop-idle empty flush grow key-slot-erase \
         key-slot-fill kill read rebase rename reopen repoint shrink snapshot-apply snapshot-create \
         snapshot-delete stream write write-blank write-compressed write-zeroes \
         write-zeroes-unmap";
    let drawn: Vec<&str> = kinds.iter().map(String::as_str).collect();
    assert_eq!(drawn.join(" "), expected);
}

/// What traces call an operation, without its numbers.
fn kind(operation: Operation) -> String {
    let text = operation_text(operation);
    let name = text.split(' ').next().unwrap().to_owned();
    if text.ends_with(" unmap") {
        name + "-unmap"
    } else {
        name
    }
}

#[test]
fn sizes_and_preallocation_are_drawn_and_can_be_pinned() {
    let shrinks = |scenario: &Scenario| {
        let is_one = |operation: &Operation| matches!(operation, Operation::Shrink { .. });
        scenario.operations.iter().any(is_one)
    };
    let by_chance = drawn(1000, &Pins::default()).filter(shrinks).count();
    assert!((20..200).contains(&by_chance), "{by_chance} of 1000");
    let off = Pins::parse("shrink=off,preallocation=off").unwrap();
    for scenario in drawn(300, &off) {
        assert!(!shrinks(&scenario));
        assert_eq!(shape(&scenario).preallocation, Preallocation::Off);
    }
    let on = Pins::parse("shrink=on,preallocation=falloc").unwrap();
    let is = |scenario: &&Scenario| shape(scenario).preallocation == Preallocation::Falloc;
    let scenarios: Vec<Scenario> = drawn(300, &on).collect();
    let preallocated = scenarios.iter().filter(is).count();
    assert!(preallocated > 150, "{preallocated} of 300");
    let shrunk = scenarios
        .iter()
        .filter(|scenario| shrinks(scenario))
        .count();
    assert!(shrunk > 250, "{shrunk} of 300");
}

#[test]
fn kills_are_drawn_and_can_be_pinned_but_not_in_chains() {
    let kills = |scenario: &Scenario| scenario.operations.contains(&Operation::Kill);
    let by_chance = drawn(1000, &Pins::default()).filter(kills).count();
    assert!((50..200).contains(&by_chance), "{by_chance} of 1000");
    let off = Pins::parse("kill=off").unwrap();
    assert!(!drawn(300, &off).any(|scenario| kills(&scenario)));
    let on = Pins::parse("kill=on").unwrap();
    assert!(drawn(300, &on).all(|scenario| kills(&scenario)));
    // What is added to a short workload is cut off again, but for kills.
    for short in ["kill=on,operations=1", "kill=on,operations=1,snapshots=on"] {
        let short = Pins::parse(short).unwrap();
        assert!(drawn(300, &short).all(|scenario| kills(&scenario)));
    }
    let chained = Pins::parse("chain=on").unwrap();
    assert!(!drawn(300, &chained).any(|scenario| kills(&scenario)));
}

#[test]
fn subclusters_are_drawn_and_can_be_pinned() {
    let split = |scenario: &Scenario| shape(scenario).geometry.has_subclusters();
    let by_chance = drawn(1000, &Pins::default()).filter(split).count();
    assert!((20..200).contains(&by_chance), "{by_chance} of 1000");
    let on = Pins::parse("extended_l2=on").unwrap();
    assert!(drawn(300, &on).all(|scenario| split(&scenario)));
    let off = Pins::parse("extended_l2=off").unwrap();
    assert!(!drawn(300, &off).any(|scenario| split(&scenario)));
}

#[test]
fn every_change_of_a_bitmap_is_drawn() {
    let mut changes = BTreeSet::new();
    for scenario in drawn(300, &Pins::parse("bitmaps=on").unwrap()) {
        let texts = scenario.operations.iter().copied().map(operation_text);
        let words = texts.filter_map(|text| {
            let rest = text.strip_prefix("bitmap ")?;
            Some(rest.split(' ').next()?.to_owned())
        });
        changes.extend(words);
    }
    let drawn: Vec<&str> = changes.iter().map(String::as_str).collect();
    assert_eq!(
        drawn.join(" "),
        "clear create disable enable mark merge remove"
    );
}

#[test]
fn chains_are_drawn_and_can_be_pinned() {
    let is_chain = |scenario: &Scenario| shape(scenario).chain.is_some();
    let by_chance = drawn(1000, &Pins::default()).filter(is_chain).count();
    assert!((40..140).contains(&by_chance), "{by_chance} of 1000");
    let off = Pins::parse("chain=off").unwrap();
    assert!(!drawn(300, &off).any(|scenario| is_chain(&scenario)));
    let on = Pins::parse("chain=on").unwrap();
    for scenario in drawn(1000, &on) {
        assert!(is_chain(&scenario));
        scenario.check().unwrap();
    }
}

#[test]
fn options_are_drawn_and_can_be_pinned() {
    let plain = |scenario: &Scenario| scenario.options == OptionShape::default();
    let by_chance = drawn(600, &Pins::default()).filter(plain).count();
    assert!((300..500).contains(&by_chance), "{by_chance} of 600");
    let off = Pins::parse("options=off").unwrap();
    assert!(drawn(300, &off).all(|scenario| plain(&scenario)));
    let pins = "detect_zeroes=unmap,discard_no_unref=on,discard=ignore,overlap_check=all";
    for scenario in drawn(300, &Pins::parse(pins).unwrap()) {
        let OptionShape {
            discards,
            detect_zeroes,
            overlap_checks,
        } = scenario.options;
        assert_eq!(discards.guest, GuestDiscards::Ignored);
        assert_eq!(discards.cluster, DiscardedCluster::Kept);
        assert_eq!(detect_zeroes, DetectZeroes::Unmap);
        assert_eq!(overlap_checks, OverlapChecks::all());
    }
}

#[test]
fn pinned_values_are_kept() {
    let pins = Pins::parse(
        "version=3,cluster_size=4k,refcount_bits=1,lazy_refcounts=on,backing=raw,size=68k,\
         concurrency=3,operations=7",
    )
    .unwrap();
    for scenario in drawn(200, &pins) {
        assert_eq!(shape(&scenario).version, 3);
        assert_eq!(shape(&scenario).geometry, Geometry::new(12, 0).unwrap());
        assert!(shape(&scenario).lazy_refcounts);
        assert_eq!(
            shape(&scenario).backing.map(|backing| backing.format),
            Some(BackingFormat::Raw)
        );
        assert_eq!(shape(&scenario).virtual_bytes, 68 << 10);
        assert_eq!(scenario.concurrency, 3);
        let operations = scenario.operations.iter();
        let others = operations.filter(|it| **it != Operation::Kill).count();
        assert!((7..=8).contains(&others));
    }
}
