//! The operations that exhaustive workloads are made of.
//!
//! Ranges are told by what they do to clusters and tables, not by numbers: a whole cluster, the first and the last
//! sector of one, both sides of a boundary between clusters and between L2 tables, the end of the disk, all of it.
//! Whatever a longer range would do is done by one of these too.

use engine::image::Unmap;
use engine::manage::{Amend, BitmapState};
use engine::preallocation::Preallocation;

use crate::workload::ops::{
    BitmapChange, BitmapOperation, Operation, SnapshotChange, SnapshotOperation,
};
use crate::workload::shape::{Extent, ImageShape};

const SECTOR: u64 = 512;
/// Stands for a number that [`numbered`] gives.
const NEWEST: u32 = u32::MAX;
const OLDEST: u32 = 0;

/// The operations on an image of this shape, none of them twice.
pub fn operations(image: &ImageShape) -> Vec<Operation> {
    let places = Places::on(image);
    let mut operations = guest(&places);
    operations.extend([Operation::Flush, Operation::DropIdle, Operation::Reopen]);
    operations.extend(resizes(&places));
    operations.extend(changes(image));
    operations.extend([SnapshotChange::Create, SnapshotChange::Apply].map(newest));
    operations.extend([SnapshotChange::Apply, SnapshotChange::Delete].map(oldest));
    if image.version == 3 {
        operations.extend(bitmaps(&places));
    }
    let mut distinct = Vec::with_capacity(operations.len());
    for operation in operations {
        if !distinct.contains(&operation) {
            distinct.push(operation);
        }
    }
    distinct
}

/// The places of a disk where operations start and end.
struct Places {
    cluster: u64,
    disk: u64,
    /// A boundary between L2 tables, where the disk has one, or else between two clusters.
    seam: u64,
}

impl Places {
    fn on(image: &ImageShape) -> Self {
        let cluster = image.geometry.cluster_bytes();
        let span = image.geometry.l1_span_bytes();
        Self {
            cluster,
            disk: image.virtual_bytes,
            seam: if span < image.virtual_bytes {
                span
            } else {
                2 * cluster
            },
        }
    }

    /// So many bytes at a place, as far as the disk goes.
    fn at(&self, offset: u64, len_bytes: u64) -> Extent {
        let offset = offset.min(self.disk - SECTOR);
        Extent {
            offset,
            len_bytes: len_bytes.min(self.disk - offset),
        }
    }

    fn clusters(&self, first: u64, count: u64) -> Extent {
        self.at(first * self.cluster, count * self.cluster)
    }

    /// A cluster on each side of the seam.
    fn across_seam(&self) -> Extent {
        self.at(self.seam - self.cluster, 2 * self.cluster)
    }

    fn whole(&self) -> Extent {
        self.at(0, self.disk)
    }

    /// The first sector of a cluster.
    fn head(&self, cluster: u64) -> Extent {
        self.at(cluster * self.cluster, SECTOR)
    }

    /// The last sector of a cluster.
    fn tail(&self, cluster: u64) -> Extent {
        self.at((cluster + 1) * self.cluster - SECTOR, SECTOR)
    }

    /// A sector on each side of the end of a cluster.
    fn across(&self, cluster: u64) -> Extent {
        self.at((cluster + 1) * self.cluster - SECTOR, 2 * SECTOR)
    }

    fn end(&self) -> Extent {
        self.at(self.disk - SECTOR, SECTOR)
    }
}

fn guest(places: &Places) -> Vec<Operation> {
    let written = [
        places.clusters(0, 1),
        places.head(1),
        places.tail(1),
        places.across(0),
        places.clusters(1, 2),
        places.across_seam(),
        places.end(),
    ];
    let zeroed = [
        (places.clusters(0, 1), Unmap::Keep),
        (places.clusters(0, 1), Unmap::Allow),
        (places.head(1), Unmap::Keep),
        (places.clusters(1, 2), Unmap::Keep),
        (places.across_seam(), Unmap::Allow),
        (places.whole(), Unmap::Allow),
    ];
    let given_up = [
        places.clusters(0, 1),
        places.clusters(1, 2),
        places.across_seam(),
        places.whole(),
    ];
    let packed = [places.clusters(0, 1), places.clusters(2, 2)];
    let written =
        written.map(|Extent { offset, len_bytes }| Operation::Write { offset, len_bytes });
    let packed =
        packed.map(|Extent { offset, len_bytes }| Operation::WriteCompressed { offset, len_bytes });
    let zeroed = zeroed.map(
        |(Extent { offset, len_bytes }, unmap)| Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        },
    );
    let given_up =
        given_up.map(|Extent { offset, len_bytes }| Operation::Discard { offset, len_bytes });
    written
        .into_iter()
        .chain(packed)
        .chain(zeroed)
        .chain(given_up)
        .collect()
}

fn resizes(places: &Places) -> Vec<Operation> {
    let larger = places.disk + 2 * places.cluster;
    let grown = |preallocation| Operation::Grow {
        virtual_bytes: larger,
        preallocation,
    };
    let shorter = [places.disk - places.cluster, places.cluster];
    let shrunk = shorter.map(|virtual_bytes| Operation::Shrink { virtual_bytes });
    let modes = Preallocation::ALL.map(grown);
    modes.into_iter().chain(shrunk).collect()
}

/// What the image says of itself.
fn changes(image: &ImageShape) -> Vec<Operation> {
    let amend = Operation::Amend;
    let other_order = if image.geometry.refcount_order() == 4 {
        3
    } else {
        4
    };
    let version = |version| Amend {
        version: Some(version),
        ..Amend::default()
    };
    let lazy = |lazy| Amend {
        lazy_refcounts: Some(lazy),
        ..Amend::default()
    };
    let order = |order| Amend {
        refcount_order: Some(order),
        ..Amend::default()
    };
    vec![
        amend(version(2)),
        amend(version(3)),
        amend(lazy(true)),
        amend(lazy(false)),
        amend(order(other_order)),
        amend(order(6)),
        Operation::Rename { name_bytes: 24 },
        Operation::Empty,
    ]
}

fn bitmaps(places: &Places) -> Vec<Operation> {
    let create = |state| BitmapChange::Create {
        granularity_bits: 9,
        state,
    };
    let of = |number, change| Operation::Bitmap(BitmapOperation { number, change });
    vec![
        of(0, create(BitmapState::Enabled)),
        of(1, create(BitmapState::Disabled)),
        of(0, BitmapChange::Remove),
        of(0, BitmapChange::SetState(BitmapState::Disabled)),
        of(0, BitmapChange::Clear),
        of(1, BitmapChange::Merge { source: 0 }),
        of(
            1,
            BitmapChange::Mark {
                range: places.clusters(0, 1),
            },
        ),
    ]
}

fn newest(change: SnapshotChange) -> Operation {
    Operation::Snapshot(SnapshotOperation {
        snapshot: NEWEST,
        change,
    })
}

fn oldest(change: SnapshotChange) -> Operation {
    Operation::Snapshot(SnapshotOperation {
        snapshot: OLDEST,
        change,
    })
}

/// The same operations with numbers for the snapshots that they take and mean: each one taken gets the next number
/// after the `before` that are there, and the newest is the last one taken.
pub fn numbered(mut operations: Vec<Operation>, before: u32) -> Vec<Operation> {
    let mut next = before;
    for operation in &mut operations {
        if let Operation::Snapshot(SnapshotOperation { snapshot, change }) = operation {
            match change {
                SnapshotChange::Create => {
                    *snapshot = next;
                    next += 1;
                }
                SnapshotChange::Apply | SnapshotChange::Delete if *snapshot == NEWEST => {
                    *snapshot = next.saturating_sub(1);
                }
                SnapshotChange::Apply | SnapshotChange::Delete => {}
            }
        }
    }
    operations
}
