//! Which requests are durable at a cut, and which may be lost.
//!
//! A [`Frontier`] stands at a cut and moves forward. It keeps the content that is beyond doubt, the
//! *settled* part, and the *tail*: every request, in order, from the first volatile one on. Requests
//! of the tail can be durable too, where a write with FUA overtook others; the order within the
//! tail then decides who wins a sector.
//!
//! Where there are several disks, one cut goes through all of them. Each has a settled part of its own,
//! and its flushes cover its own requests only; the tail is that of all disks.
//!
//! A disk that lies keeps its word up to some moment ([`Trust`]). Which of the flushes behind it it
//! honours besides makes no difference: a subset of what the earliest leaves open is a state as well.

use std::ops::Range;
use std::rc::Rc;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, RequestId, Tick};
use engine::device::PageImage;

use super::Class;
use super::state::{Fate, Length, Medium};

/// How a request of the tail stands at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It survives.
    Durable,
    /// It was answered, and may be lost.
    Completed,
    /// It was not answered, and may have happened or not.
    InFlight,
}

/// How long the disks kept their word about flushes and writes with FUA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Always.
    #[default]
    Always,
    /// They ignored what they acknowledged after this moment, whatever they said.
    Until(Tick),
}

impl Trust {
    /// Whether what was acknowledged at this moment was done.
    fn honours(self, acknowledged: Tick) -> bool {
        match self {
            Self::Always => true,
            Self::Until(last) => acknowledged <= last,
        }
    }
}

/// A request of the tail.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Which.
    pub request: RequestId,
    /// Of which disk.
    pub disk: Disk,
    /// How it stands.
    pub standing: Standing,
    /// The class of its bytes.
    pub class: Class,
    /// The sectors whose content it changes.
    pub sectors: Range<u64>,
    /// Whether it is advice, whose sectors may read as garbage.
    pub advisory: bool,
    /// Whether the length of the file hangs on it at this cut.
    pub has_length: bool,
}

/// What a power loss at a cut finds: the settled content and the requests behind it.
#[derive(Clone, Debug)]
pub struct Frontier<'a> {
    recording: &'a Recording,
    history: Rc<History>,
    trust: Trust,
    cut: Tick,
    settled: Disks<Settled>,
    tail: Vec<Tail>,
}

/// What is beyond doubt on one disk.
#[derive(Clone, Debug)]
struct Settled {
    content: PageImage,
    /// How many of the disk's answered requests are in it.
    count: usize,
}

/// The order of events that matter to durability.
#[derive(Debug)]
struct History {
    /// What was answered, disk by disk.
    answers: Disks<Answers>,
    /// Requests that change content, by submission.
    submitted: Vec<usize>,
}

/// What a disk answered.
#[derive(Debug, Default)]
struct Answers {
    /// Requests that change content, by completion.
    changes: Vec<(Tick, usize)>,
    /// Completion and submission of each flush that did what it says.
    flushes: Vec<(Tick, Tick)>,
}

impl<'a> Frontier<'a> {
    /// The frontier at the start of a recording, before anything was submitted.
    pub fn start(recording: &'a Recording) -> Self {
        Self::trusting(recording, Trust::Always)
    }

    /// The same on disks that kept their word for so long.
    pub fn trusting(recording: &'a Recording, trust: Trust) -> Self {
        Self {
            recording,
            history: Rc::new(History::of(recording)),
            trust,
            cut: Tick::default(),
            settled: recording.bases.map(|_, base| Settled {
                content: base.clone(),
                count: 0,
            }),
            tail: Vec::new(),
        }
    }

    /// The frontier at a cut: everything up to it has happened, and nothing after it.
    pub fn at(recording: &'a Recording, cut: Tick) -> Self {
        let mut frontier = Self::start(recording);
        frontier.advance(cut);
        frontier
    }

    /// Moves the cut.
    ///
    /// # Panics
    /// Where `cut` is earlier than the cut that the frontier stands at.
    pub fn advance(&mut self, cut: Tick) {
        assert!(cut >= self.cut, "a frontier moves forward");
        self.cut = cut;
        let history = Rc::clone(&self.history);
        let mut completed = Vec::new();
        for (disk, answers) in history.answers.iter() {
            let changes = answers.until(cut);
            let covered = answers.covered(cut, self.trust);
            let settled = self.settle(disk, changes, covered);
            completed.extend(changes[settled..].iter().map(|(answered, index)| {
                let durable = is_durable(&self.recording.entries[*index], covered, cut, self.trust);
                let standing = if durable {
                    Standing::Durable
                } else {
                    Standing::Completed
                };
                (*answered, *index, standing)
            }));
        }
        if self.settled.count() > 1 {
            completed.sort_unstable_by_key(|(answered, _, _)| *answered);
        }
        let completed = completed
            .into_iter()
            .map(|(_, index, standing)| (index, standing));
        let entries = &self.recording.entries;
        let submitted = history.submitted.iter();
        let submitted = submitted.take_while(|index| entries[**index].submitted <= cut);
        let in_flight = submitted.filter_map(|index| {
            let answered = entries[*index].answered();
            let flying = answered.is_none_or(|answered| answered > cut);
            flying.then_some((*index, Standing::InFlight))
        });
        self.tail = completed
            .chain(in_flight)
            .map(|(index, standing)| Tail::of(&self.recording.entries[index], standing))
            .collect();
        for disk in Disk::ALL {
            self.mark_lengths(disk);
        }
    }

    /// What was recorded.
    pub fn recording(&self) -> &'a Recording {
        self.recording
    }

    /// The moment of the power loss.
    pub fn cut(&self) -> Tick {
        self.cut
    }

    /// How long the disks kept their word.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// The content of each disk that is beyond doubt, without the requests of the tail.
    pub fn settled(&self) -> Disks<&PageImage> {
        let mut contents = Disks::one(&self.settled.image().content);
        for (disk, settled) in self.settled.others() {
            contents.put(disk, &settled.content);
        }
        contents
    }

    /// The same of one disk.
    pub fn settled_on(&self, disk: Disk) -> &PageImage {
        let settled = self.settled.get(disk).expect("the disk is recorded");
        &settled.content
    }

    /// The requests from the first volatile one on: answered ones by completion, then those in
    /// flight by submission.
    pub fn tail(&self) -> &[Tail] {
        &self.tail
    }

    /// The requests of the tail that may be lost, in order.
    pub fn volatile(&self) -> impl Iterator<Item = &Tail> {
        self.tail
            .iter()
            .filter(|tail| tail.standing != Standing::Durable)
    }

    /// The entry of a request of the tail.
    pub fn entry(&self, tail: &Tail) -> &'a Entry {
        &self.recording.entries[tail.request.0]
    }

    /// Moves the settled content of a disk over every answered request up to the first that is not
    /// durable, and says how many of them it holds now.
    fn settle(&mut self, disk: Disk, answered: &[(Tick, usize)], covered: Tick) -> usize {
        let (recording, cut, trust) = (self.recording, self.cut, self.trust);
        let durable = |(_, index): &(Tick, usize)| {
            is_durable(&recording.entries[*index], covered, cut, trust)
        };
        let settled = self.settled.get_mut(disk).expect("the disk is recorded");
        let fresh = &answered[settled.count..];
        let count = fresh
            .iter()
            .position(|item| !durable(item))
            .unwrap_or(fresh.len());
        if count > 0 {
            let mut medium = Medium::new(std::mem::take(&mut settled.content));
            for (_, index) in &fresh[..count] {
                medium.lay(&recording.entries[*index], &Fate::Whole, Length::Kept);
            }
            settled.content = medium.finish();
            settled.count += count;
        }
        settled.count
    }

    /// The length of a disk hangs on what reaches beyond the shortest length that this cut can leave.
    fn mark_lengths(&mut self, disk: Disk) {
        let Some(settled) = self.settled.get(disk) else {
            return;
        };
        let recording = self.recording;
        let entry = |tail: &Tail| &recording.entries[tail.request.0];
        let durable = self
            .tail
            .iter()
            .filter(|tail| tail.disk == disk && tail.standing == Standing::Durable)
            .filter_map(|tail| entry(tail).op.grows_to())
            .fold(settled.content.len(), u64::max);
        let floor = self
            .tail
            .iter()
            .filter(|tail| tail.disk == disk)
            .filter_map(|tail| set_len(&entry(tail).op))
            .fold(durable, u64::min);
        for tail in self.tail.iter_mut().filter(|tail| tail.disk == disk) {
            let op = &entry(tail).op;
            tail.has_length = set_len(op).is_some() || op.grows_to().is_some_and(|end| end > floor);
        }
    }
}

impl Tail {
    fn of(entry: &Entry, standing: Standing) -> Self {
        Self {
            request: entry.id,
            disk: entry.disk,
            standing,
            class: Class::of(entry),
            sectors: entry.op.sectors(),
            advisory: entry.op.is_advisory(),
            has_length: false,
        }
    }

    /// How many sectors it changes.
    pub fn sector_count(&self) -> usize {
        usize::try_from(self.sectors.end - self.sectors.start)
            .expect("a request's sectors can be counted")
    }
}

impl History {
    fn of(recording: &Recording) -> Self {
        let mut answers = recording.bases.map(|_, _| Answers::default());
        let mut submitted = Vec::new();
        for entry in &recording.entries {
            let of_disk = answers.get_mut(entry.disk).expect("each disk has a base");
            if entry.changes_content() {
                submitted.push(entry.id.0);
                let answered = entry.answered().map(|answered| (answered, entry.id.0));
                of_disk.changes.extend(answered);
            }
            let flushed = effective_flush(entry).map(|flushed| (flushed, entry.submitted));
            of_disk.flushes.extend(flushed);
        }
        for disk in Disk::ALL {
            if let Some(of_disk) = answers.get_mut(disk) {
                of_disk.changes.sort_unstable();
                of_disk.flushes.sort_unstable();
            }
        }
        Self { answers, submitted }
    }
}

impl Answers {
    /// What was answered up to the cut.
    fn until(&self, cut: Tick) -> &[(Tick, usize)] {
        let count = self
            .changes
            .partition_point(|(answered, _)| *answered <= cut);
        &self.changes[..count]
    }

    /// What was answered before this moment is covered by a flush that succeeded up to the cut.
    fn covered(&self, cut: Tick, trust: Trust) -> Tick {
        self.flushes
            .iter()
            .take_while(|(completed, _)| *completed <= cut && trust.honours(*completed))
            .map(|(_, submitted)| *submitted)
            .max()
            .unwrap_or_default()
    }
}

/// When a flush succeeded that did what it says, or `None`.
pub(crate) fn effective_flush(entry: &Entry) -> Option<Tick> {
    match entry.op {
        RecordedOp::Flush if entry.effect == Effect::Whole => entry.succeeded(),
        RecordedOp::Flush
        | RecordedOp::Read { .. }
        | RecordedOp::Write { .. }
        | RecordedOp::WriteZeroes { .. }
        | RecordedOp::Discard { .. }
        | RecordedOp::SetLen { .. } => None,
    }
}

/// The first request that may still be lost where nothing is in flight and nothing more comes, but for advice.
pub fn volatile_at_end(recording: &Recording) -> Option<&Entry> {
    let end = recording.end();
    let mut covered = recording.bases.map(|_, _| Tick::default());
    for entry in &recording.entries {
        if effective_flush(entry).is_some()
            && let Some(covered) = covered.get_mut(entry.disk)
        {
            *covered = entry.submitted.max(*covered);
        }
    }
    recording.entries.iter().find(|entry| {
        let covered = covered.get(entry.disk).copied().unwrap_or_default();
        let lasts = !entry.op.is_advisory() && entry.changes_content();
        lasts && !is_durable(entry, covered, end, Trust::Always)
    })
}

/// The length that an operation sets, or `None`.
pub(super) fn set_len(op: &RecordedOp) -> Option<u64> {
    match op {
        RecordedOp::SetLen { len_bytes } => Some(*len_bytes),
        RecordedOp::Flush
        | RecordedOp::Read { .. }
        | RecordedOp::Write { .. }
        | RecordedOp::WriteZeroes { .. }
        | RecordedOp::Discard { .. } => None,
    }
}

/// Rules 1 and 2.
fn is_durable(entry: &Entry, covered: Tick, cut: Tick, trust: Trust) -> bool {
    let flushed = entry.answered().is_some_and(|answered| answered < covered);
    let kept = |answered| answered <= cut && trust.honours(answered);
    let forced = entry.op.is_fua() && entry.succeeded().is_some_and(kept);
    flushed || forced
}

/// When the disks promised that something is durable, in order: flushes that did what they say, and
/// writes with FUA.
pub(super) fn acknowledgements(recording: &Recording) -> Vec<Tick> {
    let mut moments: Vec<Tick> = recording.entries.iter().filter_map(acknowledged).collect();
    moments.sort_unstable();
    moments
}

/// When the disk promised by this request that something is durable, or `None`.
pub fn acknowledged(entry: &Entry) -> Option<Tick> {
    let forced = entry.succeeded().filter(|_| entry.op.is_fua());
    effective_flush(entry).or(forced)
}
