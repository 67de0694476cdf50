//! What an L1 table leads to, and the refcounts of all of it.
//!
//! A tree is read to its end before anything changes: what cannot be followed is refused then. Each L1
//! table that names an L2 table holds one reference to everything behind it, so that a snapshot costs
//! one reference more to each cluster of its tree.

use std::collections::BTreeSet;

use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::probe::Probe;
use crate::qcow2::discards::Source;
use crate::qcow2::entry::{Copied, L1Entry, L1Word, L2Entry};
use crate::qcow2::l2::host_clusters;
use crate::qcow2::metadata::Metadata;
use crate::qcow2::unit::{HostCluster, HostOffset, byte_count, mem_len};

const COPIED: u64 = 1 << 63;
/// Entries of an L1 table in a sector, which are written as one.
const L1_PER_SECTOR: usize = 64;

/// Everything that an L1 table leads to.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// L2 tables and guest clusters, as runs of adjacent clusters in the order of the walk. What is
    /// referred to twice is here twice.
    references: Vec<(HostCluster, u64)>,
    /// L2 tables with an entry that claims COPIED.
    claiming: Vec<HostOffset>,
}

impl Tree {
    pub(super) fn refer(&mut self, first: HostCluster, count: u64) {
        match self.references.last_mut() {
            Some((last, length)) if last.0 + *length == first.0 => *length += count,
            Some(_) | None => self.references.push((first, count)),
        }
    }

    /// What this tree refers to and `other` does not, or refers to more often.
    pub(super) fn beyond(&self, other: &Self) -> Self {
        let sorted = |tree: &Self| {
            let mut clusters: Vec<u64> = tree.clusters().map(|cluster| cluster.0).collect();
            clusters.sort_unstable();
            clusters
        };
        let theirs = sorted(other);
        let mut theirs = theirs.iter().peekable();
        let mut rest = Self::default();
        for cluster in sorted(self) {
            while theirs.next_if(|other| **other < cluster).is_some() {}
            if theirs.next_if_eq(&&cluster).is_none() {
                rest.refer(HostCluster(cluster), 1);
            }
        }
        rest
    }

    fn clusters(&self) -> impl Iterator<Item = HostCluster> {
        self.references
            .iter()
            .flat_map(|(first, count)| (first.0..first.0 + count).map(HostCluster))
    }
}

impl Metadata {
    /// Writes every L2 table back, and lowers the counts of what was unlinked, so that the file has the
    /// trees and the counts are exact: where they are narrow, a reference that is yet to go may leave no
    /// room for one that comes. The dirty bit stays as it is.
    pub(super) async fn catch_up(&mut self) -> Result<(), Error> {
        self.write_back_all().await?;
        let latest = self.order.latest();
        self.order.barrier(Barrier::CatchUp, latest).await?;
        self.reap().await
    }

    /// Walks what an L1 table at `l1_offset` leads to. The caller has written back every L2 table.
    pub(super) async fn tree(&self, l1_offset: HostOffset, l1: &[L1Word]) -> Result<Tree, Error> {
        let mut tree = Tree::default();
        let mut seen = BTreeSet::new();
        for (word, index) in l1.iter().zip(0..) {
            let bad = |problem| BadImage {
                structure: Structure::L1Table,
                offset: l1_offset.0,
                index: Some(index),
                problem,
            };
            let entry = word.decode(self.geometry).map_err(|e| bad(e.into()))?;
            let L1Entry::Table { offset, .. } = entry else {
                continue;
            };
            // Every table once, so that the walk is linear in the file.
            if !seen.insert(offset) {
                let problem = "two entries name the same L2 table";
                return Err(bad(Problem::Field(problem.into())).into());
            }
            let file_bytes = self.order.file().len();
            if offset.0 >= file_bytes {
                return Err(bad(Problem::BeyondEnd { file_bytes }).into());
            }
            tree.refer(self.geometry.cluster_of(offset), 1);
            self.walk_table(offset, &mut tree).await?;
        }
        Ok(tree)
    }

    async fn walk_table(&self, table: HostOffset, tree: &mut Tree) -> Result<(), Error> {
        let bytes = self.read_table(table).await?;
        let mut claims = false;
        for index in 0..mem_len(self.geometry.l2_entries()) {
            let entry = L2Entry::read(&bytes, index, self.geometry);
            if entry == L2Entry::default() {
                continue;
            }
            claims |= entry.claims_copied();
            let decoded = entry.decode(self.geometry, self.version);
            let mapping = decoded.map_err(|bad| BadImage {
                structure: Structure::L2Table,
                offset: table.0,
                index: Some(byte_count(index)),
                problem: bad.into(),
            })?;
            if let Some((first, count)) = host_clusters(self, mapping) {
                tree.refer(first, count);
            }
        }
        if claims {
            tree.claiming.push(table);
        }
        Ok(())
    }

    pub(super) async fn read_table(&self, table: HostOffset) -> Result<Vec<u8>, Error> {
        let at = self.order.file().at(Event::L2Load);
        Ok(at.read(table.0, self.geometry.cluster_len()).await?)
    }

    /// Refuses a tree of which a cluster cannot take as many references again.
    pub(super) async fn must_take_reference(&mut self, tree: &Tree) -> Result<(), Error> {
        let most = self.geometry.max_refcount();
        let mut clusters: Vec<HostCluster> = tree.clusters().collect();
        clusters.sort_unstable();
        // Compressed clusters that share a host cluster refer to it once each.
        for references in clusters.chunk_by(|one, other| one == other) {
            let cluster = references[0];
            match self.find_refcount(cluster).await? {
                Some(found) if found.value == 0 => return Err(self.unaccounted(cluster).into()),
                None => return Err(self.unaccounted(cluster).into()),
                Some(found) if found.value > most.saturating_sub(byte_count(references.len())) => {
                    self.order.note(Probe::SnapshotOverflow);
                    return Err(Refused::RefcountOverflow.into());
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn unaccounted(&self, cluster: HostCluster) -> BadImage {
        let problem = "a cluster in use has a refcount of zero: run check with repair all";
        BadImage {
            structure: Structure::RefcountBlock,
            offset: self.geometry.offset_of(cluster).0,
            index: None,
            problem: Problem::Field(problem.into()),
        }
    }

    /// Adds a reference to everything in a tree. Where that fails nothing has changed; a power loss
    /// on the way leaks.
    pub(super) async fn raise_tree(&mut self, tree: &Tree) -> Result<(), Error> {
        for (done, cluster) in tree.clusters().enumerate() {
            if let Err(error) = self.raise_refcount(cluster).await {
                self.unraise(tree, done).await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes back what [`Self::raise_tree`] did. If that fails too, leaks are all that remains.
    pub(super) async fn unraise_tree(&mut self, tree: &Tree) {
        self.unraise(tree, usize::MAX).await;
    }

    async fn unraise(&mut self, tree: &Tree, count: usize) {
        for cluster in tree.clusters().take(count) {
            if let Ok(Some(found)) = self.find_refcount(cluster).await
                && found.value > 1
            {
                self.put_refcount(found, found.value - 1);
            }
        }
    }

    async fn raise_refcount(&mut self, cluster: HostCluster) -> Result<(), Error> {
        match self.find_refcount(cluster).await? {
            Some(found) if found.value >= self.geometry.max_refcount() => {
                Err(Refused::RefcountOverflow.into())
            }
            Some(found) => {
                self.put_refcount(found, found.value + 1);
                Ok(())
            }
            None => Err(self.unaccounted(cluster).into()),
        }
    }

    /// Takes a reference from everything in a tree that nothing durable links any more.
    pub(super) async fn lower_tree(&mut self, tree: &Tree) -> Result<(), Error> {
        for cluster in tree.clusters() {
            self.free_now(Source::Snapshot, cluster, 1).await?;
        }
        Ok(())
    }

    /// Clears COPIED in the L2 tables of a tree, in the file. The caller has written back every table.
    pub(super) async fn clear_claims(&mut self, tree: &Tree) -> Result<(), Error> {
        for table in &tree.claiming {
            let mut bytes = self.read_table(*table).await?;
            for index in 0..mem_len(self.geometry.l2_entries()) {
                let entry = L2Entry::read(&bytes, index, self.geometry);
                let word = entry.word & !COPIED;
                L2Entry { word, ..entry }.write(&mut bytes, index, self.geometry);
            }
            self.write_claims(*table, bytes).await?;
        }
        Ok(())
    }

    async fn write_claims(&mut self, table: HostOffset, bytes: Vec<u8>) -> Result<(), Error> {
        self.l2.forget(table, self.geometry.cluster_bytes());
        self.order.write(Event::L2Update, table, bytes).await?;
        Ok(())
    }

    /// Clears COPIED in the active L1 table, in memory and in the file; and where the file may name a table that a failed write
    /// was to link, it names the one in memory again: the other one claims what it claimed.
    pub(super) async fn clear_l1_claims(&mut self) -> Result<(), Error> {
        let changed: Vec<usize> = (0..self.l1.len())
            .filter(|index| self.l1[*index].0 & COPIED != 0)
            .collect();
        for index in &changed {
            self.l1[*index].0 &= !COPIED;
        }
        let doubtful = self.l1_in_doubt.iter().copied();
        let mut stale: Vec<usize> = doubtful.filter(|index| *index < self.l1.len()).collect();
        stale.extend(&changed);
        stale.sort_unstable();
        let written = self.write_l1_sectors(&stale).await;
        if written.is_err() {
            // The file may claim them still: whoever relies on it that it does not writes them again.
            for index in &changed {
                self.l1[*index].0 |= COPIED;
            }
        }
        written
    }

    async fn write_l1_sectors(&mut self, changed: &[usize]) -> Result<(), Error> {
        let mut last = None;
        for index in changed {
            let sector = index / L1_PER_SECTOR;
            if last != Some(sector) {
                self.write_l1_sector(*index).await?;
                last = Some(sector);
            }
        }
        Ok(())
    }

    /// Sets COPIED in the active tree wherever there is only one reference left. The caller has made
    /// the lowered refcounts durable, and written back every table.
    pub(super) async fn renew_claims(&mut self) -> Result<(), Error> {
        let mut changed = Vec::new();
        for index in 0..self.l1.len() {
            let Ok(L1Entry::Table { offset, copied }) = self.l1[index].decode(self.geometry) else {
                continue;
            };
            if self.count_of(offset).await? != 1 {
                continue;
            }
            self.renew_table(offset).await?;
            if copied == Copied::No {
                changed.push(index);
            }
        }
        for index in &changed {
            self.l1[*index].0 |= COPIED;
        }
        let written = self.write_l1_sectors(&changed).await;
        if written.is_err() {
            // Where the file may name a table that a failed write was to link, the one in memory is nobody's to change.
            for index in &changed {
                let first = index - index % L1_PER_SECTOR;
                if self.l1_in_doubt.contains(&first) {
                    self.l1[*index].0 &= !COPIED;
                }
            }
        }
        written
    }

    async fn renew_table(&mut self, table: HostOffset) -> Result<(), Error> {
        let mut bytes = self.read_table(table).await?;
        let mut changed = false;
        for at in 0..mem_len(self.geometry.l2_entries()) {
            let entry = L2Entry::read(&bytes, at, self.geometry);
            if entry == L2Entry::default() {
                continue;
            }
            if let Ok(mapping) = entry.decode(self.geometry, self.version)
                && let (Some((offset, Copied::No)), _) = mapping.parts()
                && self.count_of(offset).await? == 1
            {
                let word = entry.word | COPIED;
                L2Entry { word, ..entry }.write(&mut bytes, at, self.geometry);
                changed = true;
            }
        }
        if changed {
            self.order.note(Probe::ClaimsRenewed);
            self.write_claims(table, bytes).await?;
        }
        Ok(())
    }

    async fn count_of(&mut self, offset: HostOffset) -> Result<u64, Error> {
        let cluster = self.geometry.cluster_of(offset);
        let found = self.find_refcount(cluster).await?;
        Ok(found.map_or(0, |found| found.value))
    }
}
