//! How long each structure may be, and where it may start: the limits that every pass of the walk goes by.
//!
//! Specification: `docs/interop/qcow2.rst` of QEMU, and the limits of its implementation. What breaks one is
//! a finding, and is not walked: so no length that an image claims costs more than the format allows.

/// The most snapshots.
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
/// The most bitmaps.
pub(super) const MAX_BITMAPS: u64 = 65535;
/// The highest offset that tables can name.
const MAX_OFFSET: u64 = 1 << 56;

/// A structure whose place and length stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounded {
    L1Table,
    RefcountTable,
    SnapshotTable,
    BitmapDirectory,
    BitmapTable,
    EncryptionHeader,
}

impl Bounded {
    /// The most bytes that it takes where clusters have `cluster_bytes`.
    pub(super) fn max_bytes(self, cluster_bytes: u64) -> u64 {
        const MIB: u64 = 1 << 20;
        match self {
            Self::L1Table => 32 * MIB,
            Self::RefcountTable => 8 * MIB,
            Self::SnapshotTable => 64 * MIB,
            Self::BitmapDirectory => 68 * MIB,
            // Eight bytes for each cluster of 512 MiB of bits.
            Self::BitmapTable => 512 * MIB / cluster_bytes * 8,
            Self::EncryptionHeader => 16 * MIB,
        }
    }

    /// Whether it can stand there, and be so long.
    pub(super) fn admits(self, offset: u64, len_bytes: u64, cluster_bytes: u64) -> bool {
        offset.is_multiple_of(cluster_bytes)
            && offset <= MAX_OFFSET
            && len_bytes <= self.max_bytes(cluster_bytes)
    }
}
