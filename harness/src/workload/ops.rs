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
    /// An operation on an internal snapshot.
    Snapshot(SnapshotOperation),
    /// An operation on a persistent bitmap; nothing else is in flight meanwhile.
    Bitmap(BitmapOperation),
    /// An operation on a key slot of a LUKS image; nothing else is in flight meanwhile.
    KeySlot(KeySlotOperation),
    /// An operation on the files that the image lies over; nothing else is in flight meanwhile.
    Chain(ChainOperation),
    /// Wait for everything in flight, close the image and open it again.
    Reopen,
    /// Kill the process that has the image open, whatever it is doing, and open the image again. The power stays
    /// on: what the disk had carried out stays in its cache, and what was in flight does not happen.
    Kill,
}

/// What an operation does to the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskChange {
    /// Nothing that the guest can see.
    None,
    /// The range holds what names the operation.
    Stamped(Extent),
    /// The range holds zeroes.
    Zeroed(Extent),
    /// The range holds zeroes, or what it held.
    Discarded(Extent),
    /// The disk is larger.
    Grown {
        /// The new size.
        virtual_bytes: u64,
    },
    /// The disk is smaller.
    Shrunk {
        /// The new size.
        virtual_bytes: u64,
    },
    /// The disk is what it was when a snapshot was taken.
    Restored,
    /// The disk shows what lies beneath.
    Emptied,
    /// What lies beneath has another name.
    Renamed,
    /// Another file lies beneath, and shows where the image holds nothing.
    Repointed,
}

/// What an operation may be in flight beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manners {
    /// Any other that is not alone.
    Free,
    /// Those that are free, where operations on the image as a whole overlap with them.
    OneAtATime,
    /// It waits for what is in flight, and all that follows waits for it.
    Alone,
    /// It waits for nothing and ends what is in flight; all that follows waits for it.
    Abrupt,
}

impl Operation {
    /// Offset and length of the range of the guest's disk that the operation names, where it names one.
    fn place(&mut self) -> Option<(&mut u64, &mut u64)> {
        match self {
            Self::Read { offset, len_bytes }
            | Self::Write { offset, len_bytes }
            | Self::WriteCompressed { offset, len_bytes }
            | Self::WriteBlank { offset, len_bytes }
            | Self::WriteZeroes {
                offset, len_bytes, ..
            }
            | Self::Discard { offset, len_bytes } => Some((offset, len_bytes)),
            Self::Bitmap(BitmapOperation {
                change: BitmapChange::Mark { range },
                ..
            }) => Some((&mut range.offset, &mut range.len_bytes)),
            Self::Flush
            | Self::DropIdle
            | Self::Grow { .. }
            | Self::Shrink { .. }
            | Self::Amend(_)
            | Self::Rename { .. }
            | Self::DataFile(_)
            | Self::Empty
            | Self::Snapshot(_)
            | Self::Bitmap(_)
            | Self::KeySlot(_)
            | Self::Chain(_)
            | Self::Reopen
            | Self::Kill => None,
        }
    }

    /// The range of the guest's disk that the operation names, where it names one.
    pub fn range(mut self) -> Option<Extent> {
        let (offset, len_bytes) = self.place()?;
        Some(Extent {
            offset: *offset,
            len_bytes: *len_bytes,
        })
    }

    /// The same operation on another range; one that names none stays as it is.
    #[must_use]
    pub fn with_range(mut self, to: Extent) -> Self {
        if let Some((offset, len_bytes)) = self.place() {
            (*offset, *len_bytes) = (to.offset, to.len_bytes);
        }
        self
    }

    /// What it does to the guest's disk.
    pub fn disk_change(self) -> DiskChange {
        let range = |offset, len_bytes| Extent { offset, len_bytes };
        match self {
            Self::Write { offset, len_bytes } | Self::WriteCompressed { offset, len_bytes } => {
                DiskChange::Stamped(range(offset, len_bytes))
            }
            Self::WriteBlank { offset, len_bytes }
            | Self::WriteZeroes {
                offset, len_bytes, ..
            } => DiskChange::Zeroed(range(offset, len_bytes)),
            Self::Discard { offset, len_bytes } => DiskChange::Discarded(range(offset, len_bytes)),
            Self::Grow { virtual_bytes, .. } => DiskChange::Grown { virtual_bytes },
            Self::Shrink { virtual_bytes } => DiskChange::Shrunk { virtual_bytes },
            Self::Snapshot(SnapshotOperation { change, .. }) => match change {
                SnapshotChange::Apply => DiskChange::Restored,
                SnapshotChange::Create | SnapshotChange::Delete => DiskChange::None,
            },
            Self::Empty => DiskChange::Emptied,
            Self::Rename { .. } => DiskChange::Renamed,
            Self::Chain(operation) => match operation {
                ChainOperation::Repoint { .. } => DiskChange::Repointed,
                ChainOperation::Commit { .. }
                | ChainOperation::Rebase { .. }
                | ChainOperation::Stream { .. } => DiskChange::None,
            },
            Self::Read { .. }
            | Self::Flush
            | Self::DropIdle
            | Self::Amend(_)
            | Self::DataFile(_)
            | Self::Bitmap(_)
            | Self::KeySlot(_)
            | Self::Reopen
            | Self::Kill => DiskChange::None,
        }
    }

    /// Whether its answer promises that all is durable that was answered before it was submitted. Those
    /// that promise more say so where their history is told.
    pub fn is_a_flush(self) -> bool {
        matches!(
            self,
            Self::Flush
                | Self::Reopen
                | Self::Bitmap(_)
                | Self::Grow { .. }
                | Self::Chain(
                    ChainOperation::Commit {
                        overlay: Overlay::Empty
                    } | ChainOperation::Rebase { .. }
                        | ChainOperation::Stream { .. }
                )
        )
    }

    /// What it may be in flight beside.
    pub fn manners(self) -> Manners {
        match self {
            Self::Read { .. }
            | Self::Write { .. }
            | Self::WriteCompressed { .. }
            | Self::WriteBlank { .. }
            | Self::WriteZeroes { .. }
            | Self::Discard { .. }
            | Self::Flush
            | Self::DropIdle => Manners::Free,
            Self::Grow { .. }
            | Self::Amend(_)
            | Self::Rename { .. }
            | Self::DataFile(_)
            | Self::Bitmap(_) => Manners::OneAtATime,
            Self::Snapshot(SnapshotOperation { change, .. }) => match change {
                SnapshotChange::Create | SnapshotChange::Delete => Manners::OneAtATime,
                SnapshotChange::Apply => Manners::Alone,
            },
            Self::Empty
            | Self::Shrink { .. }
            | Self::KeySlot(_)
            | Self::Chain(_)
            | Self::Reopen => Manners::Alone,
            Self::Kill => Manners::Abrupt,
        }
    }
}

/// What is done to which internal snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotOperation {
    /// Its number; no two of a workload are taken with the same.
    pub snapshot: u32,
    /// What is done.
    pub change: SnapshotChange,
}

/// What is done to an internal snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotChange {
    /// It is taken.
    Create,
    /// The disk is made what it was when it was taken.
    Apply,
    /// It is deleted.
    Delete,
}

/// What is done with the files that an image lies over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainOperation {
    /// What the image holds is committed into the file that it lies over.
    Commit {
        /// What becomes of the image.
        overlay: Overlay,
    },
    /// The image is moved over another file, without changing what it shows.
    Rebase {
        /// The file, or `None` for none.
        onto: Option<Disk>,
    },
    /// What the files between the image and another hold is copied into the image, which is moved over
    /// that one.
    Stream {
        /// The file, or `None` to copy everything.
        base: Option<Disk>,
    },
    /// The image's header names another file, and nothing is copied: the disk shows that file wherever the
    /// image holds nothing.
    Repoint {
        /// The file, or `None` for none.
        onto: Option<Disk>,
    },
}

/// The file that an image lies over, or `None` for none.
pub type Over = Option<Disk>;

impl ChainOperation {
    /// What the image lies over afterwards, where that is for the operation to say.
    pub fn moves_onto(self) -> Option<Over> {
        match self {
            Self::Commit { .. } => None,
            Self::Rebase { onto } | Self::Stream { base: onto } | Self::Repoint { onto } => {
                Some(onto)
            }
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
    /// The bits of a range are set in it, as those of a bitmap of another image are.
    Mark {
        /// The range of the guest's disk.
        range: Extent,
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
    /// When the image answered and what, or was killed; `None` if the power went out before.
    pub completed: Option<(Moment, Answer)>,
}

/// What the image answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The operation is done.
    Done,
    /// It failed, or the process was killed before it answered; it may have been carried out in part.
    Failed,
}
