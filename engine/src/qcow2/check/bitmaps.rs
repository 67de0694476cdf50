//! The bitmap directory, the bitmap tables and the bitmaps' data, as far as counting them goes.
//!
//! Specification: "Bitmaps". An extension without its autoclear bit is out of date: its clusters
//! belong to nobody.

use super::claims::{Claim, Table};
use super::report::Kind;
use super::snapshots::Pages;
use super::survey::{Place, Survey, Target};
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::bounds::{Bounded, Extent, MAX_BITMAPS};
use crate::qcow2::extension::BITMAPS;
use crate::qcow2::header::{be_u32, be_u64};
use crate::qcow2::unit::HostOffset;

const ENTRY_LEN: usize = 24;
/// Of a record: its content is out of date.
const IN_USE: u32 = 1;
/// Where a bitmap table entry says that a cluster's data stand.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// As much of a table is read at once.
const PIECE_BYTES: u64 = 64 << 10;
/// The bit of an entry without offset that stands for a cluster of ones.
const ALL_ONES: u64 = 1;

impl Survey<'_> {
    /// Counts everything that belongs to bitmaps.
    pub(super) async fn walk_bitmaps(&mut self) {
        if !self.header.has_bitmaps() {
            return;
        }
        let data = self.header.extension(BITMAPS).unwrap_or(&[]);
        let place = Place {
            structure: Structure::HeaderExtension,
            offset: 0,
            index: BITMAPS.into(),
        };
        if data.len() != ENTRY_LEN || be_u32(data, 4) != 0 {
            self.give_up(place, "the bitmaps extension is not what it must be");
            return;
        }
        let count = be_u32(data, 0);
        let (len_bytes, offset) = (be_u64(data, 8), be_u64(data, 16));
        let claim = (HostOffset(offset), len_bytes);
        let extent = Extent::new(Bounded::BitmapDirectory, claim, self.header.geometry);
        match extent {
            Ok(_) if !(1..=MAX_BITMAPS).contains(&count) => {
                self.give_up(
                    place,
                    "there are no bitmaps, or more than the format allows",
                );
            }
            Ok(_) => {
                self.refer(place, Target::Metadata, (offset, len_bytes), 1);
                self.walk_directory(offset, len_bytes, count).await;
            }
            Err(excess) => {
                self.complete = false;
                self.note_stuck(Kind::Place(excess), place);
            }
        }
    }

    async fn walk_directory(&mut self, offset: u64, len_bytes: u64, count: u32) {
        let structure = Structure::BitmapDirectory;
        let mut pages = Pages::new(structure, offset, len_bytes);
        let mut at = 0;
        let mut claims = Vec::new();
        for index in 0..u64::from(count) {
            let place = Place {
                structure,
                offset,
                index,
            };
            let Some(entry) = self.load(&mut pages, at, ENTRY_LEN).await else {
                self.give_up(place, "the directory ends before this entry");
                break;
            };
            let entry: [u8; ENTRY_LEN] = entry.try_into().expect("so many bytes were asked for");
            let table_entries = be_u32(&entry, 8);
            claims.push(Claim {
                offset: HostOffset(be_u64(&entry, 0)),
                len_bytes: u64::from(table_entries) * 8,
                place,
            });
            self.judge_record(place, &entry);
            let name = usize::try_from(be_u32(&entry, 16) & 0xffff).expect("it is small");
            let extra = usize::try_from(be_u32(&entry, 20)).expect("32 bits fit a length");
            at = at
                .saturating_add(ENTRY_LEN + name)
                .saturating_add(extra)
                .saturating_add(7)
                & !7;
        }
        let told = u64::try_from(claims.len()).expect("bitmaps are bounded") == u64::from(count);
        if told && u64::try_from(at).is_ok_and(|at| at != len_bytes) {
            let place = Place {
                structure,
                offset,
                index: count.into(),
            };
            self.give_up(place, "the directory is not as long as its entries");
        }
        for table in self.settle_claims(Bounded::BitmapTable, claims) {
            self.walk_bitmap(table).await;
        }
    }

    /// A bitmap that is up to date, and of a kind that is known, has a table that fits the disk.
    fn judge_record(&mut self, place: Place, entry: &[u8; ENTRY_LEN]) {
        let (table_entries, flags) = (be_u32(entry, 8), be_u32(entry, 12));
        let [kind, granularity_bits] = [entry[16], entry[17]];
        let known = kind == 1 && (9..=31).contains(&granularity_bits);
        if table_entries == 0 {
            self.give_up(place, "it has no table");
        } else if known && flags & IN_USE == 0 {
            let bits = self.header.virtual_bytes.div_ceil(1 << granularity_bits);
            let needed = self.header.geometry.clusters_for(bits.div_ceil(8));
            if needed != u64::from(table_entries) {
                let problem = "its table is not as long as the disk demands";
                self.note_stuck(Kind::Field(problem), place);
            }
        }
    }

    async fn walk_bitmap(&mut self, table: Table) {
        let Table {
            extent,
            place,
            times,
        } = table;
        let (offset, len_bytes) = (extent.offset.0, extent.len_bytes);
        self.refer(place, Target::Metadata, (offset, len_bytes), times);
        let mut done = 0;
        while done < len_bytes.min(self.file_bytes.saturating_sub(offset)) {
            let piece = PIECE_BYTES.min(len_bytes - done);
            self.walk_piece((offset, times), done, piece).await;
            done += piece;
        }
    }

    /// Counts what a piece of a table names.
    async fn walk_piece(&mut self, (offset, times): (u64, u32), from: u64, len_bytes: u64) {
        let structure = Structure::BitmapTable;
        let Some(bytes) = self
            .read(Event::None, structure, offset + from, len_bytes)
            .await
        else {
            return;
        };
        let cluster_bytes = self.header.geometry.cluster_bytes();
        for (word, index) in bytes.chunks_exact(8).zip(from / 8..) {
            let word = be_u64(word, 0);
            let place = Place {
                structure,
                offset,
                index,
            };
            let data = word & OFFSET;
            let allowed = if data == 0 { ALL_ONES } else { 0 };
            if word & !(OFFSET | allowed) != 0 || !self.may_start_at(data) {
                self.note_stuck(Kind::Field("the bitmap table entry is not valid"), place);
            } else if data != 0 {
                self.refer(place, Target::Metadata, (data, cluster_bytes), times);
            }
        }
    }

    fn may_start_at(&self, offset: u64) -> bool {
        offset <= 1 << 56 && self.header.geometry.is_aligned(HostOffset(offset))
    }
}
