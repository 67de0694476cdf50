//! What a device is asked to do.

use super::Event;

/// One request: what to do, and on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The point in the format's code that makes this request.
    pub event: Event,
    /// What is asked.
    pub op: Op,
}

/// The closed vocabulary of requests. Offsets and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read `len_bytes` bytes; answered with [`super::Reply::Data`] of exactly that length.
    Read {
        /// Where to start.
        offset: u64,
        /// How much to read.
        len_bytes: usize,
    },
    /// Write `data`. With `fua` it is durable when it completes; without, after a flush.
    Write {
        /// Where to start.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
        /// Forced unit access: durable at its own completion, and no promise about other requests.
        fua: bool,
    },
    /// Make a range read as zeroes. With `unmap` the space may be given back.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How much to zero.
        len_bytes: u64,
        /// Whether the device may release the space.
        unmap: bool,
    },
    /// Tell the device that the content of a range is no longer needed. Until a later flush
    /// completes, each sector of it may read as before, as zeroes, or as garbage.
    Discard {
        /// Where to start.
        offset: u64,
        /// How much is not needed.
        len_bytes: u64,
    },
    /// Make every write that completed before this submission durable.
    Flush,
    /// Set the length of the device; what is cut off is lost, what is added reads zero.
    SetLen {
        /// The new length.
        len_bytes: u64,
    },
}

/// A stretch of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it is.
    pub kind: ExtentKind,
    /// How long it is, in bytes; at least one.
    pub len_bytes: u64,
}

/// What a stretch of a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// It may hold anything.
    Data,
    /// Nothing was written there, and it reads as zeroes.
    Hole,
}

impl Extent {
    /// What is known of a device of `device_bytes` bytes without looking at it.
    pub fn in_device_of(device_bytes: u64, offset: u64) -> Self {
        match device_bytes.checked_sub(offset) {
            None | Some(0) => Self {
                kind: ExtentKind::Hole,
                len_bytes: u64::MAX - offset,
            },
            Some(len_bytes) => Self {
                kind: ExtentKind::Data,
                len_bytes,
            },
        }
    }
}

/// The kind of an operation, without its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// [`Op::Read`]
    Read,
    /// [`Op::Write`]
    Write,
    /// [`Op::WriteZeroes`]
    WriteZeroes,
    /// [`Op::Discard`]
    Discard,
    /// [`Op::Flush`]
    Flush,
    /// [`Op::SetLen`]
    SetLen,
}

impl OpKind {
    /// Every kind, in declaration order.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::SetLen,
    ];

    /// The name used in traces, rules and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::SetLen => "set-len",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Op {
    /// The kind of this operation.
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
            Self::Discard { .. } => OpKind::Discard,
            Self::Flush => OpKind::Flush,
            Self::SetLen { .. } => OpKind::SetLen,
        }
    }

    /// Offset and length in bytes of the range that the operation touches; `(0, 0)` for a flush,
    /// `(len, 0)` for a change of length.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, len_bytes } => (*offset, to_u64(*len_bytes)),
            Self::Write { offset, data, .. } => (*offset, to_u64(data.len())),
            Self::WriteZeroes {
                offset, len_bytes, ..
            }
            | Self::Discard { offset, len_bytes } => (*offset, *len_bytes),
            Self::Flush => (0, 0),
            Self::SetLen { len_bytes } => (*len_bytes, 0),
        }
    }
}

/// What requests must look like to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths of writes are multiples of this; a power of two, in bytes.
    pub align_bytes: u64,
    /// The longest read or write, in bytes.
    pub max_transfer_bytes: u64,
    /// What a range reads as that was unmapped by a write of zeroes and not flushed since.
    pub unmapped: Unmapped,
}

/// What an unmapped range reads as before the next flush, a power loss included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Each sector as before, or zeroes: a hole in a file is there or is not.
    Zeroes,
    /// Anything.
    Anything,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            align_bytes: super::SECTOR_BYTES,
            max_transfer_bytes: 1 << 31,
            unmapped: Unmapped::Anything,
        }
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}
