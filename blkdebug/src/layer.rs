//! What QEMU's block layer does before a driver sees a request: requests of any byte become such as keep
//! the driver's limits.
//!
//! - A write that does not start and end where the driver's requests do reads what stands at its edges, and
//!   writes all of it back; nothing else touches that range meanwhile (read-modify-write).
//! - What is longer than a request may be is cut.
//! - Zeroes that the driver does not write by themselves are written as bytes.
//! - A flush reaches the driver only when something changed since the last one that succeeded.
//!
//! The driver meets the events of this: `pwritev`, `pwritev_zero`, `pwritev_done` and `pwritev_rmw_*`.

use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use engine::device::{
    Cause, Completion, Device, DeviceError, Event, Extent, Limits, Op, OpKind, Outcome, Reply,
    Request,
};
use engine::sync::{Mode, RangeLock};

use crate::config::BlockLimits;

/// No limit of requests reaches this many bytes.
pub(crate) const MAX_BYTES: u64 = (1 << 31) - 1;
/// Zeroes are written as bytes in pieces of at most this length.
const MAX_BOUNCE_BYTES: u64 = 16 << 20;
const NOT_SUPPORTED: Cause = Cause::Os(95);

/// What carries out requests that keep its limits, on a device below it.
pub trait Driver: 'static {
    /// The device below: what is not said otherwise is its business.
    fn below(&self) -> &Rc<dyn Device>;

    /// The limits that every request keeps.
    fn limits(&self) -> BlockLimits;

    /// Whether a write can be durable when it ends; otherwise a flush follows it.
    fn writes_through(&self) -> bool;

    /// Is told of an event, and may park the caller there.
    fn meet(&self, event: Event) -> impl Future<Output = ()>;

    /// Carries out a request. `EOPNOTSUPP` says of zeroes that bytes must be written, and of a discard that
    /// there is none.
    fn carry_out(&self, request: Request) -> impl Future<Output = Outcome>;

    /// Carries out a flush when nothing changed since the last one.
    fn flush_unchanged(&self, event: Event) -> impl Future<Output = Outcome> {
        let op = Op::Flush;
        self.below().submit(Request { event, op })
    }

    /// Announces an event where no request is due.
    fn reach(&self, event: Event) -> impl Future<Output = Outcome> {
        self.below().reach(event)
    }

    /// The length in bytes.
    fn len_bytes(&self) -> u64 {
        self.below().len()
    }

    /// What stands at `offset`.
    fn extent(&self, offset: u64) -> Extent {
        self.below().extent(offset)
    }

    /// What requests to the driver's own device must look like.
    fn device_limits(&self) -> Limits {
        self.below().limits()
    }
}

/// A driver behind the block layer.
#[derive(Debug)]
pub struct Layer<D>(Rc<Core<D>>);

#[derive(Debug)]
struct Core<D> {
    driver: D,
    /// How often something changed, and how often when the last flush that succeeded began.
    changes: Cell<u64>,
    flushed: Cell<u64>,
    ranges: RangeLock,
}

impl<D> Clone for Layer<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// What stands at the edges of a request, up to where requests may start and end.
struct Edges {
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zeroes {
    /// The space may be given back.
    unmap: bool,
    /// They are durable when the request ends.
    through: bool,
}

/// A request and the units of the driver that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Padding {
    unit: u64,
    start: u64,
    end: u64,
    outer_start: u64,
    outer_end: u64,
}

impl<D: Driver> Layer<D> {
    /// The block layer before `driver`.
    pub fn before(driver: D) -> Self {
        Self(Rc::new(Core {
            driver,
            changes: Cell::default(),
            flushed: Cell::default(),
            ranges: RangeLock::default(),
        }))
    }

    /// What it stands before.
    pub fn driver(&self) -> &D {
        &self.0.driver
    }

    /// Makes a range read as zeroes, on nobody's behalf. With `through` it is durable when this ends.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: bool,
        through: bool,
    ) -> Outcome {
        let (core, event) = (&self.0, Event::None);
        let unit = core.driver.limits().request_unit();
        let padding = Padding::new(unit, offset, len_bytes);
        let how = Zeroes { unmap, through };
        core.write_zeroes(event, padding, how).await
    }
}

impl<D: Driver> Device for Layer<D> {
    fn submit(&self, request: Request) -> Completion {
        Completion::of(Rc::clone(&self.0).perform(request))
    }

    fn reach(&self, event: Event) -> Completion {
        let core = Rc::clone(&self.0);
        Completion::of(async move {
            core.driver.meet(event).await;
            core.driver.reach(event).await
        })
    }

    fn len(&self) -> u64 {
        self.0.driver.len_bytes()
    }

    fn extent(&self, offset: u64) -> Extent {
        self.0.driver.extent(offset)
    }

    fn limits(&self) -> Limits {
        self.0.driver.device_limits()
    }
}

impl<D: Driver> Core<D> {
    async fn perform(self: Rc<Self>, request: Request) -> Outcome {
        let Request { event, op } = request;
        self.driver.meet(event).await;
        let (offset, len_bytes) = op.range();
        if offset
            .checked_add(len_bytes)
            .is_none_or(|end| i64::try_from(end).is_err())
        {
            return Err(DeviceError::new(event, &op, Cause::BadRequest));
        }
        let padding = Padding::new(self.driver.limits().request_unit(), offset, len_bytes);
        if len_bytes == 0 && padding.has_edges() && op.kind() != OpKind::SetLen {
            // Nothing, between two places where a request may start. A length may stand there, and is one.
            return Ok(match op {
                Op::Read { .. } => Reply::Data(Vec::new()),
                Op::Write { .. }
                | Op::WriteZeroes { .. }
                | Op::Discard { .. }
                | Op::Flush
                | Op::SetLen { .. } => Reply::Done,
            });
        }
        match op {
            Op::Read { .. } => self.read(event, padding).await.map(Reply::Data),
            Op::Write { data, fua, .. } => self.write(event, padding, data, fua).await,
            Op::WriteZeroes { unmap, .. } => {
                let through = false;
                let how = Zeroes { unmap, through };
                self.write_zeroes(event, padding, how).await
            }
            Op::Discard { .. } => {
                let discarded = self.discard(event, padding.start, padding.end).await;
                self.changed();
                discarded
            }
            Op::Flush => self.flush(event).await,
            Op::SetLen { .. } => {
                let set = self.driver.carry_out(Request { event, op }).await;
                self.changed();
                set
            }
        }
    }

    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }

    async fn ask(&self, event: Event, op: Op) -> Outcome {
        self.driver.carry_out(Request { event, op }).await
    }

    /// Meets an event of the block layer's own, unless the request came for it.
    async fn meet_own(&self, cause: Event, own: Event) {
        if cause != own {
            self.driver.meet(own).await;
        }
    }

    /// The longest read or write.
    fn max_transfer(&self) -> u64 {
        let limits = self.driver.limits();
        let max = match limits.max_transfer {
            0 => MAX_BYTES,
            max => max,
        };
        max - max % limits.request_unit()
    }

    async fn read(&self, event: Event, padding: Padding) -> Result<Vec<u8>, DeviceError> {
        let _guard = self.ranges.lock(padding.inner(), Mode::Shared).await;
        let mut data = self.read_whole(event, padding.outer()).await?;
        data.truncate(to_usize(padding.end - padding.outer_start));
        data.drain(..to_usize(padding.start - padding.outer_start));
        Ok(data)
    }

    /// Reads a range that starts and ends where requests may. Behind the end there are zeroes, for which
    /// nobody is asked.
    async fn read_whole(&self, event: Event, range: Range<u64>) -> Result<Vec<u8>, DeviceError> {
        let unit = self.driver.limits().request_unit();
        let there = self.driver.len_bytes().saturating_sub(range.start);
        let end = range.end.min(range.start + there.next_multiple_of(unit));
        let mut data = Vec::with_capacity(to_usize(range.end - range.start));
        let mut here = range.start;
        while here < end || range.is_empty() {
            let len_bytes = to_usize((end - here).min(self.max_transfer()));
            let op = Op::Read {
                offset: here,
                len_bytes,
            };
            match self.ask(event, op).await? {
                Reply::Data(piece) => data.extend_from_slice(&piece),
                Reply::Done => unreachable!("a read is answered with data"),
            }
            here += to_u64(len_bytes);
            if range.is_empty() {
                break;
            }
        }
        data.resize(to_usize(range.end - range.start), 0);
        Ok(data)
    }

    async fn write(&self, event: Event, padding: Padding, data: Vec<u8>, fua: bool) -> Outcome {
        if !padding.has_edges() {
            let _guard = self.ranges.lock(padding.inner(), Mode::Shared).await;
            return self.write_whole(event, padding.start, data, fua).await;
        }
        let _guard = self.ranges.lock(padding.outer(), Mode::Exclusive).await;
        let edges = self.read_edges(event, padding).await?;
        let whole = [edges.head, data, edges.tail].concat();
        self.write_whole(event, padding.outer_start, whole, fua)
            .await
    }

    /// Reads what stands before and behind a request in the units that it lies in: one read where these
    /// are neighbours.
    async fn read_edges(&self, event: Event, padding: Padding) -> Result<Edges, DeviceError> {
        let Padding { unit, .. } = padding;
        let (has_head, has_tail) = (padding.head() > 0, padding.tail() > 0);
        let outer = padding.outer();
        let mut edges = Edges {
            head: Vec::new(),
            tail: Vec::new(),
        };
        if has_head || padding.is_merged() {
            if has_head {
                self.driver.meet(Event::PwritevRmwHead).await;
            }
            if padding.is_merged() && has_tail {
                self.driver.meet(Event::PwritevRmwTail).await;
            }
            let range = if padding.is_merged() {
                outer.clone()
            } else {
                outer.start..outer.start + unit
            };
            let mut block = self.read_whole(event, range).await?;
            if has_head {
                self.driver.meet(Event::PwritevRmwAfterHead).await;
            }
            if padding.is_merged() && has_tail {
                self.driver.meet(Event::PwritevRmwAfterTail).await;
                edges.tail = block.split_off(to_usize(padding.end - outer.start));
            }
            block.truncate(to_usize(padding.head()));
            edges.head = block;
        }
        if has_tail && !padding.is_merged() {
            self.driver.meet(Event::PwritevRmwTail).await;
            let last = outer.end - unit;
            let mut block = self.read_whole(event, last..outer.end).await?;
            self.driver.meet(Event::PwritevRmwAfterTail).await;
            edges.tail = block.split_off(to_usize(padding.end - last));
        }
        Ok(edges)
    }

    /// Writes bytes that start and end where requests may.
    async fn write_whole(&self, event: Event, start: u64, data: Vec<u8>, fua: bool) -> Outcome {
        self.meet_own(event, Event::Pwritev).await;
        let written = self.write_pieces(event, start, data, fua).await;
        self.driver.meet(Event::PwritevDone).await;
        self.changed();
        written
    }

    async fn write_pieces(&self, event: Event, start: u64, data: Vec<u8>, fua: bool) -> Outcome {
        let through = fua && self.driver.writes_through();
        let (mut here, mut rest) = (start, data);
        loop {
            let most = usize::try_from(self.max_transfer()).unwrap_or(usize::MAX);
            let next = rest.split_off(rest.len().min(most));
            let len_bytes = to_u64(rest.len());
            let op = Op::Write {
                offset: here,
                data: rest,
                fua: through,
            };
            self.ask(event, op).await?;
            if next.is_empty() {
                break;
            }
            here += len_bytes;
            rest = next;
        }
        if fua && !through {
            self.flush(event).await?;
        }
        Ok(Reply::Done)
    }

    async fn write_zeroes(&self, event: Event, padding: Padding, how: Zeroes) -> Outcome {
        if !padding.has_edges() {
            let inner = padding.inner();
            let _guard = self.ranges.lock(inner.clone(), Mode::Shared).await;
            return self.zero_whole(event, inner, how).await;
        }
        let Padding { unit, .. } = padding;
        let _guard = self.ranges.lock(padding.outer(), Mode::Exclusive).await;
        let edges = self.read_edges(event, padding).await?;
        let mut here = padding.outer_start;
        if padding.is_merged() {
            let zeroes = vec![0; to_usize(padding.end - padding.start)];
            let whole = [edges.head, zeroes, edges.tail].concat();
            return self.write_whole(event, here, whole, how.through).await;
        }
        if padding.head() > 0 {
            let mut block = edges.head;
            block.resize(to_usize(unit), 0);
            self.write_whole(event, here, block, how.through).await?;
            here += unit;
        }
        let middle = here..padding.end - padding.end % unit;
        self.zero_whole(event, middle.clone(), how).await?;
        if padding.tail() > 0 {
            let mut block = vec![0; to_usize(unit) - edges.tail.len()];
            block.extend_from_slice(&edges.tail);
            self.write_whole(event, middle.end, block, how.through)
                .await?;
        }
        Ok(Reply::Done)
    }

    /// Zeroes a range that starts and ends where requests may.
    async fn zero_whole(&self, event: Event, range: Range<u64>, how: Zeroes) -> Outcome {
        if range.is_empty() {
            return Ok(Reply::Done);
        }
        self.meet_own(event, Event::PwritevZero).await;
        let zeroed = self.zero_pieces(event, range, how).await;
        self.driver.meet(Event::PwritevDone).await;
        self.changed();
        zeroed
    }

    async fn zero_pieces(&self, event: Event, range: Range<u64>, how: Zeroes) -> Outcome {
        let limits = self.driver.limits();
        let unit = limits.zero_unit();
        let bounce = match limits.max_transfer {
            0 => MAX_BOUNCE_BYTES,
            max => max.min(MAX_BOUNCE_BYTES),
        };
        let most = limits.max_write_zero - limits.max_write_zero % unit;
        let (mut here, mut must_flush) = (range.start, false);
        while here < range.end {
            let (head, tail, rest) = (here % unit, range.end % unit, range.end - here);
            let mut len_bytes = if head > 0 {
                rest.min(bounce).min(unit - head)
            } else if rest > unit {
                rest - tail
            } else {
                rest
            };
            if most > 0 {
                len_bytes = len_bytes.min(most);
            }
            let op = Op::WriteZeroes {
                offset: here,
                len_bytes,
                unmap: how.unmap,
            };
            let zeroed = self.ask(event, op).await;
            if is(&zeroed, NOT_SUPPORTED) {
                len_bytes = len_bytes.min(bounce);
                let op = Op::Write {
                    offset: here,
                    data: vec![0; to_usize(len_bytes)],
                    fua: how.through && self.driver.writes_through(),
                };
                self.ask(event, op).await?;
                must_flush |= !self.driver.writes_through();
            } else {
                zeroed?;
                must_flush = true;
            }
            here += len_bytes;
        }
        if how.through && must_flush {
            self.flush(event).await?;
        }
        Ok(Reply::Done)
    }

    /// Discards what the driver can; it is advice, and what does not fit is left alone.
    async fn discard(&self, event: Event, start: u64, end: u64) -> Outcome {
        let limits = self.driver.limits();
        let (unit, fine) = (limits.discard_unit(), limits.request_unit());
        let most = limits.max_discard - limits.max_discard % unit;
        let mut here = start;
        while here < end {
            let (head, tail, rest) = (here % unit, end % unit, end - here);
            let mut len_bytes = rest;
            if head > 0 {
                len_bytes = rest.min(unit - head);
                if !len_bytes.is_multiple_of(fine) {
                    len_bytes %= fine;
                }
            } else if tail > 0 && rest > unit {
                len_bytes -= tail;
            } else if tail > fine && !tail.is_multiple_of(fine) {
                len_bytes -= tail % fine;
            }
            if most > 0 {
                len_bytes = len_bytes.min(most);
            }
            let op = Op::Discard {
                offset: here,
                len_bytes,
            };
            let discarded = self.ask(event, op).await;
            if !is(&discarded, NOT_SUPPORTED) {
                discarded?;
            }
            here += len_bytes;
        }
        Ok(Reply::Done)
    }

    async fn flush(&self, event: Event) -> Outcome {
        let now = self.changes.get();
        if self.flushed.get() == now {
            return self.driver.flush_unchanged(event).await;
        }
        self.ask(event, Op::Flush).await?;
        self.flushed.set(now);
        Ok(Reply::Done)
    }
}

impl Padding {
    fn new(unit: u64, offset: u64, len_bytes: u64) -> Self {
        let end = offset + len_bytes;
        Self {
            unit,
            start: offset,
            end,
            outer_start: offset - offset % unit,
            outer_end: end.next_multiple_of(unit),
        }
    }

    fn head(self) -> u64 {
        self.start - self.outer_start
    }

    fn tail(self) -> u64 {
        self.outer_end - self.end
    }

    fn has_edges(self) -> bool {
        self.head() > 0 || self.tail() > 0
    }

    /// Whether the edges are all there is: one unit, or two with an edge in each.
    fn is_merged(self) -> bool {
        let units = (self.outer_end - self.outer_start) / self.unit;
        units == 1 || units == 2 && self.head() > 0 && self.tail() > 0
    }

    fn inner(self) -> Range<u64> {
        self.start..self.end
    }

    fn outer(self) -> Range<u64> {
        self.outer_start..self.outer_end
    }
}

fn is(outcome: &Outcome, cause: Cause) -> bool {
    outcome.as_ref().is_err_and(|error| error.cause == cause)
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a request fits the memory")
}
