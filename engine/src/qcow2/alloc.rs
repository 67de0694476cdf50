//! Refcounts, and finding clusters whose refcount is zero.

use super::metadata::Metadata;
use super::refblock;
use super::unit::{HostCluster, HostOffset, mem_len};
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{BadImage, Error, Refused, Structure};
use crate::probe::Probe;

/// Clusters that were just allocated, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: HostCluster,
    pub(super) count: u64,
    /// What they read as before anything is written to them.
    pub(super) content: Content,
}

/// What an unwritten cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes: nothing was ever written there.
    Zero,
    /// Anything: it was in use before.
    Stale,
}

/// A refcount and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    slice: HostOffset,
    index: usize,
    pub(super) value: u64,
}

/// The highest host offset that an L2 entry can hold, plus one.
const HOST_LIMIT_BYTES: u64 = 1 << 56;

impl Metadata {
    /// The refcount of a cluster, or `None` where no refcount block counts it.
    pub(super) async fn find_refcount(
        &mut self,
        cluster: HostCluster,
    ) -> Result<Option<Found>, Error> {
        let per_block = self.geometry.refcounts_per_block();
        let table_index = cluster.0 / per_block;
        let Some(word) = usize::try_from(table_index)
            .ok()
            .and_then(|i| self.reftable.get(i))
        else {
            return Ok(None);
        };
        let block = match word.decode(self.geometry) {
            Ok(None) => return Ok(None),
            Ok(Some(block)) => block,
            Err(bad) => {
                let offset = self.reftable_offset.0;
                let (structure, index) = (Structure::RefcountTable, Some(table_index));
                return Err(BadImage {
                    structure,
                    offset,
                    index,
                    problem: bad.into(),
                }
                .into());
            }
        };
        let within = cluster.0 % per_block;
        let per_slice = (self.refcounts.slice_bytes() * 8) >> self.geometry.refcount_order();
        let offset = block.0 + within / per_slice * self.refcounts.slice_bytes();
        let slice = HostOffset(offset);
        self.load_refcounts(slice).await?;
        let index = mem_len(within % per_slice);
        let bytes = &self.refcounts.slice(slice).bytes;
        let value = refblock::refcount(bytes, index, self.geometry.refcount_order());
        Ok(Some(Found {
            slice,
            index,
            value,
        }))
    }

    /// Changes a refcount that was just found.
    pub(super) fn put_refcount(&mut self, found: Found, value: u64) {
        let slice = self.refcounts.slice(found.slice);
        refblock::set_refcount(
            &mut slice.bytes,
            found.index,
            self.geometry.refcount_order(),
            value,
        );
        slice.dirty = true;
    }

    /// Allocates at least one and at most `wanted` adjacent clusters.
    pub(super) async fn allocate(&mut self, wanted: u64) -> Result<Run, Error> {
        let first = self.first_free().await?;
        let mut count = 1;
        while count < wanted && self.is_free(HostCluster(first.0 + count)).await? {
            count += 1;
        }
        self.take(first, count).await
    }

    /// Allocates exactly `count` adjacent clusters.
    pub(super) async fn allocate_exactly(&mut self, count: u64) -> Result<Run, Error> {
        let mut first = self.first_free().await?;
        if count >= self.geometry.refcounts_per_block() {
            self.order.note(Probe::RunBeyondBlocks);
            first = self.place_beyond(count).await?;
            return self.take(first, count).await;
        }
        let mut have = 1;
        while have < count {
            // A cluster beyond what is counted becomes known as free or as the new block's own.
            self.cover(HostCluster(first.0 + have)).await?;
            if self.is_free(HostCluster(first.0 + have)).await? {
                have += 1;
            } else {
                first = HostCluster(first.0 + have + 1);
                have = 0;
            }
        }
        self.take(first, count).await
    }

    async fn first_free(&mut self) -> Result<HostCluster, Error> {
        self.must_be_sound()?;
        // What counts the clusters may be gone with the flush that failed (rules 5 and 7).
        self.order.must_be_trusted()?;
        self.reap().await?;
        self.order.file().at(Event::ClusterAlloc).reach().await?;
        loop {
            let cluster = HostCluster(self.free_hint);
            self.cover(cluster).await?;
            if self.is_free(cluster).await? {
                return Ok(cluster);
            }
            self.free_hint += 1;
        }
    }

    /// Makes sure that a refcount block counts this cluster.
    async fn cover(&mut self, cluster: HostCluster) -> Result<(), Error> {
        self.must_be_addressable(cluster)?;
        let table_index = cluster.0 / self.geometry.refcounts_per_block();
        if mem_len(table_index) >= self.reftable.len() {
            self.grow_reftable(table_index + 1).await?;
        }
        if self.reftable[mem_len(table_index)].0 == 0 {
            self.add_refblocks(table_index, 1).await?;
        }
        Ok(())
    }

    /// Refuses a cluster that no L2 entry could name.
    pub(super) fn must_be_addressable(&self, cluster: HostCluster) -> Result<(), Error> {
        if cluster.0 >= HOST_LIMIT_BYTES / self.geometry.cluster_bytes() {
            return Err(Refused::TableFull(Structure::RefcountTable).into());
        }
        Ok(())
    }

    async fn is_free(&mut self, cluster: HostCluster) -> Result<bool, Error> {
        if self.planted.has(Defect::OverlapMissesRefblock)
            && self.owners.get(&cluster) == Some(&Structure::RefcountBlock)
        {
            return Ok(true);
        }
        if self.planted.has(Defect::OverlapMissesSnapshot)
            && self.inactive_tables().await?.contains(&cluster)
        {
            return Ok(true);
        }
        Ok(self
            .find_refcount(cluster)
            .await?
            .is_some_and(|found| found.value == 0))
    }

    /// Raises the refcounts of free clusters to one.
    async fn take(&mut self, first: HostCluster, count: u64) -> Result<Run, Error> {
        let last = HostCluster(first.0 + count - 1);
        // The refcounts may call metadata free.
        let len_bytes = count * self.geometry.cluster_bytes();
        self.guard(self.geometry.offset_of(first), len_bytes)
            .await?;
        for cluster in first.0..=last.0 {
            let found = self.find_refcount(HostCluster(cluster)).await?;
            let found = found.expect("a free cluster is counted");
            let is_first_used = cluster == first.0 && cluster < self.fresh_from;
            if is_first_used && self.refcounts.is_dirty(found.slice) {
                self.order.note(Probe::ReusedBeforeWritten);
            }
            self.put_refcount(found, 1);
        }
        if self.free_hint == first.0 {
            self.free_hint = last.0 + 1;
        }
        let content = if first.0 >= self.fresh_from {
            Content::Zero
        } else {
            Content::Stale
        };
        self.fresh_from = self.fresh_from.max(last.0 + 1);
        Ok(Run {
            first,
            count,
            content,
        })
    }
}
