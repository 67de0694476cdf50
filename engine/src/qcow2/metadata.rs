//! The tables of an open image, and how they are loaded and written back.
//!
//! One [`Metadata`] stands behind a fair lock; whoever holds it may rely on what the tables say until
//! the lock is given up. Guest data never move under it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::bitmap::Bitmaps;
use super::cache::Cache;
use super::discards::Discards;
use super::entry::{L1Word, ReftableWord};
use super::free::Deferred;
use super::geometry::Geometry;
use super::header::{HeaderSector, incompatible};
use super::order::{Order, Stamp};
use super::overlap::OverlapChecks;
use super::snapshot::Snapshots;
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::defect::{Defect, Planted};
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{BadImage, Error, Refused, Structure};
use crate::image::Access;
use crate::probe::Probe;

/// How refcounts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refcounting {
    /// Durable before anything relies on them.
    Strict,
    /// Postponed under the dirty bit.
    Lazy,
}

/// The tables of an open image.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) order: Rc<Order>,
    pub(super) planted: Planted,
    pub(super) geometry: Geometry,
    pub(super) version: u32,
    pub(super) refcounting: Refcounting,
    pub(super) sector0: HeaderSector,
    /// A write of other numbers into sector 0 failed: the file may say those.
    pub(super) sector0_in_doubt: bool,
    /// The incompatible features that the file may name: those that a failed write left in doubt too.
    pub(super) incompatible: u64,
    /// Whether the dirty bit durably stands in the file.
    pub(super) dirty: bool,
    /// The image was found corrupt: it takes no more changes.
    pub(super) corrupt: bool,
    pub(super) virtual_bytes: u64,
    pub(super) l1_offset: HostOffset,
    pub(super) l1: Vec<L1Word>,
    /// Entries of an L1 table whose sectors were last written in vain: the file may say what they were to be. What has moved
    /// to another table since is among them still, and written once more for nothing.
    pub(super) l1_in_doubt: BTreeSet<usize>,
    pub(super) reftable_offset: HostOffset,
    pub(super) reftable: Vec<ReftableWord>,
    pub(super) l2: Cache,
    pub(super) refcounts: Cache,
    /// The youngest write of a refcount slice.
    pub(super) refcounts_written: Stamp,
    /// What each cluster of metadata holds.
    pub(super) owners: BTreeMap<HostCluster, Structure>,
    pub(super) bitmaps: Bitmaps,
    pub(super) deferred: Deferred,
    pub(super) discards: Discards,
    pub(super) overlap_checks: OverlapChecks,
    pub(super) snapshots: Snapshots,
    /// The clusters of the L2 tables that snapshots name, once somebody asked.
    pub(super) inactive_tables: Option<BTreeSet<HostCluster>>,
    /// The clusters of the L2 tables that the L1 table names, once somebody asked; to be forgotten where it comes to name
    /// others.
    pub(super) active_tables: Option<BTreeSet<HostCluster>>,
    /// No cluster below this one is free.
    pub(super) free_hint: u64,
    /// Clusters from here on were never written: they read as zeroes.
    pub(super) fresh_from: u64,
    /// The refcount table in the file may name new blocks before this cluster that the one in memory does not: a write of
    /// it failed. Nothing but these blocks can come to stand there.
    pub(super) doubtful_end: u64,
    /// Where the next compressed bytes go: within a cluster that holds some, or nowhere yet.
    pub(super) packing: Option<HostOffset>,
}

impl Metadata {
    /// Makes sure that the L2 slice at `offset` is in the cache.
    pub(super) async fn load_l2(&mut self, offset: HostOffset) -> Result<(), Error> {
        if self.l2.contains(offset) {
            return Ok(());
        }
        if let Some(victim) = self.l2.victim() {
            if self.l2.is_dirty(victim) {
                self.order.note(Probe::EvictedTable);
                let needs = self.l2.slice(victim).needs;
                if !self.order.is_durable(needs) {
                    self.order.note(Probe::EvictedEarly);
                }
                self.write_back(&[victim]).await?;
            }
            self.l2.forget(victim, 1);
        }
        let len = mem_len(self.l2.slice_bytes());
        let bytes = self
            .order
            .file()
            .at(Event::L2Load)
            .read(offset.0, len)
            .await?;
        self.l2.insert(offset, bytes);
        Ok(())
    }

    /// Makes sure that the refcount slice at `offset` is in the cache.
    pub(super) async fn load_refcounts(&mut self, offset: HostOffset) -> Result<(), Error> {
        if self.refcounts.contains(offset) {
            return Ok(());
        }
        if let Some(victim) = self.refcounts.victim() {
            if self.refcounts.is_dirty(victim) {
                self.order.note(Probe::EvictedCounts);
                self.write_refcount_slice(victim).await?;
            }
            self.refcounts.forget(victim, 1);
        }
        let len = mem_len(self.refcounts.slice_bytes());
        let bytes = self
            .order
            .file()
            .at(Event::RefblockLoad)
            .read(offset.0, len)
            .await?;
        self.refcounts.insert(offset, bytes);
        Ok(())
    }

    /// Writes back every dirty L2 slice, under rule 1.
    pub(super) async fn write_back_all(&mut self) -> Result<(), Error> {
        let dirty = self.l2.dirty();
        self.write_back(&dirty).await
    }

    /// Writes back these L2 slices, under rule 1.
    async fn write_back(&mut self, slices: &[HostOffset]) -> Result<(), Error> {
        if slices.is_empty() {
            return Ok(());
        }
        let mut needs = Stamp::default();
        for slice in slices {
            needs = needs.max(self.l2.slice(*slice).needs);
        }
        let swapped = self.planted.has(Defect::LinkBeforeRefcounts);
        if !self.dirty && !swapped {
            self.write_refcounts().await?;
            needs = needs.max(self.refcounts_written);
        }
        self.order.barrier(Barrier::BeforeLink, needs).await?;
        for offset in slices {
            let bytes = self.l2.slice(*offset).bytes.clone();
            let written = self.order.write(Event::L2Update, *offset, bytes).await;
            let too_early = self.planted.has(Defect::CleanAfterFailedWrite);
            let slice = self.l2.slice(*offset);
            slice.dirty &= written.is_err() && !too_early;
            let stamp = written?;
            slice.needs = Stamp::default();
            self.unlinked_by_slice(*offset, stamp);
        }
        if !self.dirty && swapped {
            self.write_refcounts().await?;
        }
        if self.planted.has(Defect::DirtyTooLate) && self.dirty {
            self.set_incompatible(Barrier::DirtyBit, self.incompatible | incompatible::DIRTY)
                .await?;
        }
        Ok(())
    }

    /// Writes every dirty refcount slice. Rule 3 sees to it that none needs to wait for anything.
    pub(super) async fn write_refcounts(&mut self) -> Result<(), Error> {
        for offset in self.refcounts.dirty() {
            self.write_refcount_slice(offset).await?;
        }
        Ok(())
    }

    async fn write_refcount_slice(&mut self, offset: HostOffset) -> Result<(), Error> {
        let bytes = self.refcounts.slice(offset).bytes.clone();
        let stamp = self
            .order
            .write(Event::RefblockUpdatePart, offset, bytes)
            .await?;
        self.refcounts.slice(offset).dirty = false;
        self.refcounts_written = stamp;
        Ok(())
    }

    /// Rule 8: before a link that does without durable refcounts.
    pub(super) async fn before_link(&mut self) -> Result<(), Error> {
        if self.refcounting == Refcounting::Strict || self.dirty {
            return Ok(());
        }
        if !self.planted.has(Defect::DirtyTooLate) {
            self.set_incompatible(Barrier::DirtyBit, self.incompatible | incompatible::DIRTY)
                .await?;
        }
        self.dirty = true;
        Ok(())
    }

    /// Rule 9: clears the dirty bit. The caller has made everything else durable.
    pub(super) async fn clear_dirty(&mut self) -> Result<(), Error> {
        // Should the write fail, the file may say either: only the weaker may be relied on.
        self.dirty = false;
        if self.incompatible & incompatible::DIRTY == 0 {
            return Ok(());
        }
        let bits = self.incompatible & !incompatible::DIRTY;
        // An image that stays dirty is repaired for nothing, and that is all: no barrier.
        let change = |sector0: &mut HeaderSector| sector0.set_incompatible(bits);
        self.restate_sector0(Event::None, change).await?;
        self.incompatible = bits;
        Ok(())
    }

    /// Sets the bits of features that writers who do not know them must clear. Durable on return, as
    /// `barrier` demands.
    pub(super) async fn set_autoclear(&mut self, barrier: Barrier, bits: u64) -> Result<(), Error> {
        let change = |sector0: &mut HeaderSector| sector0.set_autoclear(bits);
        let written = self.restate_sector0(Event::None, change).await?;
        self.order.barrier(barrier, written).await
    }

    async fn set_incompatible(&mut self, barrier: Barrier, bits: u64) -> Result<(), Error> {
        // Sector 0 in the file may be another by now, of another version even; and what looks corrupt may be what a device
        // lost whose flush failed.
        self.order.must_be_trusted()?;
        let mut sector0 = self.sector0.clone();
        sector0.set_incompatible(bits);
        self.incompatible |= bits;
        self.order
            .write_through(barrier, Event::None, HostOffset(0), sector0.bytes())
            .await?;
        self.sector0 = sector0;
        self.sector0_in_doubt = false;
        self.incompatible = bits;
        Ok(())
    }

    /// Rule 6: points the header at a new table that `content` made complete. In memory nothing
    /// changes unless the switch succeeded.
    pub(super) async fn switch(
        &mut self,
        before: Barrier,
        event: Event,
        content: Stamp,
        change: impl FnOnce(&mut HeaderSector),
    ) -> Result<Stamp, Error> {
        self.order.barrier(before, content).await?;
        self.change_sector0(event, change).await
    }

    /// Changes what sector 0 points to where nothing has to be durable before. In memory nothing changes
    /// unless it succeeded.
    pub(super) async fn change_sector0(
        &mut self,
        event: Event,
        change: impl FnOnce(&mut HeaderSector),
    ) -> Result<Stamp, Error> {
        let changed = self.restate_sector0(event, change).await;
        if changed.is_err() {
            // The file may point to either table: whatever is written to one may be lost.
            self.order.distrust();
        }
        changed
    }

    /// Changes numbers in sector 0 of which either value may be relied on until it succeeded.
    pub(super) async fn restate_sector0(
        &mut self,
        event: Event,
        change: impl FnOnce(&mut HeaderSector),
    ) -> Result<Stamp, Error> {
        let mut sector0 = self.sector0.clone();
        change(&mut sector0);
        let bytes = sector0.bytes();
        self.sector0_in_doubt = true;
        let stamp = self.order.write(event, HostOffset(0), bytes).await?;
        self.sector0_in_doubt = false;
        self.sector0 = sector0;
        Ok(stamp)
    }

    /// Makes the file say what memory says of sector 0, and durably, for whoever relies on it saying nothing else.
    pub(super) async fn settle_sector0(&mut self, barrier: Barrier) -> Result<(), Error> {
        if !self.sector0_in_doubt {
            return Ok(());
        }
        let written = self.restate_sector0(Event::None, |_| {}).await?;
        self.order.barrier(barrier, written).await
    }

    /// Writes the sector of the L1 table that holds entry `index`.
    pub(super) async fn write_l1_sector(&mut self, index: usize) -> Result<Stamp, Error> {
        let (at, bytes) = sector_of(index, |index| self.l1.get(index).map(|word| word.0));
        let offset = HostOffset(self.l1_offset.0 + at);
        let first = mem_len(at) / 8;
        self.l1_in_doubt.insert(first);
        let written = self.order.write(Event::L1Update, offset, bytes).await?;
        self.l1_in_doubt.remove(&first);
        Ok(written)
    }

    /// Writes the sector of the refcount table that holds entry `index`.
    pub(super) async fn write_reftable_sector(&self, index: usize) -> Result<Stamp, Error> {
        let (at, bytes) = sector_of(index, |index| self.reftable.get(index).map(|word| word.0));
        let offset = HostOffset(self.reftable_offset.0 + at);
        self.order
            .write(Event::RefblockAllocHookup, offset, bytes)
            .await
    }

    /// The same for a write of guest data, which an external data file holds apart from all metadata.
    pub(super) async fn guard_data(
        &mut self,
        offset: HostOffset,
        len_bytes: u64,
    ) -> Result<(), Error> {
        if self.geometry.has_external_data() {
            return Ok(());
        }
        self.guard(offset, len_bytes).await
    }

    /// Marks the image corrupt and hands the reason back as an error.
    pub(super) async fn found_corrupt(&mut self, reason: BadImage) -> Error {
        self.corrupt = true;
        if self.version >= 3 {
            // The reason matters more than whether it could be written down.
            let _ = self
                .set_incompatible(
                    Barrier::CorruptMark,
                    self.incompatible | incompatible::CORRUPT,
                )
                .await;
        }
        reason.into()
    }

    /// Takes out of the caches what needs not be written and was not used since the last call.
    pub(super) fn drop_idle(&mut self) {
        if self.planted.has(Defect::CleaningDropsDirty) {
            self.l2.forget(HostOffset(0), u64::MAX);
            self.refcounts.forget(HostOffset(0), u64::MAX);
        }
        self.l2.drop_idle();
        self.refcounts.drop_idle();
    }

    /// Refuses everything on an image that was found corrupt while it was open for writing: what it
    /// shows may be somebody else's by now. One that was marked before is still good to read.
    pub(super) fn must_be_usable(&self, access: Access) -> Result<(), Error> {
        match access {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => self.must_be_sound(),
        }
    }

    /// Refuses changes to an image that was found corrupt.
    pub(super) fn must_be_sound(&self) -> Result<(), Error> {
        if self.corrupt {
            Err(Refused::FoundCorrupt.into())
        } else {
            Ok(())
        }
    }

    /// Before the size of the disk changes: refuses what cannot take that, and sees to it that no snapshot
    /// and no bitmap in the file means the old size without saying so.
    pub(super) async fn before_resize(&mut self) -> Result<(), Error> {
        self.must_be_sound()?;
        if self.version < 3 && !self.snapshots.records.is_empty() {
            return Err(Refused::ResizeWithSnapshots.into());
        }
        self.snapshots_before_resize().await?;
        self.bitmaps_before_resize().await
    }

    /// Records what the clusters from `offset` on hold.
    pub(super) fn own(&mut self, offset: HostOffset, clusters: u64, owner: Structure) {
        let first = self.geometry.cluster_of(offset).0;
        for cluster in first..first + clusters {
            self.owners.insert(HostCluster(cluster), owner);
        }
    }
}

/// The sector of a table of words that holds entry `index`: its offset in the table, and its bytes.
/// What lies behind the table's end is zero.
fn sector_of(index: usize, word: impl Fn(usize) -> Option<u64>) -> (u64, Vec<u8>) {
    let per_sector = mem_len(SECTOR_BYTES) / 8;
    let first = index / per_sector * per_sector;
    let bytes = (first..first + per_sector)
        .flat_map(|index| word(index).unwrap_or(0).to_be_bytes())
        .collect();
    (byte_count(first) * 8, bytes)
}
