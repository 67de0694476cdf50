//! Snapshots in drawn scenarios: some from before the run, and operations on them between the others.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.

use super::super::ops::{Operation, SnapshotChange, SnapshotOperation};
use super::super::pin::Pins;
use super::super::shape::ImageShape;
use crate::prng::Prng;

/// Adds snapshots to a scenario, or does not.
pub(super) fn add(
    prng: &Prng,
    pins: &Pins,
    shape: &mut ImageShape,
    operations: &mut Vec<Operation>,
) {
    let mut draw = prng.fork("snapshots");
    let drawn = draw.chance(1, 5);
    if !pins.snapshots.unwrap_or(drawn) {
        return;
    }
    // An active disk and so many snapshots can share a cluster.
    let most = match shape.geometry.refcount_order() {
        0 => 0,
        1 => 2,
        _ => 5,
    };
    // Its refcounts are gone before the run, and repair must count the snapshots too.
    shape.snapshots = u32::try_from(draw.below(4).min(most)).expect("a small number");
    let likely = if shape.abandoned { 8 } else { 1 };
    let terse = prng.fork("terse snapshots").chance(likely, 16);
    shape.terse_snapshots = terse && shape.version == 3;
    shape.claiming_snapshots = prng.fork("claiming snapshots").chance(1, 4);
    let mut alive: Vec<u32> = (0..shape.snapshots).collect();
    let mut next = shape.snapshots;
    let count = draw.between(1, 6);
    let mut places: Vec<u64> = (0..count)
        .map(|_| draw.between(0, length(operations)))
        .collect();
    places.sort_unstable();
    let mut with = Vec::with_capacity(operations.len() + places.len());
    let mut places = places.into_iter().peekable();
    for (index, operation) in (0..).zip(operations.drain(..)) {
        while places.next_if_eq(&index).is_some() {
            with.push(draw_one(&mut draw, &mut alive, &mut next, most));
        }
        with.push(operation);
    }
    with.extend(places.map(|_| draw_one(&mut draw, &mut alive, &mut next, most)));
    *operations = with;
}

fn length(operations: &[Operation]) -> u64 {
    u64::try_from(operations.len()).expect("a workload is short")
}

fn draw_one(draw: &mut Prng, alive: &mut Vec<u32>, next: &mut u32, most: u64) -> Operation {
    let kind = if alive.is_empty() {
        0
    } else {
        draw.weighted(&[4, 3, 3])
    };
    let full = u64::try_from(alive.len()).expect("a small number") >= most;
    let (snapshot, change) = match kind {
        // Now and then one more than the refcounts can say.
        0 if !full || alive.is_empty() || draw.chance(1, 8) => {
            let snapshot = *next;
            *next += 1;
            if !full {
                alive.push(snapshot);
            }
            (snapshot, SnapshotChange::Create)
        }
        1 => (*draw.pick(alive), SnapshotChange::Apply),
        _ => {
            let index = draw.index(alive.len());
            (alive.remove(index), SnapshotChange::Delete)
        }
    };
    Operation::Snapshot(SnapshotOperation { snapshot, change })
}
