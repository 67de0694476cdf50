//! Clusters that nothing uses any more, and when they may be used again.
//!
//! Rule 3: freeing waits until the write that unlinked the cluster is durable. Until then its
//! refcount stays, so that no allocation can find it, whatever survives a power loss. Rule 29 holds the
//! same for the space of clusters that stay where they are.

use std::collections::{BTreeMap, VecDeque};

use super::discards::Source;
use super::entry::Compressed;
use super::geometry::Geometry;
use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{HostCluster, HostOffset};
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Structure};
use crate::probe::Probe;

/// Clusters to be freed once, by the write that unlinks them.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// It has not happened: it is the next write of this L2 slice.
    by_slice: BTreeMap<HostOffset, VecDeque<Due>>,
    /// It has completed. The oldest is durable first.
    written: BTreeMap<Stamp, VecDeque<Due>>,
    /// Clusters that mappings keep and whose space is to go back, each with the number of its entry in
    /// the lists above: entries of another number are void.
    punches: BTreeMap<HostCluster, u64>,
    /// The number of the next such entry.
    next_punch: u64,
}

/// What is due once a write is durable.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// A reference to each of these clusters goes.
    Free(Freed),
    /// The space of a cluster goes back, if nobody wants it by then.
    Punch { cluster: HostCluster, number: u64 },
}

/// Adjacent clusters, never none.
#[derive(Clone, Copy, Debug)]
struct Freed {
    first: HostCluster,
    count: u64,
    source: Source,
}

impl Deferred {
    fn push(&mut self, unlink: Unlink, freed: Freed) {
        if freed.count == 0 {
            return;
        }
        let list = self.list(unlink);
        match list.back_mut() {
            Some(Due::Free(last))
                if last.first.0 + last.count == freed.first.0 && last.source == freed.source =>
            {
                last.count += freed.count;
            }
            Some(_) | None => list.push_back(Due::Free(freed)),
        }
    }

    fn push_punch(&mut self, unlink: Unlink, cluster: HostCluster) {
        let number = self.next_punch;
        self.next_punch += 1;
        self.punches.insert(cluster, number);
        self.list(unlink).push_back(Due::Punch { cluster, number });
    }

    fn list(&mut self, unlink: Unlink) -> &mut VecDeque<Due> {
        match unlink {
            Unlink::BySlice(slice) => self.by_slice.entry(slice).or_default(),
            Unlink::Written(stamp) => self.written.entry(stamp).or_default(),
        }
    }

    /// What is due next, and the write that must be durable before.
    fn oldest(&self) -> Option<(Stamp, Due)> {
        let (stamp, list) = self.written.first_key_value()?;
        Some((*stamp, *list.front()?))
    }

    /// Forgets the first cluster of what [`Deferred::oldest`] named.
    fn advance(&mut self) {
        let Some(mut entry) = self.written.first_entry() else {
            return;
        };
        let list = entry.get_mut();
        match list.front_mut() {
            Some(Due::Free(freed)) if freed.count > 1 => {
                freed.first.0 += 1;
                freed.count -= 1;
            }
            Some(_) | None => drop(list.pop_front()),
        }
        if list.is_empty() {
            entry.remove();
        }
    }
}

/// The host clusters that a compressed run of bytes touches: the first, and how many.
pub(super) fn clusters_of(geometry: Geometry, run: Compressed) -> (HostCluster, u64) {
    let first = geometry.cluster_of(run.offset);
    let last = geometry.cluster_of(HostOffset(run.offset.0 + run.len_bytes - 1));
    (first, last.0 - first.0 + 1)
}

/// The write that unlinks a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlink {
    /// It has not happened: it is the next write of this L2 slice.
    BySlice(HostOffset),
    /// It has completed.
    Written(Stamp),
}

impl Metadata {
    /// Frees `count` clusters once `unlink` is durable.
    pub(super) fn free_after(
        &mut self,
        unlink: Unlink,
        source: Source,
        first: HostCluster,
        count: u64,
    ) {
        let unlink = if self.planted.has(Defect::FreeBeforeUnlink) {
            Unlink::Written(Stamp::default())
        } else {
            unlink
        };
        let freed = Freed {
            first,
            count,
            source,
        };
        self.deferred.push(unlink, freed);
    }

    /// Rule 29: gives the space of a cluster back, which its mapping keeps, once `unlink` is durable.
    pub(super) fn punch_after(&mut self, unlink: Unlink, cluster: HostCluster) {
        let unlink = if self.planted.has(Defect::PunchBeforeUnlink) {
            Unlink::Written(Stamp::default())
        } else {
            unlink
        };
        self.deferred.push_punch(unlink, cluster);
    }

    /// Rule 29: a write takes the cluster again that its mapping kept.
    pub(super) fn keep_space(&mut self, cluster: HostCluster) {
        if !self.planted.has(Defect::PunchReused)
            && self.deferred.punches.remove(&cluster).is_some()
        {
            self.order.note(Probe::PunchVoid);
        }
    }

    /// Notes that an L2 slice was written, and with it everything that it unlinks.
    pub(super) fn unlinked_by_slice(&mut self, slice: HostOffset, stamp: Stamp) {
        if let Some(mut list) = self.deferred.by_slice.remove(&slice) {
            let written = self.deferred.written.entry(stamp).or_default();
            written.append(&mut list);
        }
    }

    /// Whether something may be freed by now.
    pub(super) fn may_reap(&self) -> bool {
        let oldest = self.deferred.oldest();
        oldest.is_some_and(|(unlinked, _)| self.order.is_durable(unlinked))
    }

    /// Frees what may be freed by now.
    pub(super) async fn reap(&mut self) -> Result<(), Error> {
        while let Some((unlinked, due)) = self.deferred.oldest()
            && self.order.is_durable(unlinked)
        {
            // One by one: what fails half-way goes on where it stopped, and lowers nothing twice.
            match due {
                Due::Free(freed) => self.lower_refcount(freed.first, freed.source).await?,
                Due::Punch { cluster, number } => self.punch(cluster, number).await,
            }
            self.deferred.advance();
        }
        Ok(())
    }

    /// While the advice is under way nobody can write to the cluster: the caller holds the lock.
    async fn punch(&mut self, cluster: HostCluster, number: u64) {
        if self.deferred.punches.get(&cluster) == Some(&number) {
            self.deferred.punches.remove(&cluster);
            let offset = self.geometry.offset_of(cluster);
            self.order
                .discard(offset, self.geometry.cluster_bytes())
                .await;
        }
    }

    /// Lowers the refcounts of clusters that nothing durable links.
    pub(super) async fn free_now(
        &mut self,
        source: Source,
        first: HostCluster,
        count: u64,
    ) -> Result<(), Error> {
        for cluster in first.0..first.0 + count {
            self.lower_refcount(HostCluster(cluster), source).await?;
        }
        Ok(())
    }

    /// Lowers a refcount by one. Nothing changes where this fails.
    async fn lower_refcount(&mut self, cluster: HostCluster, source: Source) -> Result<(), Error> {
        let offset = self.geometry.offset_of(cluster);
        let found = match self.find_refcount(cluster).await? {
            Some(found) if found.value > 0 => found,
            Some(_) | None => {
                let what = "a cluster in use has a refcount of zero";
                return Err(self.counted_too_low(offset, what).await);
            }
        };
        if found.value > 1 {
            self.put_refcount(found, found.value - 1);
            return Ok(());
        }
        let is_table = self.owners.get(&cluster) == Some(&Structure::L2Table);
        let may_be_freed = match source {
            Source::Request | Source::Replaced => false,
            // With what an L1 table led to go the L2 tables.
            Source::Snapshot => is_table,
            Source::Other => true,
        };
        if !may_be_freed {
            self.guard_freed(cluster).await?;
        }
        if is_table && self.is_active_table(cluster) {
            return Err(self.shared_table(offset).await);
        }
        self.order.file().at(Event::ClusterFree).reach().await?;
        self.put_refcount(found, 0);
        self.stop_packing(cluster);
        self.deferred.punches.remove(&cluster);
        let cluster_bytes = self.geometry.cluster_bytes();
        self.owners.remove(&cluster);
        if is_table {
            self.order.note(Probe::TableFreed);
            self.l2.forget(offset, cluster_bytes);
        }
        if self.discards.passes(source) {
            // While the advice is under way the cluster is free, but nobody can allocate it: the caller
            // holds the lock.
            self.order.discard(offset, cluster_bytes).await;
        }
        self.free_hint = self.free_hint.min(cluster.0);
        Ok(())
    }

    /// Refuses to free an L2 table, at this offset, that another entry of the L1 table names.
    pub(super) async fn shared_table(&mut self, table: HostOffset) -> Error {
        let what = "an L2 table that two entries name has a refcount of one";
        self.counted_too_low(table, what).await
    }

    async fn counted_too_low(&mut self, cluster: HostOffset, what: &str) -> Error {
        let reason = BadImage {
            structure: Structure::RefcountBlock,
            offset: cluster.0,
            index: None,
            problem: Problem::Field(what.into()),
        };
        self.found_corrupt(reason).await
    }
}
