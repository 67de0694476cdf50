//! One pass over everything that an image refers to.
//!
//! Nothing is written, nothing is trusted, and nothing ends the pass early: what cannot be followed
//! is noted, and from then on the survey is not *complete*, which forbids repair to lower any count.
//! Time and memory are linear in the length of the file: a table that many entries name is walked
//! once, with its multiplicity.

use std::collections::{BTreeMap, BTreeSet};

use super::counts::Counts;
use super::report::{CheckReport, Kind};
use super::stored::Stored;
use crate::defect::Planted;
use crate::device::{Event, Port};
use crate::error::Structure;
use crate::qcow2::header::Header;
use crate::qcow2::unit::HostOffset;

/// Everything that a check learns and a repair needs.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    pub(super) file: &'a Port,
    pub(super) header: &'a Header,
    pub(super) file_bytes: u64,
    pub(super) planted: Planted,
    /// What was found.
    pub(super) report: CheckReport,
    /// References, those to the refcount structures included.
    pub(super) counts: Counts,
    /// Refcounts.
    pub(super) stored: Stored,
    /// Whether every reference was followed.
    pub(super) complete: bool,
    /// Corruptions that no repair can undo.
    pub(super) stuck: u64,
    /// Entries of the snapshot table that say too little or too much: a new table undoes that.
    pub(super) ill_said: u64,
    /// The most references that a cluster has, those to the refcount structures left out: a rebuild
    /// takes these away.
    pub(super) most_references: u32,
    /// Whether the refcount structures must be made anew.
    pub(super) rebuild: bool,
    /// Refcount blocks with a wrong count, by index.
    pub(super) wrong_blocks: Vec<u64>,
    /// L2 tables with entries that keep an unaligned cluster in reserve for zeroes.
    pub(super) unaligned_reserves: Vec<HostOffset>,
    /// L2 tables with a compressed cluster that claims COPIED.
    pub(super) compressed_claims: Vec<HostOffset>,
    /// The L2 tables that can be read, in order, and how many L1 entries name each.
    pub(super) l2_tables: Vec<(HostOffset, u32)>,
    /// By the place of their table, entries with a fault that repair would undo in the entry itself: how many.
    pub(super) entry_faults: BTreeMap<u64, u64>,
    /// Tables in a cluster that is something else as well, by their places. Whatever is written into them may be
    /// the guest's data.
    pub(super) shared_tables: BTreeSet<u64>,
    /// Whether COPIED may have to change somewhere: it is clear on a cluster, set on a compressed
    /// one, or there are clusters with several references.
    pub(super) copied_in_doubt: bool,
    /// The end of the furthest mapping beyond the end of the file that a lost extension explains;
    /// 0 where there is none.
    pub(super) lost_end: u64,
    /// Where the guest's disk starts that each of its L2 tables maps, in images whose clusters have their
    /// places in an external data file: the first cluster.
    pub(super) mapped_from: BTreeMap<HostOffset, u64>,
    /// Ranges, as start and end, that something refers to and that have no count: those beyond the end of the
    /// file that nothing explains, and what is wrong in the refcount structures.
    pub(super) wild: Vec<(u64, u64)>,
}

/// The entry that makes a reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) structure: Structure,
    pub(super) offset: u64,
    pub(super) index: u64,
}

/// What a reference is to, where that decides what damage a crash may do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Guest data: while the dirty bit is set the file may be too short for it.
    Guest,
    /// Metadata: durable before anything refers to it.
    Metadata,
}

impl<'a> Survey<'a> {
    /// Reads the whole image.
    pub(super) async fn take(file: &'a Port, header: &'a Header, planted: Planted) -> Self {
        let geometry = header.geometry;
        let file_bytes = file.len();
        let mut survey = Self {
            file,
            header,
            file_bytes,
            planted,
            report: CheckReport::default(),
            counts: Counts::new(geometry, file_bytes),
            stored: Stored::none(geometry),
            complete: true,
            stuck: 0,
            ill_said: 0,
            most_references: 0,
            rebuild: false,
            wrong_blocks: Vec::new(),
            unaligned_reserves: Vec::new(),
            compressed_claims: Vec::new(),
            l2_tables: Vec::new(),
            entry_faults: BTreeMap::new(),
            shared_tables: BTreeSet::new(),
            copied_in_doubt: false,
            lost_end: 0,
            mapped_from: BTreeMap::new(),
            wild: Vec::new(),
        };
        survey.load_stored().await;
        survey.counts.add_range(0, geometry.cluster_bytes(), 1);
        if let Some((offset, len_bytes)) = header.luks_range() {
            let place = Place {
                structure: Structure::HeaderExtension,
                offset: 0,
                index: 0,
            };
            survey.refer(place, Target::Metadata, (offset.0, len_bytes), 1);
        }
        survey.walk_mappings().await;
        survey.walk_bitmaps().await;
        survey.count_stored();
        survey.find_shared_tables();
        survey.compare();
        survey
    }

    /// Offset and length of the refcount table.
    pub(super) fn reftable(&self) -> (u64, u64) {
        let header = self.header;
        (
            header.reftable_offset.0,
            header.reftable_clusters * header.geometry.cluster_bytes(),
        )
    }

    /// The corruptions that a repair of everything can undo.
    pub(super) fn fixable(&self) -> u64 {
        if self.complete {
            self.report.found.corruptions - self.stuck
        } else {
            0
        }
    }

    /// Whether a range ends beyond the end of the file by a cluster or more. The last cluster of a
    /// file need not be whole.
    pub(super) fn ends_beyond(&self, offset: u64, len_bytes: u64) -> bool {
        let end = offset.saturating_add(len_bytes);
        end.saturating_sub(self.file_bytes) >= self.header.geometry.cluster_bytes()
    }

    /// Counts `times` references to a range.
    pub(super) fn refer(
        &mut self,
        place: Place,
        target: Target,
        (offset, len_bytes): (u64, u64),
        times: u32,
    ) {
        if self.ends_beyond(offset, len_bytes) {
            self.refer_beyond(place, target, (offset, len_bytes), times);
        } else {
            self.counts.add_range(offset, len_bytes, times);
        }
    }

    fn refer_beyond(
        &mut self,
        place: Place,
        target: Target,
        (offset, len_bytes): (u64, u64),
        times: u32,
    ) {
        let kind = Kind::BeyondEnd { offset, len_bytes };
        let explained = self.header.is_dirty()
            && target == Target::Guest
            && self
                .counts
                .clusters(offset, len_bytes)
                .all(|cluster| self.stored.covers(cluster));
        if explained {
            self.note(kind, place);
            self.counts.add_range(offset, len_bytes, times);
            self.lost_end = self.lost_end.max(offset + len_bytes);
        } else {
            self.note_stuck(kind, place);
            self.wild.push((offset, offset.saturating_add(len_bytes)));
            // The file may have been cut by mistake. What a refcount still holds has one owner, and
            // stays out of the reach of every other.
            for cluster in self.counts.clusters(offset, len_bytes) {
                if self.stored.covers(cluster) {
                    self.counts.add_cluster(cluster, times);
                }
            }
        }
    }

    /// Notes what a repair of everything can undo.
    pub(super) fn note(&mut self, kind: Kind, place: Place) {
        self.report
            .note(kind, place.structure, place.offset, place.index);
    }

    /// Notes what a repair of everything can undo by writing the entry, if nothing else lives in its table.
    pub(super) fn note_entry(&mut self, kind: Kind, place: Place) {
        *self.entry_faults.entry(place.offset).or_default() += 1;
        self.note(kind, place);
    }

    /// Finds the tables that must not be written, and takes back that their entries can be repaired. Comes when
    /// everything is counted.
    fn find_shared_tables(&mut self) {
        let geometry = self.header.geometry;
        let l1_offset = self.header.l1_offset;
        let mut l1 = self
            .counts
            .clusters(l1_offset.0, self.header.l1_entries * 8);
        if l1.any(|cluster| self.counts.get(cluster) > 1) {
            self.shared_tables.insert(l1_offset.0);
        }
        for (table, times) in std::mem::take(&mut self.l2_tables) {
            if self.counts.get(geometry.cluster_of(table).0) > times {
                self.shared_tables.insert(table.0);
            }
        }
        let faults = &self.entry_faults;
        let lasting = |table| faults.get(table).copied().unwrap_or(0);
        self.stuck += self.shared_tables.iter().map(lasting).sum::<u64>();
        let shared = &self.shared_tables;
        self.unaligned_reserves
            .retain(|table| !shared.contains(&table.0));
        self.compressed_claims
            .retain(|table| !shared.contains(&table.0));
    }

    /// Notes what only a person can undo.
    pub(super) fn note_stuck(&mut self, kind: Kind, place: Place) {
        self.stuck += 1;
        self.note(kind, place);
    }

    /// Notes what a rebuild of the refcount structures undoes.
    pub(super) fn note_for_rebuild(
        &mut self,
        kind: Kind,
        structure: Structure,
        offset: u64,
        index: u64,
    ) {
        self.rebuild = true;
        self.report.note(kind, structure, offset, index);
    }

    /// Reads a structure, as far as it lies within the file and padded with zeroes to
    /// whole words.
    /// `None` if it cannot be read, which is noted.
    pub(super) async fn read(
        &mut self,
        event: Event,
        structure: Structure,
        offset: u64,
        len_bytes: u64,
    ) -> Option<Vec<u8>> {
        let within = len_bytes.min(self.file_bytes.saturating_sub(offset));
        if within == 0 {
            return Some(Vec::new());
        }
        let len = usize::try_from(within.next_multiple_of(8)).ok()?;
        match self.file.at(event).read(offset, len).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.complete = false;
                self.report.note_unreadable(structure, &error);
                None
            }
        }
    }
}
