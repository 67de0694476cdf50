//! Making the guest's disk smaller: first the size, then what lay beyond it goes.
//!
//! Rules 30 and 31. Sector 0 switches to the smaller size and to fewer entries of the same L1 table; what
//! these entries led to is freed when that is durable. A power loss before the switch leaves the old disk
//! whole, one behind it a smaller disk with leaks, or with mappings behind its end that nothing shows.
//! At last the file is cut behind the last cluster in use. A place that is lost with that is given up, not
//! owed: a device that does not shorten the file loses nothing.

use super::discards::Source;
use super::entry::{L1Word, Mapping, ReftableWord};
use super::header::HeaderSector;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::refblock;
use super::unit::{GuestCluster, HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{BadImage, Error, Refused, Structure};
use crate::probe::Probe;
use crate::sync::Mode;

impl Qcow2 {
    /// Makes the guest's disk `virtual_bytes` large, and gives up what lies beyond. Before or after, whatever
    /// fails between.
    pub(super) async fn shrink_disk(&self, virtual_bytes: u64) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let old_bytes = self.virtual_bytes.get();
        if virtual_bytes > old_bytes || !virtual_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refused::Option(format!(
                "size {virtual_bytes} must be a multiple of 512 and at most the present {old_bytes}"
            ))
            .into());
        }
        let mut metadata = self.metadata.lock().await;
        metadata.before_resize().await?;
        // What goes is read from the file.
        metadata.write_back_all().await?;
        let beyond = metadata.switch_to_smaller(virtual_bytes).await?;
        self.virtual_bytes.set(virtual_bytes);
        metadata.resize_bitmaps(virtual_bytes..virtual_bytes);
        let order = &self.order;
        order.barrier(Barrier::AfterShrink, order.latest()).await?;
        metadata.release_beyond(&beyond).await?;
        metadata.unlink_beyond(virtual_bytes).await?;
        metadata.write_back_all().await?;
        order.barrier(Barrier::BeforeCut, order.latest()).await?;
        metadata.reap().await?;
        if self.geometry.has_external_data() {
            order.cut_data(virtual_bytes).await;
        }
        // What they were stored in before may lie last.
        metadata.store_bitmaps().await?;
        metadata.reap().await?;
        metadata.cut_file().await
    }
}

/// The end of an L1 table that has become shorter.
struct Beyond {
    first: u64,
    words: Vec<L1Word>,
}

impl Metadata {
    /// Writes the smaller size, and the smaller count of L1 entries with it; one entry always stays.
    async fn switch_to_smaller(&mut self, virtual_bytes: u64) -> Result<Beyond, Error> {
        let needed = self.geometry.l1_entries_for(virtual_bytes).max(1);
        let entries = needed.min(byte_count(self.l1.len()));
        let offset = self.l1_offset;
        let change = |sector0: &mut HeaderSector| {
            sector0.set_l1(offset, entries);
            sector0.set_virtual_bytes(virtual_bytes);
        };
        // Nothing that the new header says needs to be written first: the file says it already.
        self.change_sector0(Event::None, change).await?;
        self.virtual_bytes = virtual_bytes;
        self.active_tables = None;
        Ok(Beyond {
            first: entries,
            words: self.l1.split_off(mem_len(entries)),
        })
    }

    /// Frees what the cut entries led to, and the clusters of the L1 table that none of its entries needs.
    async fn release_beyond(&mut self, beyond: &Beyond) -> Result<(), Error> {
        let Beyond { first, words } = beyond;
        self.release_tables(self.l1_offset, *first, words).await?;
        let kept = self.geometry.clusters_for(first * 8);
        let all = self
            .geometry
            .clusters_for((first + byte_count(words.len())) * 8);
        let cut = HostCluster(self.geometry.cluster_of(self.l1_offset).0 + kept);
        for cluster in cut.0..cut.0 + (all - kept) {
            self.owners.remove(&HostCluster(cluster));
        }
        self.free_now(Source::Snapshot, cut, all - kept).await
    }

    /// Unmaps the clusters that the last L2 table maps beyond the end of the disk.
    async fn unlink_beyond(&mut self, virtual_bytes: u64) -> Result<(), Error> {
        let mut cluster = GuestCluster(self.geometry.clusters_for(virtual_bytes));
        let end = byte_count(self.l1.len()) * self.geometry.l2_entries();
        while cluster.0 < end {
            let old = self.mappings(cluster, end - cluster.0).await?;
            if old.iter().any(|mapping| *mapping != Mapping::Unallocated) {
                let new = vec![Mapping::Unallocated; old.len()];
                self.link(cluster, &new, Stamp::default()).await?;
            }
            cluster.0 += byte_count(old.len());
        }
        Ok(())
    }

    /// Rule 31: gives up refcount blocks that count nothing, and cuts the file behind the last cluster in
    /// use. Everything that unlinked a cluster is durable.
    async fn cut_file(&mut self) -> Result<(), Error> {
        self.drop_refblocks().await?;
        let end = self.end_of_use().await?;
        let end_bytes = end.0.max(self.doubtful_end) * self.geometry.cluster_bytes();
        if self.order.file().len() > end_bytes {
            // The disk has its new size already, and nothing stands there: a file that stays long is right too.
            let _ = self.order.set_len(end_bytes).await;
        }
        Ok(())
    }

    /// Takes the last refcount blocks out of the table as long as they count nothing but themselves.
    async fn drop_refblocks(&mut self) -> Result<(), Error> {
        let mut dropped = Vec::new();
        for index in (1..self.reftable.len()).rev() {
            let Some(block) = self.refblock(index)? else {
                continue;
            };
            let mut counts = self.refblock_counts(block).await?;
            let own = self.own_count(index, block);
            if let Some(own) = own {
                refblock::set_refcount(&mut counts, own, self.geometry.refcount_order(), 0);
            }
            if counts.iter().any(|byte| *byte != 0) {
                break;
            }
            dropped.push((index, block, own));
        }
        if dropped.is_empty() {
            return Ok(());
        }
        self.order.note(Probe::BlocksCut);
        self.unhook(&dropped).await?;
        self.order
            .barrier(Barrier::BeforeBlockCut, self.order.latest())
            .await?;
        let cluster_bytes = self.geometry.cluster_bytes();
        for (_, block, own) in dropped {
            let cluster = self.geometry.cluster_of(block);
            self.owners.remove(&cluster);
            if own.is_none() {
                self.free_now(Source::Other, cluster, 1).await?;
            } else {
                self.order.discard(block, cluster_bytes).await;
            }
        }
        Ok(())
    }

    /// Clears the refcount table entries of these blocks, and forgets what the blocks say.
    async fn unhook(
        &mut self,
        dropped: &[(usize, HostOffset, Option<usize>)],
    ) -> Result<(), Error> {
        let per_sector = mem_len(SECTOR_BYTES) / 8;
        for (index, block, _) in dropped {
            self.reftable[*index] = ReftableWord(0);
            self.refcounts.forget(*block, self.geometry.cluster_bytes());
        }
        let mut sectors: Vec<usize> = dropped
            .iter()
            .map(|(index, ..)| index / per_sector * per_sector)
            .collect();
        sectors.dedup();
        for first in sectors {
            if let Err(error) = self.write_reftable_sector(first).await {
                // The file may name the blocks or not: nothing may be put in their place.
                self.order.distrust();
                return Err(error);
            }
        }
        Ok(())
    }

    fn refblock(&self, index: usize) -> Result<Option<HostOffset>, Error> {
        let decoded = self.reftable[index].decode(self.geometry);
        Ok(decoded.map_err(|bad| BadImage {
            structure: Structure::RefcountTable,
            offset: self.reftable_offset.0,
            index: Some(byte_count(index)),
            problem: bad.into(),
        })?)
    }

    /// Where a refcount block counts itself, if it does.
    fn own_count(&self, index: usize, block: HostOffset) -> Option<usize> {
        let per_block = self.geometry.refcounts_per_block();
        let cluster = self.geometry.cluster_of(block).0;
        (cluster / per_block == byte_count(index)).then(|| mem_len(cluster % per_block))
    }

    /// The counts of a refcount block, as the cache has them.
    async fn refblock_counts(&mut self, block: HostOffset) -> Result<Vec<u8>, Error> {
        let slice_bytes = self.refcounts.slice_bytes();
        let slices = self.geometry.cluster_bytes() / slice_bytes;
        let mut counts = Vec::with_capacity(self.geometry.cluster_len());
        for slice in 0..slices {
            let offset = HostOffset(block.0 + slice * slice_bytes);
            self.load_refcounts(offset).await?;
            counts.extend_from_slice(&self.refcounts.slice(offset).bytes);
        }
        Ok(counts)
    }

    /// The cluster behind the last that is counted, or known to hold metadata.
    async fn end_of_use(&mut self) -> Result<HostCluster, Error> {
        let owned = self
            .owners
            .last_key_value()
            .map_or(0, |(last, _)| last.0 + 1);
        let per_block = self.geometry.refcounts_per_block();
        for index in (0..self.reftable.len()).rev() {
            let Some(block) = self.refblock(index)? else {
                continue;
            };
            let counts = self.refblock_counts(block).await?;
            let order = self.geometry.refcount_order();
            let last =
                (0..mem_len(per_block)).rfind(|at| refblock::refcount(&counts, *at, order) > 0);
            if let Some(last) = last {
                let end = byte_count(index) * per_block + byte_count(last) + 1;
                return Ok(HostCluster(end.max(owned)));
            }
        }
        Ok(HostCluster(owned))
    }
}
