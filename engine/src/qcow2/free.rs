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
            let Deferred { first, count, .. } = self.deferred[index];
            self.free_now(first, count).await?;
            self.deferred.remove(index);
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

    async fn lower_refcount(&mut self, cluster: HostCluster) -> Result<(), Error> {
        let refcount = match self.find_refcount(cluster).await? {
            Some(found) if found.value > 0 => {
                self.put_refcount(found, found.value - 1);
                found.value - 1
            }
            Some(_) | None => {
                let offset = self.geometry.offset_of(cluster).0;
                let problem = Problem::Field("a cluster in use has a refcount of zero".into());
                let structure = Structure::RefcountBlock;
                let reason = BadImage {
                    structure,
                    offset,
                    index: None,
                    problem,
                };
                return Err(self.found_corrupt(reason).await);
            }
        };
        if refcount > 0 {
            return Ok(());
        }
        let offset = self.geometry.offset_of(cluster);
        let cluster_bytes = self.geometry.cluster_bytes();
        if self.owners.remove(&cluster) == Some(Structure::L2Table) {
            self.l2.forget(offset, cluster_bytes);
        }
        self.order.file().at(Event::ClusterFree).reach().await?;
        // While the advice is under way the cluster is free, but nobody can allocate it: the caller
        // holds the lock.
        self.order.discard(offset, cluster_bytes).await;
        self.free_hint = self.free_hint.min(cluster.0);
        Ok(())
    }
}
