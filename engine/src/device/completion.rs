//! The future of a request's outcome.
//!
//! A completion belongs to one thread. Dropping a [`Completer`] unused leaves its completion pending
//! for ever, which is what a power loss looks like to those who wait.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::DeviceError;

/// What a device answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, and there is nothing to hand back.
    Done,
    /// The bytes that were read.
    Data(Vec<u8>),
}

/// A reply, or why there is none.
pub type Outcome = Result<Reply, DeviceError>;

/// The future of an [`Outcome`].
#[derive(Debug)]
#[must_use = "a request's outcome must be waited for"]
pub struct Completion(State);

enum State {
    Ready(Option<Outcome>),
    Waiting(Rc<RefCell<Slot>>),
    Running(Pin<Box<dyn Future<Output = Outcome>>>),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(outcome) => f.debug_tuple("Ready").field(outcome).finish(),
            Self::Waiting(slot) => f.debug_tuple("Waiting").field(slot).finish(),
            Self::Running(_) => f.write_str("Running"),
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// The other end of a pending [`Completion`].
#[derive(Debug)]
pub struct Completer(Rc<RefCell<Slot>>);

impl Completion {
    /// A completion whose outcome is known already.
    pub fn ready(outcome: Outcome) -> Self {
        Self(State::Ready(Some(outcome)))
    }

    /// A completion that waits for its completer.
    pub fn pending() -> (Self, Completer) {
        let slot = Rc::new(RefCell::new(Slot::default()));
        (Self(State::Waiting(Rc::clone(&slot))), Completer(slot))
    }

    /// The completion of what a device does step by step before it answers. It starts at once, and goes
    /// on whenever the completion is polled.
    pub fn of(steps: impl Future<Output = Outcome> + 'static) -> Self {
        let mut steps: Pin<Box<dyn Future<Output = Outcome>>> = Box::pin(steps);
        match steps.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Self::ready(outcome),
            Poll::Pending => Self(State::Running(steps)),
        }
    }
}

impl Completer {
    /// Ends the wait.
    pub fn complete(self, outcome: Outcome) {
        let mut slot = self.0.borrow_mut();
        slot.outcome = Some(outcome);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Completion {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        match &mut self.0 {
            State::Ready(outcome) => Poll::Ready(
                outcome
                    .take()
                    .expect("a completion is polled to its end once"),
            ),
            State::Waiting(slot) => {
                let mut slot = slot.borrow_mut();
                match slot.outcome.take() {
                    Some(outcome) => Poll::Ready(outcome),
                    None => {
                        slot.waker = Some(context.waker().clone());
                        Poll::Pending
                    }
                }
            }
            State::Running(steps) => steps.as_mut().poll(context),
        }
    }
}

/// Runs a future whose devices complete every request at once. `None` if it waits for something
/// that has not happened, which on such devices only a defect or a power cut can bring about.
pub fn drive<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_completion_resolves_when_completed() {
        let (completion, completer) = Completion::pending();
        let mut completion = pin!(completion);
        let mut context = Context::from_waker(Waker::noop());
        assert!(completion.as_mut().poll(&mut context).is_pending());
        completer.complete(Ok(Reply::Done));
        assert_eq!(
            completion.as_mut().poll(&mut context),
            Poll::Ready(Ok(Reply::Done))
        );
    }

    #[test]
    fn steps_start_at_once_and_go_on_when_polled() {
        let (first, completer) = Completion::pending();
        let started = Rc::new(RefCell::new(false));
        let flag = Rc::clone(&started);
        let mut whole = pin!(Completion::of(async move {
            *flag.borrow_mut() = true;
            first.await
        }));
        assert!(*started.borrow());
        completer.complete(Ok(Reply::Done));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(
            whole.as_mut().poll(&mut context),
            Poll::Ready(Ok(Reply::Done))
        );
    }

    #[test]
    fn a_dropped_completer_leaves_its_completion_pending() {
        let (completion, completer) = Completion::pending();
        drop(completer);
        assert!(drive(completion).is_none());
    }
}
