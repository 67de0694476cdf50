//! The snapshot table, and the L1 table of every snapshot.
//!
//! Specification: "Snapshots".

use super::report::Kind;
use super::survey::{Place, Survey, Target};
use super::walk::{Tables, Tree};
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::header::{MAX_L1_BYTES, be_u32, be_u64};
use crate::qcow2::unit::HostOffset;

/// The largest snapshot table, in bytes.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Bytes of an entry before what has no fixed length.
const ENTRY_LEN: usize = 40;
/// The most that an entry may say beyond the fields of version 2, in bytes.
const MAX_EXTRA_LEN: usize = 1024;
/// What version 3 says beyond them at least: the full size of VM state, and the size of the disk.
const V3_EXTRA_LEN: usize = 16;

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
        let structure = Structure::SnapshotTable;
        let mut pages = Pages::new(structure, offset, MAX_TABLE_BYTES);
        let mut at = 0;
        let mut l1_bytes = 0;
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
            let l1 = (
                HostOffset(be_u64(entry, 0)),
                u64::from(be_u32(entry, 8)) * 8,
            );
            let id_and_name = be_u32(entry, 12);
            let extra = usize::try_from(be_u32(entry, 36)).expect("32 bits fit a length");
            let names =
                usize::try_from((id_and_name >> 16) + (id_and_name & 0xffff)).expect("it is small");
            if extra > MAX_EXTRA_LEN {
                self.give_up(place, "it has too much extra data");
                break;
            }
            if self.header.version >= 3 && extra < V3_EXTRA_LEN {
                self.note_stuck(Kind::Field("extra data of version 3 are missing"), place);
            }
            at += (ENTRY_LEN + extra + names).next_multiple_of(8);
            l1_bytes += l1.1;
            self.walk_snapshot_l1(place, l1, l1_bytes, tables).await;
        }
        let len_bytes = u64::try_from(at).expect("the table is bounded");
        let place = Place {
            structure: Structure::Header,
            offset: 0,
            index: 64,
        };
        self.refer(place, Target::Metadata, (offset, len_bytes), 1);
    }

    async fn walk_snapshot_l1(
        &mut self,
        place: Place,
        (offset, len_bytes): (HostOffset, u64),
        all_bytes: u64,
        tables: &mut Tables,
    ) {
        if !self.header.geometry.is_aligned(offset) || offset.0 > 1 << 56 {
            self.give_up(place, "its L1 table is not aligned to a cluster");
        } else if len_bytes > MAX_L1_BYTES {
            self.give_up(place, "its L1 table is too large");
        } else if all_bytes > self.file_bytes.saturating_mul(2) {
            // Tables that overlap could be walked for ever.
            self.give_up(place, "the L1 tables of snapshots overlap");
        } else {
            self.walk_l1(place, (offset, len_bytes), Tree::Snapshot, tables)
                .await;
        }
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
