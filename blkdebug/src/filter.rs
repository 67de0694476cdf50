//! blkdebug: a device before another one that fails and parks requests at named events.
//!
//! The rules are QEMU's, and unlike those of [`crate::rule`] an event *arms* them: an injection whose
//! event was met stays armed, and whatever request comes next and fits meets it, until a later event
//! arms others. The event `none` is met once, when the device is opened. A breakpoint parks the caller
//! that meets its event, once, until somebody resumes it.
//!
//! The block layer ([`crate::layer`]) stands before it: requests keep the limits that blkdebug pretends to
//! have, and raise the events that QEMU's block layer raises.

mod book;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use engine::device::{Cause, Device, DeviceError, Event, Op, Outcome, Request};

use self::book::Book;
use crate::config::{BlockLimits, Config, IoType};
use crate::layer::{Driver, Layer};

/// What a breakpoint has to tell. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request waits now.
    Suspended(String),
    /// A request goes on.
    Resuming(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended(tag) => write!(f, "blkdebug: Suspended request '{tag}'"),
            Self::Resuming(tag) => write!(f, "blkdebug: Resuming request '{tag}'"),
        }
    }
}

/// The device.
pub type Filter = Layer<Blkdebug>;

/// What fails and parks requests that keep its limits.
pub struct Blkdebug {
    below: Rc<dyn Device>,
    limits: BlockLimits,
    book: RefCell<Book>,
    tell: Box<dyn Fn(&Notice)>,
}

impl fmt::Debug for Blkdebug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blkdebug")
            .field("limits", &self.limits)
            .field("book", &self.book)
            .finish_non_exhaustive()
    }
}

impl Layer<Blkdebug> {
    /// A device before `below`; `tell` hears of breakpoints as they are met.
    ///
    /// # Panics
    /// Where the limits contradict each other ([`BlockLimits::check`]).
    pub fn new(
        below: Rc<dyn Device>,
        config: Config,
        limits: BlockLimits,
        tell: impl Fn(&Notice) + 'static,
    ) -> Self {
        assert_eq!(
            limits.check(),
            Ok(()),
            "the limits are those of some device"
        );
        Self::before(Blkdebug {
            below,
            limits,
            book: RefCell::new(Book::new(config)),
            tell: Box::new(tell),
        })
    }

    /// The limits that it pretends to have.
    pub fn block_limits(&self) -> BlockLimits {
        self.driver().limits
    }

    /// Parks the next caller that meets `event`.
    pub fn set_breakpoint(&self, event: Event, tag: &str) {
        self.driver().book.borrow_mut().set_breakpoint(event, tag);
    }

    /// Removes the breakpoints of that tag and resumes whoever waits under it. Tells whether there was
    /// a breakpoint.
    pub fn remove_breakpoints(&self, tag: &str) -> bool {
        let removed = self.driver().book.borrow_mut().remove_breakpoints(tag);
        while self.resume(tag) {}
        removed
    }

    /// Whether somebody waits under that tag.
    pub fn is_parked(&self, tag: &str) -> bool {
        self.driver().book.borrow().is_parked(tag)
    }

    /// Lets go on who waits under that tag, the last that was parked first. Tells whether anybody did.
    pub fn resume(&self, tag: &str) -> bool {
        let unparked = self.driver().book.borrow_mut().unpark(tag);
        let Some(go_on) = unparked else {
            return false;
        };
        (self.driver().tell)(&Notice::Resuming(tag.to_owned()));
        go_on.complete(Ok(engine::device::Reply::Done));
        true
    }

    /// Asks, as every question about what a stretch is made of does, whether the rules let it be answered.
    /// A question about no byte is none.
    pub fn ask_status(&self, offset: u64, len_bytes: u64) -> Result<(), Cause> {
        if len_bytes == 0 {
            return Ok(());
        }
        let unit = self.driver().limits.request_unit();
        let start = offset - offset % unit;
        let end = offset.saturating_add(len_bytes);
        let end = end.checked_next_multiple_of(unit).unwrap_or(end);
        let fault = self
            .driver()
            .book
            .borrow_mut()
            .fault(IoType::BlockStatus, start, end - start);
        fault.map_or(Ok(()), |errno| Err(Cause::Os(errno)))
    }
}

impl Driver for Blkdebug {
    fn below(&self) -> &Rc<dyn Device> {
        &self.below
    }

    fn limits(&self) -> BlockLimits {
        self.limits
    }

    fn writes_through(&self) -> bool {
        true
    }

    /// Meets an event on the way, and waits where a breakpoint says so.
    async fn meet(&self, event: Event) {
        if event == Event::None {
            return;
        }
        let parked = self.book.borrow_mut().meet(event);
        for (tag, _) in &parked {
            (self.tell)(&Notice::Suspended(tag.clone()));
        }
        for (_, wait) in parked {
            wait.await.expect("whoever resumes a request says done");
        }
    }

    async fn carry_out(&self, request: Request) -> Outcome {
        let Request { event, op } = &request;
        let (offset, len_bytes) = op.range();
        let least = match op {
            Op::WriteZeroes { .. } => self.limits.zero_unit(),
            Op::Discard { .. } => self.limits.request_unit(),
            Op::Read { .. } | Op::Write { .. } | Op::Flush | Op::SetLen { .. } => 0,
        };
        if len_bytes < least {
            // Too little for a device of these limits.
            return Err(DeviceError::new(*event, op, Cause::Os(NOT_SUPPORTED)));
        }
        let fault = IoType::of(op.kind())
            .and_then(|kind| self.book.borrow_mut().fault(kind, offset, len_bytes));
        match fault {
            Some(errno) => Err(DeviceError::new(*event, op, Cause::Os(errno))),
            None => self.below.submit(request).await,
        }
    }
}

const NOT_SUPPORTED: i32 = 95;

#[cfg(test)]
mod tests;
