//! Raw images: the bytes of the file are those of the guest's disk.
//!
//! Nothing stands between the guest and the device, so that every promise of an image is the device's
//! own. A file that does not end at a sector is taken to be padded with zeroes.

use std::cell::Cell;
use std::future::ready;

use crate::device::{Event, ExtentKind, Port, SECTOR_BYTES, Unmapped};
use crate::error::{Error, KeySlotProblem, Refused};
use crate::image::{
    Access, Image, LocalFuture, Status, StatusKind, Unmap, must_contain, must_reach,
};
use crate::manage::{Manage, Resizing};
use crate::preallocation::{Preallocation, occupy};

/// A file that gets its first bytes has them in a block of its own, as QEMU leaves it: who probes which
/// alignment a file wants of direct requests learns nothing from a hole.
const FIRST_BLOCK: usize = 4096;

/// An open raw image.
#[derive(Debug)]
pub struct Raw {
    file: Port,
    access: Access,
    virtual_bytes: Cell<u64>,
}

impl Raw {
    /// Takes the content of `file` for a disk.
    pub fn open(file: Port, access: Access) -> Self {
        Self {
            virtual_bytes: Cell::new(file.len().next_multiple_of(SECTOR_BYTES)),
            file,
            access,
        }
    }

    fn must_contain(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        must_contain(self.virtual_bytes.get(), offset, len_bytes)
    }

    async fn make_durable(&self) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        Ok(self.file.at(Event::FlushToDisk).flush().await?)
    }

    async fn grow(&self, virtual_bytes: u64, mode: Preallocation) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let now = self.virtual_bytes.get();
        if virtual_bytes < now || !virtual_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refused::Option(format!(
                "disk size {virtual_bytes} is not a multiple of 512 from {now} on"
            ))
            .into());
        }
        lengthen(&self.file, virtual_bytes, mode).await?;
        self.make_durable().await?;
        self.virtual_bytes.set(virtual_bytes);
        Ok(())
    }

    async fn shrink(&self, virtual_bytes: u64) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let now = self.virtual_bytes.get();
        if virtual_bytes > now || !virtual_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refused::Option(format!(
                "disk size {virtual_bytes} is not a multiple of 512 up to {now}"
            ))
            .into());
        }
        self.file.at(Event::None).set_len(virtual_bytes).await?;
        self.virtual_bytes.set(virtual_bytes);
        self.make_durable().await
    }
}

/// Makes `file` a raw image of `virtual_bytes` zero bytes. What the file held before is cut off.
pub async fn create(file: &Port, virtual_bytes: u64, mode: Preallocation) -> Result<(), Error> {
    must_suit(mode)?;
    file.at(Event::None).set_len(0).await?;
    lengthen(file, virtual_bytes, mode).await?;
    Ok(file.at(Event::FlushToDisk).flush().await?)
}

/// Makes a file `len_bytes` long. What is added reads as zeroes, and takes its space as the mode says.
pub async fn lengthen(file: &Port, len_bytes: u64, mode: Preallocation) -> Result<(), Error> {
    must_suit(mode)?;
    let old_bytes = file.len();
    file.at(Event::None).set_len(len_bytes).await?;
    let added = len_bytes.saturating_sub(old_bytes);
    occupy(file, old_bytes, added, mode).await?;
    if old_bytes == 0 && added > 0 && mode != Preallocation::Full {
        let len = usize::try_from(added).map_or(FIRST_BLOCK, |added| added.min(FIRST_BLOCK));
        file.at(Event::WriteAio).write(0, vec![0; len]).await?;
    }
    Ok(())
}

fn must_suit(mode: Preallocation) -> Result<(), Error> {
    match mode {
        Preallocation::Metadata => {
            let text = "a raw image has no metadata to preallocate: use off, falloc or full";
            Err(Refused::Option(text.into()).into())
        }
        Preallocation::Off | Preallocation::Falloc | Preallocation::Full => Ok(()),
    }
}

impl Image for Raw {
    fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes.get()
    }

    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>> {
        Box::pin(async move {
            self.must_contain(offset, to_u64(len_bytes))?;
            Ok(self.file.at(Event::ReadAio).read(offset, len_bytes).await?)
        })
    }

    fn status(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, Status> {
        Box::pin(async move {
            must_reach(self.virtual_bytes.get(), offset, len_bytes)?;
            let extent = self.file.extent(offset);
            Ok(Status {
                kind: match extent.kind {
                    ExtentKind::Data => StatusKind::Data,
                    ExtentKind::Hole => StatusKind::Zero,
                },
                host_offset: Some(offset),
                len_bytes: extent.len_bytes.min(len_bytes),
            })
        })
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            self.access.must_allow_writes()?;
            self.must_contain(offset, to_u64(data.len()))?;
            Ok(self.file.at(Event::WriteAio).write(offset, data).await?)
        })
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, unmap: Unmap) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            self.access.must_allow_writes()?;
            self.must_contain(offset, len_bytes)?;
            // Nothing but old bytes or zeroes may show, a power loss included.
            let gives_zeroes = self.file.limits().unmapped == Unmapped::Zeroes;
            let unmap = unmap == Unmap::Allow && gives_zeroes;
            let at = self.file.at(Event::PwritevZero);
            Ok(at.write_zeroes(offset, len_bytes, unmap).await?)
        })
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, ()> {
        // A discarded range may hold anything; a guest is promised old bytes or zeroes.
        self.write_zeroes(offset, len_bytes, Unmap::Allow)
    }

    fn flush(&self) -> LocalFuture<'_, ()> {
        Box::pin(self.make_durable())
    }

    fn manage(&self, operation: Manage) -> LocalFuture<'_, ()> {
        match operation {
            Manage::Resize {
                virtual_bytes,
                resizing,
            } => match resizing {
                Resizing::Grow(mode) => Box::pin(self.grow(virtual_bytes, mode)),
                Resizing::Shrink => Box::pin(self.shrink(virtual_bytes)),
            },
            Manage::Amend(_)
            | Manage::SetBacking(_)
            | Manage::SetDataFile(_)
            | Manage::MakeEmpty => {
                let text = "a raw image has no header to change and nothing to give up";
                Box::pin(async { Err(Refused::Option(text.into()).into()) })
            }
            Manage::SnapshotCreate(_)
            | Manage::SnapshotApply { .. }
            | Manage::SnapshotDelete { .. } => {
                let refused = Refused::NotByFormat("a raw image has no internal snapshots");
                Box::pin(ready(Err(refused.into())))
            }
            Manage::KeySlotFill { .. } | Manage::KeySlotErase { .. } => {
                let problem = KeySlotProblem::NoSlots;
                Box::pin(ready(Err(Refused::KeySlot(problem).into())))
            }
            Manage::BitmapCreate { .. }
            | Manage::BitmapRemove { .. }
            | Manage::BitmapSetState { .. }
            | Manage::BitmapClear { .. }
            | Manage::BitmapMerge { .. }
            | Manage::BitmapMark { .. } => {
                let text = "a raw image has no bitmaps".into();
                Box::pin(ready(Err(Refused::Bitmap(text).into())))
            }
        }
    }

    fn close(&self) -> LocalFuture<'_, ()> {
        self.flush()
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}
