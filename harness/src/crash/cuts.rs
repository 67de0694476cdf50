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

/// The cuts of a recording: first those where the class of what is written changes and where the
/// guest was promised something, then the others, each in order of time.
pub(super) fn plan<'a>(recording: &'a Recording, promises: &[Tick]) -> Vec<Cut<'a>> {
    let mut frontier = Frontier::start(recording);
    let (mut first, mut later) = (Vec::new(), Vec::new());
    let mut class = None;
    for (tick, scope) in moments(recording, promises) {
        frontier.advance(tick);
        let early = match scope {
            Scope::Newest(id) => {
                let entry = &recording.entries[id.0];
                let this = Some((entry.disk, Class::of(entry)));
                std::mem::replace(&mut class, this) != this
            }
            Scope::Shallow => false,
            Scope::Full => true,
        };
        let cut = Cut {
            frontier: frontier.clone(),
            scope,
        };
        if early { &mut first } else { &mut later }.push(cut);
    }
    first.append(&mut later);
    first
}

/// The cuts of a recording on disks that lie: each moment with the last promise before it broken, with the last
/// two, and with all. In an order that is spread over the whole recording however soon a budget ends.
pub(super) fn plan_lies<'a>(recording: &'a Recording, promises: &[Tick]) -> Vec<Cut<'a>> {
    let acknowledged = acknowledgements(recording);
    let mut cuts = Vec::new();
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
        cuts.extend(trusts.into_iter().map(|trust| (tick, scope, trust)));
    }
    let bits = usize::BITS - cuts.len().leading_zeros();
    let spread = |index: usize| index.reverse_bits() >> (usize::BITS - bits);
    let places = (0..1_usize << bits).map(spread);
    let frontier = |(tick, trust)| {
        let mut frontier = Frontier::trusting(recording, trust);
        frontier.advance(tick);
        frontier
    };
    places
        .filter_map(|place| cuts.get(place))
        .map(|(tick, scope, trust)| Cut {
            frontier: frontier((*tick, *trust)),
            scope: *scope,
        })
        .collect()
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
        if let Some(answered) = entry.answered()
            && reorders(recording, entry, answered)
        {
            add(answered, Scope::Full);
        }
    }
    add(recording.end(), Scope::Shallow);
    moments
}

/// Whether the completion of a request changes which states are possible otherwise than by being
/// durable: by its place in the order among those still in flight, or because nothing may lose it.
fn reorders(recording: &Recording, entry: &Entry, answered: Tick) -> bool {
    if !entry.changes_content() {
        return false;
    }
    let sets_length = |entry: &Entry| matches!(entry.op, RecordedOp::SetLen { .. });
    let sectors = entry.op.sectors();
    let disturbs = |other: &Entry| {
        let others = other.op.sectors();
        let in_flight =
            other.submitted < answered && other.answered().is_none_or(|tick| tick > answered);
        let overlap = others.start < sectors.end && sectors.start < others.end;
        other.id != entry.id
            && other.disk == entry.disk
            && other.changes_content()
            && in_flight
            && (overlap || sets_length(other) || sets_length(entry))
    };
    entry.op.is_fua() || recording.entries.iter().any(disturbs)
}
