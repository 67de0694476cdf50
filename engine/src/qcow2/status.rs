//! What a stretch of the guest's disk is made of.

use super::entry::Mapping;
use super::image::Qcow2;
use super::unit::GuestCluster;
use crate::error::Error;
use crate::image::{Status, StatusKind, must_reach};
use crate::sync::Mode;

impl Qcow2 {
    /// What the disk is made of from `offset` on, so far as one look at the tables tells.
    pub(super) async fn status_of(&self, offset: u64, len_bytes: u64) -> Result<Status, Error> {
        must_reach(self.virtual_bytes.get(), offset, len_bytes)?;
        let geometry = self.geometry;
        let within = geometry.within(offset);
        let first = GuestCluster(offset >> geometry.cluster_bits());
        let clusters = geometry.clusters_for(within + len_bytes);
        let _claim = self.claim(offset, len_bytes, Mode::Shared).await;
        let mappings = self.metadata.lock().await.mappings(first, clusters).await?;
        let (kind, host) = kind_of(mappings[0]);
        let mut whole = geometry.cluster_bytes();
        for mapping in &mappings[1..] {
            let (next, at) = kind_of(*mapping);
            if next != kind || at != host.map(|host| host + whole) {
                break;
            }
            whole += geometry.cluster_bytes();
        }
        Ok(Status {
            kind,
            host_offset: host.map(|host| host + within),
            len_bytes: (whole - within).min(len_bytes),
        })
    }
}

/// What a mapping is, and where its first byte stands as it is.
fn kind_of(mapping: Mapping) -> (StatusKind, Option<u64>) {
    match mapping {
        Mapping::Unallocated => (StatusKind::Unallocated, None),
        Mapping::Zero { reserve } => (StatusKind::Zero, reserve.map(|(offset, _)| offset.0)),
        Mapping::Data { offset, .. } => (StatusKind::Data, Some(offset.0)),
        Mapping::Compressed(_) => (StatusKind::Compressed, None),
    }
}
