//! How the refcount structures grow: mostly one block at a time, and now and then a larger table.
//!
//! New blocks count themselves: they stand together at the start of the range that they count, which is
//! free because nothing counted it before. So their allocation depends on no other block.

use super::bounds::MAX_REFTABLE_BYTES;
use super::discards::Source;
use super::entry::ReftableWord;
use super::free::Unlink;
use super::header::HeaderSector;
use super::metadata::Metadata;
use super::order::Stamp;
use super::refblock;
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{Error, Refused, Structure};
use crate::probe::Probe;

impl Metadata {
    /// Adds the refcount blocks of `count` table entries from `index` on, which have none, under rules
    /// 4 and 5. They stand together at the start of the range that they count.
    pub(super) async fn add_refblocks(&mut self, index: u64, count: u64) -> Result<(), Error> {
        let first = HostCluster(index * self.geometry.refcounts_per_block());
        let offset = self.geometry.offset_of(first);
        let len_bytes = count * self.geometry.cluster_bytes();
        // A damaged table may leave out the range of a structure that is in use.
        self.guard(offset, len_bytes).await?;
        self.order.file().at(Event::RefblockAlloc).reach().await?;
        if count > 1 {
            self.order.note(Probe::BlocksTogether);
        }
        let blocks = self.new_blocks(count, count);
        // Whatever comes of this, something may have been written there.
        self.fresh_from = self.fresh_from.max(first.0 + count);
        let event = Event::RefblockAllocWrite;
        let content = self.order.write(event, offset, blocks).await?;
        self.refcounts.forget(offset, len_bytes);
        let hookup = match self.hook_up(index, count, content).await {
            Ok(hookup) => hookup,
            Err(error) => {
                self.reftable[mem_len(index)..mem_len(index + count)].fill(ReftableWord(0));
                self.doubtful_end = self.doubtful_end.max(first.0 + count);
                return Err(error);
            }
        };
        self.order.barrier(Barrier::AfterHookup, hookup).await?;
        self.own(offset, count, Structure::RefcountBlock);
        Ok(())
    }

    /// Writes the table entries of new blocks, sector after sector: each block is counted by one that
    /// comes no later, so that whatever survives names only what is counted.
    async fn hook_up(&mut self, first: u64, count: u64, mut needs: Stamp) -> Result<Stamp, Error> {
        let block = self
            .geometry
            .offset_of(HostCluster(first * self.geometry.refcounts_per_block()));
        let per_sector = SECTOR_BYTES / 8;
        let mut index = first;
        while index < first + count {
            self.order.barrier(Barrier::BeforeHookup, needs).await?;
            let end = (index / per_sector + 1) * per_sector;
            let end = end.min(first + count);
            for index in index..end {
                let within = (index - first) * self.geometry.cluster_bytes();
                self.reftable[mem_len(index)] = ReftableWord(block.0 + within);
            }
            let written = self.write_reftable_sector(mem_len(index)).await;
            if written.is_err() && count > 1 {
                // The file may name some of the blocks: nothing may be put in the place of any.
                self.order.distrust();
            }
            needs = written?;
            index = end;
        }
        Ok(needs)
    }

    /// `count` blocks that count the first `used` clusters of their range as used once.
    fn new_blocks(&self, count: u64, used: u64) -> Vec<u8> {
        let mut blocks = vec![0; mem_len(count * self.geometry.cluster_bytes())];
        for index in 0..mem_len(used) {
            refblock::set_refcount(&mut blocks, index, self.geometry.refcount_order(), 1);
        }
        blocks
    }

    /// The first of `count` adjacent free clusters beyond everything that is counted, with new blocks before
    /// them. For what is longer than a block counts there is no other place: between two blocks that
    /// stand at the start of their ranges it does not fit.
    pub(super) async fn place_beyond(&mut self, count: u64) -> Result<HostCluster, Error> {
        let per_block = self.geometry.refcounts_per_block();
        let blocks = count.div_ceil(per_block - 1);
        let mut index = self.first_unnamed();
        if index + blocks > byte_count(self.reftable.len()) {
            self.grow_reftable(index + 2 * blocks).await?;
            index = self.first_unnamed();
        }
        let first = HostCluster(index * per_block + blocks);
        self.must_be_addressable(HostCluster(first.0 + count))?;
        self.add_refblocks(index, blocks).await?;
        Ok(first)
    }

    /// The refcount table entry after the last that names a block.
    fn first_unnamed(&self) -> u64 {
        let last = self.reftable.iter().rposition(|word| word.0 != 0);
        last.map_or(0, |last| byte_count(last) + 1)
    }

    /// Moves to a refcount table of at least `min_entries` entries, under rules 6 and 7.
    ///
    /// The new table and the blocks that count it stand together at the start of the range that the
    /// old table could not express.
    pub(super) async fn grow_reftable(&mut self, min_entries: u64) -> Result<(), Error> {
        self.order.file().at(Event::ReftableGrow).reach().await?;
        self.order.note(if self.dirty {
            Probe::ReftableGrewDirty
        } else {
            Probe::ReftableGrewClean
        });
        let old_entries = byte_count(self.reftable.len());
        let plan = self.plan_reftable(old_entries, min_entries)?;
        let per_block = self.geometry.refcounts_per_block();
        let cluster_bytes = self.geometry.cluster_bytes();
        let first = HostCluster(old_entries * per_block);
        let blocks_offset = self.geometry.offset_of(first);
        let len_bytes = (plan.blocks + plan.table_clusters) * cluster_bytes;
        self.guard(blocks_offset, len_bytes).await?;
        // Whatever comes of this, something may have been written there.
        let end = first.0 + plan.blocks + plan.table_clusters;
        self.fresh_from = self.fresh_from.max(end);

        let mut table = self.reftable.clone();
        table.resize(
            mem_len(plan.table_clusters * cluster_bytes / 8),
            ReftableWord(0),
        );
        let blocks = self.new_blocks(plan.blocks, plan.blocks + plan.table_clusters);
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
        let (before, event) = (
            Barrier::BeforeReftableSwitch,
            Event::RefblockAllocSwitchTable,
        );
        let change = |sector0: &mut HeaderSector| {
            sector0.set_reftable(table_offset, plan.table_clusters);
        };
        let switched = self.switch(before, event, content, change).await?;
        self.order
            .barrier(Barrier::AfterReftableSwitch, switched)
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
        self.refcounts
            .forget(blocks_offset, plan.blocks * cluster_bytes);
        self.free_after(Unlink::Written(switched), Source::Other, old, old_clusters);
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
