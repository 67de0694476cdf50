//! The 32 subclusters of a cluster in images with extended L2 entries.
//!
//! Specification: "Extended L2 Entries". A cluster whose subclusters are all alike is mapped in the
//! words that every image has; only one whose subclusters differ is [`Mapping::Split`]. In images
//! without extended entries a cluster is its own and only subcluster, so that the same code serves both.

use std::ops::Range;

use super::entry::{Copied, Mapping};
use super::geometry::Geometry;
use super::unit::HostOffset;

/// What each subcluster of a cluster is, a bit for each, the first lowest. No bit is set in both; a
/// subcluster with neither shows the backing file's content, or zeroes without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subclusters {
    /// Those whose content stands in the host cluster.
    pub allocated: u32,
    /// Those that read as zeroes.
    pub zero: u32,
}

/// A guest cluster whose subclusters differ, or which keeps a host cluster that none of them uses yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The host cluster, and whether its refcount is exactly one; never missing where a subcluster is
    /// allocated.
    pub cluster: Option<(HostOffset, Copied)>,
    /// What the subclusters are.
    pub parts: Subclusters,
}

impl Subclusters {
    /// Every subcluster.
    pub const ALL: u32 = u32::MAX;

    /// The same, with these subclusters allocated.
    #[must_use]
    pub fn with_allocated(self, mask: u32) -> Self {
        Self {
            allocated: self.allocated | mask,
            zero: self.zero & !mask,
        }
    }

    /// The same, with these subclusters reading as zeroes.
    #[must_use]
    pub fn with_zero(self, mask: u32) -> Self {
        Self {
            allocated: self.allocated & !mask,
            zero: self.zero | mask,
        }
    }
}

impl Geometry {
    /// The subclusters that a range of bytes of a cluster touches.
    pub(super) fn subclusters_of(self, within: &Range<u64>) -> u32 {
        if !self.has_subclusters() {
            return Subclusters::ALL;
        }
        let first = within.start / self.subcluster_bytes();
        let last = (within.end - 1) / self.subcluster_bytes();
        u32::MAX << first & u32::MAX >> (31 - last)
    }
}

impl Mapping {
    /// The mapping to a host cluster, where there is one, of which the subclusters are these.
    pub fn of_parts(cluster: Option<(HostOffset, Copied)>, parts: Subclusters) -> Self {
        match (parts.allocated, parts.zero, cluster) {
            (Subclusters::ALL, _, Some((offset, copied))) => Self::Data { offset, copied },
            (_, Subclusters::ALL, reserve) => Self::Zero { reserve },
            (0, 0, None) => Self::Unallocated,
            _ => Self::Split(Split { cluster, parts }),
        }
    }

    /// The host cluster, where there is one, and the subclusters. A compressed cluster has neither.
    pub fn parts(self) -> (Option<(HostOffset, Copied)>, Subclusters) {
        let none = Subclusters::default();
        match self {
            Self::Unallocated | Self::Compressed(_) => (None, none),
            Self::Zero { reserve } => (reserve, none.with_zero(Subclusters::ALL)),
            Self::Data { offset, copied } => (
                Some((offset, copied)),
                none.with_allocated(Subclusters::ALL),
            ),
            Self::Split(Split { cluster, parts }) => (cluster, parts),
        }
    }

    /// The mapping of the subcluster at `within` bytes, as if the whole cluster were like it, and for
    /// how many bytes from there it holds.
    pub fn at(self, geometry: Geometry, within: u64) -> (Self, u64) {
        let Self::Split(Split { cluster, parts }) = self else {
            return (self, geometry.cluster_bytes() - within);
        };
        let index = within / geometry.subcluster_bytes();
        let (alike, mapping) = match cluster {
            Some((offset, copied)) if parts.allocated >> index & 1 == 1 => {
                (parts.allocated, Self::Data { offset, copied })
            }
            _ if parts.zero >> index & 1 == 1 => (parts.zero, Self::Zero { reserve: cluster }),
            Some(_) | None => (!(parts.allocated | parts.zero), Self::Unallocated),
        };
        let count = u64::from((alike >> index).trailing_ones());
        let end = (index + count) * geometry.subcluster_bytes();
        (mapping, end - within)
    }

    /// The bytes of a cluster from the first to the last that a change of the host cluster must take
    /// along, where there are any.
    pub(super) fn carried(self, geometry: Geometry) -> Option<Range<u64>> {
        let allocated = match self {
            Self::Compressed(_) => Subclusters::ALL,
            Self::Unallocated | Self::Zero { .. } | Self::Data { .. } | Self::Split(_) => {
                self.parts().1.allocated
            }
        };
        let whole = 0..geometry.cluster_bytes();
        match allocated {
            0 => None,
            Subclusters::ALL => Some(whole),
            some => {
                let first = u64::from(some.trailing_zeros());
                let end = u64::from(32 - some.leading_zeros());
                let bytes = geometry.subcluster_bytes();
                Some(first * bytes..end * bytes)
            }
        }
    }

    /// Whether some of the cluster's content stands in the file.
    pub(super) fn has_content(self) -> bool {
        match self {
            Self::Data { .. } | Self::Compressed(_) => true,
            Self::Unallocated | Self::Zero { .. } => false,
            Self::Split(Split { parts, .. }) => parts.allocated != 0,
        }
    }
}
