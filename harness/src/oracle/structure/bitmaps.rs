//! The persistent bitmaps as the oracle reads them. Specification: "Bitmaps extension", "Bitmap
//! directory", "Bitmap table", "Bitmap data".

use std::collections::BTreeSet;
use std::ops::Range;

use super::bounds::{Bounded, MAX_BITMAPS};
use super::references::Collector;
use super::{Finding, Owner, Scan};

const EXTENSION: u64 = 0x2385_2875;
const RECORD_BYTES: u64 = 24;
/// Where a record has its flags.
const FLAGS: u64 = 12;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;
const IN_USE: u64 = 1 << 0;
const AUTO: u64 = 1 << 1;
const EXTRA_COMPATIBLE: u64 = 1 << 2;
/// The type of a bitmap that tracks what guests write.
const DIRTY_TRACKING: u64 = 1;

/// A bitmap as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBitmap {
    /// Its name.
    pub name: Vec<u8>,
    /// How many sectors of the disk a bit stands for.
    pub granule_sectors: u64,
    /// Whether the file says that it is out of date.
    pub in_use: bool,
    /// Whether guest writes set bits.
    pub enabled: bool,
    /// Whether its type, its flags and its extra data are such as the specification names, or may be ignored.
    pub known: bool,
    /// Where its record in the directory starts, in bytes.
    pub record_at: u64,
    /// The guest sectors that it calls dirty, ascending and apart; empty where it is out of date.
    pub dirty: Vec<Range<u64>>,
}

impl StoredBitmap {
    /// Where the part of its record stands that every bitmap has, in bytes.
    pub fn record(&self) -> Range<u64> {
        self.record_at..self.record_at + RECORD_BYTES
    }

    /// Where its flags stand, in bytes.
    pub fn flags_at(&self) -> u64 {
        self.record_at + FLAGS
    }

    /// Whether it calls a guest sector dirty.
    pub fn covers(&self, sector: u64) -> bool {
        let index = self.dirty.partition_point(|range| range.end <= sector);
        self.dirty
            .get(index)
            .is_some_and(|range| range.contains(&sector))
    }

    /// The first sector that it does not call dirty.
    pub fn first_clean(&self) -> u64 {
        self.first_clean_from(0)
    }

    /// The first sector from this one on that it does not call dirty.
    pub fn first_clean_from(&self, sector: u64) -> u64 {
        let mut at = sector;
        for range in &self.dirty {
            if range.start > at {
                break;
            }
            at = at.max(range.end);
        }
        at
    }
}

/// Notes the clusters of all bitmaps, and what they say.
pub(super) fn collect(collector: &mut Collector, scan: &mut Scan<'_>) {
    if !scan.layout.has_bitmaps() {
        return;
    }
    let Some(extension) = extension(scan) else {
        scan.report.find(Finding::Bitmap {
            index: 0,
            problem: "the autoclear bit is set, and there is no extension",
        });
        return;
    };
    let (count, len_bytes, offset) = (
        number(scan, extension, 4),
        number(scan, extension + 8, 8),
        number(scan, extension + 16, 8),
    );
    let cluster_bytes = scan.layout.cluster_bytes();
    let admitted = Bounded::BitmapDirectory.admits(offset, len_bytes, cluster_bytes);
    let end = offset.saturating_add(len_bytes);
    let counted = (1..=MAX_BITMAPS).contains(&count);
    if !admitted || offset == 0 || !counted || end > scan.image.len() {
        scan.report.find(Finding::Bitmap {
            index: 0,
            problem: "the directory is not where one can be",
        });
        return;
    }
    let clusters = len_bytes.div_ceil(scan.layout.cluster_bytes());
    collector.refer(scan, Owner::BitmapDirectory, offset, clusters);
    let mut at = offset;
    let mut walked = BTreeSet::new();
    for index in 0..count {
        match bitmap(collector, scan, index, at..end, &mut walked) {
            Ok(next) => at = next,
            Err(problem) => {
                scan.report.find(Finding::Bitmap { index, problem });
                return;
            }
        }
    }
}

/// Where the data of the bitmaps extension stand.
fn extension(scan: &Scan<'_>) -> Option<u64> {
    let mut at = number(scan, 100, 4);
    let name = number(scan, 8, 8);
    let end = if name == 0 {
        scan.layout.cluster_bytes()
    } else {
        name
    };
    while at + 8 <= end {
        let (kind, len) = (number(scan, at, 4), number(scan, at + 4, 4));
        if kind == 0 {
            return None;
        }
        if kind == EXTENSION {
            return (len == 24).then_some(at + 8);
        }
        at += 8 + len.next_multiple_of(8);
    }
    None
}

/// A big-endian number of `len` bytes.
fn number(scan: &Scan<'_>, at: u64, len: usize) -> u64 {
    let mut bytes = [0; 8];
    scan.image.read(at, &mut bytes[8 - len..]);
    u64::from_be_bytes(bytes)
}

/// Notes the bitmap whose record is the first in a range of the file, and yields where the next one's
/// starts.
fn bitmap(
    collector: &mut Collector,
    scan: &mut Scan<'_>,
    index: u64,
    Range { start: at, end }: Range<u64>,
    walked: &mut BTreeSet<u64>,
) -> Result<u64, &'static str> {
    if at + RECORD_BYTES > end {
        return Err("the directory ends before its record");
    }
    let table = number(scan, at, 8);
    let entries = number(scan, at + 8, 4);
    let flags = number(scan, at + FLAGS, 4);
    let kind = number(scan, at + 16, 1);
    let granularity_bits = number(scan, at + 17, 1);
    let (name_bytes, extra_bytes) = (number(scan, at + 18, 2), number(scan, at + 20, 4));
    let name_at = at + RECORD_BYTES + extra_bytes;
    if name_at + name_bytes > end || !(9..=31).contains(&granularity_bits) {
        return Err("its record cannot be right");
    }
    let mut name = vec![0; usize::try_from(name_bytes).expect("16 bits fit a length")];
    scan.image.read(name_at, &mut name);
    // Nothing keeps every bitmap of a damaged image from naming one table.
    if !walked.insert(table) {
        return Err("its table is that of another bitmap");
    }
    let mut stored = StoredBitmap {
        name,
        granule_sectors: 1 << (granularity_bits - 9),
        in_use: flags & IN_USE != 0,
        enabled: flags & AUTO != 0,
        known: kind == DIRTY_TRACKING
            && flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) == 0
            && (extra_bytes == 0 || flags & EXTRA_COMPATIBLE != 0),
        record_at: at,
        dirty: Vec::new(),
    };
    read_table(collector, scan, index, (table, entries), &mut stored)?;
    scan.report.bitmaps.push(stored);
    Ok((name_at + name_bytes).next_multiple_of(8))
}

fn read_table(
    collector: &mut Collector,
    scan: &mut Scan<'_>,
    index: u64,
    (table, entries): (u64, u64),
    stored: &mut StoredBitmap,
) -> Result<(), &'static str> {
    let cluster_bytes = scan.layout.cluster_bytes();
    if !Bounded::BitmapTable.admits(table, entries * 8, cluster_bytes) || table == 0 {
        return Err("its table is out of range");
    }
    let granules = scan
        .layout
        .virtual_sectors()
        .div_ceil(stored.granule_sectors);
    if !stored.in_use && entries != granules.div_ceil(cluster_bytes * 8) {
        return Err("its table is not as long as the disk demands");
    }
    let clusters = (entries * 8).div_ceil(cluster_bytes);
    collector.refer(scan, Owner::BitmapTable(index), table, clusters);
    let mut dirty = Dirty {
        granules,
        granule_sectors: stored.granule_sectors,
        disk_sectors: scan.layout.virtual_sectors(),
        ranges: Vec::new(),
    };
    for word in scan.words(table, entries) {
        let first = word.index * cluster_bytes * 8;
        let target = word.value & OFFSET;
        if word.value == ALL_ONES {
            dirty.add(first..first + cluster_bytes * 8);
        } else if word.value == target && target.is_multiple_of(cluster_bytes) {
            collector.refer(scan, Owner::BitmapData(index), target, 1);
            if !stored.in_use {
                read_bits(scan, target, first, &mut dirty);
            }
        } else {
            return Err("an entry of its table is not valid");
        }
    }
    if !stored.in_use {
        stored.dirty = dirty.ranges;
    }
    Ok(())
}

/// The bits of one cluster: bit 0 of the first byte stands for the first granule.
fn read_bits(scan: &mut Scan<'_>, offset: u64, first: u64, dirty: &mut Dirty) {
    let start = offset / 512;
    let sectors = start..start + scan.spend(scan.layout.cluster_sectors());
    for (sector, bytes) in scan.image.stored_sectors(sectors) {
        let first = first + (sector - start) * 4096;
        for (byte, at) in bytes.iter().zip((first..).step_by(8)) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                dirty.add(at + bit..at + bit + 1);
            }
        }
    }
}

/// Dirty granules on their way to be sectors.
struct Dirty {
    granules: u64,
    granule_sectors: u64,
    disk_sectors: u64,
    ranges: Vec<Range<u64>>,
}

impl Dirty {
    fn add(&mut self, granules: Range<u64>) {
        let start = granules.start.min(self.granules) * self.granule_sectors;
        let end = granules.end.min(self.granules) * self.granule_sectors;
        let end = end.min(self.disk_sectors);
        if start >= end {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            Some(_) | None => self.ranges.push(start..end),
        }
    }
}
