//! What is legal after a power loss at one moment, and by how much a sector misses it.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

use blkdebug::disks::Disk;

use super::chain::{FileWorlds, Source, World};
use super::{
    Answer, Effect, Entry, Facts, Ledger, Listed, Moment, OperationId, Origin, Sizing, Stretch,
};
use crate::sectors::merge;
use crate::workload::stamp::{SectorValue, Writer};

/// By how much a sector misses what is legal, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Zeroes, where the sector never was zero.
    Zeros,
    /// Bytes that this guest holds or held at another offset.
    StaleOwn,
    /// Bytes that this guest's disk never held: another image's, or garbage.
    StaleForeign,
    /// A value that the sector once had, and that a durable write had replaced.
    Lost,
}

impl Level {
    /// Every level, mildest first.
    pub const ALL: [Self; 4] = [Self::Zeros, Self::StaleOwn, Self::StaleForeign, Self::Lost];

    /// The name used in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            Self::StaleOwn => "stale-own",
            Self::StaleForeign => "stale-foreign",
            Self::Lost => "lost",
        }
    }
}

/// A sector whose value is not legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectorViolation {
    /// The guest sector.
    pub sector: u64,
    /// By how much it misses.
    pub level: Level,
    /// What it contains.
    pub found: SectorValue,
    /// What it might contain.
    pub legal: Vec<SectorValue>,
}

/// What each sector may contain, and how large the disk may be, after a power loss at one moment.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    ledger: &'a Ledger,
    cut: Moment,
    /// As many as the ledger has segments, in the same order.
    allowed: Vec<Allowed>,
    /// The writers that are legal, for one segment after the other; ascending within a segment.
    writers: Vec<OperationId>,
    /// The past snapshots, and behind those the files beneath, whose content at the start is legal, for
    /// one segment after the other.
    pasts: Vec<usize>,
    sizes: Vec<u64>,
    facts: Vec<Facts>,
    key: u128,
    /// A hash of what is legal in all segments.
    legal_hash: OnceCell<u128>,
    /// What [`Self::sectors`] found out before: every state of a cut asks.
    sectors: OnceCell<Vec<Range<u64>>>,
    /// What [`Self::alternatives`] and [`Self::snapshot`] found out before: every state of a cut asks.
    alternatives: OnceCell<Option<Box<Alternatives<'a>>>>,
    snapshots: RefCell<BTreeMap<Origin, Rc<Self>>>,
    subject: Whose,
}

/// Whose sectors are legal or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The guest's disk, or a snapshot of it.
    Disk,
    /// A file beneath.
    File,
}

/// What a disk was before an operation, and what it was to become.
#[derive(Clone, Debug)]
pub enum Alternatives<'a> {
    /// The operation goes back to a snapshot.
    Snapshot([Expectation<'a>; 2]),
    /// The operation makes the disk smaller.
    Shrink([Expectation<'a>; 2]),
    /// The operation puts the image over another file without a copy.
    Repoint([Expectation<'a>; 2]),
}

/// What is beyond doubt, and up to when anything happened.
#[derive(Clone, Copy, Debug)]
struct Settled {
    /// The writes that completed before this are.
    before: Option<Moment>,
    /// What is durable once answered is, if that was by then; what was submitted later has not happened.
    cut: Moment,
    /// A repointing that has come to pass, answered or not.
    repointed: Option<usize>,
}

impl Settled {
    /// All that completed before that moment.
    fn at(moment: Moment) -> Self {
        Self::new(Some(moment), moment)
    }

    fn new(before: Option<Moment>, cut: Moment) -> Self {
        Self {
            before,
            cut,
            repointed: None,
        }
    }
}

#[derive(Clone, Debug)]
struct Allowed {
    /// The latest submission of a write that must be durable.
    floor: Option<Moment>,
    zero: bool,
    beneath: bool,
    /// Whether what was there at the start is legal.
    initial: bool,
    others: Others,
    writers: Range<usize>,
    pasts: Range<usize>,
}

/// Whether values are legal that nobody put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Others {
    /// No.
    #[default]
    Illegal,
    /// Yes.
    Legal,
}

/// The values that are legal in a segment, while they are gathered.
#[derive(Debug, Default)]
struct Legal {
    zero: bool,
    beneath: bool,
    initial: bool,
    others: Others,
    writers: Vec<OperationId>,
    pasts: Vec<usize>,
}

impl Legal {
    /// Adds what else is legal.
    fn add(&mut self, mut more: Self) {
        self.zero |= more.zero;
        self.initial |= more.initial;
        self.beneath |= more.beneath;
        self.others = self.others.max(more.others);
        self.writers.append(&mut more.writers);
        self.pasts.append(&mut more.pasts);
    }
}

impl<'a> Expectation<'a> {
    /// What is legal at `cut` if the writes that completed before `settled` are beyond doubt.
    pub(super) fn new(ledger: &'a Ledger, settled: Option<Moment>, cut: Moment) -> Self {
        Self::build(ledger, Settled::new(settled, cut))
    }

    /// Nothing is known yet of what is legal.
    fn blank(ledger: &'a Ledger, cut: Moment) -> Self {
        Self {
            ledger,
            cut,
            allowed: Vec::with_capacity(ledger.segments.len()),
            writers: Vec::new(),
            pasts: Vec::new(),
            sizes: Vec::new(),
            facts: Vec::new(),
            key: 0,
            legal_hash: OnceCell::new(),
            sectors: OnceCell::new(),
            alternatives: OnceCell::new(),
            snapshots: RefCell::default(),
            subject: Whose::Disk,
        }
    }

    fn build(ledger: &'a Ledger, settled: Settled) -> Self {
        let cut = settled.cut;
        let mut expectation = Self {
            writers: Vec::with_capacity(ledger.entries.len()),
            ..Self::blank(ledger, cut)
        };
        for segment in &ledger.segments {
            let entries = &ledger.entries[segment.entries.clone()];
            let (floor, legal) = gather(ledger, segment.sectors.start, entries, settled);
            expectation.allow(floor, legal);
        }
        expectation.sizes = expectation.legal_sizes();
        let mut settled_changes = 0;
        if let Some((facts, history)) = &ledger.facts {
            (expectation.facts, settled_changes) = facts.at(history, cut);
        }
        expectation.key = expectation.floor_hash(settled_changes);
        expectation
    }

    /// What a snapshot of this history holds.
    pub fn of_snapshot(ledger: &'a Ledger, origin: Origin, cut: Moment) -> Self {
        let mut expectation = Self {
            sizes: ledger.sizes_of(origin),
            ..Self::blank(ledger, cut)
        };
        for segment in &ledger.segments {
            let entries = &ledger.entries[segment.entries.clone()];
            let legal = restored(ledger, segment.sectors.start, entries, origin);
            // Nothing but the snapshot's own values counts.
            expectation.allow(Some(Moment(0)), legal);
        }
        expectation.key = expectation.floor_hash(0);
        expectation
    }

    /// What a file beneath may hold, if there is one on that disk: before a commit into it what it held,
    /// and after it what the guest's disk showed.
    pub fn of_file(&self, disk: Disk) -> Option<Self> {
        let ledger = self.ledger;
        let found = ledger.chain.worlds(disk, self.cut)?;
        let mut expectation = Self {
            sizes: found.sizes.clone(),
            key: self.key,
            subject: Whose::File,
            ..Self::blank(ledger, self.cut)
        };
        for segment in &ledger.segments {
            let sector = segment.sectors.start;
            let entries = &ledger.entries[segment.entries.clone()];
            let legal = in_file(ledger, sector, entries, &found);
            // Nothing but these values counts.
            expectation.allow(Some(Moment(0)), legal);
        }
        Some(expectation)
    }

    /// Whether this is of the guest's disk, and not of a file beneath it.
    pub(super) fn is_of_disk(&self) -> bool {
        self.subject == Whose::Disk
    }

    /// The two worlds of a disk that was going back to a snapshot at the cut, becoming smaller, or being put
    /// over another file: it had not, or it had. The whole disk must be of one of them. None of this happens to
    /// a file beneath it.
    pub fn alternatives(&self) -> Option<&Alternatives<'a>> {
        let found = || self.find_alternatives().map(Box::new);
        self.alternatives.get_or_init(found).as_deref()
    }

    fn find_alternatives(&self) -> Option<Alternatives<'a>> {
        if !self.is_of_disk() {
            return None;
        }
        let settled = self.ledger.durable_before(self.cut);
        let before = |submitted: Moment| {
            let before = Moment(submitted.0.checked_sub(1)?);
            Some(Self::new(self.ledger, settled, before))
        };
        if let Some((turn, origin)) = self.ledger.open_application(self.cut) {
            let after = Self::of_snapshot(self.ledger, origin, self.cut);
            let worlds = [before(turn.submitted)?, after];
            return Some(Alternatives::Snapshot(worlds));
        }
        if let Some((index, repoint)) = self.ledger.open_repoint(self.cut) {
            let after = Settled {
                repointed: Some(index),
                ..Settled::new(settled, self.cut)
            };
            let worlds = [before(repoint.submitted)?, Self::build(self.ledger, after)];
            return Some(Alternatives::Repoint(worlds));
        }
        let shrink = self.ledger.open_shrink(self.cut)?;
        let mut after = Self::new(self.ledger, settled, self.cut);
        after.sizes = vec![shrink.virtual_bytes];
        Some(Alternatives::Shrink([before(shrink.submitted)?, after]))
    }

    /// The lists of snapshots that may be found.
    pub fn snapshot_lists(&self) -> Vec<Vec<Listed>> {
        self.ledger.lists_at(self.cut)
    }

    /// What a listed snapshot must hold.
    #[must_use]
    pub fn snapshot(&self, listed: &Listed) -> Rc<Self> {
        let mut known = self.snapshots.borrow_mut();
        let found = || Rc::new(Self::of_snapshot(self.ledger, listed.origin, self.cut));
        Rc::clone(known.entry(listed.origin).or_insert_with(found))
    }

    /// Where something but zeroes may stand: what the workload touched, and what no operation wrote. In ascending ranges
    /// that do not touch.
    pub fn sectors(&self) -> &[Range<u64>] {
        let all = || merge(self.touched().chain(self.given()).collect(), u64::MAX);
        self.sectors.get_or_init(all)
    }

    /// Where something but zeroes may stand that no operation wrote, in ranges of sectors.
    pub fn given(&self) -> impl Iterator<Item = Range<u64>> {
        let past = self.ledger.past().iter();
        let past = past.flat_map(|past| past.content.ranges());
        self.ledger.initial.ranges().chain(past)
    }

    /// The history that this follows from.
    pub fn ledger(&self) -> &'a Ledger {
        self.ledger
    }

    /// The moment of the power loss.
    pub fn cut(&self) -> Moment {
        self.cut
    }

    /// The sizes in bytes that the disk may have, ascending.
    pub fn virtual_sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// What the header may say; empty where that is not known.
    pub fn facts(&self) -> &[Facts] {
        &self.facts
    }

    /// Names what must be durable. Of two expectations of one ledger with the same key, the one with
    /// the later cut allows all that the earlier one allows: a state that has passed the earlier one
    /// passes the later one too.
    pub fn key(&self) -> u128 {
        self.key
    }

    /// The sectors that the workload touched, in ascending disjoint ranges.
    pub fn touched(&self) -> impl Iterator<Item = Range<u64>> {
        self.ledger
            .segments
            .iter()
            .map(|segment| segment.sectors.clone())
    }

    /// What [`Self::found_legal`] was told of a stretch like this one, by this expectation or another of the same history
    /// that allows the same.
    pub fn known(&self, stretch: &Stretch) -> Option<Rc<[Range<u64>]>> {
        let known = self.ledger.known.borrow();
        known.get(self.legal_hash(), stretch)
    }

    /// Takes note that all of a stretch was found legal, and in which of its sectors something is written.
    pub fn found_legal(&self, stretch: &Stretch, written: Rc<[Range<u64>]>) {
        let mut known = self.ledger.known.borrow_mut();
        known.insert(self.legal_hash(), stretch, written);
    }

    fn legal_hash(&self) -> u128 {
        *self.legal_hash.get_or_init(|| {
            let mut words: Vec<u64> = Vec::with_capacity(4 * self.allowed.len());
            let counted = |count| u64::try_from(count).expect("a workload is short");
            for allowed in &self.allowed {
                let writers = &self.writers[allowed.writers.clone()];
                let pasts = &self.pasts[allowed.pasts.clone()];
                words.extend([
                    u64::from(allowed.zero),
                    u64::from(allowed.beneath),
                    u64::from(allowed.initial),
                    u64::from(allowed.others == Others::Legal),
                    counted(writers.len()),
                    counted(pasts.len()),
                ]);
                words.extend(writers.iter().map(|id| u64::from(id.0)));
                words.extend(pasts.iter().map(|past| counted(*past)));
            }
            xxh3_128(
                &words
                    .into_iter()
                    .flat_map(u64::to_le_bytes)
                    .collect::<Vec<u8>>(),
            )
        })
    }

    /// A checker that is to be asked about sectors in ascending order.
    pub fn checker(&self) -> Checker<'_, 'a> {
        Checker {
            expectation: self,
            next: 0,
        }
    }

    /// What `sector` may contain.
    pub fn legal(&self, sector: u64) -> Vec<SectorValue> {
        let initial = self.ledger.initial.value(sector);
        let Some((_, allowed)) = self.find(sector) else {
            return vec![initial];
        };
        let stamps = self.writers[allowed.writers.clone()]
            .iter()
            .map(|id| SectorValue::Stamp {
                writer: Writer::Operation(*id),
                sector,
            });
        let mut values: Vec<SectorValue> = stamps.collect();
        if allowed.zero {
            values.push(SectorValue::Zero);
        }
        if allowed.beneath {
            values.push(self.ledger.beneath.value(sector));
        }
        if allowed.initial {
            values.push(initial);
        }
        let pasts = self.pasts[allowed.pasts.clone()].iter();
        values.extend(pasts.map(|past| self.ledger.stored(*past).value(sector)));
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Whether `value` was written by an operation that had not been submitted at the cut. No crash can
    /// bring that about; who made the state and who asks here do not speak of the same run.
    pub fn is_from_the_future(&self, value: SectorValue) -> bool {
        match value {
            SectorValue::Stamp {
                writer: Writer::Operation(id),
                ..
            } => self.ledger.submission(id).is_some_and(|at| at > self.cut),
            SectorValue::Stamp { .. } | SectorValue::Zero | SectorValue::Other(_) => false,
        }
    }

    fn find(&self, sector: u64) -> Option<(usize, &Allowed)> {
        let index = self
            .ledger
            .segments
            .partition_point(|segment| segment.sectors.end <= sector);
        let segment = self.ledger.segments.get(index)?;
        segment
            .sectors
            .contains(&sector)
            .then(|| (index, &self.allowed[index]))
    }

    fn allow(&mut self, floor: Option<Moment>, mut legal: Legal) {
        legal.writers.sort_unstable();
        legal.writers.dedup();
        let (writers, pasts) = (self.writers.len(), self.pasts.len());
        self.writers.append(&mut legal.writers);
        self.pasts.append(&mut legal.pasts);
        self.allowed.push(Allowed {
            floor,
            zero: legal.zero,
            beneath: legal.beneath,
            initial: legal.initial,
            others: legal.others,
            writers: writers..self.writers.len(),
            pasts: pasts..self.pasts.len(),
        });
    }

    fn legal_sizes(&self) -> Vec<u64> {
        let mut sizes = vec![self.ledger.initial_bytes];
        for sizing in self
            .ledger
            .sizes
            .iter()
            .filter(|one| one.submitted <= self.cut)
        {
            match sizing.completed {
                Some((at, Answer::Done)) if at <= self.cut => sizes = vec![sizing.virtual_bytes],
                _ => sizes.push(sizing.virtual_bytes),
            }
        }
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn floor_hash(&self, settled_changes: u64) -> u128 {
        let floors = self
            .allowed
            .iter()
            .map(|allowed| allowed.floor.map_or(0, |moment| moment.0 + 1));
        let turns = self.ledger.turns.iter();
        let turns = turns.filter(|turn| turn.is_done(self.cut)).count();
        let done = |sizing: &&Sizing| matches!(sizing.completed, Some((at, Answer::Done)) if at <= self.cut);
        let sizings = self.ledger.sizes.iter().filter(done).count();
        let counted = |count| u64::try_from(count).expect("a workload is short");
        let [stored, noted] = self.ledger.bitmaps.promises(self.cut);
        let commits = counted(self.ledger.chain.settled(self.cut));
        let words = [
            counted(self.ledger.process()),
            counted(turns),
            counted(sizings),
            settled_changes,
            stored,
            noted,
            commits,
        ];
        let words = words.into_iter().chain(floors);
        xxh3_128(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    }

    fn level(&self, sector: u64, found: SectorValue) -> Level {
        if self.was_there(sector, found) {
            return Level::Lost;
        }
        match found {
            SectorValue::Zero => Level::Zeros,
            SectorValue::Stamp {
                writer: Writer::Operation(id),
                sector: other,
            } if other != sector && self.wrote(id, other) => Level::StaleOwn,
            SectorValue::Stamp { sector: other, .. }
                if other != sector && self.ledger.initial.value(other) == found =>
            {
                Level::StaleOwn
            }
            SectorValue::Stamp { .. } | SectorValue::Other(_) => Level::StaleForeign,
        }
    }

    /// Whether the sector held this value at some time up to the cut, or may have.
    fn was_there(&self, sector: u64, value: SectorValue) -> bool {
        let ledger = self.ledger;
        if ledger.initial.value(sector) == value || ledger.once_held(sector, value) {
            return true;
        }
        let Some((index, _)) = self.find(sector) else {
            return false;
        };
        self.ledger.entries[self.ledger.segments[index].entries.clone()]
            .iter()
            .filter(|entry| entry.submitted <= self.cut)
            .any(|entry| entry.value(self.ledger, sector) == Some(value))
    }

    fn wrote(&self, id: OperationId, sector: u64) -> bool {
        self.find(sector).is_some_and(|(index, _)| {
            self.ledger.entries[self.ledger.segments[index].entries.clone()]
                .iter()
                .any(|entry| entry.id == id && entry.effect == Effect::Stamp)
        })
    }
}

impl Entry {
    /// Whether this replaces what was there, beyond doubt.
    fn is_settled(&self, settled: Settled) -> bool {
        if let Effect::Shows(index) = self.effect {
            let answered = matches!(self.completed, Some((at, Answer::Done)) if at <= settled.cut);
            return answered || settled.repointed == Some(index);
        }
        match (self.effect, self.completed, settled.before) {
            (
                Effect::Stamp | Effect::Zero | Effect::Beneath | Effect::Restore(_),
                Some((ended, Answer::Done)),
                Some(settled),
            ) => ended < settled,
            _ => false,
        }
    }

    /// What it puts there, where that is one value and nobody else put it there before.
    fn value(&self, ledger: &Ledger, sector: u64) -> Option<SectorValue> {
        match self.effect {
            Effect::Stamp => Some(SectorValue::Stamp {
                writer: Writer::Operation(self.id),
                sector,
            }),
            Effect::Zero | Effect::PerhapsZero => Some(SectorValue::Zero),
            Effect::Beneath => Some(ledger.beneath.value(sector)),
            Effect::Restore(Origin::Past(past)) => Some(ledger.past[past].content.value(sector)),
            Effect::Restore(Origin::Taken(_)) | Effect::Shows(_) | Effect::MayShow(_) => None,
        }
    }
}

/// What may stand in a segment that starts at `sector`, and the latest submission of what must.
fn gather(
    ledger: &Ledger,
    sector: u64,
    entries: &[Entry],
    settled: Settled,
) -> (Option<Moment>, Legal) {
    let cut = settled.cut;
    let floor = entries
        .iter()
        .filter(|entry| entry.submitted <= cut && entry.is_settled(settled))
        .map(|entry| entry.submitted)
        .max();
    let mut legal = Legal {
        initial: floor.is_none(),
        ..Legal::default()
    };
    for entry in entries.iter().filter(|entry| entry.submitted <= cut) {
        let superseded = entry
            .completed
            .is_some_and(|(ended, _)| floor.is_some_and(|floor| ended < floor));
        if superseded {
            continue;
        }
        match entry.effect {
            Effect::Stamp => legal.writers.push(entry.id),
            Effect::Zero | Effect::PerhapsZero => legal.zero = true,
            Effect::Beneath => legal.beneath = true,
            Effect::Restore(origin) => {
                legal.add(restored(ledger, sector, entries, origin));
            }
            Effect::Shows(repoint) | Effect::MayShow(repoint) => {
                legal.add(shown(ledger, sector, entries, repoint));
            }
        }
    }
    (floor, legal)
}

/// What the file that the image was repointed to shows in a segment that starts at `sector`.
fn shown(ledger: &Ledger, sector: u64, entries: &[Entry], repoint: usize) -> Legal {
    let repoint = &ledger.chain.repoints()[repoint];
    let Some(disk) = repoint.onto else {
        return Legal {
            zero: true,
            ..Legal::default()
        };
    };
    match ledger.chain.worlds(disk, repoint.submitted) {
        Some(found) => in_file(ledger, sector, entries, &found),
        None => Legal::default(),
    }
}

/// What a file beneath may hold in a segment that starts at `sector`.
fn in_file(ledger: &Ledger, sector: u64, entries: &[Entry], found: &FileWorlds) -> Legal {
    let mut legal = Legal::default();
    let here = |world: &&World| world.sectors.contains(&sector);
    for world in found.worlds.iter().filter(here) {
        match world.source {
            Source::Start(file) => legal.pasts.push(ledger.past().len() + file),
            Source::Anywhere => legal.others = Others::Legal,
            Source::Shown(at) => legal.add(gather(ledger, sector, entries, Settled::at(at)).1),
        }
    }
    legal
}

/// What a snapshot may hold in a segment that starts at `sector`.
fn restored(ledger: &Ledger, sector: u64, entries: &[Entry], origin: Origin) -> Legal {
    let sizes = ledger.sizes_of(origin);
    let is_beyond = |size: &u64| sector >= size / 512;
    let beyond = Legal {
        zero: true,
        ..Legal::default()
    };
    if sizes.iter().all(is_beyond) {
        return beyond;
    }
    let mut legal = match origin {
        Origin::Past(past) => Legal {
            pasts: vec![past],
            ..Legal::default()
        },
        // What was in flight beside it may be in it or not, as with a read.
        Origin::Taken(turn) => {
            let turn = &ledger.turns[turn];
            let taken = turn.completed.map_or(Moment(u64::MAX), |(at, _)| at);
            let settled = Settled::new(Some(turn.submitted), taken);
            gather(ledger, sector, entries, settled).1
        }
    };
    if sizes.iter().any(is_beyond) {
        legal.add(beyond);
    }
    legal
}

/// Compares sectors with an [`Expectation`], in ascending order of sectors.
#[derive(Clone, Debug)]
pub struct Checker<'a, 'l> {
    expectation: &'a Expectation<'l>,
    /// The first segment that does not end before the last sector asked about.
    next: usize,
}

impl<'a> Checker<'a, '_> {
    /// What is wrong with `sector` if it contains `bytes`; nothing stored means zeroes.
    pub fn check_bytes(
        &mut self,
        sector: u64,
        bytes: Option<&[u8; 512]>,
    ) -> Option<SectorViolation> {
        self.check(sector, SectorValue::of(bytes))
    }

    /// What is wrong with `sector` if it contains `found`.
    pub fn check(&mut self, sector: u64, found: SectorValue) -> Option<SectorViolation> {
        (!self.is_legal(sector, found)).then(|| SectorViolation {
            sector,
            level: self.expectation.level(sector, found),
            found,
            legal: self.expectation.legal(sector),
        })
    }

    /// What is wrong with the first sector of `sectors` that may not be zero, if they all are. Costs
    /// as much as there are segments in the range, however long they are.
    pub fn check_zeroes(&mut self, sectors: Range<u64>) -> Option<SectorViolation> {
        let initial = &self.expectation.ledger.initial;
        let mut at = sectors.start;
        while at < sectors.end {
            let (run, allowed) = self.run_from(at);
            let run = run.start.max(at)..run.end.min(sectors.end);
            let bad = match allowed {
                Some(allowed) if allowed.zero || allowed.others == Others::Legal => None,
                Some(allowed) => self.first_nonzero(allowed, &run),
                None => initial.first_nonzero(&run),
            };
            if let Some(sector) = bad {
                return self.check(sector, SectorValue::Zero);
            }
            at = run.end;
        }
        None
    }

    /// Whether no operation touches any of `sectors`, so that only what was there at the start is legal.
    pub fn is_untouched(&mut self, sectors: &Range<u64>) -> bool {
        let (run, allowed) = self.run_from(sectors.start);
        allowed.is_none() && run.end >= sectors.end
    }

    /// The first sector of `sectors` that is zero in none of the contents that are legal there.
    fn first_nonzero(&self, allowed: &Allowed, sectors: &Range<u64>) -> Option<u64> {
        let ledger = self.expectation.ledger;
        let pasts = self.expectation.pasts[allowed.pasts.clone()].iter();
        let mut contents: Vec<_> = pasts.map(|past| ledger.stored(*past)).collect();
        contents.extend(allowed.initial.then_some(&ledger.initial));
        contents.extend(allowed.beneath.then_some(&ledger.beneath));
        let mut at = sectors.start;
        while at < sectors.end {
            let mut furthest = at;
            for content in &contents {
                furthest = furthest.max(content.first_nonzero(&(at..sectors.end))?);
            }
            if furthest == at {
                return Some(at);
            }
            at = furthest;
        }
        None
    }

    fn is_legal(&mut self, sector: u64, found: SectorValue) -> bool {
        let expectation = self.expectation;
        let (_, allowed) = self.run_from(sector);
        if let Some(allowed) = allowed {
            if allowed.others == Others::Legal {
                return true;
            }
            match found {
                SectorValue::Zero if allowed.zero => return true,
                SectorValue::Stamp {
                    writer: Writer::Operation(id),
                    sector: stamped,
                } => {
                    let writers = &expectation.writers[allowed.writers.clone()];
                    if stamped == sector && writers.binary_search(&id).is_ok() {
                        return true;
                    }
                }
                SectorValue::Zero | SectorValue::Stamp { .. } | SectorValue::Other(_) => {}
            }
            if allowed.beneath && expectation.ledger.beneath.value(sector) == found {
                return true;
            }
            let pasts = &expectation.pasts[allowed.pasts.clone()];
            let past = |past: &usize| expectation.ledger.stored(*past).value(sector);
            if pasts.iter().any(|index| past(index) == found) {
                return true;
            }
            if !allowed.initial {
                return false;
            }
        }
        expectation.ledger.initial.value(sector) == found
    }

    /// The segment that `sector` lies in, or the gap between segments.
    fn run_from(&mut self, sector: u64) -> (Range<u64>, Option<&'a Allowed>) {
        let segments = &self.expectation.ledger.segments;
        assert!(
            self.next == 0 || segments[self.next - 1].sectors.end <= sector,
            "sectors are asked about in ascending order"
        );
        while self.next < segments.len() && segments[self.next].sectors.end <= sector {
            self.next += 1;
        }
        match segments.get(self.next) {
            Some(segment) if segment.sectors.start <= sector => (
                segment.sectors.clone(),
                Some(&self.expectation.allowed[self.next]),
            ),
            Some(segment) => (sector..segment.sectors.start, None),
            None => (sector..u64::MAX, None),
        }
    }
}
