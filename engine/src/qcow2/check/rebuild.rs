//! New refcount structures, where the old ones cannot hold the counts.
//!
//! The new table and blocks take clusters that nothing refers to and that the old structures neither
//! use nor name, be it behind the end of the file, so that the old ones stay whole until the header
//! switches. They count themselves, and not the old ones: after the switch there is neither a leak nor
//! a count to be lowered.

use std::collections::BTreeSet;

use super::counts::Counts;
use super::survey::Survey;
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{Error, Refused, Structure};
use crate::qcow2::bounds::MAX_REFTABLE_BYTES;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::HeaderSector;
use crate::qcow2::unit::{HostCluster, HostOffset};

/// Where the new structures go, in clusters.
#[derive(Debug)]
struct Plan<'a> {
    geometry: Geometry,
    counts: &'a Counts,
    /// Clusters that must not be taken: those of the old structures, and what was taken.
    taken: BTreeSet<u64>,
    /// Ranges of clusters that entries refer to and that have no count, sorted: most are beyond the end of the file.
    wild: Vec<(u64, u64)>,
    /// The blocks that are needed, by index.
    needed: BTreeSet<u64>,
    /// Those of them that have no place yet.
    homeless: Vec<u64>,
    /// The place of each of the others.
    places: Vec<(u64, u64)>,
    /// The first cluster of the table, and how many it takes.
    table: (u64, u64),
    /// No cluster below this is free.
    next: u64,
}

impl Survey<'_> {
    /// Writes new refcount structures and switches to them.
    pub(super) async fn rebuild_refcounts(
        &mut self,
        sector: &mut HeaderSector,
    ) -> Result<(), Error> {
        let geometry = self.header.geometry;
        let old: Vec<(u64, u64)> = self.stored.pieces(self.reftable()).collect();
        let mut taken = BTreeSet::new();
        for (offset, len_bytes) in old {
            self.counts.remove_range(offset, len_bytes);
            taken.extend(self.counts.clusters(offset, len_bytes));
        }
        let mut plan = Plan {
            geometry,
            counts: &self.counts,
            taken,
            wild: self.wild_clusters(),
            needed: BTreeSet::new(),
            homeless: Vec::new(),
            places: Vec::new(),
            table: (0, 0),
            next: 1,
        };
        plan.need_counted();
        plan.settle()?;
        let Plan { places, table, .. } = plan;
        let cluster_bytes = geometry.cluster_bytes();
        let table_offset = geometry.offset_of(HostCluster(table.0));
        self.counts
            .add_range(table_offset.0, table.1 * cluster_bytes, 1);
        let blocks: Vec<(u64, HostOffset)> = places
            .into_iter()
            .map(|(index, place)| (index, geometry.offset_of(HostCluster(place))))
            .collect();
        for (_, offset) in &blocks {
            self.counts.add_range(offset.0, cluster_bytes, 1);
        }
        self.write_blocks(&blocks, table_offset, table.1 * cluster_bytes)
            .await?;
        self.flush(Barrier::RepairSwitch).await?;
        sector.set_reftable(table_offset, table.1);
        self.file
            .at(Event::RefblockAllocSwitchTable)
            .write(0, sector.bytes())
            .await?;
        Ok(())
    }

    async fn write_blocks(
        &self,
        blocks: &[(u64, HostOffset)],
        table_offset: HostOffset,
        table_bytes: u64,
    ) -> Result<(), Error> {
        let mut table = vec![0; usize::try_from(table_bytes).expect("a table is bounded")];
        for (index, offset) in blocks {
            let entry = usize::try_from(*index).expect("a table is bounded") * 8;
            table[entry..entry + 8].copy_from_slice(&offset.0.to_be_bytes());
            self.file
                .at(Event::RefblockAllocWriteBlocks)
                .write(offset.0, self.expected_block(*index))
                .await?;
        }
        self.file
            .at(Event::RefblockAllocWriteTable)
            .write(table_offset.0, table)
            .await?;
        Ok(())
    }

    fn wild_clusters(&self) -> Vec<(u64, u64)> {
        let bits = self.header.geometry.cluster_bits();
        let mut wild: Vec<(u64, u64)> = self
            .wild
            .iter()
            .map(|(start, end)| (start >> bits, end.div_ceil(1 << bits)))
            .collect();
        wild.sort_unstable();
        // Each end covers all before it, so that one look backwards is enough.
        let mut furthest = 0;
        for range in &mut wild {
            furthest = range.1.max(furthest);
            range.1 = furthest;
        }
        wild
    }
}

impl Plan<'_> {
    /// Asks for every block that has something to count.
    fn need_counted(&mut self) {
        let counts = self.counts;
        let per_block = self.geometry.refcounts_per_block();
        let mut from = 0;
        while let Some((cluster, _)) = counts.referenced(from..u64::MAX).next() {
            let index = cluster / per_block;
            self.need(index);
            from = (index + 1) * per_block;
        }
    }

    fn need(&mut self, index: u64) {
        if self.needed.insert(index) {
            self.homeless.push(index);
        }
    }

    /// Finds a place for everything. Each place may ask for another block to count it, and each block
    /// for a longer table; both only grow, until all is counted.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            while let Some(index) = self.homeless.pop() {
                let cluster = self.take_next();
                self.places.push((index, cluster));
                self.need(cluster / self.geometry.refcounts_per_block());
            }
            let entries = self.needed.last().map_or(1, |last| last + 1);
            if entries * 8 > MAX_REFTABLE_BYTES {
                return Err(Refused::TableFull(Structure::RefcountTable).into());
            }
            let clusters = self.geometry.clusters_for(entries * 8);
            if clusters <= self.table.1 {
                return Ok(());
            }
            self.place_table(clusters);
        }
    }

    fn take_next(&mut self) -> u64 {
        while !self.is_free(self.next) {
            self.next += 1;
        }
        self.taken.insert(self.next);
        self.next
    }

    fn place_table(&mut self, clusters: u64) {
        for cluster in self.table.0..self.table.0 + self.table.1 {
            self.taken.remove(&cluster);
        }
        self.next = self.next.min(self.table.0.max(1));
        let mut start = 1;
        let mut end = 1;
        while end - start < clusters {
            if !self.is_free(end) {
                start = end + 1;
            }
            end += 1;
        }
        self.table = (start, clusters);
        for cluster in start..end {
            self.taken.insert(cluster);
            self.need(cluster / self.geometry.refcounts_per_block());
        }
    }

    fn is_free(&self, cluster: u64) -> bool {
        self.counts.get(cluster) == 0 && !self.taken.contains(&cluster) && !self.is_wild(cluster)
    }

    fn is_wild(&self, cluster: u64) -> bool {
        let before = self.wild.partition_point(|(start, _)| *start <= cluster);
        before > 0 && cluster < self.wild[before - 1].1
    }
}
