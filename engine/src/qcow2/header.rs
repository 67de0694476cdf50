//! The image header: what an image says of itself.
//!
//! Specification: "Header", "Header extensions", "Feature name table".

use super::geometry::Geometry;
use super::unit::HostOffset;

/// A parsed and validated header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size and refcount width.
    pub geometry: Geometry,
    /// The size of the guest's disk in bytes.
    pub virtual_bytes: u64,
    /// Where the active L1 table stands.
    pub l1_offset: HostOffset,
    /// Entries in the active L1 table.
    pub l1_entries: u64,
    /// Where the refcount table stands.
    pub reftable_offset: HostOffset,
    /// Clusters that the refcount table takes.
    pub reftable_clusters: u64,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table stands.
    pub snapshots_offset: HostOffset,
    /// Feature bits that must be understood to open the image.
    pub incompatible: u64,
    /// Feature bits that may be ignored.
    pub compatible: u64,
    /// Feature bits that a writer who does not know them clears.
    pub autoclear: u64,
    /// Where the header ends and the extensions start, in bytes.
    pub header_bytes: u64,
    /// The backing file's name as it stands in the image, where there is one.
    pub backing_name: Option<Vec<u8>>,
    /// The header extensions in file order, without the end marker.
    pub extensions: Vec<Extension>,
}

/// A header extension as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its bytes, without padding.
    pub data: Vec<u8>,
}

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be wrong; they must be repaired before the image is written.
    pub const DIRTY: u64 = 1 << 0;
    /// The image's structures are damaged.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data stand in an external file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is in the header.
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    /// L2 entries have subcluster bitmaps.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Compatible feature bits.
pub mod compatible {
    /// Refcount updates may be postponed.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}
