//! Snapshots of an image that changes its version: what the table has to say, and zeroes that version 2
//! does not know.
//!
//! A snapshot whose tables say "zeroes" gets tables of its own beside them, which say the same with data
//! or with nothing, and the snapshot table switches to them under rules 17 and 18. The tables that were
//! there are not touched: whoever shares them sees no difference, and a power loss leaves either.

use std::collections::BTreeMap;

use super::table::V3_EXTRA_LEN;
use super::tree::Tree;
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{Error, Structure};
use crate::qcow2::data::Place;
use crate::qcow2::discards::Source;
use crate::qcow2::entry::{Copied, L1Entry, L1Word, L2Entry, Mapping};
use crate::qcow2::image::Qcow2;
use crate::qcow2::metadata::Metadata;
use crate::qcow2::unit::{HostCluster, HostOffset, byte_count, mem_len};

/// What takes the place of an entry that says "zeroes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Instead {
    /// Zeroes on the disk.
    Data,
    /// Nothing, where what is not allocated reads as zeroes too.
    Nothing,
}

impl Metadata {
    /// Lets every entry of the snapshot table say what version 3 asks of it.
    pub(in crate::qcow2) async fn complete_snapshots(&mut self) -> Result<(), Error> {
        let records = self.snapshots.records.iter();
        if records.clone().all(|one| one.extra.len() >= V3_EXTRA_LEN) {
            return Ok(());
        }
        self.catch_up().await?;
        let records = self.complete_records();
        let table = self.prepare_snapshot_table(&records).await?;
        self.switch_snapshots(records, table).await
    }

    /// Why the snapshots cannot be those of a version 2 image, if they cannot.
    pub(in crate::qcow2) fn snapshots_beyond_version_2(&self) -> Option<&'static str> {
        for record in &self.snapshots.records {
            let size = record.disk_bytes().unwrap_or(self.virtual_bytes);
            if size != self.virtual_bytes {
                return Some("a snapshot of a disk of another size");
            }
            if u32::try_from(record.vm_state_bytes()).is_err() {
                return Some("a snapshot with 4 GiB of VM state or more");
            }
        }
        None
    }

    /// Moves a snapshot to another L1 table. `fresh` is what was made for it, with its one reference.
    async fn move_snapshot(
        &mut self,
        index: usize,
        old: &Tree,
        l1: &[L1Word],
        fresh: &Tree,
    ) -> Result<(), Error> {
        let mut records = self.complete_records();
        let record = &mut records[index];
        let old_first = self.geometry.cluster_of(record.l1_offset);
        let new = self.tree(record.l1_offset, l1).await?;
        // What both trees hold keeps its count.
        let (gained, lost) = (new.beyond(old).beyond(fresh), old.beyond(&new));
        self.must_take_reference(&gained).await?;
        let bytes = l1.iter().flat_map(|word| word.0.to_be_bytes()).collect();
        let run = self.write_new_clusters(Event::None, bytes).await?;
        record.l1_offset = self.geometry.offset_of(run.first);
        let offset = record.l1_offset;
        let table = match self.write_snapshot_table(&records).await {
            Ok(table) => table,
            Err(error) => {
                self.abandon_run(run).await;
                return Err(error);
            }
        };
        if let Err(error) = self.raise_durably(&gained).await {
            self.abandon_run(run).await;
            if let Some(table) = table {
                self.abandon_run(table).await;
            }
            return Err(error);
        }
        self.switch_snapshots(records, table).await?;
        self.own(offset, run.count, Structure::InactiveL1Table);
        self.lower_tree(&lost).await?;
        self.disown(old_first, run.count);
        self.free_now(Source::Other, old_first, run.count).await
    }
}

impl Qcow2 {
    /// Takes every entry that says "zeroes" out of the snapshots' tables. No snapshot shows a difference.
    pub(in crate::qcow2) async fn expand_snapshots(
        &self,
        metadata: &mut Metadata,
        instead: Instead,
    ) -> Result<(), Error> {
        if self.planted.has(Defect::DowngradeForgetsSnapshots) {
            return Ok(());
        }
        if !metadata.snapshots.records.is_empty() {
            metadata.catch_up().await?;
        }
        // What one snapshot was given serves the next that has the same table.
        let mut tables = BTreeMap::new();
        for index in 0..metadata.snapshots.records.len() {
            let at = metadata.snapshots.records[index].l1_offset;
            let before = metadata.snapshot_l1(index).await?;
            let old = metadata.tree(at, &before).await?;
            let mut fresh = Tree::default();
            let mut l1 = before.clone();
            self.expand_tables(metadata, &mut l1, instead, &mut tables, &mut fresh)
                .await?;
            if l1 != before {
                metadata.move_snapshot(index, &old, &l1, &fresh).await?;
            }
        }
        Ok(())
    }

    /// Gives an L1 table other L2 tables where its own say "zeroes". What this makes is added to `fresh`;
    /// where it fails, that leaks.
    async fn expand_tables(
        &self,
        metadata: &mut Metadata,
        l1: &mut [L1Word],
        instead: Instead,
        tables: &mut BTreeMap<HostOffset, HostOffset>,
        fresh: &mut Tree,
    ) -> Result<(), Error> {
        let per_table = self.geometry.l2_entries();
        for (word, at) in l1.iter_mut().zip(0..) {
            // The walk over the tree has refused what cannot be decoded.
            let Ok(L1Entry::Table { offset: old, .. }) = word.decode(self.geometry) else {
                continue;
            };
            let new = match tables.get(&old) {
                Some(new) => *new,
                None => {
                    let guest = (at * per_table) << self.geometry.cluster_bits();
                    let new = self
                        .expand_table(metadata, old, guest, instead, fresh)
                        .await?;
                    tables.insert(old, new);
                    new
                }
            };
            if new != old {
                let copied = Copied::No;
                *word = L1Entry::Table {
                    offset: new,
                    copied,
                }
                .encode();
            }
        }
        Ok(())
    }

    /// A table that shows what `old` shows without saying "zeroes": `old` itself where it does not.
    async fn expand_table(
        &self,
        metadata: &mut Metadata,
        old: HostOffset,
        guest: u64,
        instead: Instead,
        fresh: &mut Tree,
    ) -> Result<HostOffset, Error> {
        let mut bytes = metadata.read_table(old).await?;
        let mut changed = false;
        for index in 0..mem_len(self.geometry.l2_entries()) {
            let entry = L2Entry::read(&bytes, index, self.geometry);
            let Ok(mapping) = entry.decode(self.geometry, metadata.version) else {
                continue;
            };
            let new = match mapping {
                Mapping::Zero { .. } => {
                    changed = true;
                    let guest = guest + (byte_count(index) << self.geometry.cluster_bits());
                    self.instead_of_zeroes(metadata, guest, instead, fresh)
                        .await?
                }
                // More than one table is to name it.
                Mapping::Data { offset, .. } => Mapping::Data {
                    offset,
                    copied: Copied::No,
                },
                Mapping::Unallocated | Mapping::Compressed(_) | Mapping::Split(_) => continue,
            };
            new.encode(self.geometry)
                .write(&mut bytes, index, self.geometry);
        }
        if !changed {
            return Ok(old);
        }
        let run = metadata.write_new_clusters(Event::L2Update, bytes).await?;
        fresh.refer(run.first, 1);
        Ok(self.geometry.offset_of(run.first))
    }

    /// What takes the place of zeroes at a guest offset.
    async fn instead_of_zeroes(
        &self,
        metadata: &mut Metadata,
        guest: u64,
        instead: Instead,
        fresh: &mut Tree,
    ) -> Result<Mapping, Error> {
        if instead == Instead::Nothing {
            return Ok(Mapping::Unallocated);
        }
        let first: HostCluster = metadata.allocate_exactly(1).await?.first;
        fresh.refer(first, 1);
        let offset = self.geometry.offset_of(first);
        let place = Place {
            host: offset,
            guest,
        };
        self.zero_data(place, self.geometry.cluster_bytes()).await?;
        let copied = Copied::No;
        Ok(Mapping::Data { offset, copied })
    }
}
