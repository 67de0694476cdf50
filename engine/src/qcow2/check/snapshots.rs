//! The snapshot table, and the L1 table of every snapshot.
//!
//! Specification: "Snapshots".

use super::claims::Claim;
use super::report::Kind;
use super::survey::{Place, Survey, Target};
use super::walk::{Tables, Tree};
use crate::defect::Defect;
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::bounds::{Bounded, MAX_SNAPSHOT_TABLE_BYTES};
use crate::qcow2::snapshot::table::{ENTRY_LEN, Head, MAX_EXTRA_LEN, V3_EXTRA_LEN};

/// A table of entries without a fixed length, read piece by piece.
pub(super) struct Pages {
    structure: Structure,
    offset: u64,
    limit: u64,
    bytes: Vec<u8>,
}

impl Survey<'_> {
    /// Counts the snapshot table and the L1 tables of the snapshots.
    pub(super) async fn walk_snapshots(&mut self, tables: &mut Tables) {
        if self.header.snapshot_count == 0 {
            return;
        }
        let offset = self.header.snapshots_offset.0;
        if self.header.geometry.has_external_data() {
            let place = Place {
                structure: Structure::Header,
                offset: 0,
                index: 60,
            };
            let problem = "internal snapshots in an image with an external data file";
            self.note_stuck(Kind::Field(problem), place);
        }
        let structure = Structure::SnapshotTable;
        let mut pages = Pages::new(structure, offset, MAX_SNAPSHOT_TABLE_BYTES);
        let mut at = 0;
        let mut claims = Vec::new();
        for index in 0..u64::from(self.header.snapshot_count) {
            let place = Place {
                structure,
                offset,
                index,
            };
            let Some(entry) = self.load(&mut pages, at, ENTRY_LEN).await else {
                self.give_up(place, "the table ends before this entry");
                break;
            };
            let head = Head::decode(entry);
            if self.load(&mut pages, at, head.entry_len()).await.is_none() {
                self.give_up(place, "the table ends within this entry");
                break;
            }
            if head.extra_len > MAX_EXTRA_LEN {
                self.note_ill_said(place, "it has too much extra data");
            } else if self.header.version >= 3 && head.extra_len < V3_EXTRA_LEN {
                self.note_ill_said(place, "extra data of version 3 are missing");
            }
            at += head.entry_len();
            claims.push(Claim {
                offset: head.l1_offset,
                len_bytes: u64::from(head.l1_entries) * 8,
                place,
            });
        }
        for table in self.settle_claims(Bounded::L1Table, claims) {
            let place = (table.extent.offset, table.extent.len_bytes);
            self.walk_l1(table.place, place, (Tree::Snapshot, table.times), tables)
                .await;
        }
        let len_bytes = u64::try_from(at).expect("the table is bounded");
        let place = Place {
            structure: Structure::Header,
            offset: 0,
            index: 64,
        };
        self.refer(place, Target::Metadata, (offset, len_bytes), 1);
    }

    /// Notes an entry whose meaning is plain, and which says too little or too much.
    fn note_ill_said(&mut self, place: Place, problem: &'static str) {
        if self.planted.has(Defect::RepairSkipsSnapshots) {
            return;
        }
        self.ill_said += 1;
        self.note(Kind::Field(problem), place);
    }

    /// Notes a fault behind which references may be hidden.
    pub(super) fn give_up(&mut self, place: Place, problem: &'static str) {
        self.complete = false;
        self.note_stuck(Kind::Field(problem), place);
    }

    /// The bytes of a table from position `at` on. `None` where the table or the file ends before, or
    /// where it cannot be read.
    pub(super) async fn load<'p>(
        &mut self,
        pages: &'p mut Pages,
        at: usize,
        len: usize,
    ) -> Option<&'p [u8]> {
        let end = at.checked_add(len)?;
        while pages.bytes.len() < end {
            let have = u64::try_from(pages.bytes.len()).ok()?;
            let here = pages.offset.checked_add(have)?;
            if have >= pages.limit || here >= self.file_bytes {
                return None;
            }
            let want = self.header.geometry.cluster_bytes().max(4096);
            let more = self.read(Event::None, pages.structure, here, want).await?;
            pages.bytes.extend_from_slice(&more);
        }
        pages.bytes.get(at..end)
    }
}

impl Pages {
    /// The table at `offset`, at most `limit` bytes of it.
    pub(super) fn new(structure: Structure, offset: u64, limit: u64) -> Self {
        Self {
            structure,
            offset,
            limit,
            bytes: Vec::new(),
        }
    }
}
