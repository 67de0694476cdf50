//! Refusing to write over metadata: what QEMU calls overlap checks.
//!
//! In a sound image no write ever meets metadata of another kind. Where refcounts or mappings are
//! wrong one might, and would destroy more than is wrong already: the image is marked corrupt instead,
//! and takes nothing any more. Which structures are looked at is the caller's choice; the active
//! image's are known in memory, those of snapshots are read when they are first asked for.

use std::collections::BTreeSet;

use super::entry::L1Entry;
use super::metadata::Metadata;
use super::unit::{HostCluster, HostOffset};
use crate::defect::Defect;
use crate::error::{BadImage, Error, Problem, Structure};

/// A kind of metadata that writes may be checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// The header's cluster, and that of the encryption.
    MainHeader,
    /// The active L1 table.
    ActiveL1,
    /// L2 tables that the active L1 table names.
    ActiveL2,
    /// The refcount table.
    RefcountTable,
    /// Refcount blocks.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// L1 tables of snapshots.
    InactiveL1,
    /// L2 tables that only snapshots name.
    InactiveL2,
    /// The bitmap directory, and bitmap tables.
    BitmapDirectory,
}

/// The kinds of metadata that writes are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverlapChecks(u16);

impl Region {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::MainHeader,
        Self::ActiveL1,
        Self::ActiveL2,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::SnapshotTable,
        Self::InactiveL1,
        Self::InactiveL2,
        Self::BitmapDirectory,
    ];

    /// QEMU's name of the option for it, below `overlap-check.`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MainHeader => "main-header",
            Self::ActiveL1 => "active-l1",
            Self::ActiveL2 => "active-l2",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock => "refcount-block",
            Self::SnapshotTable => "snapshot-table",
            Self::InactiveL1 => "inactive-l1",
            Self::InactiveL2 => "inactive-l2",
            Self::BitmapDirectory => "bitmap-directory",
        }
    }

    fn bit(self) -> u16 {
        let index = Self::ALL.iter().position(|region| *region == self);
        1 << index.expect("the list has every kind")
    }

    /// The kind that a structure belongs to, where it stands in clusters of its own.
    fn of(structure: Structure) -> Option<Self> {
        match structure {
            Structure::Header | Structure::EncryptionHeader => Some(Self::MainHeader),
            Structure::L1Table => Some(Self::ActiveL1),
            Structure::L2Table => Some(Self::ActiveL2),
            Structure::RefcountTable => Some(Self::RefcountTable),
            Structure::RefcountBlock => Some(Self::RefcountBlock),
            Structure::SnapshotTable => Some(Self::SnapshotTable),
            Structure::InactiveL1Table => Some(Self::InactiveL1),
            Structure::InactiveL2Table => Some(Self::InactiveL2),
            Structure::BitmapDirectory | Structure::BitmapTable => Some(Self::BitmapDirectory),
            Structure::HeaderExtension | Structure::BackingName | Structure::Data => None,
        }
    }
}

impl OverlapChecks {
    /// The templates of QEMU's option, with their names.
    pub const TEMPLATES: [(&'static str, Self); 4] = [
        ("none", Self::none()),
        ("constant", Self::constant()),
        ("cached", Self::cached()),
        ("all", Self::all()),
    ];

    /// Nothing is checked.
    pub const fn none() -> Self {
        Self(0)
    }

    /// What stands at few places, and hardly ever moves.
    pub const fn constant() -> Self {
        Self(0b1_0010_1011)
    }

    /// What is known in memory.
    pub const fn cached() -> Self {
        Self(0b1_0111_1111)
    }

    /// Everything.
    pub const fn all() -> Self {
        Self(0b1_1111_1111)
    }

    /// The template of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let found = Self::TEMPLATES.into_iter().find(|(one, _)| *one == name);
        found.map(|(_, checks)| checks)
    }

    /// Whether this kind is checked.
    pub fn has(self, region: Region) -> bool {
        self.0 & region.bit() != 0
    }

    /// These, and this kind too.
    #[must_use]
    pub fn with(self, region: Region) -> Self {
        Self(self.0 | region.bit())
    }

    /// These without this kind.
    #[must_use]
    pub fn without(self, region: Region) -> Self {
        Self(self.0 & !region.bit())
    }

    fn covers(self, structure: Structure) -> bool {
        Region::of(structure).is_some_and(|region| self.has(region))
    }
}

impl Default for OverlapChecks {
    fn default() -> Self {
        Self::cached()
    }
}

impl Metadata {
    /// Refuses a write that would destroy metadata, and marks the image corrupt.
    pub(super) async fn guard(&mut self, offset: HostOffset, len_bytes: u64) -> Result<(), Error> {
        let first = self.geometry.cluster_of(offset);
        if first == HostCluster(0) {
            // Whatever is not to be checked, the header's cluster is never to be had, and an entry that names it
            // would name nothing.
            return Err(self
                .overlap_found(offset, len_bytes, Structure::Header)
                .await);
        }
        let last = self
            .geometry
            .cluster_of(HostOffset(offset.0 + len_bytes.max(1) - 1));
        let checks = self.overlap_checks;
        let missed = self.planted.has(Defect::OverlapMissesRefblock);
        let active = self
            .owners
            .range(first..=last)
            .map(|(_, owner)| *owner)
            .find(|owner| checks.covers(*owner) && !(missed && *owner == Structure::RefcountBlock));
        let found = match active {
            Some(owner) => Some(owner),
            None if self.planted.has(Defect::OverlapMissesSnapshot) => None,
            None => self.inactive_owner(first, last).await?,
        };
        match found {
            Some(owner) => Err(self.overlap_found(offset, len_bytes, owner).await),
            None => Ok(()),
        }
    }

    /// Refuses to free a cluster that a mapping gave up and that is metadata: the mapping was damaged.
    pub(super) async fn guard_freed(&mut self, cluster: HostCluster) -> Result<(), Error> {
        let owner = self.owners.get(&cluster).copied();
        match owner.filter(|owner| self.overlap_checks.covers(*owner)) {
            Some(owner) => {
                let offset = self.geometry.offset_of(cluster);
                let len_bytes = self.geometry.cluster_bytes();
                Err(self.overlap_found(offset, len_bytes, owner).await)
            }
            None => Ok(()),
        }
    }

    /// Refuses to change an L2 table in place, at this offset, that a snapshot has too: it is marked
    /// COPIED wrongly.
    pub(super) async fn guard_shared(&mut self, table: HostOffset) -> Result<(), Error> {
        let cluster = self.geometry.cluster_of(table);
        match self.inactive_owner(cluster, cluster).await? {
            Some(owner) => {
                let len_bytes = self.geometry.cluster_bytes();
                Err(self.overlap_found(table, len_bytes, owner).await)
            }
            None => Ok(()),
        }
    }

    /// What of a snapshot's stands in these clusters.
    async fn inactive_owner(
        &mut self,
        first: HostCluster,
        last: HostCluster,
    ) -> Result<Option<Structure>, Error> {
        if self.overlap_checks.has(Region::InactiveL1) {
            let geometry = self.geometry;
            let meets = |offset: HostOffset, entries: u32| {
                let start = geometry.cluster_of(offset).0;
                let clusters = geometry.clusters_for(u64::from(entries) * 8);
                clusters > 0 && start <= last.0 && first.0 < start.saturating_add(clusters)
            };
            let mut records = self.snapshots.records.iter();
            if records.any(|one| meets(one.l1_offset, one.l1_entries)) {
                return Ok(Some(Structure::InactiveL1Table));
            }
        }
        if self.overlap_checks.has(Region::InactiveL2) && !self.snapshots.records.is_empty() {
            let tables = self.inactive_tables().await?;
            if tables.range(first..=last).next().is_some() {
                return Ok(Some(Structure::InactiveL2Table));
            }
        }
        Ok(None)
    }

    /// Whether an entry of the L1 table names the L2 table in this cluster.
    pub(super) fn is_active_table(&mut self, cluster: HostCluster) -> bool {
        let tables = self.active_tables.get_or_insert_with(|| {
            let entries = self.l1.iter().filter(|word| word.0 != 0);
            let tables = entries.filter_map(|word| match word.decode(self.geometry) {
                Ok(L1Entry::Table { offset, .. }) => Some(self.geometry.cluster_of(offset)),
                Ok(L1Entry::Empty) | Err(_) => None,
            });
            tables.collect()
        });
        tables.contains(&cluster)
    }

    /// The clusters of all L2 tables that snapshots name. They are read once for a list of snapshots:
    /// a snapshot's L1 table never changes.
    pub(super) async fn inactive_tables(&mut self) -> Result<&BTreeSet<HostCluster>, Error> {
        if self.inactive_tables.is_none() {
            let mut tables = BTreeSet::new();
            for index in 0..self.snapshots.records.len() {
                for word in self.snapshot_l1(index).await? {
                    if let Ok(L1Entry::Table { offset, .. }) = word.decode(self.geometry) {
                        tables.insert(self.geometry.cluster_of(offset));
                    }
                }
            }
            self.inactive_tables = Some(tables);
        }
        Ok(self.inactive_tables.as_ref().expect("it was just read"))
    }

    async fn overlap_found(
        &mut self,
        offset: HostOffset,
        len_bytes: u64,
        owner: Structure,
    ) -> Error {
        let reason = BadImage {
            structure: owner,
            offset: offset.0,
            index: None,
            problem: Problem::Overlap { owner, len_bytes },
        };
        self.found_corrupt(reason).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(regions: &[Region]) -> OverlapChecks {
        regions
            .iter()
            .fold(OverlapChecks::none(), |checks, region| checks.with(*region))
    }

    #[test]
    fn the_templates_are_qemus() {
        let constant = [
            Region::MainHeader,
            Region::ActiveL1,
            Region::RefcountTable,
            Region::SnapshotTable,
            Region::BitmapDirectory,
        ];
        assert_eq!(OverlapChecks::constant(), of(&constant));
        let cached = of(&Region::ALL).without(Region::InactiveL2);
        assert_eq!(OverlapChecks::cached(), cached);
        assert_eq!(OverlapChecks::all(), of(&Region::ALL));
        assert_eq!(OverlapChecks::from_name("cached"), Some(cached));
        assert_eq!(OverlapChecks::from_name("some"), None);
    }
}
