//! An independent walk over an image's structures.
//!
//! It decodes the header and every table itself, from the bytes of a [`PageImage`]; it shares no code
//! with the engine, so that the two cannot be wrong together. It collects findings and never stops at
//! the first; whatever the bytes, it ends, with memory bounded by what the image stores.
//!
//! The rules. Without the dirty bit: every refcount is at least the number of references; COPIED is set
//! only where there is exactly one reference and the refcount is exactly one; every cluster that is
//! referred to starts within the file; offsets are aligned; reserved bits are zero; no cluster has two
//! owners. Leaks are legal. With the dirty bit, refcounts may be anything, and a mapping may point beyond
//! the end of the file where the refcount table names a block for its range.

mod bitmaps;
mod bounds;
mod finding;
mod layout;
mod refcounts;
mod references;
mod room;
mod snapshots;

use std::ops::Range;

use engine::device::{PageImage, StoredSectors};

pub use bitmaps::StoredBitmap;
pub use finding::{Finding, Owner, Table};
use layout::Illegible;
pub use layout::Layout;
pub(crate) use layout::encryption_header;
pub use room::{Gain, has_room};
pub use snapshots::{Snapshot, SnapshotDisk};

/// What a guest cluster is mapped to. Clusters that fall through to the backing file have no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Zeroes.
    Zero,
    /// The content of the host cluster that starts at this byte.
    Data(u64),
    /// Compressed bytes.
    Compressed {
        /// The first byte.
        offset: u64,
        /// The most bytes that the data may take.
        len_bytes: u64,
    },
    /// Not the same in each of the 32 subclusters; the first has the lowest bit.
    Split {
        /// Where the host cluster starts, in bytes; without meaning where no subcluster is allocated.
        offset: u64,
        /// Subclusters whose content stands in the host cluster.
        allocated: u32,
        /// Subclusters that read as zeroes. The others fall through to the backing file.
        zero: u32,
    },
    /// An entry that cannot be right.
    Bad,
}

/// A guest cluster with a mapping of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The guest cluster's number.
    pub guest_cluster: u64,
    /// What it is mapped to.
    pub mapping: Mapping,
}

/// A cluster whose refcount is not its number of references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// The host cluster's number.
    pub cluster: u64,
    /// Who refers to it, if anybody does.
    pub owner: Option<Owner>,
    /// How many references there are.
    pub references: u64,
    /// What the refcount is.
    pub refcount: u64,
}

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StructureReport {
    /// What the header says; `None` where it is illegible, and then nothing else was looked at.
    pub layout: Option<Layout>,
    /// What the image uses that is not judged here, so that the absence of findings means nothing.
    pub not_measured: Option<&'static str>,
    /// The first [`StructureReport::KEPT`] things that must not be.
    pub findings: Vec<Finding>,
    /// How many things must not be.
    pub finding_count: u64,
    /// How many refcounts are higher than their references.
    pub leak_count: u64,
    /// How many refcounts are lower than their references; findings unless the image is dirty.
    pub low_count: u64,
    /// How many entries could claim COPIED and do not.
    pub copied_missing: u64,
    /// How many snapshots leave out what version 3 says of each, the size of its disk among it.
    pub terse_snapshots: u64,
    /// The first [`StructureReport::KEPT`] refcounts that differ from their references.
    pub miscounts: Vec<Miscount>,
    /// Every guest cluster of the disk with a mapping of its own, ascending.
    pub mapped: Vec<Mapped>,
    /// The snapshots, in the order of the table.
    pub snapshots: Vec<Snapshot>,
    /// The persistent bitmaps, in file order.
    pub bitmaps: Vec<StoredBitmap>,
    /// The sectors of every cluster that anything refers to, ascending and disjoint: the walk reads no others, and
    /// whoever reads the disk or a snapshot by what it found reads no others either.
    pub referred: Vec<Range<u64>>,
    /// Of these, the sectors of the clusters that hold no guest data: all that the walk hangs on but the file's length,
    /// where it found nothing that must not be.
    pub metadata: Vec<Range<u64>>,
}

impl StructureReport {
    /// As many findings are kept; the rest is counted.
    pub const KEPT: usize = 64;

    /// Whether the image carries the dirty bit.
    pub fn dirty(&self) -> bool {
        self.layout.is_some_and(|layout| layout.dirty)
    }

    /// Whether the image is marked corrupt.
    pub fn corrupt(&self) -> bool {
        self.layout.is_some_and(|layout| layout.corrupt)
    }

    /// Whether nothing is left that a repair could improve.
    pub fn is_perfect(&self) -> bool {
        self.finding_count == 0
            && self.leak_count == 0
            && self.low_count == 0
            && self.copied_missing == 0
            && self.terse_snapshots == 0
            && !self.dirty()
            && !self.corrupt()
    }

    /// Whether a repair could improve nothing here but what it could have improved in the image that this one has
    /// come from: a process that is killed leaves what it had taken and not used, and nobody looks for that
    /// before a repair.
    pub fn is_no_worse_than(&self, before: &Self) -> bool {
        self.finding_count == 0
            && self.low_count == 0
            && self.leak_count <= before.leak_count
            && self.copied_missing <= before.copied_missing
            && self.terse_snapshots <= before.terse_snapshots
            && !self.dirty()
            && !self.corrupt()
    }

    /// Whether nothing is wrong but refcounts that are too high, COPIED where it could stand and does not, and snapshots
    /// that say too little: what an operation that failed may leave behind in an image that was closed since.
    pub fn is_sound_but_for_leaks(&self) -> bool {
        self.finding_count == 0 && self.low_count == 0 && !self.dirty() && !self.corrupt()
    }

    fn find(&mut self, finding: Finding) {
        self.finding_count += 1;
        if self.findings.len() < Self::KEPT {
            self.findings.push(finding);
        }
    }

    fn miscount(&mut self, miscount: Miscount) {
        if self.miscounts.len() < Self::KEPT {
            self.miscounts.push(miscount);
        }
    }
}

/// What the header of `image` says, if it is legible.
pub fn layout(image: &PageImage) -> Option<Layout> {
    Layout::read(image).ok()
}

/// Walks `image`.
pub fn walk(image: &PageImage) -> StructureReport {
    let mut report = StructureReport::default();
    match Layout::read(image) {
        Ok(layout) => {
            report.layout = Some(layout);
            let mut scan = Scan::new(image, layout, &mut report);
            let references = references::collect(&mut scan);
            refcounts::compare(&mut scan, &references);
            let cluster_sectors = layout.cluster_sectors();
            scan.report.referred = references::sectors(&references, cluster_sectors);
            let metadata = references.iter().filter(|it| it.owner.is_metadata());
            scan.report.metadata = references::sectors(metadata, cluster_sectors);
            if scan.sectors_left == 0 {
                report.not_measured = Some("an image with more metadata than the oracle reads");
            }
        }
        Err(Illegible::Bad(problem)) => report.find(Finding::Header(problem)),
        Err(Illegible::NotMeasured(what)) => report.not_measured = Some(what),
    }
    report
}

/// Who refers to which cluster of `image`, and how often, ascending by cluster; one that is referred to in several ways is
/// there for each.
pub fn owners(image: &PageImage) -> Vec<(u64, Owner, u64)> {
    let mut report = StructureReport::default();
    let Some(layout) = layout(image) else {
        return Vec::new();
    };
    let references = references::collect(&mut Scan::new(image, layout, &mut report));
    let owned = references.iter();
    let owned = owned.map(|it| (it.cluster, it.owner, it.count));
    owned.collect()
}

/// What the passes of one walk share.
struct Scan<'a> {
    image: &'a PageImage,
    layout: Layout,
    report: &'a mut StructureReport,
    /// The refcount blocks: index in the refcount table and host offset, ascending by index.
    blocks: Vec<(u64, u64)>,
    /// How many more sectors of metadata are read and clusters of metadata noted, so that a hostile
    /// image ends too.
    sectors_left: u64,
}

impl<'a> Scan<'a> {
    /// 2 GiB of tables.
    const MAX_SECTORS: u64 = 1 << 22;

    fn new(image: &'a PageImage, layout: Layout, report: &'a mut StructureReport) -> Self {
        Self {
            image,
            layout,
            report,
            blocks: Vec::new(),
            sectors_left: Self::MAX_SECTORS,
        }
    }

    /// As many of `wanted` as there is still room for.
    fn spend(&mut self, wanted: u64) -> u64 {
        let granted = wanted.min(self.sectors_left);
        self.sectors_left -= granted;
        granted
    }

    /// The words of a table that are not zero: index, host offset and value.
    fn words(&mut self, offset: u64, count: u64) -> Words<'a> {
        let sectors = self.spend((count * 8).div_ceil(512));
        let first = offset / 512;
        Words {
            sectors: self.image.stored_sectors(first..first + sectors),
            base: offset,
            at: 0,
            here: &[],
            end: count.min(sectors * WORDS_PER_SECTOR),
        }
    }
}

const WORDS_PER_SECTOR: u64 = 64;

/// Iterates over the nonzero words of a table that starts at a sector.
struct Words<'a> {
    sectors: StoredSectors<'a>,
    base: u64,
    /// The index of the next word.
    at: u64,
    /// The words of its sector from there on.
    here: &'a [[u8; 8]],
    end: u64,
}

/// One word of a table.
#[derive(Clone, Copy, Debug)]
struct Word {
    index: u64,
    at: u64,
    value: u64,
}

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        loop {
            if let Some(skipped) = self.here.iter().position(|word| *word != [0; 8]) {
                let value = u64::from_be_bytes(self.here[skipped]);
                let index = self.at + u64::try_from(skipped).expect("a sector has 64 words");
                self.here = &self.here[skipped + 1..];
                self.at = index + 1;
                return (index < self.end).then_some(Word {
                    index,
                    at: self.base + index * 8,
                    value,
                });
            }
            let (sector, bytes) = self.sectors.next()?;
            self.at = (sector - self.base / 512) * WORDS_PER_SECTOR;
            self.here = bytes.as_chunks().0;
        }
    }
}

#[cfg(test)]
mod tests;
