//! What the bitmaps of an image must and may say after a power loss.
//!
//! A bitmap covers *spans* of the history: from the operation that enabled, created or cleared it to the
//! one that disabled it. A write that is in flight beside one of these may be noted, and need not be; all others
//! lie before, within or after a span. Operations on bitmaps follow one another. An operation that was in flight at the
//! cut, or failed, may or may not have happened: there is more than one *list* then.

use std::ops::Range;

use super::{Effect, Expectation, Ledger};
use crate::oracle::structure::StoredBitmap;
use crate::workload::ops::{
    Answer, BitmapChange, BitmapOperation, DiskChange, Happening, Moment, Operation, bitmap_name,
};
use crate::workload::stamp::{SectorValue, Writer};
use engine::manage::BitmapState;

/// What has to do with bitmaps in a history.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    initial: Vec<Known>,
    /// Operations on bitmaps, in order.
    changes: Vec<(BitmapOperation, Happening)>,
    /// What a bitmap has to note, in order of submission.
    touches: Vec<Touch>,
    /// What leaves every bitmap stored.
    stores: Vec<(Moment, Moment)>,
    /// When the disk may have become smaller, also by going back to a snapshot, and how many sectors it had
    /// then.
    shrinks: Vec<(Moment, u64)>,
}

/// A change of the guest's disk.
#[derive(Clone, Debug)]
struct Touch {
    sectors: Range<u64>,
    submitted: Moment,
    completed: Option<(Moment, Answer)>,
    kind: Kind,
}

impl Touch {
    /// Whether it may have taken effect after what another operation, submitted at `stored`, stored.
    fn may_follow(&self, stored: Moment) -> bool {
        let beside = self.completed.is_none_or(|(ended, _)| ended > stored);
        self.submitted > stored || (self.submitted < stored && beside)
    }
}

/// What a change of the guest's disk asks of bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is certain once the operation is done.
    Written,
    /// It may leave all as it was.
    Discarded,
    /// What was added may be called dirty. All bitmaps change with the size of the disk.
    Grown,
    /// All of the disk may be another, durably once the operation is done, and so may its size.
    Restored,
}

/// The bitmaps that there may be.
type List = Vec<Known>;

/// A bitmap that there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: Vec<u8>,
    granule_sectors: u64,
    enabled: bool,
    inconsistent: bool,
    /// What it calls dirty whatever became of the disk.
    held: Vec<Held>,
    spans: Vec<Span>,
}

/// A range that a bitmap was told to call dirty, or called so before the history began.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    sectors: Range<u64>,
    /// When it was told; the start for what is older.
    since: Moment,
    /// Granules of the bitmaps that the bits came through.
    granules: Vec<u64>,
}

/// A stretch of the history whose changes a bitmap covers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Window,
    until: Option<Window>,
    /// Granules of the bitmaps that the bits came through.
    granules: Vec<u64>,
}

/// From when to when an operation was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    submitted: Moment,
    /// When it was answered, whatever the answer.
    ended: Option<Moment>,
}

impl Window {
    const START: Self = Self {
        submitted: Moment(0),
        ended: Some(Moment(0)),
    };

    fn of(happening: &Happening) -> Self {
        Self {
            submitted: happening.submitted,
            ended: happening.completed.map(|(at, _)| at),
        }
    }
}

impl Span {
    /// Whether all of a change lies within.
    fn contains(&self, touch: &Touch) -> bool {
        let ended = touch.completed.map(|(at, _)| at);
        self.from.ended.is_some_and(|from| touch.submitted > from)
            && self
                .until
                .is_none_or(|until| ended.is_some_and(|ended| ended < until.submitted))
    }

    /// Whether a part of a change may lie within.
    fn meets(&self, touch: &Touch) -> bool {
        let ended = touch.completed.map(|(at, _)| at);
        let begins = ended.is_none_or(|ended| ended > self.from.submitted);
        let ends = self.until.and_then(|until| until.ended);
        begins && ends.is_none_or(|until| touch.submitted < until)
    }
}

/// What is dirty where a range became so and came through bitmaps of these granules.
fn widened(sectors: &Range<u64>, granules: &[u64]) -> Range<u64> {
    let mut range = sectors.clone();
    for granule in granules {
        range = range.start / granule * granule..range.end.next_multiple_of(*granule);
    }
    range
}

impl Known {
    /// A bitmap that is there before the history begins.
    fn found(stored: &StoredBitmap) -> Self {
        let mut known = Self {
            name: stored.name.clone(),
            granule_sectors: stored.granule_sectors,
            enabled: stored.enabled,
            inconsistent: stored.in_use,
            held: Vec::new(),
            spans: Vec::new(),
        };
        for sectors in &stored.dirty {
            known.hold(sectors.clone(), Moment(0));
        }
        if stored.enabled {
            known.open(Window::START);
        }
        known
    }

    fn open(&mut self, from: Window) {
        self.spans.push(Span {
            from,
            until: None,
            granules: vec![self.granule_sectors],
        });
    }

    fn close(&mut self, until: Window) {
        for span in &mut self.spans {
            span.until.get_or_insert(until);
        }
    }

    fn hold(&mut self, sectors: Range<u64>, since: Moment) {
        self.held.push(Held {
            sectors,
            since,
            granules: vec![self.granule_sectors],
        });
    }

    /// Takes over what another one has noted until then.
    fn absorb(&mut self, mut source: Self, until: Window) {
        source.close(until);
        let granule = self.granule_sectors;
        for mut held in source.held {
            held.granules.push(granule);
            self.held.push(held);
        }
        for mut span in source.spans {
            span.granules.push(granule);
            self.spans.push(span);
        }
    }
}

/// What is wrong with the bitmaps of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapViolation {
    /// The rule that is broken, as failure classes name it.
    pub kind: &'static str,
    /// What is wrong, in a sentence.
    pub line: String,
}

impl History {
    /// Notes what happened to a disk that may have one of these sizes, first that which it has where what failed did not
    /// happen.
    pub(super) fn enter(&mut self, happening: &Happening, disk_bytes: &[u64]) {
        let least = disk_bytes.iter().copied().fold(u64::MAX, u64::min);
        let most = disk_bytes.iter().copied().fold(0, u64::max);
        let disk_bytes = disk_bytes[0];
        let (submitted, completed) = (happening.submitted, happening.completed);
        let mut touch = |sectors: Range<u64>, kind| {
            self.touches.push(Touch {
                sectors,
                submitted,
                completed,
                kind,
            });
        };
        match happening.operation.disk_change() {
            DiskChange::None => {}
            DiskChange::Stamped(range) | DiskChange::Zeroed(range) => {
                touch(range.sectors(), Kind::Written);
            }
            DiskChange::Discarded(range) => touch(range.sectors(), Kind::Discarded),
            DiskChange::Shrunk { virtual_bytes } => {
                let end = virtual_bytes / 512;
                touch(end..end, Kind::Grown);
                self.shrinks.push((submitted, end));
            }
            DiskChange::Grown { virtual_bytes } => {
                let end = virtual_bytes.max(disk_bytes);
                touch(least / 512..end / 512, Kind::Grown);
            }
            // How large the disk is then, `cut` is told.
            DiskChange::Restored => touch(0..u64::MAX / 512, Kind::Restored),
            DiskChange::Renamed | DiskChange::Repointed | DiskChange::Emptied => {
                touch(0..disk_bytes / 512, Kind::Restored);
                // That much there is only if what failed has happened.
                touch(disk_bytes / 512..most / 512, Kind::Grown);
            }
        }
        if let Operation::Bitmap(change) = happening.operation {
            self.changes.push((change, *happening));
        }
        let stores = matches!(
            happening.operation,
            Operation::Grow { .. }
                | Operation::Shrink { .. }
                | Operation::Bitmap(_)
                | Operation::Reopen
        );
        if let (true, Some((ended, Answer::Done))) = (stores, completed) {
            self.stores.push((submitted, ended));
        }
    }

    /// The disk may have become another one of this size.
    pub(super) fn cut(&mut self, at: Moment, virtual_bytes: u64) {
        self.shrinks.push((at, virtual_bytes / 512));
    }

    pub(super) fn start(&mut self, found: &[StoredBitmap]) {
        self.initial = found.iter().map(Known::found).collect();
    }

    /// How many promises about bitmaps have been made by then: that they are stored, and that they note what the disk
    /// became as a whole, be it what it was.
    pub(super) fn promises(&self, cut: Moment) -> [u64; 2] {
        let kept = self.stores.iter().filter(|(_, ended)| *ended <= cut);
        let noted = self.touches.iter().filter(|touch| {
            let done = matches!(touch.completed, Some((at, Answer::Done)) if at <= cut);
            touch.kind == Kind::Restored && done
        });
        [kept.count(), noted.count()]
            .map(|count| u64::try_from(count).expect("a count fits 64 bits"))
    }

    fn lists(&self, cut: Moment) -> Vec<List> {
        let mut lists = vec![self.initial.clone()];
        for (change, happening) in &self.changes {
            if happening.submitted > cut {
                continue;
            }
            let done = matches!(happening.completed, Some((at, Answer::Done)) if at <= cut);
            let mut after: Vec<List> = lists
                .iter()
                .filter_map(|list| applied(list, *change, Window::of(happening)))
                .collect();
            if !done {
                after.append(&mut lists);
                after.dedup();
            }
            lists = after;
        }
        lists
    }
}

/// The list after a change; `None` where the change is none for it.
fn applied(list: &List, operation: BitmapOperation, at: Window) -> Option<List> {
    let BitmapOperation { number, change } = operation;
    let name = bitmap_name(number).into_bytes();
    let index = list.iter().position(|known| known.name == name);
    let mut list = list.clone();
    if let BitmapChange::Create {
        granularity_bits,
        state,
    } = change
    {
        if index.is_some() {
            return None;
        }
        let mut known = Known {
            name,
            granule_sectors: 1 << (granularity_bits - 9),
            enabled: state == BitmapState::Enabled,
            inconsistent: false,
            held: Vec::new(),
            spans: Vec::new(),
        };
        if known.enabled {
            known.open(at);
        }
        list.push(known);
        return Some(list);
    }
    let index = index?;
    if change == BitmapChange::Remove {
        list.remove(index);
        return Some(list);
    }
    let source = if let BitmapChange::Merge { source } = change {
        let source = list
            .iter()
            .find(|known| known.name == bitmap_name(source).as_bytes());
        Some(source?.clone())
    } else {
        None
    };
    let known = &mut list[index];
    if known.inconsistent || source.as_ref().is_some_and(|source| source.inconsistent) {
        return None;
    }
    match (change, source) {
        (BitmapChange::SetState(state), _) => {
            let enable = state == BitmapState::Enabled;
            if enable && !known.enabled {
                known.open(at);
            } else if !enable {
                known.close(at);
            }
            known.enabled = enable;
        }
        (BitmapChange::Clear, _) => {
            known.held.clear();
            known.spans.clear();
            if known.enabled {
                known.open(at);
            }
        }
        (BitmapChange::Merge { .. }, Some(source)) => known.absorb(source, at),
        (BitmapChange::Mark { range }, _) => known.hold(range.sectors(), at.submitted),
        (BitmapChange::Create { .. } | BitmapChange::Remove | BitmapChange::Merge { .. }, _) => {}
    }
    Some(list)
}

impl Ledger {
    /// The same history on an image that has these bitmaps at the start.
    #[must_use]
    pub fn with_bitmaps(mut self, found: &[StoredBitmap]) -> Self {
        self.bitmaps.start(found);
        self
    }
}

impl Expectation<'_> {
    /// What is wrong with the bitmaps that a power loss at this moment left, on a disk of
    /// `disk_sectors`, of which `value` tells what a sector holds.
    pub fn check_bitmaps(
        &self,
        found: &[StoredBitmap],
        disk_sectors: u64,
        value: &dyn Fn(u64) -> SectorValue,
    ) -> Option<BitmapViolation> {
        if !self.is_of_disk() {
            return None;
        }
        let history = &self.ledger().bitmaps;
        let mut first = None;
        for list in history.lists(self.cut()) {
            let case = Case {
                expectation: self,
                history,
                disk_sectors,
                value,
            };
            match case.check(&list, found) {
                None => return None,
                Some(violation) => {
                    first.get_or_insert(violation);
                }
            }
        }
        first
    }
}

struct Case<'a, 'l> {
    expectation: &'a Expectation<'l>,
    history: &'a History,
    disk_sectors: u64,
    value: &'a dyn Fn(u64) -> SectorValue,
}

impl Case<'_, '_> {
    fn check(&self, list: &List, found: &[StoredBitmap]) -> Option<BitmapViolation> {
        let same = list.len() == found.len()
            && list.iter().zip(found).all(|(known, found)| {
                known.name == found.name
                    && known.granule_sectors == found.granule_sectors
                    && known.enabled == found.enabled
            });
        if !same {
            let kind = "bitmap-list";
            let line = format!(
                "the image has bitmaps {}, and {} were expected",
                names(found.iter().map(|found| (&found.name, found.enabled))),
                names(list.iter().map(|known| (&known.name, known.enabled)))
            );
            return Some(BitmapViolation { kind, line });
        }
        let mut pairs = list.iter().zip(found);
        pairs.find_map(|(known, found)| self.check_one(known, found))
    }

    fn check_one(&self, known: &Known, found: &StoredBitmap) -> Option<BitmapViolation> {
        let name = String::from_utf8_lossy(&known.name);
        let fault = |kind, line| Some(BitmapViolation { kind, line });
        if known.inconsistent != found.in_use {
            if known.inconsistent {
                let line = format!("{name} was inconsistent, and is called clean");
                return fault("bitmap-resurrected", line);
            }
            if !self.may_be_in_use(known) {
                let line =
                    format!("{name} is in use, although nothing changed since it was stored");
                return fault("bitmap-in-use", line);
            }
        }
        if found.in_use {
            return None;
        }
        if let Some(sector) = self.forgotten(known, found) {
            let line = format!(
                "{name} is clean, and does not call guest sector {sector} dirty, which was marked in it"
            );
            return fault("bitmap-forgotten", line);
        }
        if let Some(sector) = self.uncovered(known, found) {
            let line = format!(
                "{name} is clean, and guest sector {sector} changed without being noted in it"
            );
            return fault("bitmap-uncovered", line);
        }
        if let Some(sector) = self.spurious(known, found) {
            let line = format!("{name} calls guest sector {sector} dirty, which nothing touched");
            return fault("bitmap-spurious", line);
        }
        None
    }

    /// Whether something changed since everything was stored the last time.
    fn may_be_in_use(&self, known: &Known) -> bool {
        let cut = self.expectation.cut();
        let stored = self
            .history
            .stores
            .iter()
            .filter(|(_, ended)| *ended <= cut);
        let stored = stored.map(|(submitted, _)| *submitted).max();
        self.history.touches.iter().any(|touch| {
            touch.submitted <= cut
                && stored.is_none_or(|stored| touch.may_follow(stored))
                && (known.enabled || matches!(touch.kind, Kind::Grown | Kind::Restored))
        })
    }

    /// The touches that may have happened by the cut.
    fn touches(&self) -> impl Iterator<Item = &Touch> {
        let cut = self.expectation.cut();
        let touches = self.history.touches.iter();
        touches.filter(move |touch| touch.submitted <= cut)
    }

    fn forgotten(&self, known: &Known, found: &StoredBitmap) -> Option<u64> {
        known.held.iter().find_map(|held| {
            let Held { sectors, since, .. } = held;
            let end = sectors.end.min(self.kept_since(*since));
            let first = found.first_clean_from(sectors.start);
            (first < end).then_some(first)
        })
    }

    fn uncovered(&self, known: &Known, found: &StoredBitmap) -> Option<u64> {
        let missing = |sector: &u64| !found.covers(*sector);
        for touch in self.touches() {
            let Some(span) = known.spans.iter().find(|span| span.contains(touch)) else {
                continue;
            };
            let settled = self.is_settled(touch);
            let kept = self.kept_since(touch.submitted);
            let on_disk = |sector: &u64| *sector < kept;
            match touch.kind {
                Kind::Grown => {}
                // The disk may be far too large to ask for each sector.
                Kind::Restored => {
                    let first = found.first_clean();
                    if settled && on_disk(&first) && touch.sectors.contains(&first) {
                        return Some(first);
                    }
                }
                Kind::Written | Kind::Discarded => {
                    for sector in touch.sectors.clone().filter(on_disk).filter(missing) {
                        if settled || (span.until.is_none() && self.is_new(sector, span.from)) {
                            return Some(sector);
                        }
                    }
                }
            }
        }
        None
    }

    /// How many sectors of the disk have been there ever since what was done at `moment`: what a smaller disk
    /// gave up is gone from its bitmaps too, and comes back with another content.
    fn kept_since(&self, moment: Moment) -> u64 {
        let cut = self.expectation.cut();
        let shrinks = self.history.shrinks.iter();
        let since = shrinks.filter(|(at, _)| *at >= moment && *at <= cut);
        since.map(|(_, end)| *end).fold(self.disk_sectors, u64::min)
    }

    /// Whether a change is there for certain.
    fn is_settled(&self, touch: &Touch) -> bool {
        let cut = self.expectation.cut();
        let Some((done, Answer::Done)) = touch.completed else {
            return false;
        };
        let mut stores = self.history.stores.iter();
        match touch.kind {
            Kind::Written => stores.any(|(from, ended)| *from > done && *ended <= cut),
            Kind::Restored => done <= cut,
            Kind::Discarded | Kind::Grown => false,
        }
    }

    /// Whether what a sector holds cannot have stood there at any moment of `from`.
    fn is_new(&self, sector: u64, from: Window) -> bool {
        let Some(after) = from.ended else {
            return false;
        };
        let ledger = self.expectation.ledger();
        match (self.value)(sector) {
            SectorValue::Stamp {
                writer: Writer::Operation(id),
                ..
            } => ledger.submission(id).is_some_and(|at| at > after),
            SectorValue::Zero => {
                let mut before = ledger
                    .entries_of(sector)
                    .iter()
                    .filter(|entry| entry.submitted < after)
                    .peekable();
                if before.peek().is_none() {
                    return ledger.initial().value(sector) != SectorValue::Zero;
                }
                before.all(|entry| {
                    entry.effect == Effect::Stamp
                        && matches!(entry.completed, Some((at, Answer::Done)) if at < from.submitted)
                })
            }
            SectorValue::Stamp { .. } | SectorValue::Other(_) => false,
        }
    }

    fn spurious(&self, known: &Known, found: &StoredBitmap) -> Option<u64> {
        let held = known.held.iter();
        let mut allowed: Vec<Range<u64>> = held
            .map(|held| widened(&held.sectors, &held.granules))
            .collect();
        for touch in self.touches() {
            let spans = known.spans.iter().filter(|span| span.meets(touch));
            allowed.extend(spans.map(|span| widened(&touch.sectors, &span.granules)));
        }
        allowed.sort_unstable_by_key(|range| range.start);
        for dirty in &found.dirty {
            let mut at = dirty.start;
            for range in &allowed {
                if range.start <= at && range.end > at {
                    at = range.end;
                }
            }
            if at < dirty.end {
                return Some(at);
            }
        }
        None
    }
}

fn names<'a>(bitmaps: impl Iterator<Item = (&'a Vec<u8>, bool)>) -> String {
    let texts: Vec<String> = bitmaps
        .map(|(name, enabled)| {
            let state = if enabled { "enabled" } else { "disabled" };
            format!("{} ({state})", String::from_utf8_lossy(name))
        })
        .collect();
    if texts.is_empty() {
        "none".into()
    } else {
        texts.join(", ")
    }
}
