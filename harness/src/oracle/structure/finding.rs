//! What can be wrong with an image's structure.

use std::fmt;

/// Who a cluster of the file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The image header.
    Header,
    /// The active L1 table.
    L1Table,
    /// The L1 table of the snapshot at this index.
    SnapshotL1Table(u32),
    /// The refcount table.
    RefcountTable,
    /// The refcount block at this index of the refcount table.
    RefcountBlock(u64),
    /// The snapshot table.
    SnapshotTable,
    /// The header of the encryption, with its key material.
    EncryptionHeader,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of the bitmap at this index of the directory.
    BitmapTable(u64),
    /// The bits of the bitmap at this index of the directory.
    BitmapData(u64),
    /// The L2 table at this index of the L1 table.
    L2Table(u64),
    /// The guest cluster of this number.
    Data(u64),
    /// Compressed guest clusters, which share host clusters with each other.
    Compressed,
}

impl Owner {
    /// Whether the cluster says something of the image, and holds no guest data.
    pub fn is_metadata(self) -> bool {
        !matches!(self, Self::Data(_) | Self::Compressed)
    }
}

/// A table, by which an entry is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The active L1 table, or that of a snapshot.
    L1,
    /// An L2 table.
    L2,
    /// The refcount table.
    Refcount,
    /// The snapshot table.
    Snapshot,
}

/// Something in an image that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The header cannot be right.
    Header(&'static str),
    /// Bits are set that the format reserves.
    Reserved {
        /// The table that the entry stands in.
        table: Table,
        /// Where the entry stands in the file, in bytes.
        at: u64,
        /// The entry.
        word: u64,
    },
    /// A subcluster is both allocated and zero, or allocated where there is no cluster.
    Subclusters {
        /// Where the entry stands in the file, in bytes.
        at: u64,
        /// Its bitmap.
        bitmap: u64,
    },
    /// An offset that is not the start of a cluster.
    Unaligned {
        /// The table that the entry stands in.
        table: Table,
        /// Where the entry stands in the file, in bytes.
        at: u64,
        /// The entry.
        word: u64,
    },
    /// A cluster that starts at or beyond the end of the file.
    BeyondEnd {
        /// Whose cluster.
        owner: Owner,
        /// Its host offset in bytes.
        offset: u64,
        /// The length of the file in bytes.
        file_bytes: u64,
    },
    /// A cluster that belongs to two.
    TwoOwners {
        /// The host cluster's number.
        cluster: u64,
        /// One owner.
        one: Owner,
        /// Another.
        other: Owner,
    },
    /// A refcount lower than the number of references, and the image is not dirty.
    TooLow {
        /// The host cluster's number.
        cluster: u64,
        /// Whose cluster.
        owner: Owner,
        /// How many references there are.
        references: u64,
        /// What the refcount is.
        refcount: u64,
    },
    /// COPIED is set where there is not exactly one reference with a refcount of exactly one.
    FalseCopied {
        /// The host cluster's number.
        cluster: u64,
        /// Whose cluster.
        owner: Owner,
        /// How many references there are.
        references: u64,
        /// What the refcount is.
        refcount: u64,
    },
    /// COPIED is set in an entry that names no cluster, or a compressed one.
    IdleCopied {
        /// The table that the entry stands in.
        table: Table,
        /// Where the entry stands in the file, in bytes.
        at: u64,
    },
    /// A guest cluster of an image with an external data file that is compressed, does not claim COPIED, or
    /// does not stand at its guest offset there.
    Misplaced {
        /// Where the entry stands in the file, in bytes.
        at: u64,
        /// The guest cluster's number.
        guest_cluster: u64,
    },
    /// A snapshot whose table entry cannot be right.
    Snapshot {
        /// Its index.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// A bitmap that cannot be right.
    Bitmap {
        /// Its index.
        index: u64,
        /// What is wrong.
        problem: &'static str,
    },
}

impl Owner {
    /// The kind of owner, without its number.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "l1-table",
            Self::SnapshotL1Table(_) => "snapshot-l1-table",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock(_) => "refcount-block",
            Self::SnapshotTable => "snapshot-table",
            Self::EncryptionHeader => "encryption-header",
            Self::BitmapDirectory => "bitmap-directory",
            Self::BitmapTable(_) => "bitmap-table",
            Self::BitmapData(_) => "bitmap-data",
            Self::L2Table(_) => "l2-table",
            Self::Data(_) => "data",
            Self::Compressed => "compressed-data",
        }
    }
}

impl Table {
    /// The name used in failure classes.
    pub fn kind(self) -> &'static str {
        match self {
            Self::L1 => "l1-table",
            Self::L2 => "l2-table",
            Self::Refcount => "refcount-table",
            Self::Snapshot => "snapshot-table",
        }
    }
}

impl Finding {
    /// The rule that is broken, as failure classes name it.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Header(_) => "header",
            Self::Reserved { .. } => "reserved-bits",
            Self::Subclusters { .. } => "subclusters",
            Self::Unaligned { .. } => "unaligned",
            Self::BeyondEnd { .. } => "beyond-end",
            Self::TwoOwners { .. } => "two-owners",
            Self::TooLow { .. } => "refcount-too-low",
            Self::FalseCopied { .. } => "false-copied",
            Self::IdleCopied { .. } => "idle-copied",
            Self::Misplaced { .. } => "misplaced",
            Self::Snapshot { .. } => "snapshot",
            Self::Bitmap { .. } => "bitmap",
        }
    }

    /// The structures that are involved, as failure classes name them.
    pub fn site(&self) -> String {
        match self {
            Self::Header(_) => "header".into(),
            Self::Reserved { table, .. }
            | Self::Unaligned { table, .. }
            | Self::IdleCopied { table, .. } => table.kind().into(),
            Self::BeyondEnd { owner, .. }
            | Self::TooLow { owner, .. }
            | Self::FalseCopied { owner, .. } => owner.kind().into(),
            Self::TwoOwners { one, other, .. } => format!("{}+{}", one.kind(), other.kind()),
            Self::Subclusters { .. } | Self::Misplaced { .. } => Table::L2.kind().into(),
            Self::Snapshot { .. } => Table::Snapshot.kind().into(),
            Self::Bitmap { .. } => "bitmap-directory".into(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::L1Table => f.write_str("the L1 table"),
            Self::SnapshotL1Table(index) => write!(f, "the L1 table of snapshot {index}"),
            Self::RefcountTable => f.write_str("the refcount table"),
            Self::RefcountBlock(index) => write!(f, "refcount block {index}"),
            Self::SnapshotTable => f.write_str("the snapshot table"),
            Self::EncryptionHeader => f.write_str("the encryption header"),
            Self::BitmapDirectory => f.write_str("the bitmap directory"),
            Self::BitmapTable(index) => write!(f, "the table of bitmap {index}"),
            Self::BitmapData(index) => write!(f, "the bits of bitmap {index}"),
            Self::L2Table(index) => write!(f, "the L2 table of L1 entry {index}"),
            Self::Data(cluster) => write!(f, "guest cluster {cluster}"),
            Self::Compressed => f.write_str("compressed guest clusters"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(problem) => write!(f, "header: {problem}"),
            Self::Reserved { table, at, word } => write!(
                f,
                "{} entry at {at:#x}: reserved bits are set in {word:#018x}",
                table.kind()
            ),
            Self::Unaligned { table, at, word } => write!(
                f,
                "{} entry at {at:#x}: {word:#018x} does not name the start of a cluster",
                table.kind()
            ),
            Self::Subclusters { at, bitmap } => write!(
                f,
                "{} entry at {at:#x}: the subcluster bitmap {bitmap:#018x} cannot be right",
                Table::L2.kind()
            ),
            Self::BeyondEnd {
                owner,
                offset,
                file_bytes,
            } => write!(
                f,
                "{owner} at {offset:#x} starts beyond the end of the file ({file_bytes:#x} bytes)"
            ),
            Self::TwoOwners {
                cluster,
                one,
                other,
            } => write!(f, "host cluster {cluster} belongs to {one} and to {other}"),
            Self::TooLow {
                cluster,
                owner,
                references,
                refcount,
            } => write!(
                f,
                "host cluster {cluster} ({owner}): refcount {refcount}, {references} references"
            ),
            Self::FalseCopied {
                cluster,
                owner,
                references,
                refcount,
            } => write!(
                f,
                "host cluster {cluster} ({owner}): COPIED is set with {references} references and \
                 refcount {refcount}"
            ),
            Self::IdleCopied { table, at } => write!(
                f,
                "{} entry at {at:#x}: COPIED is set where no cluster can be written in place",
                table.kind()
            ),
            Self::Misplaced { at, guest_cluster } => write!(
                f,
                "{} entry at {at:#x}: guest cluster {guest_cluster} does not stand in its place in the data \
                 file, by itself",
                Table::L2.kind()
            ),
            Self::Bitmap { index, problem } => write!(f, "bitmap {index}: {problem}"),
            Self::Snapshot { index, problem } => write!(f, "snapshot {index}: {problem}"),
        }
    }
}
