//! A disk with a volatile write cache: it answers now or on command, and records both ends of every
//! request.
//!
//! It holds the content that reads see. What of it would be left after a power loss is no business
//! of the disk: that follows from the recording, and whoever asks chooses the moment.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use engine::device::{
    Cause, Completer, Completion, Device, DeviceError, Event, Op, OpKind, Outcome, PageImage,
    Reply, Request, SECTOR_BYTES,
};

use crate::disks::{Disk, Disks};
use crate::fault::{Ruling, Twist, flip};
use crate::record::{Clock, Effect, Entry, RecordedOp, Recording, RequestId, SectorContent, Tick};
use crate::rule::{Chance, Fault, Rules, When};

/// When requests are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answering {
    /// As they are submitted; nothing is ever in flight.
    #[default]
    AtOnce,
    /// When [`VolatileDisk::complete`] says so.
    OnCommand,
}

/// A request that waits for its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub id: RequestId,
    /// On whose behalf it was made.
    pub event: Event,
    /// What was asked.
    pub kind: OpKind,
}

/// A disk that can lose power.
///
/// Writes, zeroes, discards and lengths must be whole sectors, otherwise they are refused with
/// [`Cause::BadRequest`] and not recorded. A refused request was never a request.
#[derive(Debug)]
pub struct VolatileDisk {
    clock: Clock,
    answering: Answering,
    powered: Cell<bool>,
    /// The operation of the guest on whose behalf requests are made at present.
    operation: Cell<Option<u64>>,
    state: RefCell<State>,
}

/// A request that a rule hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Its number; `None` where the power went out before it arrived.
    pub request: Option<RequestId>,
    /// Its event.
    pub event: Event,
    /// The event that its rule had waited for, where it waited for one.
    pub after: Option<Event>,
    /// What was asked.
    pub kind: OpKind,
    /// Where that was to be, in bytes, and how much.
    pub range: (u64, u64),
    /// The operation of the guest on whose behalf it was made, if there was one.
    pub operation: Option<u64>,
    /// The moment of the last event before it.
    pub at: Tick,
    /// What happened to it.
    pub fault: Fault,
}

#[derive(Debug)]
struct State {
    current: PageImage,
    recording: Recording,
    /// How many requests there were of each event and kind: a few dozen at most.
    ordinals: Vec<((Event, OpKind), u64)>,
    waiting: Vec<Waiting>,
    rules: Rules,
    injected: Vec<Injected>,
    /// For which operation of the guest each recorded request was made.
    operations: Vec<Option<u64>>,
    /// Requests that happen once more, each after so many answers.
    again: Vec<(u64, RequestId)>,
}

#[derive(Debug)]
struct Waiting {
    pending: Pending,
    answer: Result<(), Cause>,
    twist: Twist,
    completer: Option<Completer>,
}

impl VolatileDisk {
    /// A disk that starts with the content of `base`, all of it durable.
    pub fn new(base: PageImage, clock: Clock, answering: Answering) -> Self {
        /// A recovery of a small image makes hardly more requests.
        const ROOM: usize = 16;
        Self {
            clock,
            answering,
            powered: Cell::new(true),
            operation: Cell::new(None),
            state: RefCell::new(State {
                current: base.clone(),
                recording: Recording {
                    bases: Disks::one(base),
                    entries: Vec::with_capacity(ROOM),
                },
                ordinals: Vec::new(),
                waiting: Vec::new(),
                rules: Rules::default(),
                injected: Vec::new(),
                operations: Vec::with_capacity(ROOM),
                again: Vec::new(),
            }),
        }
    }

    /// The same disk under these rules, in place of those it had.
    #[must_use]
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.state.get_mut().rules = rules;
        self
    }

    /// The requests in flight, in submission order.
    pub fn in_flight(&self) -> Vec<Pending> {
        let state = self.state.borrow();
        state
            .waiting
            .iter()
            .map(|waiting| waiting.pending)
            .collect()
    }

    /// Tells of each request in flight, in submission order.
    pub fn each_in_flight(&self, mut visit: impl FnMut(RequestId)) {
        for waiting in &self.state.borrow().waiting {
            visit(waiting.pending.id);
        }
    }

    /// How many requests are in flight.
    pub fn in_flight_count(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// Completes a request in flight: its effect shows in the content from now on, and whoever waits
    /// for it is woken.
    ///
    /// # Panics
    /// Where the power is off, or no such request is in flight.
    pub fn complete(&self, id: RequestId) {
        assert!(self.powered.get(), "a disk without power completes nothing");
        let mut state = self.state.borrow_mut();
        let index = state
            .waiting
            .iter()
            .position(|waiting| waiting.pending.id == id)
            .expect("the request is in flight");
        let waiting = state.waiting.remove(index);
        let outcome = state.finish(&waiting, &self.clock);
        if waiting.twist == Twist::PowerCut(When::After) {
            drop(state);
            self.power_off();
            return;
        }
        drop(state);
        if let Some(completer) = waiting.completer {
            completer.complete(outcome);
        }
    }

    /// Cuts the power: requests in flight never complete, and new ones fail.
    pub fn power_off(&self) {
        self.powered.set(false);
        self.state.borrow_mut().waiting.clear();
    }

    /// Whoever made the requests in flight is gone: none of them is carried out, and none is answered. What was
    /// carried out stays as volatile as it was.
    pub fn withdraw(&self) {
        let mut state = self.state.borrow_mut();
        let State {
            recording, waiting, ..
        } = &mut *state;
        for Waiting { pending, .. } in waiting.drain(..) {
            recording.entries[pending.id.0].effect = Effect::Dropped;
        }
    }

    /// What happened so far; cheap, the data are shared.
    pub fn recording(&self) -> Recording {
        self.state.borrow().recording.clone()
    }

    /// What happened so far, without a copy: from here on the disk remembers nothing of it.
    pub fn take_recording(&self) -> Recording {
        std::mem::take(&mut self.state.borrow_mut().recording)
    }

    /// What happened, without a copy.
    pub fn into_recording(self) -> Recording {
        self.state.into_inner().recording
    }

    /// The content that reads see; cheap, the pages are shared.
    pub fn current(&self) -> PageImage {
        self.state.borrow().current.clone()
    }

    /// How many requests the rules hit.
    pub fn hits(&self) -> u64 {
        self.state.borrow().rules.hits()
    }

    /// The requests that the rules hit, in order.
    pub fn injected(&self) -> Vec<Injected> {
        self.state.borrow().injected.clone()
    }

    /// For which operation of the guest each recorded request was made, or that it was for none, in order.
    pub fn operations(&self) -> Vec<Option<u64>> {
        self.state.borrow().operations.clone()
    }

    /// Says for which operation of the guest the requests are made that follow, or that it is for none.
    pub fn on_behalf_of(&self, operation: Option<u64>) {
        self.operation.set(operation);
    }

    /// Whether the power is on.
    pub fn is_powered(&self) -> bool {
        self.powered.get()
    }

    /// Cuts the power while somebody waits for a request. Where answers come at once that one fails so; elsewhere it
    /// is never answered.
    fn cut(&self, error: DeviceError) -> Completion {
        self.power_off();
        match self.answering {
            Answering::AtOnce => Completion::ready(Err(error)),
            Answering::OnCommand => Completion::pending().0,
        }
    }
}

impl Device for VolatileDisk {
    fn submit(&self, mut request: Request) -> Completion {
        let refused = if self.powered.get() {
            refusal(&request.op)
        } else {
            Some(Cause::PowerOff)
        };
        if let Some(cause) = refused {
            let error = DeviceError::new(request.event, &request.op, cause);
            return Completion::ready(Err(error));
        }
        let mut state = self.state.borrow_mut();
        let error = DeviceError::new(request.event, &request.op, Cause::PowerOff);
        let ruling = state.rule_on(&mut request, self.operation.get(), self.clock.now());
        if ruling.twist == Twist::PowerCut(When::Before) {
            drop(state);
            return self.cut(error);
        }
        state.operations.push(self.operation.get());
        let mut waiting = state.admit(request, ruling, &self.clock);
        if waiting.twist == Twist::PowerCut(When::During) {
            drop(state);
            return self.cut(error);
        }
        match self.answering {
            Answering::AtOnce => {
                let outcome = state.finish(&waiting, &self.clock);
                if waiting.twist == Twist::PowerCut(When::After) {
                    drop(state);
                    return self.cut(error);
                }
                Completion::ready(outcome)
            }
            Answering::OnCommand => {
                let (completion, completer) = Completion::pending();
                waiting.completer = Some(completer);
                state.waiting.push(waiting);
                completion
            }
        }
    }

    fn reach(&self, event: Event) -> Completion {
        if !self.powered.get() {
            // No request stands behind an event; a flush is the one that has no range either.
            let error = DeviceError {
                event,
                kind: OpKind::Flush,
                offset: 0,
                len_bytes: 0,
                cause: Cause::PowerOff,
            };
            return Completion::ready(Err(error));
        }
        let mut state = self.state.borrow_mut();
        state.rules.announce(event, self.operation.get());
        Completion::ready(Ok(Reply::Done))
    }

    fn len(&self) -> u64 {
        self.state.borrow().current.len()
    }
}

impl State {
    /// What the rules make of a request, which becomes what is carried out of it.
    fn rule_on(&mut self, request: &mut Request, operation: Option<u64>, at: Tick) -> Ruling {
        self.rules.announce(request.event, operation);
        let range = request.op.range();
        let Some(hit) = self.rules.rule_on(request, operation) else {
            return Ruling::whole();
        };
        let arrives = hit.ruling.twist != Twist::PowerCut(When::Before);
        self.injected.push(Injected {
            request: arrives.then_some(RequestId(self.recording.entries.len())),
            event: request.event,
            after: hit.after,
            kind: request.op.kind(),
            range,
            operation,
            at,
            fault: hit.fault,
        });
        hit.ruling
    }

    /// Records the submission of a request.
    fn admit(&mut self, request: Request, ruling: Ruling, clock: &Clock) -> Waiting {
        let pending = Pending {
            id: RequestId(self.recording.entries.len()),
            event: request.event,
            kind: request.op.kind(),
        };
        let ordinal = self.next_ordinal(pending.event, pending.kind);
        self.recording.entries.push(Entry {
            id: pending.id,
            disk: Disk::Image,
            event: pending.event,
            ordinal,
            op: RecordedOp::keep(request.op, self.current.len()),
            submitted: clock.next(),
            completed: None,
            effect: ruling.effect,
            repeats: None,
        });
        Waiting {
            pending,
            answer: ruling.answer,
            twist: ruling.twist,
            completer: None,
        }
    }

    /// How many requests of this event and kind came before the one that comes now.
    fn next_ordinal(&mut self, event: Event, kind: OpKind) -> u64 {
        let place = (event, kind);
        let mut counts = self.ordinals.iter_mut();
        if let Some((_, count)) = counts.find(|(of, _)| *of == place) {
            *count += 1;
            return *count - 1;
        }
        self.ordinals.push((place, 1));
        0
    }

    /// Carries a request out and records its completion.
    fn finish(&mut self, waiting: &Waiting, clock: &Clock) -> Outcome {
        let entry = &mut self.recording.entries[waiting.pending.id.0];
        entry.completed = Some((clock.next(), waiting.answer));
        lay(&mut self.current, entry);
        let outcome = match waiting.answer {
            Ok(()) => Ok(reply(&self.current, entry, waiting.twist)),
            Err(cause) => Err(failure(entry, cause)),
        };
        self.carry_out_again(clock);
        match waiting.twist {
            Twist::Forget(chance) => self.forget(waiting.pending.id, chance),
            Twist::Again(0) => self.repeat(waiting.pending.id, clock),
            Twist::Again(after) => self.again.push((after, waiting.pending.id)),
            Twist::None | Twist::PowerCut(_) | Twist::Flip(_) | Twist::Shorten(_) => {}
        }
        outcome
    }

    /// Carries out what was due to happen again after this many answers.
    fn carry_out_again(&mut self, clock: &Clock) {
        for (left, _) in &mut self.again {
            *left -= 1;
        }
        let due: Vec<(u64, RequestId)> =
            self.again.extract_if(.., |(left, _)| *left == 0).collect();
        for (_, id) in due {
            self.repeat(id, clock);
        }
    }

    /// Lets a request happen once more, as another that nobody waits for.
    fn repeat(&mut self, id: RequestId, clock: &Clock) {
        let mut entry = self.recording.entries[id.0].clone();
        entry.id = RequestId(self.recording.entries.len());
        entry.ordinal = self.next_ordinal(entry.event, entry.op.kind());
        entry.repeats = Some(id);
        entry.submitted = clock.next();
        entry.completed = Some((clock.next(), Ok(())));
        lay(&mut self.current, &entry);
        self.recording.entries.push(entry);
        self.operations.push(self.operations[id.0]);
    }

    /// Loses what flush `id`, which failed, was to make durable, or what of it chance hits. Nothing of it was ever promised,
    /// so that it is as good as if it had never happened.
    fn forget(&mut self, id: RequestId, chance: Option<Chance>) {
        let entries = &mut self.recording.entries;
        let failed = entries[id.0].submitted;
        let flushes = entries
            .iter()
            .filter(|entry| entry.op.kind() == OpKind::Flush);
        // One that is under way will say that it has made durable what it covers.
        let holds = |flush: &&Entry| {
            flush.succeeded().is_some() || flush.answered().is_none() && flush.id != id
        };
        let covered = flushes
            .filter(holds)
            .map(|flush| flush.submitted)
            .max()
            .unwrap_or_default();
        for entry in entries.iter_mut() {
            let answered = entry.answered();
            let is_durable = entry.op.is_fua() && entry.succeeded().is_some()
                || answered.is_some_and(|at| at < covered);
            let is_volatile =
                answered.is_some_and(|at| at < failed) && !is_durable && entry.changes_content();
            let number = u64::try_from(entry.id.0).expect("an index fits 64 bits");
            if is_volatile && chance.is_none_or(|chance| chance.hits(number)) {
                entry.effect = Effect::Dropped;
            }
        }
        let mut laid: Vec<(Tick, usize)> = entries
            .iter()
            .filter_map(|entry| Some((entry.answered()?, entry.id.0)))
            .collect();
        laid.sort_unstable();
        self.current = self.recording.bases.image().clone();
        for (_, index) in laid {
            lay(&mut self.current, &self.recording.entries[index]);
        }
    }
}

/// The answer to a request that succeeded.
fn reply(current: &PageImage, entry: &Entry, twist: Twist) -> Reply {
    match entry.op {
        RecordedOp::Read { offset, len_bytes } => {
            let len = usize::try_from(len_bytes).expect("the length came as a usize");
            let mut data = current.read_vec(offset, len);
            match twist {
                Twist::Flip(bit) => flip(&mut data, bit),
                Twist::Shorten(sectors) => {
                    let kept = usize::try_from(sectors.saturating_mul(SECTOR_BYTES));
                    let kept = kept.unwrap_or(usize::MAX).min(len);
                    data[kept..].fill(0);
                }
                Twist::None | Twist::Forget(_) | Twist::Again(_) | Twist::PowerCut(_) => {}
            }
            Reply::Data(data)
        }
        RecordedOp::Write { .. }
        | RecordedOp::WriteZeroes { .. }
        | RecordedOp::Discard { .. }
        | RecordedOp::Flush
        | RecordedOp::SetLen { .. } => Reply::Done,
    }
}

/// Applies to the content what really happens of a request. A torn extension still extends: what is
/// missing of it reads zero.
pub fn lay(image: &mut PageImage, entry: &Entry) {
    if !entry.changes_content() {
        return;
    }
    let before = image.len();
    if let RecordedOp::SetLen { len_bytes } = entry.op {
        if entry.effect == Effect::Whole {
            image.set_len(len_bytes);
        }
        return;
    }
    let sectors = entry.op.sectors();
    match (&entry.op, &entry.effect) {
        // A range of zeroes may be long beyond counting.
        (RecordedOp::WriteZeroes { .. } | RecordedOp::Discard { .. }, Effect::Whole) => {
            let len_bytes = (sectors.end - sectors.start) * SECTOR_BYTES;
            image.write_zeroes(entry.op.offset(), len_bytes);
        }
        (RecordedOp::Write { run, .. }, Effect::Whole) => image.put_run(run),
        _ => lay_sectors(image, entry, sectors),
    }
    image.set_len(before.max(entry.op.grows_to().unwrap_or(0)));
}

fn lay_sectors(image: &mut PageImage, entry: &Entry, sectors: Range<u64>) {
    for (index, sector) in sectors.enumerate() {
        if !entry.happens(index) {
            continue;
        }
        match entry.op.content(index) {
            SectorContent::Zero => image.write_zeroes(sector * SECTOR_BYTES, SECTOR_BYTES),
            SectorContent::Bytes(bytes, hash) => image.put_sector(sector, bytes, hash),
        }
    }
}

fn failure(entry: &Entry, cause: Cause) -> DeviceError {
    let len_bytes = match entry.op {
        RecordedOp::Read { len_bytes, .. } => len_bytes,
        RecordedOp::Write { .. }
        | RecordedOp::WriteZeroes { .. }
        | RecordedOp::Discard { .. }
        | RecordedOp::Flush
        | RecordedOp::SetLen { .. } => {
            let sectors = entry.op.sectors();
            (sectors.end - sectors.start) * SECTOR_BYTES
        }
    };
    DeviceError {
        event: entry.event,
        kind: entry.op.kind(),
        offset: entry.op.offset(),
        len_bytes,
        cause,
    }
}

/// Why a request cannot be taken, or `None`.
fn refusal(op: &Op) -> Option<Cause> {
    let (offset, len_bytes) = op.range();
    let within = offset
        .checked_add(len_bytes)
        .is_some_and(|end| end <= PageImage::MAX_LEN);
    let whole = match op.kind() {
        OpKind::Read | OpKind::Flush => true,
        OpKind::Write | OpKind::WriteZeroes | OpKind::Discard | OpKind::SetLen => {
            offset.is_multiple_of(SECTOR_BYTES) && len_bytes.is_multiple_of(SECTOR_BYTES)
        }
    };
    (!within || !whole).then_some(Cause::BadRequest)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use engine::device::drive;

    use super::*;
    use crate::mask::{SectorMask, Shape};
    use crate::rule::{Repeat, Rule, Tear};

    fn disk(answering: Answering) -> VolatileDisk {
        VolatileDisk::new(PageImage::zeroed(4096), Clock::default(), answering)
    }

    fn torn(fault: Fault) -> VolatileDisk {
        disk(Answering::AtOnce).with_rules(Rules::new(vec![Rule::new(fault)], vec![]))
    }

    fn write(sector: u64, fill: u8, count: usize) -> Request {
        Request {
            event: Event::WriteAio,
            op: Op::Write {
                offset: sector * 512,
                data: vec![fill; count * 512],
                fua: false,
            },
        }
    }

    fn request(op: Op) -> Request {
        Request {
            event: Event::None,
            op,
        }
    }

    fn cause(outcome: Option<Outcome>) -> Cause {
        outcome.expect("it is answered at once").unwrap_err().cause
    }

    fn bytes_at(disk: &VolatileDisk, sector: u64) -> u8 {
        disk.current().read_vec(sector * 512, 1)[0]
    }

    #[test]
    fn a_request_in_flight_shows_only_when_completed() {
        let disk = disk(Answering::OnCommand);
        let mut first = pin!(disk.submit(write(0, 1, 1)));
        let mut second = pin!(disk.submit(write(10, 2, 1)));
        let ids: Vec<RequestId> = disk.in_flight().iter().map(|pending| pending.id).collect();
        assert_eq!(ids, [RequestId(0), RequestId(1)]);
        let mut context = Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(&mut context).is_pending());
        disk.complete(RequestId(1));
        assert_eq!(second.poll(&mut context), Poll::Ready(Ok(Reply::Done)));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert_eq!((bytes_at(&disk, 0), bytes_at(&disk, 10)), (0, 2));
        assert_eq!(disk.len(), 11 * 512);
        assert_eq!(disk.in_flight_count(), 1);
    }

    #[test]
    fn both_ends_are_recorded_in_the_order_they_happened() {
        let disk = disk(Answering::OnCommand);
        let _first = disk.submit(write(0, 1, 1));
        let _second = disk.submit(write(1, 2, 1));
        disk.complete(RequestId(1));
        let recording = disk.recording();
        let [first, second] = &recording.entries[..] else {
            panic!("two requests, two entries");
        };
        assert_eq!((first.submitted, first.completed), (Tick(1), None));
        assert_eq!(
            (second.submitted, second.completed),
            (Tick(2), Some((Tick(3), Ok(()))))
        );
        assert_eq!((first.ordinal, second.ordinal), (0, 1));
        assert_eq!(recording.end(), Tick(3));
        let found = recording
            .find(Disk::Image, Event::WriteAio, OpKind::Write, 1)
            .map(|entry| entry.id);
        assert_eq!(found, Some(RequestId(1)));
    }

    #[test]
    fn without_power_nothing_completes_and_everything_fails() {
        let disk = disk(Answering::OnCommand);
        let waiting = disk.submit(write(0, 1, 1));
        disk.power_off();
        assert!(drive(waiting).is_none());
        assert_eq!(cause(drive(disk.submit(write(1, 1, 1)))), Cause::PowerOff);
        assert_eq!(cause(drive(disk.reach(Event::L2Load))), Cause::PowerOff);
        assert_eq!(bytes_at(&disk, 0), 0);
        assert_eq!(disk.recording().entries.len(), 1);
    }

    #[test]
    fn what_is_withdrawn_never_happens_and_the_disk_goes_on() {
        let disk = disk(Answering::OnCommand);
        let done = disk.submit(write(0, 1, 1));
        disk.complete(RequestId(0));
        let lost = disk.submit(write(0, 2, 1));
        disk.withdraw();
        assert!(drive(lost).is_none());
        assert_eq!(drive(done), Some(Ok(Reply::Done)));
        assert_eq!((bytes_at(&disk, 0), disk.in_flight_count()), (1, 0));
        let changes: Vec<bool> = disk
            .recording()
            .entries
            .iter()
            .map(Entry::changes_content)
            .collect();
        assert_eq!(changes, [true, false]);
        let _next = disk.submit(write(1, 3, 1));
        disk.complete(RequestId(2));
        assert_eq!(bytes_at(&disk, 1), 3);
    }

    #[test]
    fn parts_of_sectors_are_refused() {
        let disk = disk(Answering::AtOnce);
        let bad = [
            Op::Write {
                offset: 0,
                data: vec![1; 511],
                fua: false,
            },
            Op::Write {
                offset: 1,
                data: vec![1; 512],
                fua: false,
            },
            Op::Discard {
                offset: 0,
                len_bytes: 100,
            },
            Op::SetLen { len_bytes: 1000 },
            Op::WriteZeroes {
                offset: u64::MAX - 511,
                len_bytes: 512,
                unmap: false,
            },
        ];
        for op in bad {
            assert_eq!(cause(drive(disk.submit(request(op)))), Cause::BadRequest);
        }
        assert!(disk.recording().entries.is_empty());
    }

    #[test]
    fn a_read_sees_the_content_at_its_completion() {
        let disk = disk(Answering::OnCommand);
        let read = disk.submit(request(Op::Read {
            offset: 0,
            len_bytes: 512,
        }));
        let _write = disk.submit(write(0, 7, 1));
        disk.complete(RequestId(1));
        disk.complete(RequestId(0));
        assert_eq!(drive(read), Some(Ok(Reply::Data(vec![7; 512]))));
    }

    #[test]
    fn a_failed_request_fails_and_does_nothing() {
        let disk = torn(Fault::Fail(Cause::NO_SPACE));
        assert_eq!(cause(drive(disk.submit(write(0, 1, 1)))), Cause::NO_SPACE);
        assert_eq!(bytes_at(&disk, 0), 0);
        assert_eq!(disk.recording().entries[0].effect, Effect::Dropped);
        assert_eq!(disk.hits(), 1);
    }

    #[test]
    fn a_torn_extension_is_acknowledged_and_reads_zero_where_it_is_missing() {
        let disk = torn(Fault::Tear(Tear::Shape(Shape::OnlyFirst)));
        assert_eq!(drive(disk.submit(write(8, 9, 2))), Some(Ok(Reply::Done)));
        assert_eq!((bytes_at(&disk, 8), bytes_at(&disk, 9)), (9, 0));
        assert_eq!(disk.len(), 10 * 512);
        let effect = &disk.recording().entries[0].effect;
        assert_eq!(
            *effect,
            Effect::Torn(SectorMask::from_fn(2, |sector| sector == 0))
        );
    }

    #[test]
    fn a_zero_range_longer_than_memory_costs_what_is_stored() {
        let disk = disk(Answering::AtOnce);
        drive(disk.submit(write(3, 5, 1)));
        let zeroes = request(Op::WriteZeroes {
            offset: 512,
            len_bytes: 1 << 50,
            unmap: false,
        });
        assert_eq!(drive(disk.submit(zeroes)), Some(Ok(Reply::Done)));
        assert_eq!(bytes_at(&disk, 3), 0);
        assert_eq!(disk.len(), 512 + (1 << 50));
    }

    #[test]
    fn a_discard_never_grows_the_device() {
        let disk = disk(Answering::AtOnce);
        drive(disk.submit(write(1, 5, 1)));
        drive(disk.submit(request(Op::Discard {
            offset: 0,
            len_bytes: 1 << 20,
        })));
        assert_eq!(bytes_at(&disk, 1), 0);
        assert_eq!(disk.len(), 4096);
    }

    fn read(sector: u64, count: usize) -> Request {
        request(Op::Read {
            offset: sector * 512,
            len_bytes: count * 512,
        })
    }

    fn answer(disk: &VolatileDisk, request: Request) -> Reply {
        drive(disk.submit(request))
            .expect("at once")
            .expect("it succeeds")
    }

    #[test]
    fn what_is_reported_as_failed_may_have_happened() {
        let disk = torn(Fault::Persist(Cause::IO, None));
        assert_eq!(cause(drive(disk.submit(write(0, 1, 1)))), Cause::IO);
        assert_eq!(bytes_at(&disk, 0), 1);
        let first = Tear::Shape(Shape::OnlyFirst);
        let disk = torn(Fault::Persist(Cause::IO, Some(first)));
        assert_eq!(cause(drive(disk.submit(write(0, 1, 2)))), Cause::IO);
        assert_eq!((bytes_at(&disk, 0), bytes_at(&disk, 1)), (1, 0));
        assert!(disk.recording().entries[0].changes_content());
    }

    #[test]
    fn a_flush_that_forgets_takes_what_was_volatile_and_nothing_else() {
        let rule = Rule {
            skip: 1,
            ..Rule::new(Fault::Forget(Cause::IO))
        };
        let disk = disk(Answering::AtOnce).with_rules(Rules::new(vec![rule], vec![]));
        answer(&disk, write(0, 1, 1));
        answer(&disk, request(Op::Flush));
        answer(&disk, write(0, 2, 1));
        answer(&disk, write(9, 2, 1));
        let forced = Op::Write {
            offset: 512,
            data: vec![3; 512],
            fua: true,
        };
        answer(&disk, request(forced));
        assert_eq!(cause(drive(disk.submit(request(Op::Flush)))), Cause::IO);
        assert_eq!((bytes_at(&disk, 0), bytes_at(&disk, 1)), (1, 3));
        assert_eq!(disk.len(), 4096, "an extension is volatile as well");
        let changes = disk
            .recording()
            .entries
            .iter()
            .filter(|one| one.changes_content())
            .count();
        assert_eq!(changes, 2);
        answer(&disk, write(0, 4, 1));
        assert_eq!(bytes_at(&disk, 0), 4);
    }

    /// The one that succeeds says that what it covers is durable, and says so only afterwards.
    #[test]
    fn a_flush_that_forgets_keeps_what_another_under_way_covers() {
        let rule = Rule {
            skip: 1,
            ..Rule::new(Fault::Forget(Cause::IO))
        };
        let disk = disk(Answering::OnCommand).with_rules(Rules::new(vec![rule], vec![]));
        let ask = |request| {
            drop(disk.submit(request));
            disk.in_flight().last().expect("it is in flight").id
        };
        disk.complete(ask(write(0, 1, 1)));
        let covers = ask(request(Op::Flush));
        disk.complete(ask(write(1, 1, 1)));
        let forgets = ask(request(Op::Flush));
        disk.complete(forgets);
        assert_eq!((bytes_at(&disk, 0), bytes_at(&disk, 1)), (1, 0));
        disk.complete(covers);
        assert_eq!((bytes_at(&disk, 0), bytes_at(&disk, 1)), (1, 0));
    }

    #[test]
    fn a_flush_that_forgets_some_keeps_the_rest_for_the_next() {
        let chance = Chance { one_in: 2, seed: 7 };
        let rule = Rule::new(Fault::ForgetSome(Cause::IO, chance));
        let disk = disk(Answering::AtOnce).with_rules(Rules::new(vec![rule], vec![]));
        for sector in 0..8 {
            answer(&disk, write(sector, 1, 1));
        }
        assert_eq!(cause(drive(disk.submit(request(Op::Flush)))), Cause::IO);
        let kept: Vec<u64> = (0..8).filter(|at| bytes_at(&disk, *at) == 1).collect();
        assert!((1..8).contains(&kept.len()), "{kept:?}");
        let recording = disk.recording();
        let entries = recording.entries.iter().take(8);
        let whole = entries.filter(|one| one.effect == Effect::Whole);
        let whole: Vec<u64> = whole.map(|one| one.op.sectors().start).collect();
        assert_eq!(whole, kept);
    }

    #[test]
    fn damage_to_what_is_read_leaves_the_medium_as_it_is() {
        for (fault, expected) in [
            (Fault::Flip(8), [7, 6]),
            (Fault::Misdirect(1), [9, 9]),
            (Fault::Shorten(0), [0, 0]),
        ] {
            let rule = Rule {
                kind: Some(OpKind::Read),
                ..Rule::new(fault)
            };
            let disk = disk(Answering::AtOnce).with_rules(Rules::new(vec![rule], vec![]));
            answer(&disk, write(0, 7, 1));
            answer(&disk, write(1, 9, 1));
            let Reply::Data(data) = answer(&disk, read(0, 1)) else {
                panic!("a read yields data");
            };
            assert_eq!(data[..2], expected);
            assert_eq!(answer(&disk, read(0, 1)), Reply::Data(vec![7; 512]));
            assert_eq!(disk.injected()[0].range, (0, 512));
        }
    }

    #[test]
    fn a_misdirected_write_is_lost_here_and_found_there() {
        let disk = torn(Fault::Misdirect(2));
        answer(&disk, write(1, 5, 1));
        assert_eq!((bytes_at(&disk, 1), bytes_at(&disk, 3)), (0, 5));
        assert_eq!(disk.recording().entries[0].op.sectors(), 3..4);
        assert_eq!(disk.injected()[0].range, (512, 512));
    }

    #[test]
    fn a_duplicate_comes_late_and_overwrites_what_was_newer() {
        let disk = torn(Fault::Duplicate(2));
        answer(&disk, write(0, 1, 1));
        answer(&disk, write(0, 2, 1));
        assert_eq!(bytes_at(&disk, 0), 2);
        answer(&disk, write(1, 3, 1));
        assert_eq!(bytes_at(&disk, 0), 1);
        let ordinals: Vec<u64> = disk
            .recording()
            .entries
            .iter()
            .map(|one| one.ordinal)
            .collect();
        assert_eq!(ordinals, [0, 1, 2, 3]);
        let recording = disk.recording();
        let repeats: Vec<_> = recording.entries.iter().map(|one| one.repeats).collect();
        assert_eq!(repeats, [None, None, None, Some(RequestId(0))]);
        // Where several disks' requests are told as one, it is the same one's.
        let mut parts = Disks::one(recording.clone());
        parts.put(Disk::Data, recording);
        let joined = Recording::join(&parts);
        for entry in &joined.entries {
            let repeated = entry.repeats.and_then(|id| joined.entry(id));
            let place = |it: &Entry| (it.disk, it.op.sectors());
            assert_eq!(entry.repeats.is_some(), entry.ordinal == 3);
            assert!(repeated.is_none_or(|it| place(it) == place(entry)));
        }
    }

    #[test]
    fn what_comes_after_a_duplicate_has_another_name() {
        let disk = torn(Fault::Duplicate(0));
        answer(&disk, write(0, 1, 1));
        answer(&disk, write(1, 2, 1));
        let entries = disk.recording().entries;
        let ordinals: Vec<u64> = entries.iter().map(|entry| entry.ordinal).collect();
        assert_eq!(ordinals, [0, 1, 2]);
        assert_eq!(entries[1].repeats, Some(RequestId(0)));
    }

    #[test]
    fn the_power_goes_out_before_during_or_after_a_request() {
        for (when, recorded, held) in [
            (When::Before, 0, 0),
            (When::During, 1, 0),
            (When::After, 1, 1),
        ] {
            let fault = Fault::PowerCut(when);
            let at_once = torn(fault.clone());
            let outcome = drive(at_once.submit(write(0, 1, 1)));
            assert_eq!(cause(outcome), Cause::PowerOff);
            let disk =
                disk(Answering::OnCommand).with_rules(Rules::new(vec![Rule::new(fault)], vec![]));
            let waiting = disk.submit(write(0, 1, 1));
            if when == When::After {
                assert!(disk.is_powered());
                disk.complete(RequestId(0));
            }
            assert!(drive(waiting).is_none(), "nobody is told");
            for disk in [at_once, disk] {
                assert!(!disk.is_powered());
                assert_eq!(disk.recording().entries.len(), recorded);
                assert_eq!(bytes_at(&disk, 0), held);
            }
        }
    }

    #[test]
    fn faults_are_told_with_the_operation_that_they_hit() {
        let rule = Rule {
            repeat: Repeat::Always,
            ..Rule::new(Fault::Fail(Cause::IO))
        };
        let disk = disk(Answering::AtOnce).with_rules(Rules::new(vec![rule], vec![]));
        let _ = drive(disk.submit(write(0, 1, 1)));
        disk.on_behalf_of(Some(4));
        let _ = drive(disk.submit(request(Op::Flush)));
        let told: Vec<_> = disk
            .injected()
            .iter()
            .map(|one| (one.kind, one.operation))
            .collect();
        assert_eq!(told, [(OpKind::Write, None), (OpKind::Flush, Some(4))]);
    }
}
