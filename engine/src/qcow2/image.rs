//! An open qcow2 image.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use super::amend::CLEAN;
use super::bitmap::Change;
use super::compress::Compression;
use super::crypto::{Area, Crypto};
use super::discards::Discards;
use super::geometry::Geometry;
use super::metadata::Metadata;
use super::order::Order;
use crate::barrier::Barrier;
use crate::defect::{Defect, Planted};
use crate::device::Event;
use crate::error::Error;
use crate::image::{Access, Image, LocalFuture, Status, Unmap, must_contain};
use crate::manage::{Manage, Resizing};
use crate::probe::Probe;
use crate::sync::{Mode, Mutex, RangeGuard, RangeLock};
use crate::zeroes::DetectZeroes;

/// An open qcow2 image. Made by [`Qcow2::open`].
pub struct Qcow2 {
    pub(super) order: Rc<Order>,
    pub(super) metadata: Mutex<Metadata>,
    pub(super) claims: RangeLock,
    pub(super) backing: Option<Rc<dyn Image>>,
    pub(super) geometry: Geometry,
    pub(super) version: Cell<u32>,
    pub(super) compression: Compression,
    pub(super) crypto: Option<Crypto>,
    /// Where a LUKS header stands, where there is one.
    pub(super) key_area: Option<Area>,
    pub(super) access: Access,
    pub(super) virtual_bytes: Cell<u64>,
    /// The size that the disk is being grown to; 0 at other times.
    pub(super) growing_to: Cell<u64>,
    /// Whether the external data file is kept a raw image of the disk.
    pub(super) raw_data: Cell<bool>,
    pub(super) discards: Discards,
    pub(super) detect_zeroes: DetectZeroes,
    pub(super) planted: Planted,
    /// Whether guest writes set bits in a bitmap.
    pub(super) tracks: Cell<bool>,
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2")
            .field("version", &self.version.get())
            .field("geometry", &self.geometry)
            .field("virtual_bytes", &self.virtual_bytes)
            .finish_non_exhaustive()
    }
}

impl Qcow2 {
    /// The sizes of this image's structures, as they were when it was opened: since then an amendment
    /// may have changed the width of refcounts.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Claims the guest clusters of a range.
    pub(super) async fn claim(&self, offset: u64, len_bytes: u64, mode: Mode) -> RangeGuard<'_> {
        let bits = self.geometry.cluster_bits();
        let range = offset >> bits..self.geometry.clusters_for(offset + len_bytes);
        let mode = if self.planted.has(Defect::UnlockedUpdate) {
            Mode::Shared
        } else {
            mode
        };
        let claim = self.claims.lock(range, mode).await;
        if claim.has_waited() {
            self.order.note(Probe::ClaimWaited);
        }
        claim
    }

    /// Refuses a range that is not made of sectors of the guest's disk.
    pub(super) fn must_contain(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        must_contain(self.virtual_bytes.get(), offset, len_bytes)
    }

    async fn flush_all(&self) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            self.order.file().at(Event::FlushToOs).reach().await?;
            if !self.planted.has(Defect::FlushSkipsTables) {
                metadata.write_back_all().await?;
            }
        }
        self.order
            .barrier(Barrier::GuestFlush, self.order.latest())
            .await?;
        // The flush made unlinks durable: the space that they left can go back now. What fails is tried
        // again, and told, when a cluster is next needed.
        let mut metadata = self.metadata.lock().await;
        if metadata.may_reap() {
            self.order.note(Probe::FlushFreed);
        }
        let _ = metadata.reap().await;
        drop(metadata);
        if self.planted.has(Defect::FlushClearsDirty) {
            self.metadata.lock().await.clear_dirty().await?;
        }
        Ok(())
    }

    /// Rule 9. Every step may fail and be tried again; the dirty bit stays until all have succeeded.
    async fn close_down(&self) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        metadata.settle(CLEAN).await?;
        self.order
            .barrier(Barrier::AfterClean, self.order.latest())
            .await
    }
}

impl Image for Qcow2 {
    fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes.get()
    }

    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>> {
        Box::pin(self.read_range(offset, len_bytes))
    }

    fn status(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, Status> {
        Box::pin(self.status_of(offset, len_bytes))
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        Box::pin(self.write_range(offset, data))
    }

    fn write_held(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        Box::pin(self.write_held_range(offset, data))
    }

    fn write_compressed(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        Box::pin(async move { self.write_compressed_range(offset, &data).await })
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, unmap: Unmap) -> LocalFuture<'_, ()> {
        Box::pin(self.zero_range(offset, len_bytes, unmap))
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> LocalFuture<'_, ()> {
        Box::pin(self.discard_range(offset, len_bytes))
    }

    fn flush(&self) -> LocalFuture<'_, ()> {
        Box::pin(self.flush_all())
    }

    fn manage(&self, operation: Manage) -> LocalFuture<'_, ()> {
        // Where a flush or a change of the header failed, the file may say something else than memory: what changes
        // nothing here, and so would wait for no barrier, may be a change there.
        if let Err(error) = self.order.must_be_trusted() {
            return Box::pin(async { Err(error) });
        }
        match operation {
            Manage::Resize {
                virtual_bytes,
                resizing,
            } => match resizing {
                Resizing::Grow(mode) => Box::pin(self.grow_disk(virtual_bytes, mode)),
                Resizing::Shrink => Box::pin(self.shrink_disk(virtual_bytes)),
            },
            Manage::Amend(amend) => Box::pin(self.amend(amend)),
            Manage::SetBacking(backing) => Box::pin(self.set_backing(backing)),
            Manage::SetDataFile(change) => Box::pin(self.set_data_file(change)),
            Manage::MakeEmpty => Box::pin(self.make_empty()),
            Manage::SnapshotCreate(new) => Box::pin(self.create_snapshot(new)),
            Manage::SnapshotApply { snapshot } => {
                Box::pin(async move { self.apply_snapshot(&snapshot).await })
            }
            Manage::SnapshotDelete { snapshot } => {
                Box::pin(async move { self.delete_snapshot(&snapshot).await })
            }
            Manage::KeySlotFill { slot, new } => {
                Box::pin(async move { self.fill_key_slot(slot, &new).await })
            }
            Manage::KeySlotErase { slot, last } => Box::pin(self.erase_key_slot(slot, last)),
            Manage::BitmapCreate {
                name,
                granularity_bytes,
                state,
            } => Box::pin(self.change_bitmaps(Change::Create {
                name,
                granularity_bytes,
                state,
            })),
            Manage::BitmapRemove { name } => Box::pin(self.change_bitmaps(Change::Remove(name))),
            Manage::BitmapSetState { name, state } => {
                Box::pin(self.change_bitmaps(Change::SetState(name, state)))
            }
            Manage::BitmapClear { name } => Box::pin(self.change_bitmaps(Change::Clear(name))),
            Manage::BitmapMerge { target, sources } => {
                Box::pin(self.change_bitmaps(Change::Merge { target, sources }))
            }
            Manage::BitmapMark { name, ranges } => {
                let target = name;
                Box::pin(self.change_bitmaps(Change::Mark { target, ranges }))
            }
        }
    }

    fn drop_idle(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {
            self.metadata.lock().await.drop_idle();
            Ok(())
        })
    }

    fn close(&self) -> LocalFuture<'_, ()> {
        Box::pin(self.close_down())
    }
}
