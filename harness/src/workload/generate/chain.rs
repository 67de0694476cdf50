//! Chains of files in drawn scenarios: what lies beneath the image, and commit, rebase, stream and repoint.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.

use blkdebug::disks::Disk;
use engine::chain::Overlay;
use engine::qcow2::create::BackingFormat;
use engine::qcow2::geometry::Geometry;

use super::super::ops::{ChainOperation, Operation};
use super::super::pin::{Managed, Pins, Room};
use super::super::shape::{Backing, Chain, Extent, ImageShape};
use super::SECTOR;
use crate::prng::Prng;

/// The files beneath are no larger, since every sector of theirs counts.
const MAX_BYTES: u64 = 48 << 10;
/// The image's disk has no more clusters: operations on chains go through all of them.
const MAX_CLUSTERS: u64 = 48;
/// It is no larger either, but for two clusters: version 2 keeps the zeroes that a chain shows byte by byte.
const MAX_DISK_BYTES: u64 = 1 << 20;

/// Whether a scenario is about a chain.
pub(super) fn is_drawn(prng: &Prng, pins: &Pins) -> bool {
    let drawn = prng.fork("chained").chance(1, 12);
    let wanted = pins.chain.unwrap_or(drawn && pins.chain_is_free());
    wanted && pins.backing != Some(None) && !matches!(pins.data_file, Some(Some(_)))
}

/// What else is then not drawn: what the history of a chain cannot tell, and what makes it large.
pub(super) fn pins(prng: &Prng, pins: &Pins) -> Pins {
    let managed = if prng.fork("chain-manage").chance(1, 4) {
        Managed::Amend
    } else {
        Managed::None
    };
    Pins {
        chain: Some(true),
        snapshots: Some(false),
        bitmaps: Some(false),
        // Each crash state is opened by itself, and would derive its keys anew.
        encryption: pins.encryption.or(Some(None)),
        data_file: Some(None),
        manage: Some(managed),
        room: Some(pins.room.unwrap_or(Room::Any)),
        ..*pins
    }
}

/// The disk of an image over a chain is drawn no larger than this.
pub(super) fn most_bytes(geometry: Geometry) -> u64 {
    let cluster = geometry.cluster_bytes();
    (MAX_CLUSTERS * cluster).min(MAX_DISK_BYTES.max(2 * cluster))
}

/// It grows by no more at a time.
pub(super) fn most_growth(pins: &Pins, geometry: Geometry) -> u64 {
    if pins.chain == Some(true) {
        let cluster = geometry.cluster_bytes();
        (8 * cluster).min(MAX_DISK_BYTES.max(cluster))
    } else {
        u64::MAX
    }
}

/// Puts the image over a chain, and adds operations on it.
pub(super) fn add(
    prng: &Prng,
    pins: &Pins,
    shape: &mut ImageShape,
    operations: &mut Vec<Operation>,
) {
    let mut draw = prng.fork("chain");
    let chain = files(&mut draw, pins, shape);
    let mut route = Route {
        over: Some(Disk::Backing),
        has_base: chain.base.is_some(),
        has_other: chain.other.is_some(),
    };
    shape.chain = Some(chain);
    let mut turns = Turns::new(prng);
    let count = draw.between(1, 4);
    let end = u64::try_from(operations.len()).expect("a workload is short");
    let mut places: Vec<u64> = (0..count).map(|_| draw.between(0, end)).collect();
    places.sort_unstable();
    let mut places = places.into_iter().peekable();
    let mut with = Vec::with_capacity(operations.len() + 4);
    for (index, operation) in (0..).zip(operations.drain(..)) {
        while places.next_if_eq(&index).is_some() {
            with.extend(turns.draw_some(&mut draw, &mut route));
        }
        with.push(operation);
    }
    for _ in places {
        with.extend(turns.draw_some(&mut draw, &mut route));
    }
    *operations = with;
}

/// The files beneath the image.
fn files(draw: &mut Prng, pins: &Pins, shape: &mut ImageShape) -> Chain {
    let format = |draw: &mut Prng| *draw.pick(&[BackingFormat::Raw, BackingFormat::Qcow2]);
    let size = |draw: &mut Prng, wanted: u64| {
        let slack = draw.between(1, 16) * SECTOR;
        let bytes = match draw.below(3) {
            0 => wanted,
            1 => wanted.saturating_sub(slack),
            _ => wanted + slack,
        };
        bytes.clamp(SECTOR, MAX_BYTES)
    };
    let drawn = if draw.chance(3, 4) {
        BackingFormat::Qcow2
    } else {
        BackingFormat::Raw
    };
    let backing = Backing {
        format: pins.backing.flatten().unwrap_or(drawn),
        virtual_bytes: size(draw, shape.virtual_bytes),
    };
    shape.backing = Some(backing);
    let has_base = draw.chance(3, 4) && backing.format == BackingFormat::Qcow2;
    let base = Backing {
        format: format(draw),
        virtual_bytes: size(draw, backing.virtual_bytes),
    };
    let has_other = draw.chance(3, 4);
    let other = Backing {
        format: format(draw),
        virtual_bytes: size(draw, shape.virtual_bytes),
    };
    Chain {
        cluster_bits: *draw.pick(&[9, 9, 10, 12]),
        lazy_refcounts: draw.chance(1, 2),
        held: held(draw, backing),
        base: has_base.then_some(base),
        other: has_other.then_some(other),
    }
}

/// What the file that the image lies over holds itself: all of a raw one.
fn held(draw: &mut Prng, backing: Backing) -> Vec<Extent> {
    if backing.format == BackingFormat::Raw {
        return Vec::new();
    }
    let sectors = backing.virtual_bytes / SECTOR;
    let mut extents: Vec<Extent> = (0..draw.between(0, 3))
        .map(|_| {
            let first = draw.below(sectors);
            let count = draw.between(1, (sectors - first).min(24));
            Extent {
                offset: first * SECTOR,
                len_bytes: count * SECTOR,
            }
        })
        .collect();
    extents.sort_unstable();
    extents.dedup();
    extents
}

/// Where other files are put beneath an image without a copy.
struct Turns {
    draw: Prng,
    /// Whether the scenario has such operations at all.
    any: bool,
}

impl Turns {
    fn new(prng: &Prng) -> Self {
        let mut draw = prng.fork("repoint");
        let any = draw.chance(2, 3);
        Self { draw, any }
    }

    /// An operation on the chain, and what may follow it at once. What the disk must show afterwards is known
    /// to the sector where the image holds nothing, as after a commit that emptied it, and where it holds what
    /// the guest wrote. Elsewhere the history cannot tell what the image holds: zeroes may be held or not,
    /// discards may have happened or not, and what shares a cluster with a write is copied along.
    fn draw_some(&mut self, draw: &mut Prng, route: &mut Route) -> Vec<Operation> {
        let first = route.draw_one(draw);
        let empties = matches!(
            first,
            ChainOperation::Commit {
                overlay: Overlay::Empty
            }
        );
        let mut some = vec![Operation::Chain(first)];
        let chance = if empties { 3 } else { 1 };
        if self.any && self.draw.chance(chance, 4) {
            some.push(Operation::Chain(route.repoint(&mut self.draw)));
        }
        some
    }
}

/// What the image lies over as its operations go on.
struct Route {
    over: Option<Disk>,
    has_base: bool,
    has_other: bool,
}

impl Route {
    fn draw_one(&mut self, draw: &mut Prng) -> ChainOperation {
        let kind = if self.over.is_some() {
            draw.weighted(&[5, 4, 3])
        } else {
            1
        };
        match kind {
            0 => ChainOperation::Commit {
                overlay: *draw.pick(&[Overlay::Empty, Overlay::Empty, Overlay::Keep]),
            },
            1 => {
                let onto = *draw.pick(&self.elsewhere());
                self.over = onto;
                ChainOperation::Rebase { onto }
            }
            _ => {
                let above_base = self.over == Some(Disk::Backing) && self.has_base;
                let base = (above_base && draw.chance(2, 3)).then_some(Disk::Base);
                self.over = base;
                ChainOperation::Stream { base }
            }
        }
    }

    fn repoint(&mut self, draw: &mut Prng) -> ChainOperation {
        let onto = *draw.pick(&self.elsewhere());
        self.over = onto;
        ChainOperation::Repoint { onto }
    }

    /// Where the image can be moved to.
    fn elsewhere(&self) -> Vec<Option<Disk>> {
        let mut onto = vec![None, Some(Disk::Backing)];
        onto.extend(self.has_base.then_some(Some(Disk::Base)));
        onto.extend(self.has_other.then_some(Some(Disk::Other)));
        onto.retain(|disk| *disk != self.over);
        onto
    }
}
