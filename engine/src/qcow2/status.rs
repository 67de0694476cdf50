//! What a stretch of the guest's disk is made of.

use super::entry::Mapping;
use super::geometry::Geometry;
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
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_usable(self.access)?;
        let mappings = metadata.mappings(first, clusters).await?;
        drop(metadata);
        let (kind, host, len) = part_of(mappings[0], geometry, within);
        let mut whole = within + len;
        for mapping in &mappings[1..] {
            let (next, at, more) = part_of(*mapping, geometry, 0);
            let inside = geometry.within(whole) != 0;
            if inside || next != kind || at != host.map(|host| host + whole) {
                break;
            }
            whole += more;
        }
        // Under a cipher the file holds other bytes than the disk.
        let host = host.filter(|_| self.crypto.is_none());
        Ok(Status {
            kind,
            host_offset: host.map(|host| host + within),
            len_bytes: (whole - within).min(len_bytes),
        })
    }
}

/// What a mapping is from `within` bytes on, where the cluster's first byte stands, and how far that
/// holds. A subcluster that shows what lies beneath has its place in the host cluster all the same.
fn part_of(mapping: Mapping, geometry: Geometry, within: u64) -> (StatusKind, Option<u64>, u64) {
    let (part, len) = mapping.at(geometry, within);
    let (cluster, _) = mapping.parts();
    let kind = match part {
        Mapping::Unallocated => StatusKind::Unallocated,
        Mapping::Zero { .. } => StatusKind::Zero,
        Mapping::Data { .. } => StatusKind::Data,
        Mapping::Compressed(_) => StatusKind::Compressed,
        Mapping::Split(_) => unreachable!("a subcluster is not split"),
    };
    (kind, cluster.map(|(offset, _)| offset.0), len)
}
