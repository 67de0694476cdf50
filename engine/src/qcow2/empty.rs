//! Giving up everything that an image holds: afterwards the backing file shows, or zeroes.
//!
//! Rule 15. The header switches to an L1 table without entries, so that the guest sees all of the old
//! content or none of it. Then what the old table led to is freed; power lost on the way leaves
//! leaks, and nothing else.

use super::discards::Source;
use super::entry::{L1Entry, L1Word, L2Entry};
use super::header::HeaderSector;
use super::image::Qcow2;
use super::l2::host_clusters;
use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::sync::Mode;

impl Qcow2 {
    /// Makes every cluster unallocated. Before or after, and durable on return.
    pub(super) async fn make_empty(&self) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        if self.raw_data.get() {
            let text = "a raw external data file is the disk: it cannot be emptied, only zeroed";
            return Err(Refused::NotByFormat(text).into());
        }
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        metadata.write_back_all().await?;
        metadata.record_change(0, self.virtual_bytes.get()).await?;
        if metadata.l1.iter().all(|word| *word == L1Word(0)) {
            return Ok(());
        }
        let old = metadata.switch_to_empty().await?;
        metadata.release(&old).await?;
        if self.geometry.has_external_data() {
            let len_bytes = self.order.data_file().len();
            self.order.discard_data(HostOffset(0), len_bytes).await;
        }
        Ok(())
    }
}

/// An L1 table that is in use no more.
struct OldTable {
    offset: HostOffset,
    words: Vec<L1Word>,
}

impl Metadata {
    async fn switch_to_empty(&mut self) -> Result<OldTable, Error> {
        self.before_link().await?;
        let entries = byte_count(self.l1.len());
        let clusters = self.geometry.clusters_for(entries * 8);
        let run = self.allocate_exactly(clusters).await?;
        let offset = self.geometry.offset_of(run.first);
        let zeroes = vec![0; mem_len(clusters * self.geometry.cluster_bytes())];
        let content = match self
            .order
            .write(Event::EmptyImagePrepare, offset, zeroes)
            .await
        {
            Ok(content) => content,
            Err(error) => {
                // Nothing points to the new table; if even this fails, a leak is all that remains.
                let _ = self.free_now(Source::Snapshot, run.first, run.count).await;
                return Err(error);
            }
        };
        let needs = content.max(self.counted().await?);
        let change = |sector0: &mut HeaderSector| sector0.set_l1(offset, entries);
        let (before, event) = (Barrier::BeforeEmptySwitch, Event::L1GrowActivateTable);
        let switched = self.switch(before, event, needs, change).await?;
        let words = std::mem::replace(&mut self.l1, vec![L1Word(0); mem_len(entries)]);
        self.active_tables = None;
        let old = OldTable {
            offset: std::mem::replace(&mut self.l1_offset, offset),
            words,
        };
        self.owners.retain(|_, owner| *owner != Structure::L1Table);
        self.own(offset, clusters, Structure::L1Table);
        self.order
            .barrier(Barrier::AfterEmptySwitch, switched)
            .await?;
        Ok(old)
    }

    /// Writes the refcounts that a switch relies on, unless the dirty bit stands for them.
    async fn counted(&mut self) -> Result<Stamp, Error> {
        if self.dirty {
            return Ok(Stamp::default());
        }
        self.write_refcounts().await?;
        Ok(self.refcounts_written)
    }

    /// Frees a table, the tables that it leads to, and what they lead to.
    async fn release(&mut self, old: &OldTable) -> Result<(), Error> {
        self.release_tables(old.offset, 0, &old.words).await?;
        let first = self.geometry.cluster_of(old.offset);
        let clusters = self.geometry.clusters_for(byte_count(old.words.len()) * 8);
        self.free_now(Source::Snapshot, first, clusters).await
    }

    /// Frees the L2 tables that entries of an L1 table led to, the first of them number `first`, and what
    /// these lead to.
    pub(super) async fn release_tables(
        &mut self,
        l1_offset: HostOffset,
        first: u64,
        words: &[L1Word],
    ) -> Result<(), Error> {
        for (index, word) in (first..).zip(words) {
            let entry = word.decode(self.geometry).map_err(|bad| BadImage {
                structure: Structure::L1Table,
                offset: l1_offset.0,
                index: Some(index),
                problem: bad.into(),
            })?;
            let L1Entry::Table { offset, .. } = entry else {
                continue;
            };
            let cluster = self.geometry.cluster_of(offset);
            if self.is_active_table(cluster) {
                let found = self.find_refcount(cluster).await?;
                if found.is_none_or(|found| found.value < 2) {
                    return Err(self.shared_table(offset).await);
                }
            }
            self.release_mappings(offset).await?;
            self.free_now(Source::Snapshot, cluster, 1).await?;
        }
        Ok(())
    }

    async fn release_mappings(&mut self, table: HostOffset) -> Result<(), Error> {
        let at = self.order.file().at(Event::L2Load);
        let bytes = at.read(table.0, self.geometry.cluster_len()).await?;
        for index in 0..mem_len(self.geometry.l2_entries()) {
            let entry = L2Entry::read(&bytes, index, self.geometry);
            let mapping = entry.decode(self.geometry, self.version);
            let mapping = mapping.map_err(|bad| BadImage {
                structure: Structure::L2Table,
                offset: table.0,
                index: Some(byte_count(index)),
                problem: Problem::Entry(bad),
            })?;
            if let Some((first, count)) = host_clusters(self, mapping) {
                self.free_now(Source::Snapshot, first, count).await?;
            }
        }
        Ok(())
    }
}
