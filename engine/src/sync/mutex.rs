//! A mutex whose guard may be held across `.await`.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::task::{Poll, Waker};

/// A value for one holder at a time, in order of arrival.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    turns: Turns,
    value: RefCell<T>,
}

#[derive(Debug, Default)]
struct Turns {
    next: Cell<u64>,
    serving: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

/// The right to use the value, until dropped.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    // Dropped before the turn ends.
    value: Option<RefMut<'a, T>>,
    turns: &'a Turns,
}

impl<T> Mutex<T> {
    /// A free mutex.
    pub fn new(value: T) -> Self {
        Self {
            turns: Turns::default(),
            value: RefCell::new(value),
        }
    }

    /// Waits for everyone who asked before.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let turn = self.turns.next.get();
        self.turns.next.set(turn + 1);
        poll_fn(|context| {
            if self.turns.serving.get() == turn {
                return Poll::Ready(());
            }
            self.turns
                .waiting
                .borrow_mut()
                .insert(turn, context.waker().clone());
            Poll::Pending
        })
        .await;
        MutexGuard {
            value: Some(self.value.borrow_mut()),
            turns: &self.turns,
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
            .as_ref()
            .expect("the value is there until the guard is dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
            .as_mut()
            .expect("the value is there until the guard is dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        let serving = self.turns.serving.get() + 1;
        self.turns.serving.set(serving);
        let waker = self.turns.waiting.borrow_mut().remove(&serving);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;
    use crate::device::drive;

    #[test]
    fn waiters_are_served_in_the_order_of_their_asking() {
        let mutex = Mutex::new(Vec::new());
        let mut context = Context::from_waker(Waker::noop());
        let held = drive(mutex.lock()).unwrap();
        let mut first = pin!(async { mutex.lock().await.push(1) });
        let mut second = pin!(async { mutex.lock().await.push(2) });
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(held);
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(first.as_mut().poll(&mut context).is_ready());
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert_eq!(*drive(mutex.lock()).unwrap(), [1, 2]);
    }
}
