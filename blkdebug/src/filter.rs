//! blkdebug: a device before another one that fails and parks requests at named events.
//!
//! The rules are QEMU's, and unlike those of [`crate::rule`] an event *arms* them: an injection whose
//! event was met stays armed, and whatever request comes next and fits meets it, until a later event
//! arms others. The event `none` is met once, when the device is opened. A breakpoint parks the caller
//! that meets its event, once, until somebody resumes it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use engine::device::{
    Cause, Completer, Completion, Device, DeviceError, Event, Extent, Limits, Op, OpKind, Outcome,
    Reply, Request, SECTOR_BYTES,
};

use crate::config::{Config, Injection};
use crate::rule::{Repeat, State, Transition};

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
#[derive(Clone, Debug)]
pub struct Filter {
    core: Rc<Core>,
}

struct Core {
    below: Rc<dyn Device>,
    book: RefCell<Book>,
    tell: Box<dyn Fn(&Notice)>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("book", &self.book)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Book {
    injections: Vec<Injection>,
    /// Which of them are armed, by index, in their order.
    armed: Vec<usize>,
    transitions: Vec<Transition>,
    breakpoints: Vec<Breakpoint>,
    /// Who waits, in the order of parking.
    parked: Vec<Parked>,
    state: State,
}

#[derive(Debug)]
struct Breakpoint {
    event: Event,
    tag: String,
}

#[derive(Debug)]
struct Parked {
    tag: String,
    completer: Completer,
}

impl Filter {
    /// A device before `below`; `tell` hears of breakpoints as they are met.
    pub fn new(below: Rc<dyn Device>, config: Config, tell: impl Fn(&Notice) + 'static) -> Self {
        let core = Core {
            below,
            book: RefCell::new(Book {
                injections: config.injections,
                transitions: config.transitions,
                ..Book::default()
            }),
            tell: Box::new(tell),
        };
        core.book.borrow_mut().arm(Event::None);
        Self {
            core: Rc::new(core),
        }
    }

    /// Parks the next caller that meets `event`.
    pub fn set_breakpoint(&self, event: Event, tag: &str) {
        self.core.book.borrow_mut().breakpoints.push(Breakpoint {
            event,
            tag: tag.to_owned(),
        });
    }

    /// Removes the breakpoints of that tag and resumes whoever waits under it. Tells whether there was
    /// a breakpoint.
    pub fn remove_breakpoints(&self, tag: &str) -> bool {
        let mut book = self.core.book.borrow_mut();
        let before = book.breakpoints.len();
        book.breakpoints.retain(|breakpoint| breakpoint.tag != tag);
        let removed = book.breakpoints.len() < before;
        drop(book);
        while self.resume(tag) {}
        removed
    }

    /// Whether somebody waits under that tag.
    pub fn is_parked(&self, tag: &str) -> bool {
        let book = self.core.book.borrow();
        book.parked.iter().any(|parked| parked.tag == tag)
    }

    /// Lets go on who waits under that tag, the last that was parked first. Tells whether anybody did.
    pub fn resume(&self, tag: &str) -> bool {
        let mut book = self.core.book.borrow_mut();
        let Some(at) = book.parked.iter().rposition(|parked| parked.tag == tag) else {
            return false;
        };
        let parked = book.parked.remove(at);
        drop(book);
        (self.core.tell)(&Notice::Resuming(parked.tag));
        parked.completer.complete(Ok(Reply::Done));
        true
    }
}

impl Device for Filter {
    fn submit(&self, request: Request) -> Completion {
        Completion::of(Rc::clone(&self.core).perform(request))
    }

    fn reach(&self, event: Event) -> Completion {
        let core = Rc::clone(&self.core);
        Completion::of(async move {
            core.pass(event).await;
            core.below.reach(event).await
        })
    }

    fn len(&self) -> u64 {
        self.core.below.len()
    }

    fn extent(&self, offset: u64) -> Extent {
        self.core.below.extent(offset)
    }

    fn limits(&self) -> Limits {
        self.core.below.limits()
    }
}

impl Core {
    async fn perform(self: Rc<Self>, request: Request) -> Outcome {
        let kind = request.op.kind();
        self.pass(request.event).await;
        // Beside the events of the format there are those of the request itself.
        let own = match kind {
            OpKind::Write => Some(Event::Pwritev),
            OpKind::WriteZeroes => Some(Event::PwritevZero),
            OpKind::Read | OpKind::Discard | OpKind::Flush | OpKind::SetLen => None,
        };
        if let Some(own) = own
            && own != request.event
        {
            self.pass(own).await;
        }
        if let Some(errno) = self.book.borrow_mut().fault(&request.op) {
            let cause = Cause::Os(errno);
            return Err(DeviceError::new(request.event, &request.op, cause));
        }
        let outcome = self.below.submit(request).await;
        if own.is_some() {
            self.pass(Event::PwritevDone).await;
        }
        outcome
    }

    /// Meets an event on the way, and waits where a breakpoint says so.
    async fn pass(&self, event: Event) {
        if event == Event::None {
            return;
        }
        for wait in self.meet(event) {
            wait.await.expect("whoever resumes a request says done");
        }
    }

    fn meet(&self, event: Event) -> Vec<Completion> {
        let mut book = self.book.borrow_mut();
        book.arm(event);
        let parked = book.park(event);
        drop(book);
        let wait = |(tag, completion)| {
            (self.tell)(&Notice::Suspended(tag));
            completion
        };
        parked.into_iter().map(wait).collect()
    }
}

impl Book {
    /// Arms what `event` arms, and then moves the state by what it was before.
    fn arm(&mut self, event: Event) {
        let state = self.state;
        let met = |at: Event, from: Option<State>| {
            at == event && from.is_none_or(|wanted| wanted == state)
        };
        let armed: Vec<usize> = (0..self.injections.len())
            .filter(|index| met(self.injections[*index].event, self.injections[*index].state))
            .collect();
        if !armed.is_empty() {
            self.armed = armed;
        }
        for transition in &self.transitions {
            if met(transition.event, transition.from) {
                self.state = transition.to;
            }
        }
    }

    /// Spends the breakpoints of `event`, the last that was set first.
    fn park(&mut self, event: Event) -> Vec<(String, Completion)> {
        let mut waits = Vec::new();
        while let Some(at) = self
            .breakpoints
            .iter()
            .rposition(|breakpoint| breakpoint.event == event)
        {
            let tag = self.breakpoints.remove(at).tag;
            let (completion, completer) = Completion::pending();
            self.parked.push(Parked {
                tag: tag.clone(),
                completer,
            });
            waits.push((tag, completion));
        }
        waits
    }

    /// What the first armed injection that fits says of a request.
    fn fault(&mut self, op: &Op) -> Option<i32> {
        let at = self
            .armed
            .iter()
            .position(|index| self.injections[*index].fits(op))?;
        let index = self.armed[at];
        let injection = &mut self.injections[index];
        if injection.errno == 0 {
            return None;
        }
        let errno = injection.errno;
        if injection.repeat == Repeat::Once {
            self.armed.remove(at);
            self.injections.remove(index);
            for other in &mut self.armed {
                if *other > index {
                    *other -= 1;
                }
            }
        }
        Some(errno)
    }
}

impl Injection {
    fn fits(&self, op: &Op) -> bool {
        let kind = op.kind();
        let (offset, len_bytes) = op.range();
        kind != OpKind::SetLen
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self.sector.is_none_or(|sector| {
                let start = sector.saturating_mul(SECTOR_BYTES);
                offset <= start && start < offset.saturating_add(len_bytes)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use engine::device::{Port, RamDevice, drive};

    use super::*;

    fn filter(text: &str) -> (Filter, Port, Rc<RefCell<Vec<String>>>) {
        let mut config = Config::default();
        config.add_file(text).unwrap();
        let heard = Rc::new(RefCell::new(Vec::new()));
        let list = Rc::clone(&heard);
        let filter = Filter::new(Rc::new(RamDevice::default()), config, move |notice| {
            list.borrow_mut().push(notice.to_string());
        });
        (filter.clone(), Port::new(Rc::new(filter)), heard)
    }

    fn write(port: &Port, event: Event) -> Result<(), Cause> {
        drive(port.at(event).write(0, vec![1; 512]))
            .unwrap()
            .map_err(|error| error.cause)
    }

    fn flush(port: &Port, event: Event) -> Result<(), Cause> {
        drive(port.at(event).flush())
            .unwrap()
            .map_err(|error| error.cause)
    }

    #[test]
    fn an_event_arms_what_follows_it() {
        let (_, port, _) = filter("[inject-error]\nevent = \"l2_update\"\niotype = \"flush\"\n");
        assert_eq!(flush(&port, Event::FlushToDisk), Ok(()));
        assert_eq!(write(&port, Event::L2Update), Ok(()));
        assert_eq!(write(&port, Event::WriteAio), Ok(()));
        assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::IO));
        assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::IO));
    }

    #[test]
    fn the_event_none_is_met_at_open_and_never_again() {
        let (_, port, _) = filter(
            "[inject-error]\nevent = \"none\"\nonce = \"on\"\nerrno = \"28\"\n\
             [set-state]\nevent = \"none\"\nnew_state = \"7\"\n\
             [inject-error]\nevent = \"none\"\nstate = \"7\"\n",
        );
        assert_eq!(write(&port, Event::None), Err(Cause::NO_SPACE));
        assert_eq!(write(&port, Event::None), Ok(()));
    }

    #[test]
    fn the_first_rule_that_fits_wins_and_another_event_replaces_all() {
        let (_, port, _) = filter(
            "[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nonce = \"on\"\n\
             [inject-error]\nevent = \"write_aio\"\nerrno = \"5\"\n\
             [inject-error]\nevent = \"l1_update\"\nerrno = \"1\"\nsector = \"9\"\n",
        );
        assert_eq!(write(&port, Event::WriteAio), Err(Cause::NO_SPACE));
        assert_eq!(write(&port, Event::WriteAio), Err(Cause::IO));
        assert_eq!(write(&port, Event::None), Err(Cause::IO));
        assert_eq!(write(&port, Event::L1Update), Ok(()));
        assert_eq!(write(&port, Event::None), Ok(()));
    }

    #[test]
    fn a_rule_waits_for_its_state_and_the_state_moves_after_the_rules() {
        let (_, port, _) = filter(
            "[set-state]\nevent = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n\
             [inject-error]\nevent = \"write_aio\"\nstate = \"2\"\nonce = \"on\"\n",
        );
        assert_eq!(write(&port, Event::WriteAio), Ok(()));
        assert_eq!(write(&port, Event::WriteAio), Err(Cause::IO));
        assert_eq!(write(&port, Event::WriteAio), Ok(()));
    }

    #[test]
    fn a_sector_must_be_within_the_request() {
        let (_, port, _) = filter("[inject-error]\nevent = \"none\"\nsector = \"2\"\n");
        let at = |offset, len| drive(port.at(Event::None).read(offset, len)).unwrap();
        assert!(at(0, 1024).is_ok());
        assert!(at(512, 1024).is_err());
        assert!(at(1536, 512).is_ok());
        assert_eq!(flush(&port, Event::None), Ok(()));
    }

    #[test]
    fn a_breakpoint_parks_one_caller_until_it_is_resumed() {
        let (filter, port, heard) = filter("");
        filter.set_breakpoint(Event::WriteAio, "A");
        let mut context = Context::from_waker(Waker::noop());
        let mut parked = pin!(port.at(Event::WriteAio).write(0, vec![1; 512]));
        assert!(parked.as_mut().poll(&mut context).is_pending());
        assert!(filter.is_parked("A"));
        assert_eq!(port.len(), 0, "a parked request has not happened");
        assert_eq!(write(&port, Event::WriteAio), Ok(()));
        assert!(filter.resume("A"));
        assert!(!filter.resume("A"));
        assert_eq!(parked.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(
            *heard.borrow(),
            [
                "blkdebug: Suspended request 'A'",
                "blkdebug: Resuming request 'A'"
            ]
        );
    }

    #[test]
    fn breakpoints_of_one_event_park_one_caller_together() {
        let (filter, port, heard) = filter("");
        filter.set_breakpoint(Event::Pwritev, "A");
        filter.set_breakpoint(Event::Pwritev, "B");
        let mut context = Context::from_waker(Waker::noop());
        let mut parked = pin!(port.at(Event::WriteAio).write(0, vec![1; 512]));
        assert!(parked.as_mut().poll(&mut context).is_pending());
        assert!(filter.resume("A"));
        assert!(parked.as_mut().poll(&mut context).is_pending());
        assert!(filter.resume("B"));
        assert!(parked.as_mut().poll(&mut context).is_ready());
        assert_eq!(heard.borrow()[0], "blkdebug: Suspended request 'B'");
    }

    #[test]
    fn removing_a_breakpoint_frees_who_waits_there() {
        let (filter, port, _) = filter("");
        filter.set_breakpoint(Event::ClusterAlloc, "A");
        let mut context = Context::from_waker(Waker::noop());
        let mut parked = pin!(port.at(Event::ClusterAlloc).reach());
        assert!(parked.as_mut().poll(&mut context).is_pending());
        assert!(!filter.remove_breakpoints("A"), "it was spent");
        assert!(parked.as_mut().poll(&mut context).is_ready());
        filter.set_breakpoint(Event::ClusterAlloc, "A");
        assert!(filter.remove_breakpoints("A"));
        assert!(drive(port.at(Event::ClusterAlloc).reach()).is_some());
    }
}
