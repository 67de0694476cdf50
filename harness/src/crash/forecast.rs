//! The content hash of a crash state without its image.
//!
//! Most states that an explorer comes upon were seen before. A forecast is made once a cut and adds
//! up what the survivors change, from hashes that were computed when the requests were recorded:
//! a duplicate costs a few additions. Where lengths are cut off in the middle of the tail there is
//! no shortcut, and the image is built.

use std::cell::RefCell;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::SectorContent;
use engine::device::{ContentHash, RunningHash, SECTOR_BYTES, SectorHash, sector_hash};

use super::durability::{Frontier, Standing, Tail, set_len};
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
    sectors: usize,
    /// The sum of what all of it changes.
    change: SectorHash,
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
        let mut table = Self {
            bases,
            lines: Vec::with_capacity(tail.len()),
            taken: RefCell::new(Taken {
                round: 0,
                rounds: vec![0; touched.len()],
            }),
            settled,
        };
        let mut part = 0;
        for (index, this) in tail.iter().enumerate() {
            let volatile = this.standing != Standing::Durable;
            let start = (this.disk, this.sectors.start);
            let first = touched.partition_point(|place| *place < start);
            let mut line = table.line(frontier, this, first);
            line.part = volatile.then_some(part);
            line.shared = tail
                .iter()
                .enumerate()
                .any(|(other, that)| other != index && this.overlaps(that));
            table.lines.push(line);
            part += usize::from(volatile);
        }
        Some(table)
    }

    fn line(&self, frontier: &Frontier<'_>, tail: &Tail, first: usize) -> Line {
        let entry = frontier.entry(tail);
        let mut line = Line {
            disk: tail.disk,
            part: None,
            first,
            sectors: tail.sector_count(),
            change: 0,
            shared: false,
            end: tail.sectors.end * SECTOR_BYTES,
            grows: entry.op.grows_to().is_some(),
        };
        for index in 0..line.sectors {
            if entry.happens(index) {
                let new = content_hash(entry.op.content(index));
                let change = new.wrapping_sub(self.settled[first + index]);
                line.change = line.change.wrapping_add(change);
            }
        }
        line
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
        let fate = |line: &Line| match line.part {
            None => (&Fate::Whole, Length::Kept),
            Some(part) => {
                let part = &survivors.parts()[part];
                (&part.content, part.length)
            }
        };
        let base = self.bases.get(disk).expect("the disk is recorded");
        let grown = self
            .lines
            .iter()
            .filter(|line| line.disk == disk && line.grows && fate(line).1 == Length::Kept)
            .map(|line| line.end);
        let len = grown.fold(base.len, u64::max);
        let mut hash = base.hash;
        hash.set_len(len);
        let mut taken = self.taken.borrow_mut();
        for (line, tail) in self.lines.iter().zip(frontier.tail()).rev() {
            if line.disk != disk {
                continue;
            }
            let (content, _) = fate(line);
            match content {
                Fate::Lost => {}
                Fate::Whole if !line.shared && line.end <= len => hash.replace(0, line.change),
                Fate::Whole | Fate::Torn(_) | Fate::Scattered { .. } => {
                    self.add_sectors(frontier, (line, tail), content, &mut hash, len, &mut taken);
                }
            }
        }
        hash.finish()
    }

    fn add_sectors(
        &self,
        frontier: &Frontier<'_>,
        (line, tail): (&Line, &Tail),
        content: &Fate,
        hash: &mut RunningHash,
        len: u64,
        taken: &mut Taken,
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
                Outcome::Garbage => sector_hash(sector, &garbage(entry.id, sector)),
                Outcome::Asked | Outcome::Old => content_hash(entry.op.content(index)),
            };
            hash.replace(self.settled[slot], new);
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
