use std::collections::BTreeSet;

use super::*;
use crate::workload::ops::{SnapshotChange, SnapshotOperation};

fn one(length: u32) -> Space {
    Space::new(GeometrySet::One, length)
}

#[test]
fn every_image_has_forty_operations_and_more() {
    for (ground, operations) in Space::new(GeometrySet::Small, 1).grounds() {
        assert!(
            operations.len() >= 40,
            "{}: {}",
            ground.name,
            operations.len()
        );
    }
}

#[test]
fn every_workload_has_one_number() {
    let space = one(2);
    let operations = space.lots[0].operations.len();
    let sequences: BTreeSet<Vec<Operation>> = (0..space.lots[0].workloads)
        .map(|number| space.lots[0].sequence(number))
        .collect();
    assert_eq!(sequences.len(), 1 + operations + operations * operations);
}

#[test]
fn every_workload_means_something() {
    let space = Space::new(GeometrySet::Small, 2);
    for number in 0..space.workloads() {
        space.scenario(number).check().unwrap();
    }
}

#[test]
fn shards_share_the_blocks_out() {
    let space = one(2);
    for of in 1..6 {
        let shards = (1..=of).map(|number| Shard { number, of });
        let numbers: Vec<u64> = shards
            .flat_map(|shard| {
                let space = &space;
                (0..space.blocks_of(shard)).flat_map(move |index| space.block(shard, index))
            })
            .collect();
        let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(numbers.len(), distinct.len());
        assert_eq!(wide(numbers.len()), space.workloads());
    }
}

#[test]
fn shards_come_to_what_one_search_comes_to_and_so_does_one_that_was_interrupted() {
    let space = one(1);
    let whole = search(&space, Shard::WHOLE, Standing::default(), 2, &mut |_| {
        Proceed::GoOn
    })
    .unwrap();
    assert!(whole.found.is_empty() && whole.broken.is_empty());
    assert!(whole.standing.tally.states_judged > 100);
    let mut sum = Tally::default();
    for number in 1..=2 {
        let shard = Shard { number, of: 2 };
        let stop = &mut |_: &Standing| Proceed::Stop;
        let part = search(&space, shard, Standing::default(), 1, stop).unwrap();
        let go_on = &mut |_: &Standing| Proceed::GoOn;
        let rest = search(&space, shard, part.standing, 1, go_on).unwrap();
        sum.add(&rest.standing.tally);
    }
    assert_eq!(sum, whole.standing.tally);
}

#[test]
fn snapshots_are_numbered_as_they_are_taken() {
    let snapshot = |snapshot, change| Operation::Snapshot(SnapshotOperation { snapshot, change });
    let (create, apply) = (SnapshotChange::Create, SnapshotChange::Apply);
    let symbols = vec![
        snapshot(u32::MAX, create),
        snapshot(u32::MAX, create),
        snapshot(u32::MAX, apply),
        snapshot(0, apply),
    ];
    let numbered = alphabet::numbered(symbols, 1);
    let expected = [
        snapshot(1, create),
        snapshot(2, create),
        snapshot(2, apply),
        snapshot(0, apply),
    ];
    assert_eq!(numbered, expected);
}

/// Whoever finds nothing must be able to.
#[cfg(feature = "defects")]
#[test]
fn a_barrier_that_is_left_out_is_missed() {
    use engine::barrier::Barrier;

    for barrier in [
        Barrier::BeforeLink,
        Barrier::BeforeL1,
        Barrier::DirtyBit,
        Barrier::AfterShrink,
        Barrier::BeforeSnapshotSwitch,
    ] {
        let space = Space::new(GeometrySet::Small, 2).with_flaw(Some(barrier.into()));
        let go_on = &mut |_: &Standing| Proceed::GoOn;
        let search = search(&space, Shard::WHOLE, Standing::default(), 2, go_on).unwrap();
        assert!(search.broken.is_empty(), "{:?}", search.broken);
        assert!(!search.found.is_empty(), "{}", barrier.name());
    }
}
