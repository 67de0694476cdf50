//! What is new about a run: features that are not known yet, and the crash state that reached one last.
//!
//! A run is watched from outside: its requests, its history, and each crash state as it is judged. Nothing that is seen
//! here reaches a verdict or a digest.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use blkdebug::record::{Entry, Recording, RequestId, Tick};
use engine::device::OpKind;
use xxhash_rust::xxh3::xxh3_64;

use super::feature::{Feature, NumberSet, Topic, mix};
use super::rare::{Hits, Sighting, Sightings};
use crate::crash::Class;
use crate::crash::durability::{Frontier, effective_flush};
use crate::crash::state::{Fate, Length, Part, Survivors};
use crate::oracle::Judgement;
use crate::oracle::structure::StructureReport;
use crate::run::Life;
use crate::trace::{Crash, operation_text};
use crate::workload::ops::{Happening, Manners, Operation, SnapshotOperation};

/// What a run is watched for.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// The features that are no news.
    pub known: &'a NumberSet,
    /// Which power losses are looked at.
    pub focus: Focus<'a>,
}

/// Which power losses of a run are looked at.
#[derive(Clone, Copy, Debug)]
pub enum Focus<'a> {
    /// Those that are worth it anywhere.
    Anywhere,
    /// First those around a request that is new, if one is.
    News,
    /// The neighbours of this one, and no others.
    Around(&'a Crash),
}

/// What was seen of a run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The features that were not known, ascending.
    pub features: Vec<Feature>,
    /// The last crash state that had one of them.
    pub crash: Option<Crash>,
    /// The rare situations.
    pub rare: Sightings,
}

/// A moment of a recording, by what comes next.
#[derive(Clone, Copy, Debug)]
struct Next {
    tick: Tick,
    /// Names the event and its side.
    name: u64,
}

/// Watches one run.
pub(crate) struct Watcher<'a> {
    known: &'a NumberSet,
    new: NumberSet,
    rare: Sightings,
    /// What comes after each moment, in order.
    nexts: Vec<Next>,
    /// The class of each request, as a bit.
    classes: Vec<u64>,
    last: Option<(Tick, Survivors)>,
    /// The requests that are news, each with the number of those like it and with [`depth_of`] it.
    news: Vec<(u64, u64, RequestId)>,
}

impl<'a> Watcher<'a> {
    /// Watches the crash states of this life.
    pub(crate) fn new(watch: &Watch<'a>, life: &Life) -> Self {
        let recording = &life.recording;
        let classes = recording.entries.iter().map(class_bit).collect();
        let mut watcher = Self {
            known: watch.known,
            new: NumberSet::default(),
            rare: Sightings::default(),
            nexts: nexts(recording),
            classes,
            last: None,
            news: Vec::new(),
        };
        watcher.requests(recording, &life.lived.history);
        watcher
    }

    /// Power losses that each take a request along that is news, and leave what came behind it: as late as no flush has
    /// covered it. First those of the requests of which this run has the fewest like them, and of those the ones that most
    /// hangs on.
    pub(crate) fn news(&self, recording: &Recording) -> Vec<Crash> {
        const MOST: usize = 3;
        let mut news = self.news.clone();
        news.sort_unstable_by_key(|(alike, depth, request)| (*alike, *depth, Reverse(request.0)));
        let requests = news.into_iter().map(|(_, _, request)| request);
        requests
            .take(MOST)
            .filter_map(|request| without(recording, request))
            .collect()
    }

    /// Takes note of a feature; says whether it is new.
    fn note(&mut self, topic: Topic, parts: [u64; 2]) -> bool {
        let feature = Feature::of(topic, parts);
        !self.known.contains(feature.0) && self.new.insert(feature.0)
    }

    /// A crash state of the first power loss was judged.
    pub(crate) fn judged(&mut self, cut: Tick, survivors: &Survivors, judgement: &Judgement) {
        let survived = self.survivors(cut, survivors);
        let repaired = self.repair(judgement);
        if survived || repaired {
            self.last = Some((cut, survivors.clone()));
        }
    }

    /// A state was judged that the last of so many power losses, each inside a repair, had left.
    pub(crate) fn judged_nested(&mut self, losses: usize, judgement: &Judgement) {
        if losses > 1 {
            self.rare.saw(Sighting::ThirdLoss);
        }
        self.repair(judgement);
    }

    /// Which class survived at which event; says whether that is new.
    fn survivors(&mut self, cut: Tick, survivors: &Survivors) -> bool {
        let (mut kept, mut lost) = (0u64, 0u64);
        for part in survivors.parts() {
            let class = self.class(part.request);
            match part.content {
                Fate::Lost => lost |= class,
                Fate::Whole | Fate::Scattered { .. } => kept |= class,
                Fate::Torn(_) => {
                    kept |= class;
                    lost |= class;
                }
            }
            self.tell_part(part, class);
        }
        if kept & IMAGE != 0 && kept & !IMAGE == 0 && lost & !IMAGE != 0
            || kept & !IMAGE != 0 && kept & IMAGE == 0 && lost & IMAGE != 0
        {
            self.rare.saw(Sighting::DisksApart);
        }
        let at = self.next(cut);
        if !self.note(Topic::Survivors, [at, kept | lost << 32]) {
            return false;
        }
        for bit in (0..32).map(|bit| 1 << bit).filter(|bit| kept & bit != 0) {
            self.note(Topic::Survivor, [at, bit]);
        }
        true
    }

    fn tell_part(&mut self, part: &Part, class: u64) {
        match &part.content {
            Fate::Torn(_) if class & TABLES != 0 => self.rare.saw(Sighting::TableTorn),
            Fate::Scattered { garbage, .. } if garbage.iter().next().is_some() => {
                self.rare.saw(Sighting::Garbage);
            }
            Fate::Lost | Fate::Whole | Fate::Torn(_) | Fate::Scattered { .. } => {}
        }
        if part.length == Length::Lost && part.content != Fate::Lost {
            self.rare.saw(Sighting::LengthLost);
        }
    }

    /// What was wrong with a state, and what its repair wrote; says whether that is new.
    fn repair(&mut self, judgement: &Judgement) -> bool {
        let report = &judgement.state.report;
        for sighting in sightings_of(report) {
            self.rare.saw(sighting);
        }
        let mut wrote = 0u64;
        for recording in &judgement.repairs {
            let writes = recording.entries.iter().filter(|it| it.changes_content());
            for entry in writes {
                wrote |= 1 << (event_number(entry) % 64);
            }
        }
        self.note(Topic::Repair, [shape_of(report), wrote])
    }

    fn class(&self, request: RequestId) -> u64 {
        self.classes.get(request.0).copied().unwrap_or(0)
    }

    /// Names what comes next at a cut; 0 where nothing does.
    fn next(&self, cut: Tick) -> u64 {
        let at = self.nexts.partition_point(|next| next.tick <= cut);
        self.nexts.get(at).map_or(0, |next| next.name)
    }

    /// Looks at the life as a whole, and tells what is new. `recovery` is what was counted while states were judged.
    pub(crate) fn finish(mut self, life: &Life, recovery: &Hits) -> Seen {
        self.operations(&life.lived.history);
        for failure in &life.lived.failures {
            let operation = failure.id.and_then(|id| {
                let mut history = life.lived.history.iter();
                history.find(|happening| happening.id == id)
            });
            let kind = operation.map_or(0, |happening| kind_of(happening.operation));
            let text = failure.error.to_string();
            let plain = text.replace(|c: char| c.is_ascii_digit(), "");
            self.note(Topic::Failure, [kind, xxh3_64(plain.as_bytes())]);
        }
        self.rare.add_hits(&life.hits);
        self.probes();
        self.rare.add_hits(recovery);
        let crash = self.last.take();
        let crash = crash.map(|(cut, survivors)| Crash::of(&life.recording, cut, &survivors));
        Seen {
            features: self.new.sorted().into_iter().map(Feature).collect(),
            crash,
            rare: self.rare,
        }
    }

    /// The requests of the workload: how often, which after which, and during what.
    fn requests(&mut self, recording: &Recording, history: &[Happening]) {
        let kinds: Vec<u64> = history.iter().map(|it| kind_of(it.operation)).collect();
        let mut counts = BTreeMap::<u64, u64>::new();
        for entry in &recording.entries {
            *counts.entry(event_name(entry)).or_default() += 1;
        }
        let mut before = 0;
        // Operations are submitted in order: those that ended are never looked at again.
        let mut first = 0;
        for entry in &recording.entries {
            let name = event_name(entry);
            let mut is_news = self.note(Topic::EventPair, [before, name]);
            before = name;
            let ended = |it: &Happening| it.completed.is_some_and(|(at, _)| at < entry.submitted);
            while history.get(first).is_some_and(ended) {
                first += 1;
            }
            let open = history.iter().zip(&kinds).skip(first);
            let open = open.take_while(|(it, _)| it.submitted < entry.submitted);
            for (happening, kind) in open.filter(|(it, _)| !ended(it)) {
                is_news |= self.note(Topic::Cause, [*kind, name]);
                self.tell_request(entry, happening);
            }
            if is_news && entry.changes_content() {
                let depth = depth_of(Class::of(entry));
                self.news.push((counts[&name], depth, entry.id));
            }
        }
        for (name, count) in counts {
            self.note(Topic::Event, [name, bucket(count)]);
        }
    }

    fn tell_request(&mut self, entry: &Entry, during: &Happening) {
        use engine::device::Event;
        let changes = entry.changes_content();
        let snapshots = matches!(
            during.operation,
            Operation::Snapshot(SnapshotOperation { .. })
        );
        if snapshots && changes && entry.event == Event::RefblockAllocWrite {
            self.rare.saw(Sighting::BlockInSnapshot);
        }
        if snapshots && changes && entry.event == Event::RefblockAllocSwitchTable {
            self.rare.saw(Sighting::ReftableInSnapshot);
        }
        let grows = changes && entry.event == Event::L1GrowActivateTable;
        if grows && matches!(during.operation, Operation::Write { .. }) {
            self.rare.saw(Sighting::L1BesideWrite);
        }
    }

    /// What was asked for: what after what, and what beside what.
    fn operations(&mut self, history: &[Happening]) {
        let mut before = 0;
        for (index, happening) in history.iter().enumerate() {
            let kind = kind_of(happening.operation);
            self.note(Topic::OperationPair, [before, kind]);
            before = kind;
            let writes_on = |it: &&Happening| {
                let open = it.completed.is_none_or(|(at, _)| at > happening.submitted);
                open && matches!(it.operation, Operation::Write { .. })
            };
            if history[..index].iter().any(|it| writes_on(&it)) {
                if happening.operation == Operation::Flush {
                    self.rare.saw(Sighting::FlushBesideWrite);
                }
                if happening.operation.manners() == Manners::OneAtATime {
                    self.rare.saw(Sighting::ManagedBesideWrite);
                }
            }
        }
    }

    /// The rare situations of the workload, so far as the engine told of them: how often each, and which together.
    fn probes(&mut self) {
        let counts = self.rare.counts().to_vec();
        let hit: Vec<(u64, u64)> = (0u64..)
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .collect();
        for (at, (number, count)) in hit.iter().enumerate() {
            self.note(Topic::Probe, [*number, bucket(*count)]);
            for (other, _) in &hit[..at] {
                self.note(Topic::ProbePair, [*number, *other]);
            }
        }
    }
}

/// How far from the root of an image bytes stand: from one that is lost hangs what stands further down.
fn depth_of(class: Class) -> u64 {
    match class {
        Class::Header => 0,
        Class::RefcountTable => 1,
        Class::L1 => 2,
        Class::Length => 3,
        Class::RefcountBlock => 4,
        Class::L2 => 5,
        Class::Data => 6,
    }
}

/// The power loss that takes this request along and nothing else, as late as no flush has covered it.
fn without(recording: &Recording, request: RequestId) -> Option<Crash> {
    let entry = recording.entry(request)?;
    let answered = entry.answered().unwrap_or(entry.submitted);
    let covers = |it: &&Entry| it.submitted > answered;
    let flushes = recording.entries.iter().filter(covers);
    let covered = flushes.filter_map(effective_flush).min();
    let cut = covered.map_or_else(|| recording.end(), |at| Tick(at.0.saturating_sub(1)));
    let frontier = Frontier::at(recording, cut);
    let parts = frontier.volatile().map(|tail| {
        if tail.request == request {
            Part::lost(tail)
        } else {
            Part::whole(tail)
        }
    });
    let survivors = Survivors::from_parts(parts.collect());
    Some(Crash::of(recording, cut, &survivors))
}

/// The bits of the classes on the image's disk; those of other disks are above.
const IMAGE: u64 = (1 << 7) - 1;
/// Those of tables on it.
const TABLES: u64 = 0b0001_1110;

fn class_bit(entry: &Entry) -> u64 {
    let bit = match Class::of(entry) {
        Class::Data => 0,
        Class::L2 => 1,
        Class::L1 => 2,
        Class::RefcountBlock => 3,
        Class::RefcountTable => 4,
        Class::Header => 5,
        Class::Length => 6,
    };
    let shift = if entry.disk == blkdebug::disks::Disk::Image {
        0
    } else {
        7
    };
    1 << (bit + shift)
}

/// The event of a request, as a number.
fn event_number(entry: &Entry) -> u64 {
    let place = engine::device::Event::ALL
        .iter()
        .position(|event| *event == entry.event);
    u64::try_from(place.expect("every event is listed")).expect("there are few events")
}

/// A request as features name it: for which event, what was asked, and of which kind of disk.
fn event_name(entry: &Entry) -> u64 {
    let kind = OpKind::ALL.iter().position(|kind| *kind == entry.op.kind());
    let kind = u64::try_from(kind.expect("every kind is listed")).expect("there are few kinds");
    let other = u64::from(entry.disk != blkdebug::disks::Disk::Image);
    1 + (event_number(entry) * 8 + kind) * 2 + other
}

/// What comes after each moment of a recording.
fn nexts(recording: &Recording) -> Vec<Next> {
    let mut nexts = Vec::with_capacity(recording.entries.len() * 2);
    for entry in recording
        .entries
        .iter()
        .filter(|it| it.op.kind() != OpKind::Read)
    {
        let name = event_name(entry) * 2;
        nexts.push(Next {
            tick: entry.submitted,
            name,
        });
        if let Some((tick, _)) = entry.completed {
            nexts.push(Next {
                tick,
                name: name + 1,
            });
        }
    }
    nexts.sort_unstable_by_key(|next| next.tick);
    nexts
}

/// What is rare in a state, by the walk over it.
fn sightings_of(report: &StructureReport) -> impl Iterator<Item = Sighting> {
    let dirty = report.dirty();
    let there = [
        (Sighting::LowCounts, dirty && report.low_count > 0),
        (Sighting::Leaks, !dirty && report.leak_count > 0),
        (Sighting::CopiedMissing, report.copied_missing > 0),
    ];
    let there = there.into_iter().filter(|(_, is)| *is);
    there.map(|(sighting, _)| sighting)
}

/// What a walk found, as a few bits.
fn shape_of(report: &StructureReport) -> u64 {
    let bits = [
        report.dirty(),
        report.corrupt(),
        report.layout.is_none(),
        report.finding_count > 0,
        report.leak_count > 0,
        report.low_count > 0,
        report.copied_missing > 0,
        report.terse_snapshots > 0,
        !report.snapshots.is_empty(),
        !report.bitmaps.is_empty(),
    ];
    bits.iter().fold(0, |all, bit| all << 1 | u64::from(*bit))
}

/// The kind of an operation: what traces call it, without its numbers.
pub(super) fn kind_of(operation: Operation) -> u64 {
    let text = operation_text(operation);
    let plain = text
        .split(' ')
        .filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
    plain.fold(1, |hash, word| mix(hash ^ xxh3_64(word.as_bytes())))
}

/// A count as a power of two.
fn bucket(count: u64) -> u64 {
    u64::from(u64::BITS - count.leading_zeros())
}
