//! Making the guest's disk larger: a longer L1 table, then what the new part shows, then the size.

use super::bounds::MAX_L1_BYTES;
use super::discards::Source;
use super::entry::L1Word;
use super::free::Unlink;
use super::header::HeaderSector;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::unit::{GuestCluster, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{Error, Refused, Structure};
use crate::image::Unmap;
use crate::preallocation::Preallocation;
use crate::probe::Probe;
use crate::sync::Mode;

impl Qcow2 {
    /// Makes the guest's disk `virtual_bytes` large, and what is added take its place as the mode says.
    /// Before or after, whatever fails between.
    pub(super) async fn grow_disk(
        &self,
        virtual_bytes: u64,
        preallocation: Preallocation,
    ) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.may_preallocate(preallocation)?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let old_bytes = self.virtual_bytes.get();
        if virtual_bytes < old_bytes || !virtual_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refused::Option(format!(
                "size {virtual_bytes} must be a multiple of 512 and at least the present {old_bytes}"
            ))
            .into());
        }
        {
            let mut metadata = self.metadata.lock().await;
            metadata.before_resize().await?;
            let entries = self.geometry.l1_entries_for(virtual_bytes);
            if entries > byte_count(metadata.l1.len()) {
                metadata.grow_l1(entries).await?;
            }
        }
        let late = self.planted.has(Defect::PreallocatedLate);
        self.growing_to.set(virtual_bytes);
        let mut filled = self.fill_new_part(old_bytes, virtual_bytes).await;
        if filled.is_ok() && !late {
            filled = self
                .preallocate(old_bytes, virtual_bytes, preallocation)
                .await;
        }
        self.growing_to.set(0);
        filled?;
        self.switch_to_larger(old_bytes, virtual_bytes).await?;
        if late {
            self.preallocate(old_bytes, virtual_bytes, preallocation)
                .await?;
        }
        self.metadata.lock().await.store_bitmaps().await
    }

    /// Rule 10: writes the size when everything that it makes visible is durable.
    async fn switch_to_larger(&self, old_bytes: u64, virtual_bytes: u64) -> Result<(), Error> {
        let mut metadata = self.metadata.lock().await;
        metadata.write_back_all().await?;
        self.order
            .barrier(Barrier::BeforeSize, self.order.latest())
            .await?;
        let change = |sector0: &mut HeaderSector| sector0.set_virtual_bytes(virtual_bytes);
        let written = metadata.restate_sector0(Event::None, change).await?;
        metadata.virtual_bytes = virtual_bytes;
        // Something else may have stood there once.
        metadata.resize_bitmaps(old_bytes..virtual_bytes);
        self.virtual_bytes.set(virtual_bytes);
        self.order.barrier(Barrier::AfterSize, written).await
    }

    /// Makes what is added read as zeroes, in the data file too where there is one.
    async fn fill_new_part(&self, old_bytes: u64, virtual_bytes: u64) -> Result<(), Error> {
        if self.geometry.has_external_data() {
            self.grow_data_file(old_bytes, virtual_bytes).await?;
        }
        self.hide_leftovers(old_bytes, virtual_bytes).await?;
        self.hide_backing(old_bytes, virtual_bytes).await
    }

    /// Makes what is added read as zeroes where something is mapped already: in the cluster that the
    /// old end of the disk cuts, and in images that others made smaller, behind it.
    async fn hide_leftovers(&self, old_bytes: u64, virtual_bytes: u64) -> Result<(), Error> {
        let bits = self.geometry.cluster_bits();
        let end = GuestCluster(self.geometry.clusters_for(virtual_bytes));
        let mut from = GuestCluster(old_bytes >> bits);
        loop {
            let next = self.metadata.lock().await.next_content(from, end).await?;
            let Some(cluster) = next else {
                return Ok(());
            };
            from = GuestCluster(cluster.0 + 1);
            let start = old_bytes.max(cluster.0 << bits);
            let end = virtual_bytes.min(from.0 << bits);
            let shows = self.planted.has(Defect::ShrunkTailShows);
            if start < end && !shows {
                self.order.note(Probe::LeftoversHidden);
                self.zero_claimed(start, end - start, Unmap::Allow, virtual_bytes)
                    .await?;
            }
        }
    }

    /// Makes what is added read as zeroes where a longer backing file would show.
    async fn hide_backing(&self, old_bytes: u64, virtual_bytes: u64) -> Result<(), Error> {
        let backing_bytes = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.virtual_bytes());
        let end = backing_bytes.min(virtual_bytes);
        if end <= old_bytes || self.planted.has(Defect::GrowShowsBacking) {
            return Ok(());
        }
        self.order.note(Probe::BackingHidden);
        self.zero_claimed(old_bytes, end - old_bytes, Unmap::Allow, virtual_bytes)
            .await
    }
}

impl Metadata {
    /// Moves to an L1 table of `entries` entries, under rule 6.
    pub(super) async fn grow_l1(&mut self, entries: u64) -> Result<(), Error> {
        if entries * 8 > MAX_L1_BYTES {
            return Err(Refused::TableFull(Structure::L1Table).into());
        }
        self.before_link().await?;
        if self.dirty {
            self.order.note(Probe::L1GrewDirty);
        }
        self.order
            .file()
            .at(Event::L1GrowAllocTable)
            .reach()
            .await?;
        let clusters = self.geometry.clusters_for(entries * 8);
        let run = self.allocate_exactly(clusters).await?;
        let offset = self.geometry.offset_of(run.first);

        let mut l1 = self.l1.clone();
        l1.resize(mem_len(entries), L1Word(0));
        let mut bytes: Vec<u8> = l1.iter().flat_map(|word| word.0.to_be_bytes()).collect();
        bytes.resize(mem_len(clusters * self.geometry.cluster_bytes()), 0);
        let content = match self
            .order
            .write(Event::L1GrowWriteTable, offset, bytes)
            .await
        {
            Ok(content) => content,
            Err(error) => {
                // Nothing points to the new table; if even this fails, a leak is all that remains.
                let _ = self.free_now(Source::Other, run.first, run.count).await;
                return Err(error);
            }
        };
        let mut needs = content;
        if !self.dirty {
            self.write_refcounts().await?;
            needs = needs.max(self.refcounts_written);
        }
        let change = |sector0: &mut HeaderSector| sector0.set_l1(offset, entries);
        let (before, event) = (Barrier::BeforeL1Switch, Event::L1GrowActivateTable);
        let switched = self.switch(before, event, needs, change).await?;

        let old = self.geometry.cluster_of(self.l1_offset);
        let old_clusters = self.geometry.clusters_for(byte_count(self.l1.len()) * 8);
        self.owners
            .retain(|cluster, _| !(old.0..old.0 + old_clusters).contains(&cluster.0));
        self.own(offset, clusters, Structure::L1Table);
        self.l1 = l1;
        self.l1_offset = offset;
        self.free_after(Unlink::Written(switched), Source::Other, old, old_clusters);
        Ok(())
    }
}
