//! Which requests are durable at a cut, and which may be lost.
//!
//! A [`Frontier`] stands at a cut and moves forward. It keeps the content that is beyond doubt, the
//! *settled* part, and the *tail*: every request, in order, from the first volatile one on. Requests
//! of the tail can be durable too, where a write with FUA overtook others; the order within the
//! tail then decides who wins a sector.

use std::ops::Range;
use std::rc::Rc;

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

/// A request of the tail.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Which.
    pub request: RequestId,
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
    cut: Tick,
    settled: PageImage,
    settled_count: usize,
    tail: Vec<Tail>,
}

/// The order of events that matter to durability.
#[derive(Debug)]
struct History {
    /// Requests that change content and were answered, by completion.
    answered: Vec<(Tick, usize)>,
    /// Requests that change content, by submission.
    submitted: Vec<usize>,
    /// Completion and submission of each flush that did what it says.
    flushes: Vec<(Tick, Tick)>,
}

impl<'a> Frontier<'a> {
    /// The frontier at the start of a recording, before anything was submitted.
    pub fn start(recording: &'a Recording) -> Self {
        Self {
            recording,
            history: Rc::new(History::of(recording)),
            cut: Tick::default(),
            settled: recording.base.clone(),
            settled_count: 0,
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
        let answered = history
            .answered
            .partition_point(|(answered, _)| *answered <= cut);
        let covered = history.covered(cut);
        self.settle(&history.answered[..answered], covered);
        let completed = history.answered[self.settled_count..answered]
            .iter()
            .map(|(_, index)| {
                let durable = is_durable(&self.recording.entries[*index], covered, cut);
                let standing = if durable {
                    Standing::Durable
                } else {
                    Standing::Completed
                };
                (*index, standing)
            });
        let in_flight = history.submitted.iter().filter_map(|index| {
            let entry = &self.recording.entries[*index];
            let flying =
                entry.submitted <= cut && entry.answered().is_none_or(|answered| answered > cut);
            flying.then_some((*index, Standing::InFlight))
        });
        self.tail = completed
            .chain(in_flight)
            .map(|(index, standing)| Tail::of(&self.recording.entries[index], standing))
            .collect();
        self.mark_lengths();
    }

    /// What was recorded.
    pub fn recording(&self) -> &'a Recording {
        self.recording
    }

    /// The moment of the power loss.
    pub fn cut(&self) -> Tick {
        self.cut
    }

    /// The content that is beyond doubt, without the requests of the tail.
    pub fn settled(&self) -> &PageImage {
        &self.settled
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

    /// Moves the settled content over every answered request up to the first that is not durable.
    fn settle(&mut self, answered: &[(Tick, usize)], covered: Tick) {
        let durable = |(_, index): &(Tick, usize)| {
            is_durable(&self.recording.entries[*index], covered, self.cut)
        };
        let fresh = &answered[self.settled_count..];
        let count = fresh
            .iter()
            .position(|item| !durable(item))
            .unwrap_or(fresh.len());
        if count == 0 {
            return;
        }
        let mut medium = Medium::new(std::mem::take(&mut self.settled));
        for (_, index) in &fresh[..count] {
            medium.lay(&self.recording.entries[*index], &Fate::Whole, Length::Kept);
        }
        self.settled = medium.finish();
        self.settled_count += count;
    }

    /// The length hangs on what reaches beyond the shortest length that this cut can leave.
    fn mark_lengths(&mut self) {
        let recording = self.recording;
        let entry = |tail: &Tail| &recording.entries[tail.request.0];
        let durable = self
            .tail
            .iter()
            .filter(|tail| tail.standing == Standing::Durable)
            .filter_map(|tail| entry(tail).op.grows_to())
            .fold(self.settled.len(), u64::max);
        let floor = self
            .tail
            .iter()
            .filter_map(|tail| set_len(&entry(tail).op))
            .fold(durable, u64::min);
        for tail in &mut self.tail {
            let op = &entry(tail).op;
            tail.has_length = set_len(op).is_some() || op.grows_to().is_some_and(|end| end > floor);
        }
    }
}

impl Tail {
    fn of(entry: &Entry, standing: Standing) -> Self {
        Self {
            request: entry.id,
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

    /// Whether it changes a sector that `other` changes too.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.sectors.start < other.sectors.end && other.sectors.start < self.sectors.end
    }
}

impl History {
    fn of(recording: &Recording) -> Self {
        let changing = || {
            recording
                .entries
                .iter()
                .filter(|entry| entry.changes_content())
        };
        let mut answered: Vec<(Tick, usize)> = changing()
            .filter_map(|entry| Some((entry.answered()?, entry.id.0)))
            .collect();
        answered.sort_unstable();
        let mut flushes: Vec<(Tick, Tick)> = recording
            .entries
            .iter()
            .filter_map(|entry| Some((effective_flush(entry)?, entry.submitted)))
            .collect();
        flushes.sort_unstable();
        Self {
            answered,
            submitted: changing().map(|entry| entry.id.0).collect(),
            flushes,
        }
    }

    /// What was answered before this moment is covered by a flush that succeeded up to the cut.
    fn covered(&self, cut: Tick) -> Tick {
        self.flushes
            .iter()
            .take_while(|(completed, _)| *completed <= cut)
            .map(|(_, submitted)| *submitted)
            .max()
            .unwrap_or_default()
    }
}

/// When a flush succeeded that did what it says, or `None`.
pub(super) fn effective_flush(entry: &Entry) -> Option<Tick> {
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
fn is_durable(entry: &Entry, covered: Tick, cut: Tick) -> bool {
    let flushed = entry.answered().is_some_and(|answered| answered < covered);
    let forced = entry.op.is_fua() && entry.succeeded().is_some_and(|answered| answered <= cut);
    flushed || forced
}
