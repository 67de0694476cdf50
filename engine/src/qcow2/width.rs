//! Changing the width of refcounts: new blocks and a new table beside the old ones, and one switch.
//!
//! Rule 14. The new structures stand together behind everything that is in use. Until the switch
//! nothing refers to them and the old refcounts call them free; the new refcounts count them, and
//! count the old structures too, which are freed after the switch.

use std::collections::BTreeSet;

use super::amend::CLEAN;
use super::bounds::MAX_REFTABLE_BYTES;
use super::discards::Source;
use super::entry;
use super::free::Unlink;
use super::geometry::Geometry;
use super::header::HeaderSector;
use super::metadata::Metadata;
use super::refblock;
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::probe::Probe;

/// Where the new structures go.
struct Plan {
    geometry: Geometry,
    /// The blocks that are needed, by index, in the order in which they stand.
    blocks: BTreeSet<u64>,
    table: HostCluster,
    table_clusters: u64,
}

impl Plan {
    fn first_block(&self) -> HostCluster {
        HostCluster(self.table.0 + self.table_clusters)
    }

    /// The cluster behind the last that the plan takes.
    fn end(&self) -> HostCluster {
        HostCluster(self.first_block().0 + byte_count(self.blocks.len()))
    }
}

impl Metadata {
    /// Gives refcounts another width. A count that does not fit refuses it before anything changes.
    pub(super) async fn change_width(&mut self, refcount_order: u32) -> Result<(), Error> {
        if refcount_order == self.geometry.refcount_order() {
            return Ok(());
        }
        let geometry = self
            .geometry
            .with_refcount_order(refcount_order)
            .filter(|_| self.version >= 3)
            .ok_or_else(|| {
                Refused::Option("version 2 has refcounts of 16 bits: use version 3".into())
            })?;
        if !self.snapshots.records.is_empty() {
            self.order.note(Probe::WidthWithSnapshots);
        }
        self.settle(CLEAN).await?;
        let old_blocks = self.blocks()?;
        let plan = self.plan_width(geometry, &old_blocks).await?;
        let table_offset = geometry.offset_of(plan.table);
        let len_bytes = (plan.end().0 - plan.table.0) * geometry.cluster_bytes();
        self.guard(table_offset, len_bytes).await?;
        // Whatever comes of this, something may have been written there.
        self.fresh_from = self.fresh_from.max(plan.end().0);

        let mut table = vec![
            entry::ReftableWord(0);
            mem_len(plan.table_clusters * geometry.cluster_bytes() / 8)
        ];
        for (at, index) in plan.blocks.iter().enumerate() {
            let offset = geometry.offset_of(HostCluster(plan.first_block().0 + byte_count(at)));
            let block = self.wider_block(&plan, *index).await?;
            let event = Event::RefblockAllocWriteBlocks;
            self.order.write(event, offset, block).await?;
            table[mem_len(*index)] = entry::ReftableWord(offset.0);
        }
        let bytes = table.iter().flat_map(|word| word.0.to_be_bytes()).collect();
        let event = Event::RefblockAllocWriteTable;
        let content = self.order.write(event, table_offset, bytes).await?;
        let clusters = plan.table_clusters;
        let change = |sector0: &mut HeaderSector| {
            sector0.set_refcounts(table_offset, clusters, refcount_order);
        };
        let (before, event) = (Barrier::BeforeWidthSwitch, Event::RefblockAllocSwitchTable);
        let switched = self.switch(before, event, content, change).await?;

        let old_table = self.geometry.cluster_of(self.reftable_offset);
        let old_clusters = self
            .geometry
            .clusters_for(byte_count(self.reftable.len()) * 8);
        let gone = [Structure::RefcountTable, Structure::RefcountBlock];
        self.owners.retain(|_, owner| !gone.contains(owner));
        self.geometry = geometry;
        self.reftable = table;
        self.reftable_offset = table_offset;
        self.own(table_offset, clusters, Structure::RefcountTable);
        let first_block = geometry.offset_of(plan.first_block());
        self.own(
            first_block,
            byte_count(plan.blocks.len()),
            Structure::RefcountBlock,
        );
        self.refcounts.forget(
            first_block,
            byte_count(plan.blocks.len()) * geometry.cluster_bytes(),
        );
        self.free_after(
            Unlink::Written(switched),
            Source::Other,
            old_table,
            old_clusters,
        );
        for (_, block) in old_blocks {
            self.refcounts.forget(block, geometry.cluster_bytes());
            let cluster = geometry.cluster_of(block);
            self.free_after(Unlink::Written(switched), Source::Other, cluster, 1);
        }
        self.order
            .barrier(Barrier::AfterWidthSwitch, switched)
            .await?;
        self.reap().await
    }

    /// The refcount blocks, by index.
    fn blocks(&self) -> Result<Vec<(u64, HostOffset)>, Error> {
        let mut blocks = Vec::new();
        for (index, word) in self.reftable.iter().enumerate() {
            let index = byte_count(index);
            let offset = word.decode(self.geometry).map_err(|bad| BadImage {
                structure: Structure::RefcountTable,
                offset: self.reftable_offset.0,
                index: Some(index),
                problem: bad.into(),
            })?;
            blocks.extend(offset.map(|offset| (index, offset)));
        }
        Ok(blocks)
    }

    /// Looks at every count, and finds places.
    async fn plan_width(
        &self,
        geometry: Geometry,
        old_blocks: &[(u64, HostOffset)],
    ) -> Result<Plan, Error> {
        let mut blocks = BTreeSet::new();
        let file_end = geometry.clusters_for(self.order.file().len());
        let mut end = self.fresh_from.max(file_end);
        let per_block = self.geometry.refcounts_per_block();
        for (index, offset) in old_blocks {
            let at = self.order.file().at(Event::RefblockLoad);
            let bytes = at.read(offset.0, geometry.cluster_len()).await?;
            let order = self.geometry.refcount_order();
            for within in 0..byte_count(refblock::counts_end(&bytes, order)) {
                let count = refblock::refcount(&bytes, mem_len(within), order);
                if count > geometry.max_refcount() {
                    return Err(Refused::RefcountOverflow.into());
                }
                if count > 0 {
                    let cluster = index * per_block + within;
                    blocks.insert(cluster / geometry.refcounts_per_block());
                    end = end.max(cluster + 1);
                }
            }
        }
        let mut plan = Plan {
            geometry,
            blocks,
            table: HostCluster(end),
            table_clusters: 1,
        };
        // Each block may ask for another to count it, and each for a longer table; both only grow.
        loop {
            let before = plan.end();
            let last = HostCluster(before.0 - 1);
            self.must_be_addressable(last)?;
            let per_block = geometry.refcounts_per_block();
            plan.blocks
                .extend(plan.table.0 / per_block..=last.0 / per_block);
            let entries = plan.blocks.last().map_or(1, |last| last + 1);
            plan.table_clusters = geometry.clusters_for(entries * 8);
            if plan.table_clusters * geometry.cluster_bytes() > MAX_REFTABLE_BYTES {
                return Err(Refused::TableFull(Structure::RefcountTable).into());
            }
            if plan.end() == before {
                return Ok(plan);
            }
        }
    }

    /// The block of that index in the new width: the old counts, and one for each new structure.
    async fn wider_block(&self, plan: &Plan, index: u64) -> Result<Vec<u8>, Error> {
        let (old, new) = (self.geometry, plan.geometry);
        let per_old = old.refcounts_per_block();
        let start = index * new.refcounts_per_block();
        let end = start + new.refcounts_per_block();
        let mut block = vec![0; new.cluster_len()];
        // Both are powers of two from 64 up, so that a piece is of whole bytes in both widths.
        let piece = per_old.min(new.refcounts_per_block());
        for first in (start..end).step_by(mem_len(piece)) {
            let word = self.reftable.get(mem_len(first / per_old));
            let Some(offset) = word.and_then(|word| word.decode(old).ok().flatten()) else {
                continue;
            };
            let order = old.refcount_order();
            let within = ((first % per_old) << order) / 8;
            let len = mem_len((piece << order) / 8);
            let at = self.order.file().at(Event::RefblockLoad);
            let bytes = at.read(offset.0 + within, len).await?;
            for at in 0..refblock::counts_end(&bytes, order) {
                let count = refblock::refcount(&bytes, at, order);
                // Each of them did fit when they were looked at; a disk may say something else by now.
                if count > new.max_refcount() {
                    let problem = format!("refcount {count} was not there when all were looked at");
                    return Err(BadImage {
                        structure: Structure::RefcountBlock,
                        offset: offset.0,
                        index: Some(first % per_old + byte_count(at)),
                        problem: Problem::Field(problem),
                    }
                    .into());
                }
                let into = mem_len(first - start) + at;
                refblock::set_refcount(&mut block, into, new.refcount_order(), count);
            }
        }
        for cluster in start.max(plan.table.0)..end.min(plan.end().0) {
            refblock::set_refcount(
                &mut block,
                mem_len(cluster - start),
                new.refcount_order(),
                1,
            );
        }
        Ok(block)
    }
}
