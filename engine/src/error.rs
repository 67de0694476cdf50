//! What can go wrong between a caller and an image: the world, the image, or the request.
//!
//! A broken promise of our own is none of these; it is an assertion.

use std::fmt;

use crate::device::DeviceError;
use crate::qcow2::entry::BadEntry;

/// Why an operation on an image did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device below failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The image's bytes cannot be right.
    #[error("{0}")]
    BadImage(#[from] BadImage),
    /// The image is well-formed, and uses something that is not supported here.
    #[error("{0}")]
    Unsupported(Unsupported),
    /// The request cannot be carried out on this image.
    #[error("{0}")]
    Refused(Refused),
}

/// A place in an image whose bytes cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at offset {offset:#x}{}: {problem}", index_text(*index))]
pub struct BadImage {
    /// The structure that is wrong.
    pub structure: Structure,
    /// Where in the file it stands, in bytes.
    pub offset: u64,
    /// The index of the entry, where the structure is a table.
    pub index: Option<u64>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// The structures of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Structure {
    /// The image header.
    Header,
    /// A header extension.
    HeaderExtension,
    /// The name of the backing file.
    BackingName,
    /// The active L1 table, or that of a snapshot.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The header of the encryption, with its key material.
    EncryptionHeader,
    /// A bitmap directory.
    BitmapDirectory,
    /// A bitmap table.
    BitmapTable,
    /// The L1 table of a snapshot, where it is told from the active one.
    InactiveL1Table,
    /// An L2 table that only snapshots name, where it is told from the active ones.
    InactiveL2Table,
    /// A cluster of guest data.
    Data,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "image header",
            Self::HeaderExtension => "header extension",
            Self::BackingName => "backing file name",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::EncryptionHeader => "encryption header",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::InactiveL1Table => "L1 table of a snapshot",
            Self::InactiveL2Table => "L2 table of a snapshot",
            Self::Data => "data cluster",
        })
    }
}

/// What is wrong with a structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An entry that its version of the format does not allow.
    #[error("{0}")]
    Entry(#[from] BadEntry),
    /// A field whose value is out of its range; the text names field, value and range.
    #[error("{0}")]
    Field(String),
    /// The structure does not lie within the file.
    #[error("it reaches beyond the end of the file ({file_bytes} bytes)")]
    BeyondEnd {
        /// The length of the file.
        file_bytes: u64,
    },
    /// A write was about to destroy metadata.
    #[error(
        "refused to write {len_bytes} bytes there: it holds the {owner}; run check with repair"
    )]
    Overlap {
        /// What the range belongs to.
        owner: Structure,
        /// The length of the write.
        len_bytes: u64,
    },
    /// A compressed cluster that does not decompress.
    #[error("the compressed cluster does not decompress to a full cluster")]
    Decompress,
    /// The image was marked corrupt and is opened for writing.
    #[error("the image is marked corrupt: open it read-only, or run check with repair all")]
    MarkedCorrupt,
    /// Repair at open left errors behind.
    #[error("{errors} errors remain after repair at open: run check with repair all")]
    Unrepaired {
        /// How many.
        errors: u64,
    },
}

/// Something well-formed that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A version other than 2 and 3.
    #[error("qcow2 version {0} is not supported, only 2 and 3")]
    Version(u32),
    /// Features that must be understood to open the image; names, from the image or the standard.
    #[error("the image needs features that are not supported: {0}")]
    Features(String),
    /// Something that can be read but not written or repaired.
    #[error("{0} can be read but not written: open the image read-only")]
    ReadOnlyFeature(&'static str),
}

/// Why a key slot cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySlotProblem {
    /// The image is not encrypted with LUKS.
    #[error("the image is not encrypted with LUKS and has no key slots")]
    NoSlots,
    /// There is no such slot.
    #[error("there is no key slot {0}: they are numbered from 0 to 7")]
    OutOfRange(usize),
    /// The slot is active.
    #[error("key slot {0} is active: erase it first")]
    Occupied(usize),
    /// The slot is the only active one.
    #[error("key slot {0} is the only active one: without it nobody could read the data any more")]
    Last(usize),
}

/// A request that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It reaches beyond the guest's disk.
    #[error(
        "{len_bytes} bytes at guest offset {offset:#x} reach beyond the disk ({virtual_bytes} bytes)"
    )]
    OutOfRange {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        len_bytes: u64,
        /// The size of the guest's disk.
        virtual_bytes: u64,
    },
    /// It does not start and end at a sector.
    #[error(
        "{len_bytes} bytes at guest offset {offset:#x} do not start and end at a multiple of 512"
    )]
    Unaligned {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        len_bytes: u64,
    },
    /// Compressed data are written to whole clusters.
    #[error(
        "{len_bytes} bytes at guest offset {offset:#x} are not whole clusters: compressed data are written cluster by cluster"
    )]
    NotWholeClusters {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        len_bytes: u64,
    },
    /// Compressed data are written to clusters of which nothing is stored.
    #[error(
        "the cluster at guest offset {offset:#x} is allocated: compressed data can only be written to unallocated clusters"
    )]
    NotVacant {
        /// Where the cluster starts.
        offset: u64,
    },
    /// The image's data stand in an external file, which was not given.
    #[error("the data of the image stand in an external data file: it is needed to open the image")]
    NoDataFile,
    /// The image is encrypted, and no secret was given.
    #[error("the image is encrypted: a secret is needed to open it")]
    NoSecret,
    /// No slot of the image opens with a secret that was given.
    #[error("no key slot of the image opens with this secret")]
    WrongSecret,
    /// A key slot cannot be changed so.
    #[error(transparent)]
    KeySlot(#[from] KeySlotProblem),
    /// The format has no compressed data, or the image encrypts what it holds or holds it elsewhere.
    #[error("this image cannot hold compressed data")]
    NoCompression,
    /// The image is open for reading only.
    #[error("the image is open read-only")]
    ReadOnly,
    /// A flush, or a switch of a header pointer, failed earlier: nothing more can be promised.
    #[error("an earlier flush or header update failed, its data may be lost: reopen the image")]
    Distrusted,
    /// The image turned out to be corrupt and was marked so.
    #[error("the image was found corrupt while open: run check with repair all")]
    FoundCorrupt,
    /// An option whose value is out of its range; the text names option, value and range.
    #[error("{0}")]
    Option(String),
    /// A table would outgrow what the format or this implementation allows.
    #[error("the {0} would outgrow its limit")]
    TableFull(Structure),
    /// The format does not know the operation.
    #[error("{0}")]
    NotByFormat(&'static str),
    /// No snapshot has that id or name.
    #[error("no snapshot has the id or the name `{0}`")]
    NoSuchSnapshot(String),
    /// A disk of version 2 would change its size, and its snapshots cannot say theirs.
    #[error("the size of a version 2 image with snapshots cannot change: amend it to version 3")]
    ResizeWithSnapshots,
    /// Bitmaps do not allow it; the text says what and why.
    #[error("{0}")]
    Bitmap(String),
    /// No host cluster can be allocated: the refcounts cannot express it.
    #[error("a refcount would exceed the refcount width of the image")]
    RefcountOverflow,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unsupported> for Error {
    fn from(unsupported: Unsupported) -> Self {
        Self::Unsupported(unsupported)
    }
}

fn index_text(index: Option<u64>) -> String {
    index.map_or_else(String::new, |index| format!(", entry {index}"))
}
