//! What a guest may find on its disk: the history of its operations, and what each moment's crash may
//! leave of it.
//!
//! A [`Ledger`] holds the whole history of one run. For a cut it yields an [`Expectation`]: for every
//! guest sector the set of values that are legal after a power loss at that moment, by one rule. A
//! value is a *candidate* if the sector held it at the start, or if an operation that was submitted at or
//! before the cut writes it; a discard writes zeroes and may also have done nothing. A candidate is
//! *superseded*, and illegal, where a write that must be durable was submitted after the candidate's
//! operation had ended. A write must be durable if it completed before the submission of a flush that
//! completed at or before the cut; a reopening, a growth of the disk, an operation on bitmaps or snapshots, a
//! commit that empties the image, a rebase and a stream count as flushes. What failed may
//! or may not have happened, and supersedes nothing; nor does a discard. Where the image is put over another
//! file without a copy, what that file shows is a candidate wherever the image may hold nothing, and
//! supersedes what was there, durably once answered, where it certainly does.
//!
//! Reads during the run are held to the same rule, with "completed before the read was submitted" in the
//! place of "must be durable".

mod bitmaps;
mod chain;
mod content;
mod expectation;
mod facts;
mod key_slots;
mod known;
mod past;
mod repoint;

use std::cell::RefCell;
use std::ops::Range;

use crate::workload::ops::{Answer, DiskChange, Happening, Moment, Operation, OperationId};
use crate::workload::shape::Extent;
use crate::workload::stamp::{SectorValue, Writer};

pub use bitmaps::BitmapViolation;
pub use chain::File;
pub use content::Content;
pub use expectation::{Alternatives, Checker, Expectation, Level, SectorViolation};
pub use facts::Facts;
pub use key_slots::{Held, KeySlots};
use known::Known;
pub use known::Stretch;
use past::Turn;
pub use past::{Listed, Origin, Past, name_of};

/// The history of a guest's disk.
#[derive(Clone, Debug)]
pub struct Ledger {
    initial: Content,
    /// What shows where the image holds nothing.
    beneath: Content,
    initial_bytes: u64,
    /// Disjoint, ascending; all sectors of a segment were touched by the same operations.
    segments: Vec<Segment>,
    /// The entries of all segments, one segment after the other, in order of submission.
    entries: Vec<Entry>,
    flushes: Vec<Barrier>,
    sizes: Vec<Sizing>,
    /// Those of the sizes that were to be smaller ones.
    shrinks: Vec<Sizing>,
    past: Vec<Past>,
    turns: Vec<Turn>,
    /// The size of the disk behind the operations entered so far.
    size_now: u64,
    bitmaps: bitmaps::History,
    chain: chain::Chain,
    /// When each operation was submitted, by operation.
    submissions: Vec<(OperationId, Moment)>,
    /// What the header said at the start, where that is known, and what changed it.
    facts: Option<(Facts, Vec<Happening>)>,
    /// What the disk held before each process that had the image open earlier, and was killed.
    earlier: Vec<Content>,
    /// A number above those of all operations that these were asked.
    first_id: OperationId,
    /// What was found legal under an [`Expectation`] of this history, which is the same for ever once it is built.
    known: RefCell<Known>,
}

#[derive(Clone, Debug)]
struct Segment {
    sectors: Range<u64>,
    entries: Range<usize>,
}

/// One operation's effect on the sectors of a segment.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: OperationId,
    effect: Effect,
    submitted: Moment,
    completed: Option<(Moment, Answer)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The operation's stamps.
    Stamp,
    /// Zeroes.
    Zero,
    /// Zeroes, or nothing at all.
    PerhapsZero,
    /// What lies beneath.
    Beneath,
    /// What a snapshot holds.
    Restore(Origin),
    /// What the file shows that the image was repointed to: which repointing.
    Shows(usize),
    /// The same, or what was there: it is not known whether the image holds anything.
    MayShow(usize),
}

/// A device lost what a flush was to make durable that failed, and whoever asked for it knows.
#[derive(Clone, Copy, Debug)]
pub struct Forgotten {
    /// When.
    pub at: Moment,
    /// Whether the image has been open ever since: it looks for what is lost where it wrote it, and finds whatever stood
    /// there before.
    pub in_place: bool,
    /// So many sectors are written as one where they get a new place.
    pub cluster_sectors: u64,
}

/// A flush that was done, or something that implies one.
#[derive(Clone, Copy, Debug)]
struct Barrier {
    submitted: Moment,
    completed: Moment,
}

/// A change of the disk's size.
#[derive(Clone, Copy, Debug)]
struct Sizing {
    virtual_bytes: u64,
    submitted: Moment,
    completed: Option<(Moment, Answer)>,
}

impl Ledger {
    /// The history of a disk of `virtual_bytes` bytes that held `initial` at the start.
    pub fn new(initial: Content, virtual_bytes: u64, history: &[Happening]) -> Self {
        Self::from_start(
            initial,
            Content::zeroes(),
            virtual_bytes,
            Vec::new(),
            history,
        )
    }

    /// The same, of a disk with snapshots, over a backing file that holds `beneath`.
    pub fn from_start(
        initial: Content,
        beneath: Content,
        virtual_bytes: u64,
        past: Vec<Past>,
        history: &[Happening],
    ) -> Self {
        let chain = chain::Chain::default();
        Self::build(initial, beneath, virtual_bytes, past, chain, history)
    }

    /// The same, of an image with clusters of that size that lies over the first of these files, and can be
    /// put over the others.
    pub fn over_files(
        initial: Content,
        virtual_bytes: u64,
        cluster_bytes: u64,
        files: Vec<File>,
        history: &[Happening],
    ) -> Self {
        let beneath = files.first();
        let over = beneath.map(|file| file.disk);
        let beneath = beneath.map_or_else(Content::zeroes, |file| file.content.clone());
        let chain = chain::Chain::new(files, over, cluster_bytes);
        Self::build(initial, beneath, virtual_bytes, Vec::new(), chain, history)
    }

    fn build(
        initial: Content,
        beneath: Content,
        virtual_bytes: u64,
        past: Vec<Past>,
        chain: chain::Chain,
        history: &[Happening],
    ) -> Self {
        let mut ledger = Self {
            initial,
            beneath,
            initial_bytes: virtual_bytes,
            segments: Vec::new(),
            entries: Vec::new(),
            flushes: Vec::new(),
            sizes: Vec::new(),
            shrinks: Vec::new(),
            past,
            turns: Vec::new(),
            size_now: virtual_bytes,
            bitmaps: bitmaps::History::default(),
            chain,
            submissions: history.iter().map(|h| (h.id, h.submitted)).collect(),
            facts: None,
            earlier: Vec::new(),
            first_id: OperationId(0),
            known: RefCell::default(),
        };
        ledger.submissions.sort_unstable();
        let mut effects: Vec<(Range<u64>, Entry)> = Vec::new();
        for happening in history {
            let sizes = ledger.sizes_now();
            ledger.bitmaps.enter(happening, &sizes);
            ledger.chain.enter(happening, ledger.size_now);
            ledger.enter(happening, &mut effects);
        }
        ledger.bound_snapshots(&mut effects);
        effects.sort_by_key(|(_, entry)| entry.submitted);
        ledger.partition(&effects);
        ledger
    }

    /// Adds what the header said at the start, so that it is judged too.
    #[must_use]
    pub fn starting(mut self, facts: Facts, history: &[Happening]) -> Self {
        self.facts = Some((facts, history.to_vec()));
        self
    }

    /// The same history after that of a process that was killed, where no operation had a number from `first_id` on.
    #[must_use]
    pub fn following(mut self, before: &Self, first_id: OperationId) -> Self {
        self.earlier.clone_from(&before.earlier);
        self.earlier.push(before.initial.clone());
        self.first_id = first_id;
        self
    }

    /// How many processes had the image open before this history began, and were killed.
    pub fn process(&self) -> usize {
        self.earlier.len()
    }

    /// Whether a sector held this value before this history began, or may have.
    fn once_held(&self, sector: u64, value: SectorValue) -> bool {
        let written = match value {
            SectorValue::Stamp {
                writer: Writer::Operation(id),
                sector: own,
            } => own == sector && id < self.first_id,
            SectorValue::Stamp { .. } | SectorValue::Zero | SectorValue::Other(_) => false,
        };
        let mut earlier = self.earlier.iter();
        written || earlier.any(|content| content.value(sector) == value)
    }

    /// What the disk held at the start.
    pub fn initial(&self) -> &Content {
        &self.initial
    }

    /// The size of the disk at the start, in bytes.
    pub fn initial_bytes(&self) -> u64 {
        self.initial_bytes
    }

    /// A number that no operation of this history has.
    pub fn next_id(&self) -> OperationId {
        let last = self.submissions.last();
        last.map_or(self.first_id, |(id, _)| OperationId(id.0 + 1))
    }

    /// What is legal where no power was lost, and everything is over.
    pub fn expect_served(&self) -> Expectation<'_> {
        Expectation::new(self, Some(Moment(u64::MAX)), Moment(u64::MAX))
    }

    /// What is legal after a power loss at `cut`.
    pub fn expect(&self, cut: Moment) -> Expectation<'_> {
        Expectation::new(self, self.durable_before(cut), cut)
    }

    /// Where the data that a read yielded is not what it may have seen. Reads that are not done are not
    /// judged.
    ///
    /// From the moment on at which a device has `forgotten` something only what a flush that succeeded has made durable is
    /// certain.
    pub fn check_read(
        &self,
        read: &Happening,
        data: &[u8],
        forgotten: Option<Forgotten>,
    ) -> Vec<SectorViolation> {
        let (Operation::Read { offset, .. }, Some((completed, Answer::Done))) =
            (read.operation, read.completed)
        else {
            return Vec::new();
        };
        let forgotten = forgotten.filter(|forgotten| forgotten.at < completed);
        let settled = match forgotten {
            None => Some(read.submitted),
            Some(_) => self.durable_before(read.submitted),
        };
        let is_lost = |sector: u64| {
            let is_settled = |at: Moment| settled.is_some_and(|settled| at < settled);
            let since = forgotten.filter(|forgotten| forgotten.in_place);
            since.is_some_and(|since| {
                let first = sector - sector % since.cluster_sectors;
                let cluster = first..first + since.cluster_sectors;
                self.writes_to(&cluster, &|submitted, completed| {
                    submitted < since.at && !matches!(completed, Some((at, _)) if is_settled(at))
                })
            })
        };
        let expectation = Expectation::new(self, settled, completed);
        let mut checker = expectation.checker();
        (offset / 512..)
            .zip(data.as_chunks::<512>().0)
            .filter_map(|(sector, bytes)| checker.check_bytes(sector, Some(bytes)))
            .filter(|violation| !is_lost(violation.sector))
            .collect()
    }

    /// Whether one of the operations that are meant put something into this cluster, which is written as one.
    fn writes_to(
        &self,
        cluster: &Range<u64>,
        is_meant: &dyn Fn(Moment, Option<(Moment, Answer)>) -> bool,
    ) -> bool {
        let mut entries = cluster.clone().flat_map(|it| self.entries_of(it));
        if entries.any(|entry| is_meant(entry.submitted, entry.completed)) {
            return true;
        }
        // To grow makes zeroes of the rest of the cluster that the old end of the disk cuts.
        let cuts = |end: u64| cluster.start < end / 512 && end / 512 < cluster.end;
        let mut ends = vec![self.initial_bytes];
        self.sizes.iter().any(|sizing| {
            let grown = ends
                .iter()
                .any(|end| *end < sizing.virtual_bytes && cuts(*end));
            ends.push(sizing.virtual_bytes);
            grown && is_meant(sizing.submitted, sizing.completed)
        })
    }

    /// The moments at which the guest was promised that something is durable.
    pub fn promises(&self) -> impl Iterator<Item = Moment> {
        let flushes = self.flushes.iter().map(|flush| flush.completed);
        flushes.chain(self.chain.promises())
    }

    /// The moment before whose arrival everything that completed must be durable at `cut`.
    fn durable_before(&self, cut: Moment) -> Option<Moment> {
        self.flushes
            .iter()
            .filter(|flush| flush.completed <= cut)
            .map(|flush| flush.submitted)
            .max()
    }

    fn enter(&mut self, happening: &Happening, effects: &mut Vec<(Range<u64>, Entry)>) {
        let mut touch = |range: Extent, effect| {
            let entry = Entry {
                id: happening.id,
                effect,
                submitted: happening.submitted,
                completed: happening.completed,
            };
            effects.push((range.sectors(), entry));
        };
        match happening.operation.disk_change() {
            // Where a snapshot takes its content from is looked up below.
            DiskChange::None | DiskChange::Renamed | DiskChange::Restored => {}
            DiskChange::Stamped(range) => touch(range, Effect::Stamp),
            DiskChange::Zeroed(range) => touch(range, Effect::Zero),
            DiskChange::Discarded(range) => touch(range, Effect::PerhapsZero),
            DiskChange::Emptied => self.empty(happening, effects),
            DiskChange::Repointed => self.repoint(happening, effects),
            DiskChange::Shrunk { virtual_bytes } => {
                let largest = self.sizes.iter().map(|sizing| sizing.virtual_bytes);
                let end = largest.fold(self.initial_bytes, u64::max);
                // Whatever size comes after, nothing of that shows again.
                let beyond = Extent {
                    offset: virtual_bytes,
                    len_bytes: end.saturating_sub(virtual_bytes),
                };
                touch(beyond, Effect::Zero);
                self.shrink(happening, virtual_bytes);
            }
            DiskChange::Grown { virtual_bytes } => {
                self.resize(happening, virtual_bytes);
                if let Some((_, Answer::Done)) = happening.completed {
                    self.size_now = virtual_bytes;
                }
            }
        }
        if let Operation::Snapshot(_) = happening.operation {
            self.snapshot(happening, effects);
        }
        if let (true, Some((completed, Answer::Done))) =
            (happening.operation.is_a_flush(), happening.completed)
        {
            self.flushes.push(Barrier {
                submitted: happening.submitted,
                completed,
            });
        }
    }

    /// Notes an operation on snapshots.
    fn snapshot(&mut self, happening: &Happening, effects: &mut Vec<(Range<u64>, Entry)>) {
        let origin = self.turn(happening);
        if let Some(origin) = origin {
            let entry = Entry {
                id: happening.id,
                effect: Effect::Restore(origin),
                submitted: happening.submitted,
                completed: happening.completed,
            };
            effects.push((0..u64::MAX / 512, entry));
            let sizes = self.sizes_of(origin);
            self.resize(happening, sizes[0]);
            for virtual_bytes in &sizes[1..] {
                // It may have that size as well; which one is not known once that is done.
                self.sizes.push(Sizing {
                    virtual_bytes: *virtual_bytes,
                    submitted: happening.submitted,
                    completed: None,
                });
            }
            let least = sizes.into_iter().fold(u64::MAX, u64::min);
            self.bitmaps.cut(happening.submitted, least);
        }
        if let Some((completed, Answer::Done)) = happening.completed {
            // Who goes back is durable itself, with all before it: nothing else is in flight.
            let submitted = match origin {
                Some(_) => Moment(completed.0 + 1),
                None => happening.submitted,
            };
            self.flushes.push(Barrier {
                submitted,
                completed,
            });
        }
    }

    /// Notes that the image was emptied: what lies beneath shows wherever anything else could. That is
    /// durable once answered.
    fn empty(&mut self, happening: &Happening, effects: &mut Vec<(Range<u64>, Entry)>) {
        // Behind the end of a disk that was larger once, nothing shows. So much there is for certain:
        let sizes = self.sizes_now();
        let certain = sizes.iter().copied().fold(u64::MAX, u64::min) / 512;
        let end = sizes.into_iter().fold(0, u64::max) / 512;
        let written = effects.iter().map(|(sectors, _)| sectors.clone());
        let mut ranges: Vec<Range<u64>> = self
            .initial
            .ranges()
            .chain(self.beneath.ranges())
            .chain(written)
            .map(|sectors| sectors.start..sectors.end.min(end))
            .filter(|sectors| !sectors.is_empty())
            .collect();
        ranges.sort_unstable_by_key(|sectors| (sectors.start, sectors.end));
        let entry = Entry {
            id: happening.id,
            effect: Effect::Beneath,
            submitted: happening.submitted,
            completed: happening.completed,
        };
        let perhaps = Entry {
            completed: entry.completed.map(|(at, _)| (at, Answer::Failed)),
            ..entry
        };
        // Each sector once.
        let mut from = 0;
        for sectors in ranges {
            let sectors = sectors.start.max(from)..sectors.end;
            if sectors.is_empty() {
                continue;
            }
            from = sectors.end;
            let (start, end) = (sectors.start, sectors.end);
            let pieces = [
                (start..end.min(certain), entry),
                (start.max(certain)..end, perhaps),
            ];
            effects.extend(pieces.into_iter().filter(|(piece, _)| !piece.is_empty()));
        }
        if let Some((completed, Answer::Done)) = happening.completed {
            self.flushes.push(Barrier {
                submitted: Moment(completed.0 + 1),
                completed,
            });
        }
    }

    /// Notes a smaller size. It is durable itself, and all before it.
    fn shrink(&mut self, happening: &Happening, virtual_bytes: u64) {
        self.resize(happening, virtual_bytes);
        self.shrinks.extend(self.sizes.last());
        if let Some((completed, Answer::Done)) = happening.completed {
            self.size_now = virtual_bytes;
            self.flushes.push(Barrier {
                submitted: Moment(completed.0 + 1),
                completed,
            });
        }
    }

    fn resize(&mut self, happening: &Happening, virtual_bytes: u64) {
        self.sizes.push(Sizing {
            virtual_bytes,
            submitted: happening.submitted,
            completed: happening.completed,
        });
    }

    /// Splits the sectors where a snapshot's disk ends: what is restored differs there.
    fn bound_snapshots(&self, effects: &mut Vec<(Range<u64>, Entry)>) {
        let restores: Vec<(Range<u64>, Entry)> = effects
            .extract_if(.., |(_, entry)| matches!(entry.effect, Effect::Restore(_)))
            .collect();
        let sizes = self.turns.iter().flat_map(|turn| &turn.virtual_sizes);
        let mut ends: Vec<u64> = sizes.map(|size| size / 512).collect();
        ends.extend(self.past.iter().map(|past| past.virtual_bytes / 512));
        ends.push(0);
        ends.push(u64::MAX / 512);
        ends.sort_unstable();
        ends.dedup();
        for (_, entry) in restores {
            let pieces = ends.windows(2).map(|pair| pair[0]..pair[1]);
            effects.extend(pieces.map(|piece| (piece, entry)));
        }
    }

    /// The sizes that the disk may have behind the operations entered so far, in bytes: first the one that it has where
    /// what failed did not happen.
    fn sizes_now(&self) -> Vec<u64> {
        let mut sizes = vec![self.size_now];
        for sizing in self.sizes.iter().rev() {
            if let Some((_, Answer::Done)) = sizing.completed {
                break;
            }
            sizes.push(sizing.virtual_bytes);
        }
        let rest = &mut sizes[1..];
        rest.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn partition(&mut self, effects: &[(Range<u64>, Entry)]) {
        let mut bounds: Vec<u64> = effects
            .iter()
            .flat_map(|(sectors, _)| [sectors.start, sectors.end])
            .collect();
        // What a past snapshot, or a file beneath, holds may differ from the disk where no operation goes.
        let everywhere = !self.past.is_empty() || !self.chain.files().is_empty();
        if everywhere {
            bounds.extend([0, u64::MAX / 512]);
            bounds.extend(self.past.iter().map(|past| past.virtual_bytes / 512));
            bounds.extend(self.chain.bounds());
        }
        bounds.sort_unstable();
        bounds.dedup();
        for pair in bounds.windows(2) {
            let first = self.entries.len();
            let touching = effects
                .iter()
                .filter(|(sectors, _)| sectors.contains(&pair[0]));
            self.entries.extend(touching.map(|(_, entry)| *entry));
            if everywhere || self.entries.len() > first {
                self.segments.push(Segment {
                    sectors: pair[0]..pair[1],
                    entries: first..self.entries.len(),
                });
            }
        }
    }

    /// The shrinking that may or may not have come to pass at `cut`, where nothing has come after it.
    fn open_shrink(&self, cut: Moment) -> Option<&Sizing> {
        let shrink = self.shrinks.iter().rfind(|one| one.submitted <= cut)?;
        let is_done = matches!(shrink.completed, Some((at, Answer::Done)) if at <= cut);
        let mut later = self.submissions.iter();
        let is_last = later.all(|(_, at)| *at <= shrink.submitted || *at > cut);
        (is_last && !is_done).then_some(shrink)
    }

    /// The effects on a sector, in order of submission.
    fn entries_of(&self, sector: u64) -> &[Entry] {
        let index = self
            .segments
            .partition_point(|segment| segment.sectors.end <= sector);
        match self.segments.get(index) {
            Some(segment) if segment.sectors.contains(&sector) => {
                &self.entries[segment.entries.clone()]
            }
            Some(_) | None => &[],
        }
    }

    /// What a past snapshot holds, or behind those what a file beneath held at the start.
    fn stored(&self, index: usize) -> &Content {
        match self.past.get(index) {
            Some(past) => &past.content,
            None => &self.chain.files()[index - self.past.len()].content,
        }
    }

    /// When `id` was submitted, if it was.
    fn submission(&self, id: OperationId) -> Option<Moment> {
        let index = self
            .submissions
            .binary_search_by_key(&id, |(id, _)| *id)
            .ok()?;
        Some(self.submissions[index].1)
    }
}

#[cfg(test)]
mod tests;
