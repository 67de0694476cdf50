//! What a disk destroyed: the sectors that hold what no disk could have that keeps its word and writes whole sectors.
//!
//! On such a disk (`epoch-torn`) each sector holds its last durable content or one written to it since, whatever the
//! other sectors hold, and the file reaches at least as far as what is durable. Where everything that a reader looks at
//! is so, it cannot tell the disk from an honest one, and all that is promised for those must hold for what it reads.

use std::collections::BTreeMap;
use std::ops::Range;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{RecordedOp, Recording, SectorContent, Tick};
use engine::device::{PageImage, SECTOR_BYTES, SectorHash, sector_hash};

use super::durability::{Frontier, Standing, set_len};
use super::state::garbage;

/// What honest disks may hold at a cut.
#[derive(Debug)]
pub struct Honest(Disks<OfDisk>);

#[derive(Debug)]
struct OfDisk {
    /// For every sector that was ever changed.
    sectors: BTreeMap<u64, Known>,
    /// The file reaches at least so many bytes.
    floor: u64,
    /// And it may reach so far instead.
    ends: Vec<u64>,
    /// Whether what is in one sector says nothing of what may be in another.
    is_exact: bool,
}

/// What may be in a sector, by its hash.
#[derive(Clone, Debug, Default)]
struct Known {
    /// On an honest disk.
    legal: Vec<SectorHash>,
    /// On any disk that does not invent anything.
    ever: Vec<SectorHash>,
}

/// How a sector was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruin {
    /// It holds what it held once, or it is not there any more.
    Stale,
    /// It holds what nobody wrote.
    Garbage,
}

/// The sectors of a disk that were destroyed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    sectors: BTreeMap<u64, Ruin>,
    /// What should be there and is not.
    cut_off: Range<u64>,
    is_exact: bool,
}

impl Honest {
    /// What they may hold at a cut of this recording.
    pub fn at(recording: &Recording, cut: Tick) -> Self {
        let frontier = Frontier::at(recording, cut);
        let settled = frontier.settled();
        Self(settled.map(|disk, content| OfDisk::of(&frontier, disk, content)))
    }

    /// What of these contents they cannot hold.
    pub fn destroyed(&self, disks: &Disks<PageImage>) -> Disks<Destroyed> {
        let nothing = OfDisk {
            sectors: BTreeMap::new(),
            floor: 0,
            ends: Vec::new(),
            is_exact: true,
        };
        disks.map(|disk, image| self.0.get(disk).unwrap_or(&nothing).destroyed(image))
    }
}

impl OfDisk {
    fn of(frontier: &Frontier<'_>, disk: Disk, settled: &PageImage) -> Self {
        let recording = frontier.recording();
        let base = recording.bases.get(disk);
        let mut of_disk = Self {
            sectors: BTreeMap::new(),
            floor: settled.len(),
            ends: Vec::new(),
            is_exact: true,
        };
        let submitted = recording.entries.iter().filter(|entry| {
            entry.disk == disk && entry.changes_content() && entry.submitted <= frontier.cut()
        });
        let furthest = submitted.clone().filter_map(|entry| entry.op.grows_to());
        let furthest = furthest.fold(base.map_or(0, PageImage::len), u64::max);
        for entry in submitted {
            let sectors = match set_len(&entry.op) {
                // What is cut off reads zero if the file grows again.
                Some(len) => len / SECTOR_BYTES..furthest.div_ceil(SECTOR_BYTES),
                None => entry.op.sectors(),
            };
            for sector in sectors {
                let known = of_disk.sectors.entry(sector).or_insert_with(|| Known {
                    legal: vec![settled.stored_hash(sector)],
                    ever: vec![0, base.map_or(0, |base| base.stored_hash(sector))],
                });
                known.ever.push(asked(&entry.op, sector));
            }
        }
        of_disk.add_tail(frontier, disk);
        of_disk
    }

    /// What the requests behind the settled content leave open.
    fn add_tail(&mut self, frontier: &Frontier<'_>, disk: Disk) {
        let mine = || frontier.tail().iter().filter(|tail| tail.disk == disk);
        let durable = mine().filter(|tail| tail.standing == Standing::Durable);
        let ends = durable.filter_map(|tail| frontier.entry(tail).op.grows_to());
        let lengths = mine().filter_map(|tail| set_len(&frontier.entry(tail).op));
        self.is_exact = lengths.clone().next().is_none();
        self.floor = lengths.fold(ends.fold(self.floor, u64::max), u64::min);
        let grown = mine().filter_map(|tail| frontier.entry(tail).op.grows_to());
        self.ends.extend(grown);
        for tail in mine() {
            let entry = frontier.entry(tail);
            let sectors = match set_len(&entry.op) {
                Some(len) => len / SECTOR_BYTES..u64::MAX,
                None => entry.op.sectors(),
            };
            for (sector, known) in self.sectors.range_mut(sectors.clone()) {
                let index = usize::try_from(sector - sectors.start).unwrap_or(usize::MAX);
                if set_len(&entry.op).is_none() && !entry.happens(index) {
                    continue;
                }
                if tail.standing == Standing::Durable {
                    known.legal.clear();
                } else if tail.advisory {
                    let bytes = garbage(entry.id, *sector);
                    known.legal.push(sector_hash(*sector, &bytes));
                }
                known.legal.push(asked(&entry.op, *sector));
            }
        }
    }

    fn destroyed(&self, image: &PageImage) -> Destroyed {
        let end = image.len() / SECTOR_BYTES;
        let mut destroyed = Destroyed {
            sectors: BTreeMap::new(),
            cut_off: end..(self.floor / SECTOR_BYTES).max(end),
            // A liar may have kept what was cut off for good.
            is_exact: self.is_exact
                && (image.len() <= self.floor || self.ends.contains(&image.len())),
        };
        for (sector, known) in self.sectors.range(..end) {
            let found = image.stored_hash(*sector);
            if !known.legal.contains(&found) {
                let ruin = if known.ever.contains(&found) {
                    Ruin::Stale
                } else {
                    Ruin::Garbage
                };
                destroyed.sectors.insert(*sector, ruin);
            }
        }
        destroyed
    }
}

/// The hash of what a request puts into a sector of its own.
fn asked(op: &RecordedOp, sector: u64) -> SectorHash {
    if set_len(op).is_some() {
        return 0;
    }
    let index = usize::try_from(sector - op.sectors().start).expect("a request fits memory");
    match op.content(index) {
        SectorContent::Zero => 0,
        SectorContent::Bytes(_, hash) => hash,
    }
}

impl Destroyed {
    /// These sectors.
    pub(crate) fn of(sectors: &[(u64, Ruin)]) -> Self {
        Self {
            sectors: sectors.iter().copied().collect(),
            cut_off: 0..0,
            is_exact: true,
        }
    }

    /// Whether nothing is.
    pub fn is_none(&self) -> bool {
        self.sectors.is_empty() && self.cut_off.is_empty()
    }

    /// Whether a disk that keeps its word may hold this where nothing is destroyed. Where the length of the file is still
    /// open, or it is none that such a disk may have, what is in one sector may not go with what is in another.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// The worst that became of any of these sectors; garbage is worse than what was there once.
    pub fn within(&self, sectors: Range<u64>) -> Option<Ruin> {
        let is_cut_off = sectors.start < self.cut_off.end && self.cut_off.start < sectors.end;
        let cut_off = is_cut_off.then_some(Ruin::Stale);
        let mut ruins = self.sectors.range(sectors).map(|(_, ruin)| *ruin);
        let garbage = ruins.clone().find(|ruin| *ruin == Ruin::Garbage);
        garbage.or(ruins.next()).or(cut_off)
    }
}
