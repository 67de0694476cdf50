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

/// An open image. Requests may overlap: each future makes progress whenever it is polled.
///
/// Offsets and lengths are bytes and multiples of 512. A write is durable once a flush that was
/// started after the write's completion has completed.
pub trait Image {
    /// The size of the guest's disk.
    fn virtual_bytes(&self) -> u64;

    /// Reads `len_bytes` bytes.
    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>>;

    /// Writes `data`.
    fn write(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()>;

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

    /// Writes back everything, marks the image clean, and leaves it to nobody. The image takes no
    /// request afterwards.
    fn close(&self) -> LocalFuture<'_, ()>;
}

impl Access {
    /// Refuses changes to an image that is open for reading.
    pub(crate) fn must_allow_writes(self) -> Result<(), Error> {
        match self {
            Self::ReadWrite => Ok(()),
            Self::ReadOnly => Err(Refused::ReadOnly.into()),
        }
    }
}

/// Refuses a range that is not made of sectors of a disk of `virtual_bytes`.
pub(crate) fn must_contain(virtual_bytes: u64, offset: u64, len_bytes: u64) -> Result<(), Error> {
    if !offset.is_multiple_of(SECTOR_BYTES) || !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refused::Unaligned { offset, len_bytes }.into());
    }
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
