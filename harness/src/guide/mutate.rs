//! Neighbours of workloads that were worth keeping.
//!
//! What is drawn here is small changes: operations that are inserted, left out, moved, or taken over from another
//! workload; ranges that are moved by a unit of the format; flushes; caches; the schedule. What comes of it may mean
//! nothing: it is fitted to the disk as it is at each operation, and what still means nothing is dropped by the caller.

use std::collections::BTreeMap;

use engine::image::Unmap;
use engine::preallocation::Preallocation;
use engine::qcow2::geometry::Geometry;

use crate::prng::Prng;
use crate::workload::ops::{
    BitmapChange, BitmapOperation, Operation, SnapshotChange, SnapshotOperation,
};
use crate::workload::pin::Pins;
use crate::workload::shape::{Encrypted, Extent, ImageShape, Management, Scenario, Start};

const SECTOR: u64 = 512;
/// One operation names no more than this, as where workloads are drawn.
const MAX_RANGE_BYTES: u64 = 96 << 10;
/// What is preallocated at once, or added to a disk that is looked at whole.
const MAX_ADDED_BYTES: u64 = 256 << 10;
/// A workload has no more operations than this, so that a run is not much longer than one that is drawn.
const MAX_OPERATIONS: usize = 48;
/// Nor more kills, beside them.
const MAX_KILLS: usize = 6;
/// A bitmap has no more bits than this, so that it is judged soon.
const MAX_BITS: u64 = 1 << 18;

/// The disk that a workload is for.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// Its size before the run.
    pub virtual_bytes: u64,
    /// The sizes of the image's structures.
    pub geometry: Geometry,
}

impl Ground {
    /// That of a scenario; of an image from outside it is known already.
    pub fn of(scenario: &Scenario, given: Option<Self>) -> Option<Self> {
        match &scenario.image {
            Start::New(shape) => Some(Self {
                virtual_bytes: shape.virtual_bytes,
                geometry: shape.geometry,
            }),
            Start::Given(_) => given,
        }
    }
}

/// What mutants are made from.
#[derive(Clone, Copy, Debug)]
pub struct Stock<'a> {
    /// What stays as it is.
    pub pins: &'a Pins,
    /// The workload to change, and its disk.
    pub parent: (&'a Scenario, Ground),
    /// Another one, of which operations may be taken over.
    pub other: (&'a Scenario, Ground),
}

/// What a mutation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Insert,
    Remove,
    Splice,
    Nudge,
    Flush,
    Kind,
    Repeat,
    Swap,
    Circumstances,
    Image,
}

const CHANGES: [(Change, u64); 10] = [
    (Change::Insert, 5),
    (Change::Remove, 3),
    (Change::Splice, 3),
    (Change::Nudge, 5),
    (Change::Flush, 3),
    (Change::Kind, 2),
    (Change::Repeat, 2),
    (Change::Swap, 2),
    (Change::Circumstances, 2),
    (Change::Image, 2),
];

/// A scenario near the parent, fitted to its disk. It may mean nothing all the same.
pub fn neighbour(draw: &mut Prng, stock: &Stock<'_>) -> Scenario {
    let weights = CHANGES.map(|(_, weight)| weight);
    let mut scenario = stock.parent.0.clone();
    for _ in 0..draw.between(1, 4) {
        let (change, _) = CHANGES[draw.weighted(&weights)];
        apply(draw, change, stock, &mut scenario);
    }
    shorten(stock.pins, &mut scenario.operations);
    fit(&mut scenario, stock.parent.1);
    let operations = &mut scenario.operations;
    if stock.pins.kill == Some(true) && !operations.contains(&Operation::Kill) {
        let at = draw.index(operations.len() + 1);
        operations.insert(at, Operation::Kill);
    }
    scenario
}

/// Leaves out the last operations where there are too many. Kills are counted apart, as where workloads are drawn.
fn shorten(pins: &Pins, operations: &mut Vec<Operation>) {
    let most_others = pins.operations.map_or(MAX_OPERATIONS, |count| count + 1);
    let (mut kills, mut others) = (0, 0);
    operations.retain(|operation| {
        let (count, most) = if *operation == Operation::Kill {
            (&mut kills, MAX_KILLS)
        } else {
            (&mut others, most_others)
        };
        *count += 1;
        *count <= most
    });
}

/// Choices near those of a schedule: some of them others, and what follows drawn.
pub fn choices(draw: &mut Prng, choices: &[u32]) -> Vec<u32> {
    const MOST_KEPT: usize = 4096;
    const TAIL: u64 = 256;
    let kept = choices.len().min(MOST_KEPT);
    let mut near = choices[..kept].to_vec();
    if draw.chance(1, 3) && !near.is_empty() {
        near.truncate(draw.index(near.len()));
    }
    for _ in 0..draw.between(1, 8) {
        if !near.is_empty() {
            let at = draw.index(near.len());
            near[at] = small(draw, 5);
        }
    }
    if draw.chance(1, 2) {
        let tail = draw.below(TAIL);
        near.extend((0..tail).map(|_| small(draw, 4)));
    }
    near
}

fn small(draw: &mut Prng, bound: u64) -> u32 {
    u32::try_from(draw.below(bound)).expect("a small number")
}

fn apply(draw: &mut Prng, change: Change, stock: &Stock<'_>, scenario: &mut Scenario) {
    let ground = stock.parent.1;
    let operations = &mut scenario.operations;
    let len = operations.len();
    match change {
        Change::Insert => insert(draw, stock, operations),
        Change::Splice => splice(draw, stock, operations),
        Change::Circumstances => circumstances(draw, stock.pins, scenario),
        Change::Image => change_image(draw, stock.pins, ground, scenario),
        Change::Flush => move_flush(draw, operations),
        Change::Remove if len > 1 => {
            let first = draw.index(len);
            let count = if draw.chance(3, 4) {
                1
            } else {
                draw.index(len)
            };
            operations.drain(first..(first + count).min(len));
        }
        Change::Nudge if len > 0 => {
            let at = draw.index(len);
            operations[at] = nudged(draw, operations[at], ground.geometry);
        }
        Change::Kind if len > 0 => {
            let at = draw.index(len);
            operations[at] = of_another_kind(draw, operations[at]);
        }
        Change::Repeat if len > 0 => {
            let first = draw.index(len);
            let count = 1 + draw.index((len - first).min(4));
            let again: Vec<Operation> = operations[first..first + count].to_vec();
            let at = draw.index(len + 1);
            operations.splice(at..at, again);
        }
        Change::Swap if len > 1 => {
            let at = draw.index(len - 1);
            operations.swap(at, at + 1);
        }
        Change::Remove | Change::Nudge | Change::Kind | Change::Repeat | Change::Swap => {}
    }
}

/// One operation of the other workload, or a few in a row, now and then on a place that this one knows.
fn insert(draw: &mut Prng, stock: &Stock<'_>, operations: &mut Vec<Operation>) {
    let (other, there) = stock.other;
    if other.operations.is_empty() {
        return;
    }
    let first = draw.index(other.operations.len());
    let count = [1, 1, 1, 2, 3][draw.index(5)];
    let places: Vec<Extent> = operations.iter().filter_map(|it| it.range()).collect();
    let taken: Vec<Operation> = other.operations[first..]
        .iter()
        .take(count)
        .map(|operation| {
            let here = scaled(*operation, there.geometry, stock.parent.1.geometry);
            match here.range() {
                Some(range) if !places.is_empty() && draw.chance(1, 2) => {
                    let place = *draw.pick(&places);
                    here.with_range(Extent {
                        offset: place.offset,
                        len_bytes: range.len_bytes,
                    })
                }
                Some(_) | None => here,
            }
        })
        .collect();
    let at = draw.index(operations.len() + 1);
    operations.splice(at..at, taken);
}

/// The beginning of this workload, and the end of the other.
fn splice(draw: &mut Prng, stock: &Stock<'_>, operations: &mut Vec<Operation>) {
    let (other, there) = stock.other;
    if other.operations.is_empty() || operations.is_empty() {
        return;
    }
    operations.truncate(1 + draw.index(operations.len()));
    let from = draw.index(other.operations.len());
    let here = stock.parent.1.geometry;
    let tail = other.operations[from..].iter();
    operations.extend(tail.map(|operation| scaled(*operation, there.geometry, here)));
}

/// The same operation where clusters have another size.
fn scaled(operation: Operation, from: Geometry, to: Geometry) -> Operation {
    let (old, new) = (from.cluster_bytes(), to.cluster_bytes());
    if old == new {
        return operation;
    }
    let scale = |bytes: u64| {
        let within = (bytes % old).min(new - SECTOR);
        (bytes / old).saturating_mul(new).saturating_add(within)
    };
    match operation.range() {
        Some(range) => operation.with_range(Extent {
            offset: scale(range.offset),
            len_bytes: scale(range.len_bytes).max(SECTOR),
        }),
        None => operation,
    }
}

/// A flush that comes earlier or later, or one more.
fn move_flush(draw: &mut Prng, operations: &mut Vec<Operation>) {
    let flushes: Vec<usize> = (0..operations.len())
        .filter(|at| operations[*at] == Operation::Flush)
        .collect();
    if !flushes.is_empty() && draw.chance(2, 3) {
        let at = *draw.pick(&flushes);
        operations.remove(at);
        if draw.chance(1, 4) {
            return;
        }
    }
    let at = draw.index(operations.len() + 1);
    operations.insert(at, Operation::Flush);
}

/// The same operation on a range that starts or ends a unit earlier or later.
fn nudged(draw: &mut Prng, operation: Operation, geometry: Geometry) -> Operation {
    let units = [
        SECTOR,
        geometry.cluster_bytes(),
        geometry.subcluster_bytes(),
        geometry.l1_span_bytes(),
    ];
    let unit = *draw.pick(&units);
    let up = draw.chance(1, 2);
    let moved = |bytes: u64| {
        if up {
            bytes.saturating_add(unit)
        } else {
            bytes.saturating_sub(unit)
        }
    };
    if let Operation::Grow {
        virtual_bytes,
        preallocation,
    } = operation
    {
        return Operation::Grow {
            virtual_bytes: moved(virtual_bytes),
            preallocation,
        };
    }
    if let Operation::Shrink { virtual_bytes } = operation {
        let virtual_bytes = moved(virtual_bytes).max(SECTOR);
        return Operation::Shrink { virtual_bytes };
    }
    let Some(range) = operation.range() else {
        return operation;
    };
    operation.with_range(if draw.chance(1, 2) {
        Extent {
            offset: moved(range.offset),
            ..range
        }
    } else {
        Extent {
            len_bytes: moved(range.len_bytes).max(SECTOR),
            ..range
        }
    })
}

/// Another of the operations that take a range, on the same one.
fn of_another_kind(draw: &mut Prng, operation: Operation) -> Operation {
    let Some(Extent { offset, len_bytes }) = operation.range() else {
        return operation;
    };
    match draw.below(6) {
        0 | 1 => Operation::Write { offset, len_bytes },
        2 => Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap: Unmap::Keep,
        },
        3 => Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap: Unmap::Allow,
        },
        4 => Operation::Discard { offset, len_bytes },
        _ => Operation::Read { offset, len_bytes },
    }
}

/// What holds for the workload as a whole.
fn circumstances(draw: &mut Prng, pins: &Pins, scenario: &mut Scenario) {
    match draw.below(4) {
        0 => scenario.caches.l2_slices = *draw.pick(&[1, 2, 3, 16]),
        1 => scenario.caches.refcount_slices = *draw.pick(&[1, 2, 3, 16]),
        2 if pins.concurrency.is_none() => {
            scenario.concurrency = *draw.pick(&[1, 2, 3, 4]);
        }
        3 if pins.overlap.is_none() => {
            scenario.management = match scenario.management {
                Management::Alone => Management::Overlapping,
                Management::Overlapping => Management::Alone,
            };
        }
        _ => {}
    }
}

/// What the image holds before the run, and whether its refcounts are postponed.
fn change_image(draw: &mut Prng, pins: &Pins, ground: Ground, scenario: &mut Scenario) {
    let Start::New(shape) = &mut scenario.image else {
        return;
    };
    let may_switch = pins.lazy_refcounts.is_none() && shape.version == 3;
    if may_switch && draw.chance(1, 3) {
        shape.lazy_refcounts = !shape.lazy_refcounts;
        return;
    }
    if shape.filled.is_empty() {
        return;
    }
    let at = draw.index(shape.filled.len());
    let extent = shape.filled[at];
    let bytes = draw.between(1, 8) * ground.geometry.cluster_bytes();
    let most = ground.virtual_bytes - extent.offset.min(ground.virtual_bytes);
    let len_bytes = if draw.chance(1, 2) {
        extent.len_bytes.saturating_add(bytes.min(MAX_ADDED_BYTES))
    } else {
        extent.len_bytes.saturating_sub(bytes)
    };
    let len_bytes = len_bytes.min(most);
    if len_bytes == 0 {
        shape.filled.remove(at);
    } else {
        shape.filled[at].len_bytes = len_bytes;
    }
}

/// A disk as the operations so far have left it.
struct Disk<'a> {
    /// The image before the run, unless it is from outside.
    shape: Option<&'a ImageShape>,
    virtual_bytes: u64,
    geometry: Geometry,
    /// The size that each snapshot has.
    snapshots: BTreeMap<u32, u64>,
    /// The number that no snapshot was taken with yet.
    next_snapshot: u32,
}

/// Fits every operation to the disk of its time, and leaves out what an image of this kind never takes.
fn fit(scenario: &mut Scenario, ground: Ground) {
    let shape = match &scenario.image {
        Start::New(shape) => Some(shape),
        Start::Given(_) => None,
    };
    let before = shape.map_or(0, |shape| shape.snapshots);
    let mut disk = Disk {
        shape,
        virtual_bytes: ground.virtual_bytes,
        geometry: ground.geometry,
        snapshots: (0..before).map(|it| (it, ground.virtual_bytes)).collect(),
        next_snapshot: before,
    };
    let operations = std::mem::take(&mut scenario.operations);
    let fitted = operations.into_iter().filter_map(|it| disk.fit(it));
    scenario.operations = fitted.collect();
}

impl Disk<'_> {
    fn has(&self, what: impl FnOnce(&ImageShape) -> bool) -> bool {
        self.shape.is_some_and(what)
    }

    fn has_chain(&self) -> bool {
        self.has(|shape| shape.chain.is_some())
    }

    fn has_data_file(&self) -> bool {
        self.has(|shape| shape.data_file.is_some())
    }

    fn fit(&mut self, operation: Operation) -> Option<Operation> {
        if let Operation::Grow {
            virtual_bytes,
            preallocation,
        } = operation
        {
            return Some(self.grow(virtual_bytes, preallocation));
        }
        if let Operation::Shrink { virtual_bytes } = operation {
            return self.shrink(virtual_bytes);
        }
        if let Operation::Snapshot(one) = operation {
            return self.snapshot(one);
        }
        let is_of_slots = matches!(operation, Operation::KeySlot(_));
        let is_of_chains = matches!(operation, Operation::Chain(_));
        let is_of_data_files = matches!(operation, Operation::DataFile(_));
        let is_of_others = matches!(
            operation,
            Operation::Rename { .. } | Operation::Empty | Operation::Bitmap(_)
        );
        let has_slots = self.has(|it| it.encryption == Some(Encrypted::Luks));
        if is_of_slots && !has_slots
            || is_of_chains && !self.has_chain()
            || is_of_data_files && !self.has_data_file()
            || is_of_others && self.has_chain()
        {
            return None;
        }
        Some(self.within(self.plain(self.coarse(operation))))
    }

    /// As plain data, where the image stores nothing compressed.
    fn plain(&self, operation: Operation) -> Operation {
        if let Operation::WriteCompressed { offset, len_bytes } = operation
            && (self.has_data_file() || self.has(|it| it.encryption.is_some()))
        {
            return Operation::Write { offset, len_bytes };
        }
        operation
    }

    /// A bitmap of no more bits than are judged soon.
    fn coarse(&self, operation: Operation) -> Operation {
        let Operation::Bitmap(BitmapOperation {
            number,
            change:
                BitmapChange::Create {
                    granularity_bits,
                    state,
                },
        }) = operation
        else {
            return operation;
        };
        let least = (self.virtual_bytes / MAX_BITS).next_power_of_two();
        let least = u8::try_from(least.trailing_zeros().min(31)).unwrap_or(31);
        let change = BitmapChange::Create {
            granularity_bits: granularity_bits.max(least),
            state,
        };
        Operation::Bitmap(BitmapOperation { number, change })
    }

    /// No range reaches beyond the disk.
    fn within(&self, operation: Operation) -> Operation {
        let Some(range) = operation.range() else {
            return operation;
        };
        let end = self.virtual_bytes.max(SECTOR);
        let offset = if range.offset < end {
            range.offset
        } else {
            range.offset % end / SECTOR * SECTOR
        };
        let longest = (end - offset).min(MAX_RANGE_BYTES);
        operation.with_range(Extent {
            offset,
            len_bytes: range.len_bytes.clamp(SECTOR, longest.max(SECTOR)),
        })
    }

    fn grow(&mut self, virtual_bytes: u64, preallocation: Preallocation) -> Operation {
        let cluster = self.geometry.cluster_bytes();
        let span = self.geometry.l1_span_bytes();
        let small = self.has_chain() || self.has_data_file();
        let most = if small {
            (8 * cluster).min(MAX_ADDED_BYTES.max(cluster))
        } else if cluster <= 1024 {
            span * (cluster / 8)
        } else {
            span + cluster
        };
        let more = match virtual_bytes.checked_sub(self.virtual_bytes) {
            Some(more) if more > 0 => more.min(most),
            Some(_) | None => cluster.min(most),
        };
        self.virtual_bytes += more / SECTOR * SECTOR;
        let affordable = self.geometry.round_up(more) <= MAX_ADDED_BYTES;
        Operation::Grow {
            virtual_bytes: self.virtual_bytes,
            preallocation: if affordable {
                preallocation
            } else {
                Preallocation::Off
            },
        }
    }

    fn shrink(&mut self, virtual_bytes: u64) -> Option<Operation> {
        let half = (self.virtual_bytes / 2).next_multiple_of(SECTOR);
        let virtual_bytes = if virtual_bytes < self.virtual_bytes {
            virtual_bytes
        } else {
            half
        };
        if virtual_bytes == 0 || virtual_bytes >= self.virtual_bytes {
            return None;
        }
        self.virtual_bytes = virtual_bytes;
        Some(Operation::Shrink { virtual_bytes })
    }

    /// No number is taken twice, and what is not there is not asked for.
    fn snapshot(&mut self, operation: SnapshotOperation) -> Option<Operation> {
        if self.has_chain() || self.has_data_file() || self.shape.is_none() {
            return None;
        }
        let SnapshotOperation { snapshot, change } = operation;
        let known = self.snapshots.keys().next_back().copied();
        let there = self.snapshots.contains_key(&snapshot);
        let snapshot = match change {
            SnapshotChange::Create => {
                let free = self.next_snapshot.max(snapshot);
                self.next_snapshot = free.checked_add(1)?;
                self.snapshots.insert(free, self.virtual_bytes);
                free
            }
            SnapshotChange::Apply | SnapshotChange::Delete if there => snapshot,
            SnapshotChange::Apply | SnapshotChange::Delete => known?,
        };
        match change {
            SnapshotChange::Create => {}
            SnapshotChange::Apply => self.virtual_bytes = *self.snapshots.get(&snapshot)?,
            SnapshotChange::Delete => drop(self.snapshots.remove(&snapshot)),
        }
        Some(Operation::Snapshot(SnapshotOperation { snapshot, change }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::generate::scenario;

    #[test]
    fn nearly_every_mutant_means_something_and_most_differ() {
        let pins = Pins::default();
        let root = Prng::from_seed(3);
        let drawn = |run| scenario(&root.fork_indexed("run", run), &pins);
        let (mut sound, mut other) = (0, 0);
        for run in 0..1000 {
            let (parent, second) = (drawn(run), drawn(run + 1));
            let stock = Stock {
                pins: &pins,
                parent: (&parent, Ground::of(&parent, None).unwrap()),
                other: (&second, Ground::of(&second, None).unwrap()),
            };
            let mut draw = root.fork_indexed("mutant", run);
            let mut mutant = neighbour(&mut draw, &stock);
            for _ in 0..8 {
                let stock = Stock {
                    parent: (&mutant, stock.parent.1),
                    ..stock
                };
                mutant = neighbour(&mut draw, &stock);
            }
            sound += u32::from(mutant.check().is_ok());
            other += u32::from(mutant.operations != parent.operations);
        }
        assert!(sound > 950, "{sound} of 1000 mean something");
        assert!(other > 950, "{other} of 1000 differ");
    }

    #[test]
    fn pinned_values_are_kept() {
        let pins = Pins::parse("concurrency=3,operations=5,overlap=off").unwrap();
        let root = Prng::from_seed(4);
        for run in 0..300 {
            let parent = scenario(&root.fork_indexed("run", run), &pins);
            let ground = Ground::of(&parent, None).unwrap();
            let stock = Stock {
                pins: &pins,
                parent: (&parent, ground),
                other: (&parent, ground),
            };
            let mutant = neighbour(&mut root.fork_indexed("mutant", run), &stock);
            assert_eq!(mutant.concurrency, 3);
            assert_eq!(mutant.management, Management::Alone);
            let kills = mutant.operations.iter();
            let kills = kills.filter(|it| **it == Operation::Kill).count();
            assert!(mutant.operations.len() - kills <= 6 && kills <= MAX_KILLS);
        }
    }

    #[test]
    fn a_kill_that_is_asked_for_stays() {
        let pins = Pins::parse("kill=on,operations=2").unwrap();
        let root = Prng::from_seed(5);
        for run in 0..300 {
            let mut mutant = scenario(&root.fork_indexed("run", run), &pins);
            let ground = Ground::of(&mutant, None).unwrap();
            let mut draw = root.fork_indexed("mutant", run);
            for _ in 0..8 {
                let stock = Stock {
                    pins: &pins,
                    parent: (&mutant, ground),
                    other: (&mutant, ground),
                };
                mutant = neighbour(&mut draw, &stock);
                assert!(mutant.operations.contains(&Operation::Kill), "run {run}");
            }
        }
    }
}
