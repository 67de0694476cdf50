//! What every open image can do for a guest, whatever its format.

use std::future::Future;
use std::pin::Pin;

use crate::device::SECTOR_BYTES;
use crate::error::{Error, Refused};
use crate::manage::Manage;

/// A boxed future that stays on its thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + 'a>>;

/// Whether an image may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is ever written, not even a repair.
    ReadOnly,
    /// The image may be written, and is repaired at open where its format promises that.
    ReadWrite,
}

/// Whether zeroing may give the space back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmap {
    /// The space is kept, so that a later write finds it.
    Keep,
    /// The space may be released.
    Allow,
}

/// What a stretch of the guest's disk is made of in one image, not counting what lies beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where the content comes from.
    pub kind: StatusKind,
    /// Where it stands in the file, byte by byte, or would once it is written: absent where no place is
    /// kept for it, or not in that form.
    pub host_offset: Option<u64>,
    /// How far this holds, in bytes; at least one, and not more than was asked about.
    pub len_bytes: u64,
}

/// Where the content of a stretch of the guest's disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatusKind {
    /// From the image's file, as it is.
    Data,
    /// From the image's file, compressed.
    Compressed,
    /// From nowhere: it reads as zeroes.
    Zero,
    /// From what lies beneath; it reads as zeroes where nothing does.
    Unallocated,
}

/// An open image. Requests may overlap: each future makes progress whenever it is polled.
///
/// Offsets and lengths are bytes and multiples of 512. A write is durable once a flush that was
/// started after the write's completion has completed.
pub trait Image {
    /// The size of the guest's disk.
    fn virtual_bytes(&self) -> u64;

    /// Reads `len_bytes` bytes.
    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>>;

    /// What the disk is made of from `offset` on, and how far that goes, up to `len_bytes`, which is
    /// not zero; neither needs to be a multiple of 512. An image that does not know says data.
    fn status(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, Status> {
        let _ = offset;
        Box::pin(std::future::ready(Ok(Status {
            kind: StatusKind::Data,
            host_offset: None,
            len_bytes,
        })))
    }

    /// Writes `data`.
    fn write(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()>;

    /// Writes `data` so that the image holds every byte of them, zeroes too, whatever it was told to do with
    /// writes of zeroes: for who is about to change what lies beneath.
    fn write_held(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        self.write(offset, data)
    }

    /// Writes `data` in compressed form, where the format has one: whole clusters of which nothing is
    /// stored so far, the last of the disk as far as it goes.
    fn write_compressed(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        let _ = (offset, data);
        Box::pin(std::future::ready(Err(Refused::NoCompression.into())))
    }

    /// Makes a range read as zeroes.
    fn write_zeroes(&self, offset: u64, len_bytes: u64, unmap: Unmap) -> LocalFuture<'_, ()>;

    /// Gives up the content of a range: afterwards each sector reads as before or as zeroes.
    fn discard(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, ()>;

    /// Makes durable every write that completed before this call.
    fn flush(&self) -> LocalFuture<'_, ()>;

    /// Carries out an operation on the image as a whole; refused where the format does not know it.
    fn manage(&self, operation: Manage) -> LocalFuture<'_, ()>;

    /// Takes out of memory what needs not be written and was not used since the last call. Who has a clock
    /// calls this now and then.
    fn drop_idle(&self) -> LocalFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Writes back everything, marks the image clean, and leaves it to nobody. The image takes no
    /// request afterwards.
    fn close(&self) -> LocalFuture<'_, ()>;
}

impl Access {
    /// Refuses to open for writing what can only be read.
    pub(crate) fn must_be_read_only(self) -> Result<(), Error> {
        match self {
            Self::ReadOnly => Ok(()),
            Self::ReadWrite => Err(Refused::Option(
                "a snapshot can only be read: open it read-only, or apply it".into(),
            )
            .into()),
        }
    }

    /// Refuses changes to an image that is open for reading.
    pub(crate) fn must_allow_writes(self) -> Result<(), Error> {
        match self {
            Self::ReadWrite => Ok(()),
            Self::ReadOnly => Err(Refused::ReadOnly.into()),
        }
    }
}

/// Refuses a range that reaches beyond a disk of `virtual_bytes`.
pub(crate) fn must_reach(virtual_bytes: u64, offset: u64, len_bytes: u64) -> Result<(), Error> {
    if offset
        .checked_add(len_bytes)
        .is_none_or(|end| end > virtual_bytes)
    {
        return Err(Refused::OutOfRange {
            offset,
            len_bytes,
            virtual_bytes,
        }
        .into());
    }
    Ok(())
}

/// Refuses a range that is not made of sectors of a disk of `virtual_bytes`.
pub(crate) fn must_contain(virtual_bytes: u64, offset: u64, len_bytes: u64) -> Result<(), Error> {
    if !offset.is_multiple_of(SECTOR_BYTES) || !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refused::Unaligned { offset, len_bytes }.into());
    }
    must_reach(virtual_bytes, offset, len_bytes)
}
