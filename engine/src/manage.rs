//! What a manager asks of an image: everything that is not a guest's read, write, zeroing, discard or
//! flush.
//!
//! One closed vocabulary for all formats, held as data so that traces and reports can name an operation.
//! Each is atomic: after a failure or a power loss the image is as before or as after, never between;
//! and durable once it has succeeded.

use std::ops::Range;

use crate::luks::NewSlot;
use crate::preallocation::Preallocation;

/// A snapshot that is to be taken. The engine has no clock: dates and times are the caller's.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewSnapshot {
    /// The name; others may have the same.
    pub name: String,
    /// When it is taken, in seconds of the Unix epoch.
    pub date_seconds: u32,
    /// The nanoseconds of that.
    pub date_nanoseconds: u32,
    /// How long the virtual machine has run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// How much of the VM state that was written belongs to it, in bytes.
    pub vm_state_bytes: u64,
    /// The instruction count of record and replay, where there is one.
    pub icount: Option<u64>,
}

/// An operation on an image as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manage {
    /// Changes the size of the guest's disk.
    Resize {
        /// The new size in bytes, a multiple of 512.
        virtual_bytes: u64,
        /// In which direction, and what that means for the guest's data.
        resizing: Resizing,
    },
    /// Changes what the image says of itself.
    Amend(Amend),
    /// Changes the name and format of the backing file, or removes it, and nothing else: what the guest
    /// sees then depends on what the new backing file holds.
    SetBacking(Option<BackingName>),
    /// Changes what the image says of its external data file, and nothing else.
    SetDataFile(DataFileChange),
    /// Gives up everything that the image holds: afterwards it shows its backing file, or zeroes.
    MakeEmpty,
    /// Takes an internal snapshot of the guest's disk.
    SnapshotCreate(NewSnapshot),
    /// Makes the guest's disk what it was when a snapshot was taken, its size included.
    SnapshotApply {
        /// The snapshot's id, or else its name.
        snapshot: String,
    },
    /// Deletes a snapshot.
    SnapshotDelete {
        /// The snapshot's id, or else its name.
        snapshot: String,
    },
    /// Puts the key of an image that is encrypted with LUKS under one more secret.
    KeySlotFill {
        /// The slot, from 0 to 7, which is inactive.
        slot: usize,
        /// What it is to hold.
        new: NewSlot,
    },
    /// Makes a key slot inactive and wipes what it held, so that its secret opens the image no longer. What an
    /// inactive slot has left is wiped too.
    KeySlotErase {
        /// The slot, from 0 to 7.
        slot: usize,
        /// What becomes of the only active slot.
        last: LastSlot,
    },
    /// Makes a new persistent dirty bitmap, without a bit set.
    BitmapCreate {
        /// Its name: 1 to 1023 bytes, of which there is none yet.
        name: String,
        /// How many bytes of the disk a bit stands for: a power of two from 512 to 2 GiB.
        granularity_bytes: u64,
        /// Whether guest writes set bits from now on.
        state: BitmapState,
    },
    /// Removes a bitmap, whatever its state.
    BitmapRemove {
        /// Its name.
        name: String,
    },
    /// Enables or disables a bitmap.
    BitmapSetState {
        /// Its name.
        name: String,
        /// Whether guest writes set bits from now on.
        state: BitmapState,
    },
    /// Clears every bit of a bitmap.
    BitmapClear {
        /// Its name.
        name: String,
    },
    /// Sets in one bitmap every bit that others have set.
    BitmapMerge {
        /// The bitmap that changes.
        target: String,
        /// The others.
        sources: Vec<String>,
    },
    /// Sets the bits of ranges of the disk in a bitmap: what a bitmap of another image of it says.
    BitmapMark {
        /// Its name.
        name: String,
        /// In bytes, none of them beyond the end of the disk.
        ranges: Vec<Range<u64>>,
    },
}

/// Whether the only active key slot may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LastSlot {
    /// It is refused: nobody could read the data any more.
    Keep,
    /// It goes, and the data with it.
    Destroy,
}

impl Manage {
    /// Makes the guest's disk larger, or leaves it as large as it is. What is added takes no space.
    pub fn grow(virtual_bytes: u64) -> Self {
        Self::Resize {
            virtual_bytes,
            resizing: Resizing::default(),
        }
    }

    /// Makes the guest's disk smaller, with consent to lose what lies beyond its new end.
    pub fn shrink(virtual_bytes: u64) -> Self {
        Self::Resize {
            virtual_bytes,
            resizing: Resizing::Shrink,
        }
    }
}

/// What a change of size may do. A size in the other direction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resizing {
    /// Add to the disk. What is added reads zero, and has its place as far as the mode says.
    Grow(Preallocation),
    /// Give up what lies beyond the new end, for ever: should the disk grow again, zeroes stand there.
    Shrink,
}

impl Default for Resizing {
    /// Growing, without preallocation.
    fn default() -> Self {
        Self::Grow(Preallocation::Off)
    }
}

/// Changes of what an image says of itself. They are made one after the other, each of them atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amend {
    /// The version of the format.
    pub version: Option<u32>,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// Binary logarithm of the refcount width in bits.
    pub refcount_order: Option<u32>,
}

/// A change of what an image says of its external data file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataFileChange {
    /// Another name for it; an empty one leaves it to whoever opens the image. What it holds is for the caller to see to: an open image goes on with the file
    /// that it was opened with.
    pub name: Option<String>,
    /// What becomes of the promise that it is, by itself, a raw image of the disk.
    pub raw: RawPromise,
}

/// What becomes of the promise that an external data file is a raw image of the disk. It can be given only
/// to a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RawPromise {
    /// It stays as it is.
    Keep,
    /// It is no longer given.
    Withdraw,
}

/// A backing file as an image records it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackingName {
    /// Its name, not empty.
    pub name: String,
    /// The name of its format; without it a reader would have to guess.
    pub format: Option<String>,
}

/// Whether guest writes set the bits of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BitmapState {
    /// They do.
    Enabled,
    /// They do not.
    Disabled,
}
