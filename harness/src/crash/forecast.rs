//! The content hash of a crash state without its image.
//!
//! Most states that an explorer comes upon were seen before. A forecast is made once a cut and adds
//! up what the survivors change, from hashes that were computed when the requests were recorded:
//! a duplicate costs a few additions. Where lengths are cut off in the middle of the tail there is
//! no shortcut, and the image is built.

use std::cell::{OnceCell, RefCell};
use std::ops::Range;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{RequestId, SectorContent};
use engine::device::{ContentHash, RunningHash, SECTOR_BYTES, SectorHash, sector_hash};
use xxhash_rust::xxh3::xxh3_128;

use super::durability::{Frontier, Standing, Tail, set_len};
use super::filter::Place;
use super::state::{CrashState, Fate, Length, Level, Outcome, Survivors, garbage, joint_hash};

/// More sectors than this in one tail are not tabled.
const MOST_SECTORS: usize = 1 << 20;

/// What is known of a cut before any of its states is built.
#[derive(Debug)]
pub(super) struct Forecast {
    table: Option<Table>,
}

#[derive(Debug)]
struct Table {
    bases: Disks<Base>,
    lines: Vec<Line>,
    /// What the settled content contributes, for each sector that the tail touches.
    settled: Vec<SectorHash>,
    /// How many of these are on the image's disk, which are the first.
    of_image: usize,
    /// The last state in which each of these sectors got its content.
    taken: RefCell<Taken>,
}

#[derive(Debug)]
struct Taken {
    round: u32,
    rounds: Vec<u32>,
}

/// The settled content of a disk.
#[derive(Clone, Copy, Debug)]
struct Base {
    hash: RunningHash,
    len: u64,
}

/// A request of the tail.
#[derive(Debug)]
struct Line {
    disk: Disk,
    /// Its place among the survivors; none for what is durable.
    part: Option<usize>,
    /// The place of its first sector in the table.
    first: usize,
    /// What each of its sectors changes.
    changes: Vec<SectorHash>,
    /// The sum of these.
    change: SectorHash,
    /// What the garbage hashes to that it leaves in each of its sectors, where any state has some.
    garbage: OnceCell<Vec<SectorHash>>,
    /// Whether another request touches one of its sectors.
    shared: bool,
    /// The bytes up to which it needs the file to reach.
    end: u64,
    /// Whether it makes the file reach there.
    grows: bool,
}

impl Forecast {
    pub(super) fn of(frontier: &Frontier<'_>) -> Self {
        Self {
            table: Table::of(frontier),
        }
    }

    /// The content hash of the state that these survivors leave.
    pub(super) fn hash(&self, frontier: &Frontier<'_>, survivors: &Survivors) -> ContentHash {
        match &self.table {
            Some(table) => table.hash(frontier, survivors),
            None => CrashState::at(frontier, survivors.clone(), Level::Given).hash,
        }
    }

    /// How that state differs from what is settled on the image's disk: for each sector that the tail touches there,
    /// ascending, by how much its hash does, and the content of all that is no sector of that disk. `None` where only
    /// the state itself can tell.
    pub(super) fn difference(
        &self,
        frontier: &Frontier<'_>,
        survivors: &Survivors,
    ) -> Option<Difference> {
        let table = self.table.as_ref()?;
        Some(table.difference(frontier, survivors))
    }

    /// The same of a state that is there.
    pub(super) fn difference_of(state: &CrashState, place: &Place) -> Difference {
        let image = state.disks.image();
        let sectors = place.touched.iter().map(|sector| {
            let (new, old) = (
                image.stored_hash(*sector),
                place.settled.stored_hash(*sector),
            );
            new.wrapping_sub(old)
        });
        let others = state.disks.others().map(|(_, other)| other.content_hash());
        Difference {
            sectors: sectors.collect(),
            rest: Difference::rest(image.len(), others),
        }
    }
}

/// What sets a state apart from what is settled at its cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// By how much the hash of each sector differs that the tail touches on the image's disk.
    pub(super) sectors: Vec<SectorHash>,
    /// The length of the image's disk, and the other disks.
    pub(super) rest: u128,
}

impl Difference {
    /// Whether it is one of sixty-four.
    pub(super) fn is_sample(&self) -> bool {
        let sum = self
            .sectors
            .iter()
            .fold(self.rest, |sum, of| sum.wrapping_add(*of));
        sum.is_multiple_of(64)
    }

    fn rest(len: u64, others: impl Iterator<Item = ContentHash>) -> u128 {
        others.fold(u128::from(len), |rest, other| {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(&rest.to_le_bytes());
            bytes[16..].copy_from_slice(&other.0.to_le_bytes());
            xxh3_128(&bytes)
        })
    }
}

impl Table {
    /// The table, or `None` where a sum cannot tell: lengths that cut off what came before, ends
    /// within a sector, or too many sectors.
    fn of(frontier: &Frontier<'_>) -> Option<Self> {
        let tail = frontier.tail();
        let bases = frontier.settled().map(|_, settled| Base {
            hash: settled.running_hash(),
            len: settled.len(),
        });
        let ends_within = |(_, base): (Disk, &Base)| !base.len.is_multiple_of(SECTOR_BYTES);
        let sets_length = |tail: &Tail| set_len(&frontier.entry(tail).op).is_some();
        let sectors: usize = tail.iter().map(Tail::sector_count).sum();
        if bases.iter().any(ends_within) || sectors > MOST_SECTORS || tail.iter().any(sets_length) {
            return None;
        }
        let mut touched: Vec<(Disk, u64)> = Vec::with_capacity(sectors);
        for tail in tail {
            touched.extend(tail.sectors.clone().map(|sector| (tail.disk, sector)));
        }
        touched.sort_unstable();
        touched.dedup();
        let settled = touched
            .iter()
            .map(|(disk, sector)| frontier.settled_on(*disk).stored_hash(*sector))
            .collect();
        let of_image = touched.partition_point(|(disk, _)| *disk == Disk::Image);
        let mut table = Self {
            bases,
            of_image,
            lines: Vec::with_capacity(tail.len()),
            taken: RefCell::new(Taken {
                round: 0,
                rounds: vec![0; touched.len()],
            }),
            settled,
        };
        let mut part = 0;
        for this in tail {
            let volatile = this.standing != Standing::Durable;
            let start = (this.disk, this.sectors.start);
            let first = touched.partition_point(|place| *place < start);
            let mut line = table.line(frontier, this, first);
            line.part = volatile.then_some(part);
            table.lines.push(line);
            part += usize::from(volatile);
        }
        table.find_shared();
        Some(table)
    }

    /// Tells which lines share a sector with another, by counting those of each sector.
    fn find_shared(&mut self) {
        let mut lines = vec![0u32; self.settled.len()];
        for line in &self.lines {
            for count in &mut lines[line.sectors()] {
                *count += 1;
            }
        }
        for line in &mut self.lines {
            line.shared = lines[line.sectors()].iter().any(|count| *count > 1);
        }
    }

    fn line(&self, frontier: &Frontier<'_>, tail: &Tail, first: usize) -> Line {
        let entry = frontier.entry(tail);
        let change = |index: usize| {
            if entry.happens(index) {
                content_hash(entry.op.content(index)).wrapping_sub(self.settled[first + index])
            } else {
                0
            }
        };
        let changes: Vec<SectorHash> = (0..tail.sector_count()).map(change).collect();
        let sum = |sum: SectorHash, change: &SectorHash| sum.wrapping_add(*change);
        Line {
            disk: tail.disk,
            part: None,
            first,
            change: changes.iter().fold(0, sum),
            changes,
            garbage: OnceCell::new(),
            shared: false,
            end: tail.sectors.end * SECTOR_BYTES,
            grows: entry.op.grows_to().is_some(),
        }
    }

    fn hash(&self, frontier: &Frontier<'_>, survivors: &Survivors) -> ContentHash {
        self.taken.borrow_mut().next_round();
        if self.bases.count() == 1 {
            return self.hash_of(Disk::Image, frontier, survivors);
        }
        let hashes = self
            .bases
            .map(|disk, _| self.hash_of(disk, frontier, survivors));
        joint_hash(&hashes)
    }

    /// The content hash of one disk.
    fn hash_of(&self, disk: Disk, frontier: &Frontier<'_>, survivors: &Survivors) -> ContentHash {
        let len = self.len_of(disk, survivors);
        let mut hash = self.base(disk).hash;
        hash.set_len(len);
        let mut taken = self.taken.borrow_mut();
        for (line, tail) in self.lines.iter().zip(frontier.tail()).rev() {
            if line.disk != disk {
                continue;
            }
            match line.fate(survivors).0 {
                Fate::Lost => {}
                Fate::Whole if !line.shared && line.end <= len => hash.replace(0, line.change),
                content @ (Fate::Whole | Fate::Torn(_) | Fate::Scattered { .. }) => {
                    let replace = |slot: usize, new| hash.replace(self.settled[slot], new);
                    Self::lay(frontier, (line, tail), content, len, &mut taken, replace);
                }
            }
        }
        hash.finish()
    }

    fn difference(&self, frontier: &Frontier<'_>, survivors: &Survivors) -> Difference {
        self.taken.borrow_mut().next_round();
        let len = self.len_of(Disk::Image, survivors);
        let mut sectors = vec![0; self.of_image];
        let mut taken = self.taken.borrow_mut();
        for (line, tail) in self.lines.iter().zip(frontier.tail()).rev() {
            if line.disk != Disk::Image {
                continue;
            }
            match line.fate(survivors).0 {
                Fate::Lost => {}
                Fate::Whole if !line.shared && line.end <= len => {
                    sectors[line.sectors()].copy_from_slice(&line.changes);
                }
                content @ (Fate::Whole | Fate::Torn(_) | Fate::Scattered { .. }) => {
                    let replace = |slot: usize, new: SectorHash| {
                        sectors[slot] = new.wrapping_sub(self.settled[slot]);
                    };
                    Self::lay(frontier, (line, tail), content, len, &mut taken, replace);
                }
            }
        }
        drop(taken);
        let others = self.bases.others();
        let others = others.map(|(disk, _)| self.hash_of(disk, frontier, survivors));
        Difference {
            rest: Difference::rest(len, others),
            sectors,
        }
    }

    fn base(&self, disk: Disk) -> &Base {
        self.bases.get(disk).expect("the disk is recorded")
    }

    /// The bytes that a disk has then.
    fn len_of(&self, disk: Disk, survivors: &Survivors) -> u64 {
        let lines = self.lines.iter();
        let growing = lines.filter(|line| line.disk == disk && line.grows);
        let kept = growing.filter(|line| line.fate(survivors).1 == Length::Kept);
        kept.map(|line| line.end)
            .fold(self.base(disk).len, u64::max)
    }

    /// Tells of each sector that is left of a request, and that no later one has taken, what it hashes to.
    fn lay(
        frontier: &Frontier<'_>,
        (line, tail): (&Line, &Tail),
        content: &Fate,
        len: u64,
        taken: &mut Taken,
        mut tell: impl FnMut(usize, SectorHash),
    ) {
        let entry = frontier.entry(tail);
        for (index, sector) in tail.sectors.clone().enumerate() {
            if sector >= len / SECTOR_BYTES {
                break;
            }
            let outcome = content.outcome(entry, index);
            let slot = line.first + index;
            if outcome == Outcome::Old || line.shared && !taken.take(slot) {
                continue;
            }
            let new = match outcome {
                Outcome::Garbage => line.garbage(entry.id, &tail.sectors)[index],
                Outcome::Asked | Outcome::Old => content_hash(entry.op.content(index)),
            };
            tell(slot, new);
        }
    }
}

impl Line {
    /// The places of its sectors in the table.
    fn sectors(&self) -> Range<usize> {
        self.first..self.first + self.changes.len()
    }

    fn garbage(&self, request: RequestId, sectors: &Range<u64>) -> &[SectorHash] {
        self.garbage.get_or_init(|| {
            let hash = |sector| sector_hash(sector, &garbage(request, sector));
            sectors.clone().map(hash).collect()
        })
    }

    /// What became of the request.
    fn fate<'s>(&self, survivors: &'s Survivors) -> (&'s Fate, Length) {
        match self.part {
            None => (&Fate::Whole, Length::Kept),
            Some(part) => {
                let part = &survivors.parts()[part];
                (&part.content, part.length)
            }
        }
    }
}

impl Taken {
    fn next_round(&mut self) {
        if self.round == u32::MAX {
            self.rounds.fill(0);
            self.round = 0;
        }
        self.round += 1;
    }

    /// Whether the sector was still free in this round.
    fn take(&mut self, slot: usize) -> bool {
        let free = self.rounds[slot] != self.round;
        self.rounds[slot] = self.round;
        free
    }
}

fn content_hash(content: SectorContent<'_>) -> SectorHash {
    match content {
        SectorContent::Zero => 0,
        SectorContent::Bytes(_, hash) => hash,
    }
}
