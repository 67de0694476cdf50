//! The walk from L1 tables to guest clusters: those of the guest's disk and of every snapshot.

use super::report::Kind;
use super::survey::{Place, Survey, Target};
use crate::defect::Defect;
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::data_file::misplaced;
use crate::qcow2::entry::{BadEntry, Copied, L1Entry, L1Word, L2Entry, Mapping};
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::be_u64;
use crate::qcow2::unit::{GuestCluster, HostOffset, byte_count, mem_len};
use crate::zeroes::leading_zeroes;

/// Whose L1 table names an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tree {
    /// The guest's disk, where COPIED has a meaning.
    Active,
    /// A snapshot.
    Snapshot,
}

/// The L2 tables to walk, one for every L1 entry that names them, with how many L1 tables of the kind
/// this entry belongs to.
pub(super) type Tables = Vec<(HostOffset, Tree, u32)>;

/// Entries of an L2 table, at least two, that map clusters one after the other and say the same of each.
#[derive(Clone, Copy)]
struct Run {
    /// The first cluster.
    offset: HostOffset,
    clusters: u64,
    copied: Copied,
}

/// An L2 table on the walk.
struct Table {
    offset: HostOffset,
    /// How many L1 entries name it.
    times: u32,
    /// Whether one of them belongs to the guest's disk.
    active: bool,
    /// Where the host cluster after the last one mapped starts; 0 before the first.
    next_contiguous: u64,
}

impl Survey<'_> {
    /// Counts everything that L1 tables lead to.
    pub(super) async fn walk_mappings(&mut self) {
        let header = self.header;
        let mut tables = Tables::new();
        let place = Place {
            structure: Structure::Header,
            offset: 0,
            index: 40,
        };
        self.report.totals.total_clusters = header.geometry.clusters_for(header.virtual_bytes);
        let l1 = (header.l1_offset, header.l1_entries * 8);
        self.walk_l1(place, l1, (Tree::Active, 1), &mut tables)
            .await;
        self.walk_snapshots(&mut tables).await;
        tables.sort_unstable();
        for group in tables.chunk_by(|one, other| one.0 == other.0) {
            let table = Table {
                offset: group[0].0,
                times: group
                    .iter()
                    .fold(0, |all: u32, (_, _, times)| all.saturating_add(*times)),
                active: group[0].1 == Tree::Active,
                next_contiguous: 0,
            };
            self.l2_tables.push((table.offset, table.times));
            self.walk_l2(table).await;
        }
    }

    /// Counts an L1 table and the L2 tables that it names, and hands these on.
    pub(super) async fn walk_l1(
        &mut self,
        place: Place,
        (offset, len_bytes): (HostOffset, u64),
        (tree, times): (Tree, u32),
        tables: &mut Tables,
    ) {
        self.refer(place, Target::Metadata, (offset.0, len_bytes), times);
        let bytes = self
            .read(Event::None, Structure::L1Table, offset.0, len_bytes)
            .await;
        for (word, index) in bytes
            .iter()
            .flat_map(|bytes| bytes.chunks_exact(8))
            .zip(0..)
        {
            let word = be_u64(word, 0);
            if word != 0 {
                let place = Place {
                    structure: Structure::L1Table,
                    offset: offset.0,
                    index,
                };
                let table = self.follow_l1(place, word, (tree, times));
                let geometry = self.header.geometry;
                if let Some(table) = table.filter(|_| geometry.has_external_data()) {
                    self.mapped_from
                        .insert(table, index * geometry.l2_entries());
                }
                tables.extend(table.map(|table| (table, tree, times)));
            }
        }
    }

    fn follow_l1(
        &mut self,
        place: Place,
        word: u64,
        (tree, times): (Tree, u32),
    ) -> Option<HostOffset> {
        let geometry = self.header.geometry;
        let mut decoded = L1Word(word).decode(geometry);
        if let Err(BadEntry::Reserved(bits)) = decoded {
            self.note_stuck(Kind::Entry(BadEntry::Reserved(bits)), place);
            decoded = L1Word(word & !bits).decode(geometry);
        }
        let cluster_bytes = geometry.cluster_bytes();
        match decoded {
            Ok(L1Entry::Table { offset, copied }) => {
                self.refer(place, Target::Metadata, (offset.0, cluster_bytes), times);
                if tree == Tree::Active {
                    self.judge_copied(place, offset, copied);
                }
                (offset.0 < self.file_bytes).then_some(offset)
            }
            Err(BadEntry::Unaligned(offset)) => {
                // What the table would lead to is not known.
                self.complete = false;
                self.note_stuck(Kind::Entry(BadEntry::Unaligned(offset)), place);
                self.refer(place, Target::Metadata, (offset, cluster_bytes), times);
                None
            }
            Ok(L1Entry::Empty) | Err(BadEntry::Reserved(_) | BadEntry::Bitmap(_)) => None,
        }
    }

    async fn walk_l2(&mut self, mut table: Table) {
        let cluster_bytes = self.header.geometry.cluster_bytes();
        let structure = Structure::L2Table;
        let Some(mut bytes) = self
            .read(Event::L2Load, structure, table.offset.0, cluster_bytes)
            .await
        else {
            return;
        };
        let mut entries = self.header.geometry.l2_entries();
        if self.planted.has(Defect::RepairMissesLastEntry) {
            entries -= 1;
        }
        let geometry = self.header.geometry;
        let len = mem_len(geometry.l2_entry_bytes());
        // The file may end within an entry, and a repair that makes it longer shows the rest as zeroes.
        bytes.resize(bytes.len().next_multiple_of(len), 0);
        let mut rest = &bytes[..bytes.len().min(mem_len(entries) * len)];
        let mut index = 0;
        loop {
            let empty = leading_zeroes(rest) / len;
            index += byte_count(empty);
            rest = &rest[empty * len..];
            if rest.len() < len {
                return;
            }
            let place = Place {
                structure,
                offset: table.offset.0,
                index,
            };
            let entry = L2Entry::read(rest, 0, geometry);
            let mut taken = 1;
            if let Some(run) = self.run_of(rest) {
                self.follow_run(place, &mut table, run);
                taken = run.clusters;
            } else {
                self.follow_l2(place, &mut table, entry);
            }
            index += taken;
            rest = &rest[mem_len(taken) * len..];
        }
    }

    /// The run that the first of these entries begins, where at least the second goes on with it: nothing
    /// of it is beyond the end of the file.
    fn run_of(&self, entries: &[u8]) -> Option<Run> {
        let geometry = self.header.geometry;
        let (first, more) = entries.as_chunks().0.split_first()?;
        let word = u64::from_be_bytes(*first);
        let goes_on = |other: &[u8; 8], nth: u64| {
            u64::from_be_bytes(*other) == word.wrapping_add(nth * geometry.cluster_bytes())
        };
        let plain = !geometry.has_subclusters() && !geometry.has_external_data();
        if !plain || !goes_on(more.first()?, 1) {
            return None;
        }
        let entry = L2Entry { word, bitmap: 0 };
        let Ok(Mapping::Data { offset, copied }) = entry.decode(geometry, self.header.version)
        else {
            return None;
        };
        let within = geometry.clusters_for(self.file_bytes.saturating_sub(offset.0));
        let more = more.iter().zip(1..within);
        let going_on = more.take_while(|(other, nth)| goes_on(other, *nth)).count();
        (going_on > 0).then(|| Run {
            offset,
            clusters: byte_count(going_on) + 1,
            copied,
        })
    }

    /// As [`Self::follow_l2`] for each of the run's entries.
    fn follow_run(&mut self, place: Place, table: &mut Table, run: Run) {
        self.refer_clusters(place, table, run.offset.0, run.clusters);
        if !table.active {
            return;
        }
        let geometry = self.header.geometry;
        let first = geometry.cluster_of(run.offset).0;
        let clusters = first..first + run.clusters;
        if run.copied == Copied::Yes && self.stored.all_one(clusters) {
            return;
        }
        for nth in 0..run.clusters {
            let place = Place {
                index: place.index + nth,
                ..place
            };
            let offset = HostOffset(run.offset.0 + nth * geometry.cluster_bytes());
            self.judge_copied(place, offset, run.copied);
        }
    }

    fn follow_l2(&mut self, place: Place, table: &mut Table, entry: L2Entry) {
        let (geometry, version) = (self.header.geometry, self.header.version);
        let decoded = self.decode_in_part(place, entry);
        match decoded {
            Ok(mapping) if geometry.has_external_data() => {
                self.follow_into_data_file(place, table, mapping);
            }
            Ok(Mapping::Compressed(compressed)) => {
                if entry.claims_copied() {
                    self.copied_in_doubt = true;
                    if self.compressed_claims.last() != Some(&table.offset) {
                        self.compressed_claims.push(table.offset);
                    }
                    self.note_entry(Kind::CompressedCopied, place);
                }
                if table.active {
                    self.report.totals.allocated_clusters += 1;
                    self.report.totals.compressed_clusters += 1;
                    self.report.totals.fragmented_clusters += 1;
                }
                let range = (compressed.offset.0, compressed.len_bytes);
                self.refer(place, Target::Guest, range, table.times);
            }
            Err(BadEntry::Unaligned(offset)) => {
                let kind = Kind::Entry(BadEntry::Unaligned(offset));
                if entry.shows_no_cluster(geometry, version) {
                    self.unaligned_reserves.push(table.offset);
                    self.note_entry(kind, place);
                } else {
                    self.note_stuck(kind, place);
                }
                self.refer_clusters(place, table, offset, 1);
            }
            Ok(mapping) => {
                if let (Some((offset, copied)), _) = mapping.parts() {
                    self.refer_clusters(place, table, offset.0, 1);
                    if table.active {
                        self.judge_copied(place, offset, copied);
                    }
                }
            }
            Err(BadEntry::Reserved(_) | BadEntry::Bitmap(_)) => {}
        }
    }

    /// Judges a mapping to an external data file, where no cluster has a refcount and each has its place.
    fn follow_into_data_file(&mut self, place: Place, table: &mut Table, mapping: Mapping) {
        let first = self.mapped_from.get(&table.offset).copied().unwrap_or(0);
        let guest = GuestCluster(first + place.index);
        if let Some(problem) = misplaced(self.header.geometry, mapping, guest) {
            self.note_stuck(Kind::Field(problem), place);
        }
        if let (Some((offset, copied)), _) = mapping.parts() {
            self.refer_clusters(place, table, offset.0, 1);
            if copied == Copied::No {
                self.copied_in_doubt = true;
                self.note_entry(Kind::Copied { refcount: 1 }, place);
            }
        }
    }

    /// What an entry says without the bits that it should not have, each kind of which is noted.
    fn decode_in_part(&mut self, place: Place, mut entry: L2Entry) -> Result<Mapping, BadEntry> {
        let (geometry, version) = (self.header.geometry, self.header.version);
        let mut decoded = entry.decode(geometry, version);
        if let Err(bad @ BadEntry::Reserved(bits)) = decoded {
            self.note_stuck(Kind::Entry(bad), place);
            entry.word &= !bits;
            decoded = entry.decode(geometry, version);
        }
        if let Err(bad @ BadEntry::Bitmap(_)) = decoded {
            self.note_stuck(Kind::Entry(bad), place);
            entry.bitmap = 0;
            decoded = entry.decode(geometry, version);
        }
        decoded
    }

    fn refer_clusters(&mut self, place: Place, table: &mut Table, offset: u64, clusters: u64) {
        let len_bytes = clusters * self.header.geometry.cluster_bytes();
        if table.active {
            self.report.totals.allocated_clusters += clusters;
            if table.next_contiguous != 0 && table.next_contiguous != offset {
                self.report.totals.fragmented_clusters += 1;
            }
            table.next_contiguous = offset + len_bytes;
        }
        if !self.header.geometry.has_external_data() {
            self.refer(place, Target::Guest, (offset, len_bytes), table.times);
        }
    }

    fn judge_copied(&mut self, place: Place, offset: HostOffset, copied: Copied) {
        let cluster = self.header.geometry.cluster_of(offset);
        self.copied_in_doubt |= copied == Copied::No;
        let refcount = self.stored.get(cluster.0);
        if (refcount == 1) != (copied == Copied::Yes) {
            self.note_entry(Kind::Copied { refcount }, place);
        }
    }
}

/// Whether an entry keeps an unaligned cluster in reserve and shows nothing of it: the one entry with a
/// wrong offset whose meaning is not in doubt.
pub(super) fn is_unaligned_reserve(entry: L2Entry, geometry: Geometry, version: u32) -> bool {
    matches!(entry.decode(geometry, version), Err(BadEntry::Unaligned(_)))
        && entry.shows_no_cluster(geometry, version)
}
