//! Sizes in drawn scenarios: disks that become smaller between other operations, and space that is taken
//! before the guest writes.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.

use engine::preallocation::Preallocation;
use engine::qcow2::geometry::Geometry;

use super::super::ops::Operation;
use super::super::pin::Pins;
use super::super::shape::{Extent, ImageShape};
use super::{MAX_STAMPED_BYTES, SECTOR, bounded};
use crate::prng::Prng;

/// The pins under which an image can be preallocated, if that is asked for.
pub(super) fn narrowed(pins: &Pins) -> Pins {
    let is_on = pins
        .preallocation
        .is_some_and(|mode| mode != Preallocation::Off);
    if !is_on || pins.extended_l2 == Some(true) {
        return *pins;
    }
    Pins {
        backing: pins.backing.or(Some(None)),
        ..*pins
    }
}

/// Preallocates the image, or does not. What is mapped is looked at in every crash state, so that only a
/// small disk is.
pub(super) fn preallocate(prng: &Prng, pins: &Pins, shape: &mut ImageShape) {
    let mut draw = prng.fork("preallocation");
    let drawn = if draw.chance(1, 16) {
        *draw.pick(&Preallocation::ALL)
    } else {
        Preallocation::Off
    };
    let is_small = shape.geometry.round_up(shape.virtual_bytes) <= MAX_STAMPED_BYTES;
    let fits = shape.backing.is_none() || shape.geometry.has_subclusters();
    if is_small && fits && (shape.encryption.is_none() || shape.version == 3) {
        shape.preallocation = pins.preallocation.unwrap_or(drawn);
    }
}

/// Lets some growth preallocate, and adds operations that make the disk smaller; what comes after one of
/// these stays within the disk.
pub(super) fn add(
    prng: &Prng,
    pins: &Pins,
    geometry: Geometry,
    virtual_bytes: u64,
    operations: &mut Vec<Operation>,
) {
    let mut draw = prng.fork("resizing");
    let shrinks = pins.shrink.unwrap_or(draw.chance(1, 8));
    let grows = match pins.preallocation {
        Some(mode) => mode != Preallocation::Off,
        None => draw.chance(1, 8),
    };
    if !shrinks && !grows {
        return;
    }
    let mut disk = Disk {
        virtual_bytes,
        geometry,
    };
    let mut with = Vec::with_capacity(operations.len() + 8);
    let last = operations.len();
    for (index, operation) in operations.drain(..).enumerate() {
        if shrinks && draw.chance(1, 6) {
            with.extend(disk.shrink(&mut draw));
        }
        if grows && draw.chance(1, 6) {
            with.push(disk.grow(&mut draw, pins));
        }
        let is_last = index + 1 == last;
        with.push(disk.fit(&mut draw, pins, operation));
        if is_last && shrinks && grows {
            with.extend(disk.shrink(&mut draw));
            with.push(disk.grow(&mut draw, pins));
        }
    }
    *operations = with;
}

/// A disk as the operations so far have left it.
struct Disk {
    virtual_bytes: u64,
    geometry: Geometry,
}

impl Disk {
    /// An end within the last clusters, at a seam, or anywhere; nothing where there is no smaller disk.
    fn shrink(&mut self, draw: &mut Prng) -> Option<Operation> {
        let (cluster, span) = (self.geometry.cluster_bytes(), self.geometry.l1_span_bytes());
        let old = self.virtual_bytes;
        let sectors = old / SECTOR;
        let bytes = match draw.below(5) {
            0 => old.saturating_sub(draw.between(1, 8) * SECTOR),
            1 => old.saturating_sub(draw.between(1, 8) * cluster) / cluster * cluster,
            2 => (old - 1) / span * span,
            3 => (old - 1) / span * span + draw.below(4) * cluster,
            _ => draw.between(1, sectors) * SECTOR,
        };
        let bytes = bytes.max(SECTOR);
        (bytes < old).then(|| {
            self.virtual_bytes = bytes;
            let virtual_bytes = bytes;
            Operation::Shrink { virtual_bytes }
        })
    }

    fn grow(&mut self, draw: &mut Prng, pins: &Pins) -> Operation {
        let cluster = self.geometry.cluster_bytes();
        let more = match draw.below(3) {
            0 => draw.between(1, 8) * SECTOR,
            1 => draw.between(1, 16) * cluster,
            _ => self.geometry.l1_span_bytes() - self.virtual_bytes % self.geometry.l1_span_bytes(),
        };
        // Much of it would be looked at in every crash state.
        let more = more.min((8 * cluster).max(MAX_STAMPED_BYTES));
        let virtual_bytes = bounded(
            pins,
            self.geometry,
            self.virtual_bytes,
            self.virtual_bytes + more,
        );
        self.preallocated(draw, pins, virtual_bytes)
    }

    /// A growth to this size.
    fn preallocated(&mut self, draw: &mut Prng, pins: &Pins, virtual_bytes: u64) -> Operation {
        let drawn = *draw.pick(&Preallocation::ALL);
        let added = virtual_bytes.saturating_sub(self.virtual_bytes);
        self.virtual_bytes = virtual_bytes;
        let small = self.geometry.round_up(added) <= MAX_STAMPED_BYTES;
        let preallocation = if small {
            pins.preallocation.unwrap_or(drawn)
        } else {
            Preallocation::Off
        };
        Operation::Grow {
            virtual_bytes,
            preallocation,
        }
    }

    /// The operation on what there is of the disk.
    fn fit(&mut self, draw: &mut Prng, pins: &Pins, operation: Operation) -> Operation {
        if let Operation::Grow { virtual_bytes, .. } = operation {
            let larger = virtual_bytes.max(self.virtual_bytes + SECTOR);
            let larger = bounded(pins, self.geometry, self.virtual_bytes, larger);
            return self.preallocated(draw, pins, larger);
        }
        let Some(range) = operation.range() else {
            return operation;
        };
        let end = self.virtual_bytes;
        if range.end() <= end {
            return operation;
        }
        let unit = if matches!(operation, Operation::WriteCompressed { .. }) {
            self.geometry.cluster_bytes()
        } else {
            SECTOR
        };
        let offset = range.offset % end / unit * unit;
        operation.with_range(Extent {
            offset,
            len_bytes: range.len_bytes.min(end - offset),
        })
    }
}
