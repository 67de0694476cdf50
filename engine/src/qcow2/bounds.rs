//! How long each structure of an image may be, and where it may start.
//!
//! Everything that an image says of the place of a structure of variable length goes through
//! `Extent::new` where it is parsed, before a byte of it is read: so no length that an image claims
//! costs more than the format allows, in memory or in time. Whether an extent lies within the file is
//! told by `Extent::within`: to read it a file may be too short, to write on it must not be. Limits are
//! QEMU's, so that both open the same images.

use std::fmt;

use super::geometry::Geometry;
use super::unit::HostOffset;

/// The largest L1 table, of the disk or of a snapshot, in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The largest refcount table, in bytes.
pub const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// The largest snapshot table, in bytes.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// The largest bitmap directory, in bytes: what its entries with the longest names take.
pub const MAX_DIRECTORY_BYTES: u64 = 68 << 20;
/// The largest bitmap, in bytes of its bits.
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// The most bitmaps.
pub const MAX_BITMAPS: u32 = 65535;
/// The longest encryption header, in bytes: the key material of eight slots takes 2 MiB.
pub const MAX_LUKS_BYTES: u64 = 16 << 20;
/// No structure starts at a higher offset.
const MAX_OFFSET: u64 = 1 << 56;

/// What is placed in a file by an offset and a length that stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounded {
    /// The L1 table of the disk or of a snapshot.
    L1Table,
    /// The refcount table.
    RefcountTable,
    /// The snapshot table, as far as its length is known.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of one bitmap.
    BitmapTable,
    /// The header of the encryption, with its key material.
    EncryptionHeader,
}

/// A range of the file within the bounds of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: HostOffset,
    pub(super) len_bytes: u64,
}

/// Why a place or a length cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It is longer than the format allows.
    TooLong,
    /// It does not start at a cluster.
    Unaligned,
    /// It starts where the header stands.
    InHeader,
    /// It starts beyond every host offset.
    TooFar,
}

impl Bounded {
    /// The most bytes that it takes.
    pub(super) fn max_bytes(self, geometry: Geometry) -> u64 {
        match self {
            Self::L1Table => MAX_L1_BYTES,
            Self::RefcountTable => MAX_REFTABLE_BYTES,
            Self::SnapshotTable => MAX_SNAPSHOT_TABLE_BYTES,
            Self::BitmapDirectory => MAX_DIRECTORY_BYTES,
            Self::BitmapTable => MAX_BITMAP_BYTES / geometry.cluster_bytes() * 8,
            Self::EncryptionHeader => MAX_LUKS_BYTES,
        }
    }
}

impl Extent {
    /// The extent of a structure that is not empty.
    pub(super) fn new(
        what: Bounded,
        (offset, len_bytes): (HostOffset, u64),
        geometry: Geometry,
    ) -> Result<Self, Excess> {
        if len_bytes > what.max_bytes(geometry) {
            Err(Excess::TooLong)
        } else if !geometry.is_aligned(offset) {
            Err(Excess::Unaligned)
        } else if offset.0 == 0 {
            Err(Excess::InHeader)
        } else if offset.0 > MAX_OFFSET {
            Err(Excess::TooFar)
        } else {
            Ok(Self { offset, len_bytes })
        }
    }

    /// Where it ends, in bytes.
    pub(super) fn end(self) -> u64 {
        self.offset.0 + self.len_bytes
    }

    /// Whether a file of `file_bytes` bytes holds all of it.
    pub(super) fn within(self, file_bytes: u64) -> bool {
        self.end() <= file_bytes
    }

    /// Whether both have a byte in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.len_bytes > 0
            && other.len_bytes > 0
            && self.offset.0 < other.end()
            && other.offset.0 < self.end()
    }
}

impl fmt::Display for Excess {
    /// The predicate of a sentence of which the structure is the subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "is longer than the format allows",
            Self::Unaligned => "is not aligned to a cluster",
            Self::InHeader => "overlaps the header",
            Self::TooFar => "is beyond any host offset",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Bounded; 6] = [
        Bounded::L1Table,
        Bounded::RefcountTable,
        Bounded::SnapshotTable,
        Bounded::BitmapDirectory,
        Bounded::BitmapTable,
        Bounded::EncryptionHeader,
    ];

    #[test]
    fn the_longest_extent_is_taken_and_no_longer_one() {
        for cluster_bits in Geometry::CLUSTER_BITS {
            let geometry = Geometry::new(cluster_bits, 4).unwrap();
            let at = HostOffset(geometry.cluster_bytes());
            for what in ALL {
                let most = what.max_bytes(geometry);
                assert!(Extent::new(what, (at, most), geometry).is_ok());
                let longer = Extent::new(what, (at, most + 1), geometry);
                assert_eq!(longer, Err(Excess::TooLong));
            }
        }
    }

    #[test]
    fn no_extent_starts_in_the_header_within_a_cluster_or_behind_every_offset() {
        let geometry = Geometry::new(16, 4).unwrap();
        for what in ALL {
            let place = |offset| Extent::new(what, (HostOffset(offset), 8), geometry).err();
            assert_eq!(place(0), Some(Excess::InHeader));
            assert_eq!(place(0x1_0200), Some(Excess::Unaligned));
            assert_eq!(place(1 << 56), None);
            assert_eq!(place((1 << 56) + 0x1_0000), Some(Excess::TooFar));
        }
    }

    #[test]
    fn extents_overlap_where_they_share_a_byte() {
        let extent = |offset, len_bytes| Extent {
            offset: HostOffset(offset),
            len_bytes,
        };
        assert!(extent(512, 513).overlaps(extent(1024, 1)));
        assert!(!extent(512, 512).overlaps(extent(1024, 1)));
        assert!(!extent(512, 0).overlaps(extent(512, 512)));
        assert!(extent(512, 512).within(1024));
        assert!(!extent(512, 512).within(1023));
    }
}
