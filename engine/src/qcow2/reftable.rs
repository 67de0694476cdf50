//! How the refcount structures grow: one block at a time, and now and then a larger table.
//!
//! A new block counts itself: it stands at the first cluster of the range that it counts, which is
//! free because nothing counted it before. So its allocation depends on no other block.

use super::entry::{self, ReftableWord};
use super::free::Unlink;
use super::header::HeaderSector;
use super::metadata::Metadata;
use super::order::Rule;
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::device::Event;
use crate::error::{Error, Refused, Structure};

/// QEMU's limit, so that both open the same images.
const MAX_REFTABLE_BYTES: u64 = 8 << 20;

impl Metadata {
    /// Adds the refcount block of table entry `table_index`, under rules 4 and 5.
    pub(super) async fn add_refblock(&mut self, table_index: u64) -> Result<(), Error> {
        let first = HostCluster(table_index * self.geometry.refcounts_per_block());
        let offset = self.geometry.offset_of(first);
        // A damaged table may leave out the range of a structure that is in use.
        self.guard(offset, self.geometry.cluster_bytes()).await?;
        self.order.file().at(Event::RefblockAlloc).reach().await?;
        let mut block = vec![0; self.geometry.cluster_len()];
        entry::set_refcount(&mut block, 0, self.geometry.refcount_order(), 1);
        let content = self
            .order
            .write(Event::RefblockAllocWrite, offset, block)
            .await?;
        self.order.barrier(Rule::BeforeHookup, content).await?;
        self.refcounts.forget(offset, self.geometry.cluster_bytes());
        let index = mem_len(table_index);
        self.reftable[index] = ReftableWord(offset.0);
        let hookup = match self.write_reftable_sector(index).await {
            Ok(hookup) => hookup,
            Err(error) => {
                self.reftable[index] = ReftableWord(0);
                return Err(error);
            }
        };
        self.order.barrier(Rule::AfterHookup, hookup).await?;
        self.own(offset, 1, Structure::RefcountBlock);
        self.fresh_from = self.fresh_from.max(first.0 + 1);
        Ok(())
    }

    /// Moves to a refcount table of at least `min_entries` entries, under rules 6 and 7.
    ///
    /// The new table and the blocks that count it stand together at the start of the range that the
    /// old table could not express.
    pub(super) async fn grow_reftable(&mut self, min_entries: u64) -> Result<(), Error> {
        self.order.file().at(Event::ReftableGrow).reach().await?;
        let old_entries = byte_count(self.reftable.len());
        let plan = self.plan_reftable(old_entries, min_entries)?;
        let per_block = self.geometry.refcounts_per_block();
        let cluster_bytes = self.geometry.cluster_bytes();
        let first = HostCluster(old_entries * per_block);
        let blocks_offset = self.geometry.offset_of(first);
        let len_bytes = (plan.blocks + plan.table_clusters) * cluster_bytes;
        self.guard(blocks_offset, len_bytes).await?;

        let mut table = self.reftable.clone();
        table.resize(
            mem_len(plan.table_clusters * cluster_bytes / 8),
            ReftableWord(0),
        );
        let mut blocks = vec![0; mem_len(plan.blocks * cluster_bytes)];
        for index in 0..plan.blocks + plan.table_clusters {
            entry::set_refcount(
                &mut blocks,
                mem_len(index),
                self.geometry.refcount_order(),
                1,
            );
        }
        for block in 0..plan.blocks {
            let offset = blocks_offset.0 + block * cluster_bytes;
            table[mem_len(old_entries + block)] = ReftableWord(offset);
        }
        let table_offset = HostOffset(blocks_offset.0 + plan.blocks * cluster_bytes);
        let table_bytes = table.iter().flat_map(|word| word.0.to_be_bytes()).collect();

        self.order
            .write(Event::RefblockAllocWriteBlocks, blocks_offset, blocks)
            .await?;
        let content = self
            .order
            .write(Event::RefblockAllocWriteTable, table_offset, table_bytes)
            .await?;
        let (rule, event) = (Rule::BeforeReftableSwitch, Event::RefblockAllocSwitchTable);
        let change = |sector0: &mut HeaderSector| {
            sector0.set_reftable(table_offset, plan.table_clusters);
        };
        let switched = self.switch(rule, event, content, change).await?;
        self.order
            .barrier(Rule::AfterReftableSwitch, switched)
            .await?;

        let old = self.geometry.cluster_of(self.reftable_offset);
        let old_clusters = self.geometry.clusters_for(old_entries * 8);
        for cluster in old.0..old.0 + old_clusters {
            self.owners.remove(&HostCluster(cluster));
        }
        self.own(blocks_offset, plan.blocks, Structure::RefcountBlock);
        self.own(table_offset, plan.table_clusters, Structure::RefcountTable);
        self.reftable = table;
        self.reftable_offset = table_offset;
        self.fresh_from = self
            .fresh_from
            .max(first.0 + plan.blocks + plan.table_clusters);
        self.refcounts
            .forget(blocks_offset, plan.blocks * cluster_bytes);
        self.free_after(Unlink::Written(switched), old, old_clusters);
        Ok(())
    }

    /// Sizes that fit each other: the table has entries for the blocks that count it, and half as
    /// many again as before, so that growing stays rare.
    fn plan_reftable(&self, old_entries: u64, min_entries: u64) -> Result<Plan, Error> {
        let per_block = self.geometry.refcounts_per_block();
        let mut blocks = 1;
        loop {
            let entries = min_entries
                .max(old_entries + old_entries / 2 + 1)
                .max(old_entries + blocks);
            let table_clusters = self.geometry.clusters_for(entries * 8);
            let needed = (blocks + table_clusters).div_ceil(per_block);
            if table_clusters * self.geometry.cluster_bytes() > MAX_REFTABLE_BYTES {
                return Err(Refused::TableFull(Structure::RefcountTable).into());
            }
            if needed <= blocks {
                return Ok(Plan {
                    blocks,
                    table_clusters,
                });
            }
            blocks = needed;
        }
    }
}

/// How many clusters a larger refcount table and its own blocks take.
struct Plan {
    blocks: u64,
    table_clusters: u64,
}
