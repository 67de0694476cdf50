//! How often each cluster of the file is referenced, in memory linear in the references.
//!
//! Clusters within the file have a slot each, in pages that are made when something refers to them: a
//! sparse file may claim any length. References beyond its end, which only a damaged image or one whose
//! last extension was lost can hold, cost memory one by one.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::qcow2::geometry::Geometry;
use crate::qcow2::refblock::GROUP;
use crate::qcow2::unit::{HostOffset, byte_count, mem_len};

/// No more clusters than this have slots, however long a sparse file claims to be.
const MAX_SLOTS: u64 = 1 << 28;
/// Slots in a page; a multiple of [`GROUP`].
const PAGE: usize = 1024;

/// The number of references to each cluster. A count stays at `u32::MAX` once it gets there.
#[derive(Debug)]
pub(super) struct Counts {
    geometry: Geometry,
    /// The cluster after the last that has a slot.
    dense_end: u64,
    /// What has a slot; a page that is not there holds zeroes.
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    sparse: BTreeMap<u64, u32>,
    most: u32,
}

impl Counts {
    /// No reference to any cluster of a file of that length.
    pub(super) fn new(geometry: Geometry, file_bytes: u64) -> Self {
        let dense_end = geometry.clusters_for(file_bytes).min(MAX_SLOTS);
        Self {
            geometry,
            dense_end,
            pages: vec![None; index(dense_end).div_ceil(PAGE)],
            sparse: BTreeMap::new(),
            most: 0,
        }
    }

    /// The references to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u32 {
        match self.slot(cluster) {
            Some(slot) => self.pages[slot / PAGE]
                .as_ref()
                .map_or(0, |page| page[slot % PAGE]),
            None => self.sparse.get(&cluster).copied().unwrap_or(0),
        }
    }

    /// Counts `times` references to every cluster that a range of bytes touches.
    pub(super) fn add_range(&mut self, offset: u64, len_bytes: u64, times: u32) {
        let mut clusters = self.clusters(offset, len_bytes);
        while let Some(slot) = self.slot(clusters.start).filter(|_| !clusters.is_empty()) {
            let within = slot % PAGE;
            let len = mem_len(clusters.end.min(self.dense_end) - clusters.start).min(PAGE - within);
            let counts = &mut self.page_mut(slot)[within..][..len];
            for count in &mut *counts {
                *count = count.saturating_add(times);
            }
            let most = counts.iter().copied().fold(0, u32::max);
            self.most = self.most.max(most);
            clusters.start += byte_count(len);
        }
        for cluster in clusters {
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
    pub(super) fn clusters(&self, offset: u64, len_bytes: u64) -> Range<u64> {
        if len_bytes == 0 {
            return 0..0;
        }
        let cluster = |offset| self.geometry.cluster_of(HostOffset(offset)).0;
        cluster(offset)..cluster(offset.saturating_add(len_bytes - 1)) + 1
    }

    /// The slots of [`GROUP`] clusters from `first` on, a multiple of that; `None` stands for zeroes.
    pub(super) fn group(&self, first: u64) -> Option<&[u32; GROUP]> {
        let slot = self.slot(first)?;
        let page = self.pages[slot / PAGE].as_ref()?;
        page[slot % PAGE..].first_chunk()
    }

    /// The clusters of a range that are referenced, in order, and how often.
    pub(super) fn referenced(&self, clusters: Range<u64>) -> impl Iterator<Item = (u64, u32)> {
        let group = byte_count(GROUP);
        let dense = clusters.start..clusters.end.min(self.dense_end);
        let slots = (dense.start / group..dense.end.div_ceil(group))
            .filter_map(move |number| Some((number * group, self.group(number * group)?)))
            .flat_map(|(first, slots)| (first..).zip(slots.iter().copied()))
            .filter(move |(cluster, count)| *count > 0 && dense.contains(cluster));
        slots.chain(self.sparse(clusters))
    }

    /// The references beyond the slots, in a range of clusters.
    pub(super) fn sparse(
        &self,
        clusters: Range<u64>,
    ) -> impl DoubleEndedIterator<Item = (u64, u32)> + Clone {
        self.sparse
            .range(clusters)
            .filter(|(_, count)| **count > 0)
            .map(|(cluster, count)| (*cluster, *count))
    }

    /// The cluster after the last slot.
    pub(super) fn dense_end(&self) -> u64 {
        self.dense_end
    }

    fn slot(&self, cluster: u64) -> Option<usize> {
        (cluster < self.dense_end).then(|| index(cluster))
    }

    fn count_mut(&mut self, cluster: u64) -> &mut u32 {
        match self.slot(cluster) {
            Some(slot) => &mut self.page_mut(slot)[slot % PAGE],
            None => self.sparse.entry(cluster).or_insert(0),
        }
    }

    /// The page of a slot.
    fn page_mut(&mut self, slot: usize) -> &mut [u32; PAGE] {
        self.pages[slot / PAGE].get_or_insert_with(|| Box::new([0; PAGE]))
    }
}

fn index(cluster: u64) -> usize {
    usize::try_from(cluster).expect("the slots are bounded")
}
