//! The bitmap directory, the bitmap tables and the bitmaps' data, as far as counting them goes.
//!
//! Specification: "Bitmaps". An extension without its autoclear bit is out of date: its clusters
//! belong to nobody.

use super::report::Kind;
use super::snapshots::Pages;
use super::survey::{Place, Survey, Target};
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::extension::BITMAPS;
use crate::qcow2::header::{be_u32, be_u64};
use crate::qcow2::unit::HostOffset;

const ENTRY_LEN: usize = 24;
/// The most bitmaps.
const MAX_BITMAPS: u32 = 65535;
/// The largest directory, in bytes: what its entries with the longest names take.
const MAX_DIRECTORY_BYTES: u64 = 68 << 20;
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
        if data.len() < ENTRY_LEN {
            self.give_up(place, "the bitmaps extension is too short");
            return;
        }
        let count = be_u32(data, 0);
        let (len_bytes, offset) = (be_u64(data, 8), be_u64(data, 16));
        let bad = count > MAX_BITMAPS || len_bytes > MAX_DIRECTORY_BYTES;
        if bad || !self.may_start_at(offset) {
            self.give_up(place, "the bitmaps extension is out of range");
            return;
        }
        self.refer(place, Target::Metadata, (offset, len_bytes), 1);
        self.walk_directory(offset, len_bytes, count).await;
    }

    async fn walk_directory(&mut self, offset: u64, len_bytes: u64, count: u32) {
        let structure = Structure::BitmapDirectory;
        let mut pages = Pages::new(structure, offset, len_bytes);
        let mut at = 0;
        let mut table_bytes = 0;
        for index in 0..u64::from(count) {
            let place = Place {
                structure,
                offset,
                index,
            };
            let Some(entry) = self.load(&mut pages, at, ENTRY_LEN).await else {
                self.give_up(place, "the directory ends before this entry");
                return;
            };
            let table = (be_u64(entry, 0), u64::from(be_u32(entry, 8)) * 8);
            let name = usize::try_from(be_u32(entry, 16) & 0xffff).expect("it is small");
            let extra = usize::try_from(be_u32(entry, 20)).expect("32 bits fit a length");
            at = at
                .saturating_add(ENTRY_LEN + name)
                .saturating_add(extra)
                .saturating_add(7)
                & !7;
            table_bytes += table.1;
            if !self.may_start_at(table.0) {
                self.give_up(place, "its table is not aligned to a cluster");
            } else if table_bytes > self.file_bytes {
                self.give_up(place, "its table does not fit the file");
            } else {
                self.walk_bitmap(place, table).await;
            }
        }
    }

    async fn walk_bitmap(&mut self, place: Place, (offset, len_bytes): (u64, u64)) {
        self.refer(place, Target::Metadata, (offset, len_bytes), 1);
        let mut done = 0;
        while done < len_bytes.min(self.file_bytes.saturating_sub(offset)) {
            let piece = PIECE_BYTES.min(len_bytes - done);
            self.walk_piece(offset, done, piece).await;
            done += piece;
        }
    }

    /// Counts what a piece of a table names.
    async fn walk_piece(&mut self, offset: u64, from: u64, len_bytes: u64) {
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
                self.refer(place, Target::Metadata, (data, cluster_bytes), 1);
            }
        }
    }

    fn may_start_at(&self, offset: u64) -> bool {
        offset <= 1 << 56 && self.header.geometry.is_aligned(HostOffset(offset))
    }
}
