//! The operations that a workload is made of.

use blkdebug::disks::Disk;
use engine::chain::Overlay;
use engine::image::Unmap;
use engine::manage::{Amend, BitmapState, RawPromise};
use engine::preallocation::Preallocation;

use super::shape::Extent;

/// One operation on an image. Offsets and lengths are bytes and multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Read a range; what it yields is checked against the guest's history.
    Read {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Write a range with sectors that name this operation.
    Write {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Write a range in compressed form, with sectors that name this operation and can be compressed. It
    /// is made of whole clusters; a range that is not, or of which something is stored, is refused.
    WriteCompressed {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Write a range with zeroes, byte by byte: what `detect-zeroes` looks for.
    WriteBlank {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
        /// Whether the space may be released.
        unmap: Unmap,
    },
    /// Give up the content of a range.
    Discard {
        /// Where to start.
        offset: u64,
        /// How much.
        len_bytes: u64,
    },
    /// Make durable what has completed.
    Flush,
    /// Drop from the caches what was not used since the last time.
    DropIdle,
    /// Make the guest's disk larger.
    Grow {
        /// The new size.
        virtual_bytes: u64,
        /// What of the new part has its place at once.
        preallocation: Preallocation,
    },
    /// Make the guest's disk smaller, and give up what lies beyond.
    Shrink {
        /// The new size.
        virtual_bytes: u64,
    },
    /// Change what the image says of itself.
    Amend(Amend),
    /// Give the backing file another name; what lies beneath stays the same.
    Rename {
        /// The length of the new name, from 1 to 1023.
        name_bytes: u32,
    },
    /// Change what the image says of its external data file; the file stays the same.
    DataFile(DataFileOperation),
    /// Give up everything that the image holds.
    Empty,
    /// Take an internal snapshot.
    SnapshotCreate {
        /// Its number; no two of a workload have the same.
        snapshot: u32,
    },
    /// Make the disk what it was when a snapshot was taken.
    SnapshotApply {
        /// Which.
        snapshot: u32,
    },
    /// Delete a snapshot.
    SnapshotDelete {
        /// Which.
        snapshot: u32,
    },
    /// An operation on a persistent bitmap; nothing else is in flight meanwhile.
    Bitmap(BitmapOperation),
    /// An operation on a key slot of a LUKS image; nothing else is in flight meanwhile.
    KeySlot(KeySlotOperation),
    /// Commit what the image holds into the file that it lies over.
    Commit {
        /// What becomes of the image.
        overlay: Overlay,
    },
    /// Move the image over another file, without changing what it shows.
    Rebase {
        /// The file, or `None` for none.
        onto: Option<Disk>,
    },
    /// Copy into the image what the files between it and another hold, and move it over that one.
    Stream {
        /// The file, or `None` to copy everything.
        base: Option<Disk>,
    },
    /// Wait for everything in flight, close the image and open it again.
    Reopen,
}

impl Operation {
    /// The range of the guest's disk that the operation touches, where it touches one.
    pub fn range(self) -> Option<Extent> {
        match self {
            Self::Read { offset, len_bytes }
            | Self::Write { offset, len_bytes }
            | Self::WriteCompressed { offset, len_bytes }
            | Self::WriteBlank { offset, len_bytes }
            | Self::WriteZeroes {
                offset, len_bytes, ..
            }
            | Self::Discard { offset, len_bytes } => Some(Extent { offset, len_bytes }),
            Self::Flush
            | Self::DropIdle
            | Self::Grow { .. }
            | Self::Shrink { .. }
            | Self::Amend(_)
            | Self::Rename { .. }
            | Self::DataFile(_)
            | Self::Empty
            | Self::SnapshotCreate { .. }
            | Self::SnapshotApply { .. }
            | Self::SnapshotDelete { .. }
            | Self::Bitmap(_)
            | Self::KeySlot(_)
            | Self::Commit { .. }
            | Self::Rebase { .. }
            | Self::Stream { .. }
            | Self::Reopen => None,
        }
    }

    /// The same operation on another range; one that touches none stays as it is.
    #[must_use]
    pub fn with_range(self, to: Extent) -> Self {
        let Extent { offset, len_bytes } = to;
        match self {
            Self::Read { .. } => Self::Read { offset, len_bytes },
            Self::Write { .. } => Self::Write { offset, len_bytes },
            Self::WriteCompressed { .. } => Self::WriteCompressed { offset, len_bytes },
            Self::WriteBlank { .. } => Self::WriteBlank { offset, len_bytes },
            Self::WriteZeroes { unmap, .. } => Self::WriteZeroes {
                offset,
                len_bytes,
                unmap,
            },
            Self::Discard { .. } => Self::Discard { offset, len_bytes },
            Self::Flush
            | Self::DropIdle
            | Self::Grow { .. }
            | Self::Shrink { .. }
            | Self::Amend(_)
            | Self::Rename { .. }
            | Self::DataFile(_)
            | Self::Empty
            | Self::SnapshotCreate { .. }
            | Self::SnapshotApply { .. }
            | Self::SnapshotDelete { .. }
            | Self::Bitmap(_)
            | Self::KeySlot(_)
            | Self::Commit { .. }
            | Self::Rebase { .. }
            | Self::Stream { .. }
            | Self::Reopen => self,
        }
    }
}

/// A change of what the image says of its external data file, all of it in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataFileOperation {
    /// The length of its new name, at most 1023; 0 for none. The old name stays without it.
    pub name_bytes: Option<u32>,
    /// What becomes of the promise that it is a raw image of the disk.
    pub raw: RawPromise,
}

/// What is done to which key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeySlotOperation {
    /// The slot, below 8.
    pub slot: u8,
    /// What is done.
    pub change: KeySlotChange,
}

/// What is done to a key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeySlotChange {
    /// The key is put into it; refused where it is active.
    Fill {
        /// Which of [`super::shape::TEST_SECRETS`] is to open it.
        secret: u8,
    },
    /// It is emptied; refused where it is the only active one.
    Erase,
}

/// What is done to which bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitmapOperation {
    /// Its number, by which [`bitmap_name`] names it.
    pub number: u8,
    /// What is done.
    pub change: BitmapChange,
}

/// What is done to a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BitmapChange {
    /// It is made.
    Create {
        /// Binary logarithm of the bytes that a bit stands for, 9 to 31.
        granularity_bits: u8,
        /// Whether writes are noted in it.
        state: BitmapState,
    },
    /// It is removed.
    Remove,
    /// It is enabled or disabled.
    SetState(BitmapState),
    /// Its bits are cleared.
    Clear,
    /// The bits of another are added to it.
    Merge {
        /// The number of the other.
        source: u8,
    },
}

/// The name of the bitmap of that number.
pub fn bitmap_name(number: u8) -> String {
    format!("bitmap{number}")
}

/// The number of an operation within its workload, from 0; stamps name their writer by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u32);

/// A moment of a run. One counter serves the devices and the guest, so that any two events of a run
/// are ordered.
pub use blkdebug::record::Tick as Moment;

/// An operation as it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Which one; also its index in the history's workload.
    pub id: OperationId,
    /// What was asked.
    pub operation: Operation,
    /// When it was handed to the image.
    pub submitted: Moment,
    /// When the image answered and what, or `None` if the power went out before.
    pub completed: Option<(Moment, Answer)>,
}

/// What the image answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The operation is done.
    Done,
    /// It failed, and may have been carried out in part.
    Failed,
}
