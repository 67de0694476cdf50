//! Who refers to which cluster of an image, and how often that is counted, as the image itself says it.
//!
//! Damage can make clusters larger or smaller, and then their numbers say nothing: what is compared between images is asked
//! for by the sector of the file.

use std::collections::{BTreeMap, BTreeSet};

use engine::device::PageImage;

use crate::oracle::structure::{Layout, Mapped, Owner, layout, owners, walk};

/// Who refers to the clusters of an image.
pub(crate) struct Land {
    image: PageImage,
    layout: Option<Layout>,
    owners: BTreeMap<u64, Vec<Owner>>,
    references: BTreeMap<u64, u64>,
}

impl Land {
    pub(crate) fn of(image: &PageImage) -> Self {
        let mut map: BTreeMap<u64, Vec<Owner>> = BTreeMap::new();
        let mut references: BTreeMap<u64, u64> = BTreeMap::new();
        for (cluster, owner, count) in owners(image) {
            map.entry(cluster).or_default().push(owner);
            let sum = references.entry(cluster).or_default();
            *sum = sum.saturating_add(count);
        }
        let layout = layout(image);
        if let Some(layout) = &layout {
            share(&mut map, layout.l2_entries());
        }
        Self {
            layout,
            image: image.clone(),
            owners: map,
            references,
        }
    }

    pub(crate) fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// Where it says that guest clusters stand.
    pub(crate) fn mapped(&self) -> Vec<Mapped> {
        walk(&self.image).mapped
    }

    /// The sector where a cluster starts.
    pub(crate) fn start_of(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.cluster_sectors())
    }

    /// Who refers to a cluster; nobody to one that the file does not reach.
    pub(crate) fn owners(&self, cluster: u64) -> &[Owner] {
        if self.start_of(cluster).saturating_mul(512) >= self.image.len() {
            return &[];
        }
        self.owners.get(&cluster).map_or(&[], Vec::as_slice)
    }

    /// Who refers to the cluster that a sector is in.
    pub(crate) fn owners_of(&self, sector: u64) -> &[Owner] {
        self.owners(self.cluster_of(sector))
    }

    /// The same, with the guest's sector in the place of its cluster, which says the same in another image.
    pub(crate) fn owners_at(&self, sector: u64) -> Vec<Owner> {
        let within = sector - self.start_of(self.cluster_of(sector));
        let at = |owner: &Owner| {
            if let Owner::Data(guest) = owner {
                Owner::Data(self.start_of(*guest).saturating_add(within))
            } else {
                *owner
            }
        };
        self.owners_of(sector).iter().map(at).collect()
    }

    /// Whether the active L1 table names an L2 table that starts in the cluster of this sector.
    pub(crate) fn is_active_l2(&self, sector: u64) -> bool {
        let Some(layout) = &self.layout else {
            return false;
        };
        let cluster = self.cluster_of(sector);
        let entries = layout.l1_entries.min(1 << 16);
        (0..entries).any(|index| {
            let bytes = self.image.read_vec(layout.l1_offset + index * 8, 8);
            let entry = u64::from_be_bytes(bytes.try_into().unwrap_or_default());
            (entry & 0x00ff_ffff_ffff_fe00) / layout.cluster_bytes() == cluster
        })
    }

    /// Whether less is counted for the cluster of a sector than refers to it.
    pub(crate) fn is_low(&self, sector: u64) -> bool {
        self.refcount(sector) < self.references(sector)
    }

    /// How often the cluster of a sector is referred to.
    pub(crate) fn references(&self, sector: u64) -> u64 {
        let references = self.references.get(&self.cluster_of(sector)).copied();
        references.unwrap_or_default()
    }

    /// What is counted for the cluster of a sector.
    pub(crate) fn refcount(&self, sector: u64) -> u64 {
        let cluster = self.cluster_of(sector);
        let Some(layout) = &self.layout else { return 0 };
        let word = |at: u64| {
            let bytes = self.image.read_vec(at, 8).try_into();
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        let per_block = layout.counts_per_block();
        let index = cluster / per_block;
        if index >= layout.reftable_clusters * layout.cluster_bytes() / 8 {
            return 0;
        }
        let block = word(layout.reftable_offset + index * 8) & !0x1ff;
        if block == 0 {
            return 0;
        }
        let bit = (cluster % per_block) << layout.refcount_order;
        let width = 1 << layout.refcount_order;
        if width >= 8 {
            let count = word(block + bit / 8);
            return count >> (64 - width);
        }
        let byte = word(block + bit / 8) >> 56;
        (byte >> (bit % 8)) & ((1 << width) - 1)
    }

    fn cluster_of(&self, sector: u64) -> u64 {
        sector / self.cluster_sectors()
    }

    fn cluster_sectors(&self) -> u64 {
        self.layout.map_or(1, |layout| layout.cluster_sectors())
    }
}

/// Adds to the owners of data all that name them by one L2 table, which is walked but once.
fn share(owners: &mut BTreeMap<u64, Vec<Owner>>, l2_entries: u64) {
    let tables = owners.values().map(|owners| {
        let mut tables = BTreeSet::new();
        for owner in owners {
            if let Owner::L2Table(index) = owner {
                tables.insert(*index);
            }
        }
        tables
    });
    let shared: Vec<BTreeSet<u64>> = tables.filter(|tables| tables.len() > 1).collect();
    for tables in shared {
        for owners in owners.values_mut() {
            let others = owners.iter().flat_map(|owner| {
                let Owner::Data(guest) = owner else {
                    return Vec::new();
                };
                if !tables.contains(&(guest / l2_entries)) {
                    return Vec::new();
                }
                let in_table = |index: &u64| index.saturating_mul(l2_entries) + guest % l2_entries;
                tables.iter().map(in_table).map(Owner::Data).collect()
            });
            let others: Vec<Owner> = others.filter(|other| !owners.contains(other)).collect();
            owners.extend(others);
        }
    }
}
