//! The images that exhaustive workloads start from.
//!
//! They are small, so that a crash state is judged in microseconds, and each has a seam of the format within reach of
//! a workload of few operations: the end of an L2 table, of a refcount block, of a file beneath; snapshots, bitmaps,
//! compressed and split clusters.

use engine::qcow2::create::BackingFormat;
use engine::qcow2::geometry::Geometry;

use crate::workload::shape::{
    Backing, BitmapShape, BitmapStanding, CacheShape, Extent, ImageShape, OptionShape,
};

/// A named set of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometrySet {
    /// Six images, each with lazy refcounts and without.
    Small,
    /// The first of these alone.
    One,
}

/// An image to start from, and how it is opened.
#[derive(Clone, Debug)]
pub struct Ground {
    /// A short name.
    pub name: String,
    /// The image.
    pub image: ImageShape,
    /// The caches of whoever opens it: one slice of each table, so that little is enough to write them back.
    pub caches: CacheShape,
    /// How it is opened otherwise.
    pub options: OptionShape,
}

impl GeometrySet {
    /// Every set.
    pub const ALL: [Self; 2] = [Self::Small, Self::One];

    /// The name on command lines and in certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::One => "one",
        }
    }

    /// The set of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// The images of the set.
    pub fn grounds(self) -> Vec<Ground> {
        let images = match self {
            Self::Small => vec![
                two_tables(),
                full_block(),
                over_raw(),
                with_snapshot(),
                with_bitmap(),
                subclusters(),
            ],
            Self::One => vec![two_tables()],
        };
        let both = images.into_iter().flat_map(|(name, image)| {
            [false, true].map(|lazy_refcounts| Ground {
                name: format!("{name}{}", if lazy_refcounts { ", lazy" } else { "" }),
                image: ImageShape {
                    lazy_refcounts,
                    ..image.clone()
                },
                caches: CacheShape {
                    l2_slices: 1,
                    refcount_slices: 1,
                    slice_bytes: 512,
                },
                options: OptionShape::default(),
            })
        });
        both.collect()
    }
}

type Named = (&'static str, ImageShape);

fn plain(cluster_bits: u32, refcount_order: u32, clusters: u64) -> ImageShape {
    let geometry = Geometry::new(cluster_bits, refcount_order).expect("the sizes are allowed");
    ImageShape::plain(geometry, clusters << cluster_bits)
}

fn extent(first_cluster: u64, clusters: u64, cluster_bits: u32) -> Extent {
    Extent {
        offset: first_cluster << cluster_bits,
        len_bytes: clusters << cluster_bits,
    }
}

/// Two clusters lie behind the reach of the first L2 table.
fn two_tables() -> Named {
    (
        "1 KiB clusters, 16-bit refcounts, two L2 tables",
        plain(10, 4, 130),
    )
}

/// Two more clusters fill the refcount block: header, its table and itself, L1 table and L2 table are five. Whoever writes
/// behind the reach of that L2 table needs three.
fn full_block() -> Named {
    let mut image = plain(9, 6, 70);
    image.filled = vec![extent(0, 57, 9)];
    (
        "512-byte clusters, 64-bit refcounts, a refcount block almost full",
        image,
    )
}

/// The file beneath ends within a cluster, before the disk does.
fn over_raw() -> Named {
    let mut image = plain(10, 3, 6);
    image.backing = Some(Backing {
        format: BackingFormat::Raw,
        virtual_bytes: (4 << 10) + 512,
    });
    ("1 KiB clusters, 8-bit refcounts, over a raw file", image)
}

/// The snapshot shares the first of two clusters with the disk.
fn with_snapshot() -> Named {
    let mut image = plain(11, 4, 6);
    image.filled = vec![extent(0, 1, 11), extent(2, 1, 11)];
    image.snapshots = 1;
    ("2 KiB clusters, 16-bit refcounts, a snapshot", image)
}

/// Refcounts of two bits, which three sharers fill.
fn with_bitmap() -> Named {
    let mut image = plain(10, 1, 6);
    image.filled = vec![extent(1, 1, 10)];
    image.packed = vec![extent(2, 1, 10), extent(3, 1, 10)];
    image.bitmaps = vec![BitmapShape {
        number: 0,
        granularity_bits: 9,
        standing: BitmapStanding::Enabled,
    }];
    (
        "1 KiB clusters, 2-bit refcounts, compressed clusters and a bitmap",
        image,
    )
}

/// A cluster of which the file beneath shows through where its subclusters hold nothing.
fn subclusters() -> Named {
    let mut image = plain(14, 4, 5);
    let geometry = image.geometry.with_extended_l2();
    image.geometry = geometry.expect("the clusters are large enough");
    image.filled = vec![Extent {
        offset: 512,
        len_bytes: 1024,
    }];
    image.backing = Some(Backing {
        format: BackingFormat::Qcow2,
        virtual_bytes: (2 << 14) + 512,
    });
    ("16 KiB clusters, extended L2, over a qcow2 file", image)
}
