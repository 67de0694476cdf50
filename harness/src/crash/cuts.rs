//! The moments at which to cut the power, and what is new at each.
//!
//! Within an epoch the possible states only become more: what a submission adds are the states in
//! which the new request left something. So the cut after a submission visits only those, and a cut
//! visits everything where the possible states, or what the guest may expect of them, became fewer:
//! after a flush or a write with FUA completed, after a change of order, and where the guest was
//! promised something. The states before a flush completes are those of the cuts before it.

use std::collections::BTreeMap;

use blkdebug::record::{Entry, RecordedOp, Recording, RequestId, Tick};

use super::Class;
use super::durability::{Frontier, Trust, acknowledgements, effective_flush};

/// Which states a cut visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those in which this request, submitted at the cut, left something.
    Newest(RequestId),
    /// All, by the cheap levels only: the states are those of earlier cuts.
    Shallow,
    /// All.
    Full,
}

/// A moment to cut the power.
#[derive(Debug)]
pub(super) struct Cut<'a> {
    pub(super) frontier: Frontier<'a>,
    pub(super) scope: Scope,
}

/// The cuts of a recording: first those where the class of what is written changes and where the guest was promised
/// something, then the others, each in order of time. What is volatile at a cut is found out when it is asked for:
/// most searches end before the last cut.
pub(super) struct Plan<'a> {
    recording: &'a Recording,
    /// Where it was last asked for, and on what disk.
    moving: (Frontier<'a>, Trust),
    moments: Vec<Moment>,
    cuts: Vec<Option<Cut<'a>>>,
}

/// A moment to cut the power, which states to visit there, and how far to trust the disk.
type Moment = (Tick, Scope, Trust);

impl<'a> Plan<'a> {
    /// The cuts of a recording. `promises` are the moments at which the guest was promised something.
    pub(super) fn new(recording: &'a Recording, promises: &[Tick]) -> Self {
        let (mut first, mut later) = (Vec::new(), Vec::new());
        let mut class = None;
        for (tick, scope) in moments(recording, promises) {
            let early = match scope {
                Scope::Newest(id) => {
                    let entry = &recording.entries[id.0];
                    let this = Some((entry.disk, Class::of(entry)));
                    std::mem::replace(&mut class, this) != this
                }
                Scope::Shallow => false,
                Scope::Full => true,
            };
            if early { &mut first } else { &mut later }.push((tick, scope, Trust::Always));
        }
        first.append(&mut later);
        Self::of(recording, first)
    }

    fn of(recording: &'a Recording, moments: Vec<Moment>) -> Self {
        Self {
            recording,
            moving: (Frontier::start(recording), Trust::Always),
            cuts: moments.iter().map(|_| None).collect(),
            moments,
        }
    }

    /// The cuts of a recording on disks that lie: each moment with the last promise before it broken, with the last
    /// two, and with all. In an order that is spread over the whole recording however soon a budget ends.
    pub(super) fn of_lies(recording: &'a Recording, promises: &[Tick]) -> Self {
        let acknowledged = acknowledgements(recording);
        let mut all = Vec::new();
        for (tick, scope) in moments(recording, promises) {
            let count = acknowledged.partition_point(|moment| *moment <= tick);
            let broken = |back: usize| {
                let first = acknowledged[..count].get(count.saturating_sub(back))?;
                Some(Trust::Until(Tick(first.0.saturating_sub(1))))
            };
            let mut trusts: Vec<Trust> = [1, 2, count].into_iter().filter_map(broken).collect();
            trusts.dedup();
            if trusts.is_empty() {
                trusts.push(Trust::Always);
            }
            all.extend(trusts.into_iter().map(|trust| (tick, scope, trust)));
        }
        let bits = usize::BITS - all.len().leading_zeros();
        let spread = |index: usize| index.reverse_bits() >> (usize::BITS - bits);
        let places = (0..1_usize << bits).map(spread);
        let spread = places.filter_map(|place| all.get(place).copied());
        Self::of(recording, spread.collect())
    }

    /// How many cuts there are.
    pub(super) fn len(&self) -> usize {
        self.moments.len()
    }

    /// The cut at a place in the order.
    pub(super) fn at(&mut self, index: usize) -> &Cut<'a> {
        let (tick, scope, trust) = self.moments[index];
        self.cuts[index].get_or_insert_with(|| {
            let (frontier, trusted) = &mut self.moving;
            if tick < frontier.cut() || trust != *trusted {
                self.moving = (Frontier::trusting(self.recording, trust), trust);
            }
            let frontier = &mut self.moving.0;
            frontier.advance(tick);
            Cut {
                frontier: frontier.clone(),
                scope,
            }
        })
    }

    /// All of them.
    pub(super) fn all(mut self) -> Vec<Cut<'a>> {
        for index in 0..self.len() {
            self.at(index);
        }
        self.cuts.into_iter().flatten().collect()
    }
}

/// The moments in order of time.
fn moments(recording: &Recording, promises: &[Tick]) -> BTreeMap<Tick, Scope> {
    let mut moments = BTreeMap::new();
    let mut add = |tick: Tick, scope: Scope| {
        // Two reasons to visit a moment are a reason to visit all of it.
        let known = moments.entry(tick).or_insert(scope);
        if *known != scope {
            *known = Scope::Full;
        }
    };
    add(Tick::default(), Scope::Full);
    for promise in promises {
        add(*promise, Scope::Full);
    }
    for entry in &recording.entries {
        if entry.changes_content() {
            add(entry.submitted, Scope::Newest(entry.id));
        }
        if let Some(flushed) = effective_flush(entry) {
            add(Tick(flushed.0.saturating_sub(1)), Scope::Shallow);
            add(flushed, Scope::Full);
        }
    }
    for answered in reordering(recording) {
        add(answered, Scope::Full);
    }
    add(recording.end(), Scope::Shallow);
    moments
}

/// The completions that change which states are possible otherwise than by being durable: by the request's place in the
/// order among those still in flight, or because nothing may lose it.
fn reordering(recording: &Recording) -> impl Iterator<Item = Tick> {
    let changes = recording
        .entries
        .iter()
        .filter(|entry| entry.changes_content());
    let mut answers: Vec<(Tick, &Entry)> = changes
        .clone()
        .filter_map(|entry| Some((entry.answered()?, entry)))
        .collect();
    answers.sort_by_key(|(answered, _)| *answered);
    let mut submissions = changes.peekable();
    let mut in_flight: Vec<&Entry> = Vec::new();
    answers.into_iter().filter_map(move |(answered, entry)| {
        while let Some(next) = submissions.next_if(|entry| entry.submitted < answered) {
            in_flight.push(next);
        }
        in_flight.retain(|other| other.answered().is_none_or(|tick| tick > answered));
        let reorders = entry.op.is_fua() || in_flight.iter().any(|other| disturb(entry, other));
        reorders.then_some(answered)
    })
}

/// Whether it matters which of two requests comes first.
fn disturb(one: &Entry, other: &Entry) -> bool {
    let sets_length = |entry: &Entry| matches!(entry.op, RecordedOp::SetLen { .. });
    let (here, there) = (one.op.sectors(), other.op.sectors());
    let overlap = here.start < there.end && there.start < here.end;
    one.disk == other.disk && (overlap || sets_length(one) || sets_length(other))
}
