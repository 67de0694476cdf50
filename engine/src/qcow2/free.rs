//! Clusters that nothing uses any more, and when they may be used again.
//!
//! Rule 3: freeing waits until the write that unlinked the cluster is durable. Until then its
//! refcount stays, so that no allocation can find it, whatever survives a power loss.

use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{HostCluster, HostOffset};
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Structure};

/// Clusters to be freed once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deferred {
    first: HostCluster,
    count: u64,
    unlink: Unlink,
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
    pub(super) fn free_after(&mut self, unlink: Unlink, first: HostCluster, count: u64) {
        let unlink = if self.planted.has(Defect::FreeBeforeUnlink) {
            Unlink::Written(Stamp::default())
        } else {
            unlink
        };
        self.deferred.push(Deferred {
            first,
            count,
            unlink,
        });
    }

    /// Notes that an L2 slice was written, and with it everything that it unlinks.
    pub(super) fn unlinked_by_slice(&mut self, slice: HostOffset, stamp: Stamp) {
        for deferred in &mut self.deferred {
            if deferred.unlink == Unlink::BySlice(slice) {
                deferred.unlink = Unlink::Written(stamp);
            }
        }
    }

    /// Frees what may be freed by now.
    pub(super) async fn reap(&mut self) -> Result<(), Error> {
        let is_due = |deferred: &Deferred, metadata: &Self| match deferred.unlink {
            Unlink::BySlice(_) => false,
            Unlink::Written(stamp) => metadata.order.is_durable(stamp),
        };
        while let Some(index) = self
            .deferred
            .iter()
            .position(|deferred| is_due(deferred, self))
        {
            // One by one: what fails half-way goes on where it stopped, and lowers nothing twice.
            self.lower_refcount(self.deferred[index].first).await?;
            let deferred = &mut self.deferred[index];
            deferred.first.0 += 1;
            deferred.count -= 1;
            if deferred.count == 0 {
                self.deferred.remove(index);
            }
        }
        Ok(())
    }

    /// Lowers the refcounts of clusters that nothing durable links.
    pub(super) async fn free_now(&mut self, first: HostCluster, count: u64) -> Result<(), Error> {
        for cluster in first.0..first.0 + count {
            self.lower_refcount(HostCluster(cluster)).await?;
        }
        Ok(())
    }

    /// Lowers a refcount by one. Nothing changes where this fails.
    async fn lower_refcount(&mut self, cluster: HostCluster) -> Result<(), Error> {
        let offset = self.geometry.offset_of(cluster);
        let found = match self.find_refcount(cluster).await? {
            Some(found) if found.value > 0 => found,
            Some(_) | None => {
                let problem = Problem::Field("a cluster in use has a refcount of zero".into());
                let structure = Structure::RefcountBlock;
                let reason = BadImage {
                    structure,
                    offset: offset.0,
                    index: None,
                    problem,
                };
                return Err(self.found_corrupt(reason).await);
            }
        };
        if found.value > 1 {
            self.put_refcount(found, found.value - 1);
            return Ok(());
        }
        self.order.file().at(Event::ClusterFree).reach().await?;
        self.put_refcount(found, 0);
        let cluster_bytes = self.geometry.cluster_bytes();
        if self.owners.remove(&cluster) == Some(Structure::L2Table) {
            self.l2.forget(offset, cluster_bytes);
        }
        // While the advice is under way the cluster is free, but nobody can allocate it: the caller
        // holds the lock.
        self.order.discard(offset, cluster_bytes).await;
        self.free_hint = self.free_hint.min(cluster.0);
        Ok(())
    }
}
