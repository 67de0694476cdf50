//! How often each cluster of the file is referenced, in memory linear in the file.
//!
//! Clusters within the file have a slot each. References beyond its end, which only a damaged image
//! or one whose last extension was lost can hold, cost memory one by one.

use std::collections::BTreeMap;

use crate::qcow2::geometry::Geometry;
use crate::qcow2::unit::HostOffset;

/// No more slots than this are reserved ahead, however long a sparse file claims to be.
const MAX_SLOTS: u64 = 1 << 26;

/// The number of references to each cluster. A count stays at `u32::MAX` once it gets there.
#[derive(Debug)]
pub(super) struct Counts {
    geometry: Geometry,
    dense: Vec<u32>,
    sparse: BTreeMap<u64, u32>,
    most: u32,
}

impl Counts {
    /// No reference to any cluster of a file of that length.
    pub(super) fn new(geometry: Geometry, file_bytes: u64) -> Self {
        let slots = geometry.clusters_for(file_bytes).min(MAX_SLOTS);
        Self {
            geometry,
            dense: vec![0; usize::try_from(slots).expect("the slots are bounded")],
            sparse: BTreeMap::new(),
            most: 0,
        }
    }

    /// The references to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u32 {
        match self.slot(cluster) {
            Some(slot) => self.dense[slot],
            None => self.sparse.get(&cluster).copied().unwrap_or(0),
        }
    }

    /// Counts `times` references to every cluster that a range of bytes touches.
    pub(super) fn add_range(&mut self, offset: u64, len_bytes: u64, times: u32) {
        for cluster in self.clusters(offset, len_bytes) {
            self.add_cluster(cluster, times);
        }
    }

    /// Counts `times` references to a cluster.
    pub(super) fn add_cluster(&mut self, cluster: u64, times: u32) {
        let count = self.count_mut(cluster);
        *count = count.saturating_add(times);
        let count = *count;
        self.most = self.most.max(count);
    }

    /// The highest count that any cluster ever had.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Takes back one reference to every cluster that a range of bytes touches.
    pub(super) fn remove_range(&mut self, offset: u64, len_bytes: u64) {
        for cluster in self.clusters(offset, len_bytes) {
            let count = self.count_mut(cluster);
            *count = count.saturating_sub(1);
        }
    }

    /// The clusters that a range of bytes touches.
    pub(super) fn clusters(&self, offset: u64, len_bytes: u64) -> std::ops::Range<u64> {
        if len_bytes == 0 {
            return 0..0;
        }
        let cluster = |offset| self.geometry.cluster_of(HostOffset(offset)).0;
        cluster(offset)..cluster(offset.saturating_add(len_bytes - 1)) + 1
    }

    /// The slots of clusters from `start` on, at most `count`: empty beyond the file.
    pub(super) fn dense(&self, start: u64, count: u64) -> &[u32] {
        let len = u64::try_from(self.dense.len()).expect("the slots are bounded");
        let from = start.min(len);
        let to = start.saturating_add(count).min(len);
        &self.dense[index(from)..index(to)]
    }

    /// The references beyond the slots, in a range of clusters.
    pub(super) fn sparse(
        &self,
        clusters: std::ops::Range<u64>,
    ) -> impl DoubleEndedIterator<Item = (u64, u32)> {
        self.sparse
            .range(clusters)
            .filter(|(_, count)| **count > 0)
            .map(|(cluster, count)| (*cluster, *count))
    }

    /// The cluster after the last slot.
    pub(super) fn dense_end(&self) -> u64 {
        u64::try_from(self.dense.len()).expect("the slots are bounded")
    }

    fn slot(&self, cluster: u64) -> Option<usize> {
        usize::try_from(cluster)
            .ok()
            .filter(|slot| *slot < self.dense.len())
    }

    fn count_mut(&mut self, cluster: u64) -> &mut u32 {
        match self.slot(cluster) {
            Some(slot) => &mut self.dense[slot],
            None => self.sparse.entry(cluster).or_insert(0),
        }
    }
}

fn index(cluster: u64) -> usize {
    usize::try_from(cluster).expect("the slots are bounded")
}
