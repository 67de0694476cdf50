//! Locks on ranges of a line: shared or exclusive, first come first served.
//!
//! A claim waits for every earlier claim that overlaps it, unless both are shared. Since claims wait
//! only for earlier ones, they cannot deadlock among themselves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

/// How a range is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Beside other shared uses.
    Shared,
    /// Alone.
    Exclusive,
}

/// The claims on a line.
#[derive(Debug, Default)]
pub struct RangeLock {
    next: Cell<u64>,
    claims: RefCell<BTreeMap<u64, Claim>>,
}

#[derive(Debug)]
struct Claim {
    range: Range<u64>,
    mode: Mode,
    waker: Option<Waker>,
}

/// A claim that was granted, until dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    lock: &'a RangeLock,
    turn: u64,
    waited: bool,
}

impl RangeGuard<'_> {
    /// Whether an earlier claim stood in its way.
    pub fn has_waited(&self) -> bool {
        self.waited
    }
}

impl RangeLock {
    /// Claims `range` and waits for the earlier claims that stand in its way.
    pub async fn lock(&self, range: Range<u64>, mode: Mode) -> RangeGuard<'_> {
        let turn = self.next.get();
        self.next.set(turn + 1);
        self.claims.borrow_mut().insert(
            turn,
            Claim {
                range,
                mode,
                waker: None,
            },
        );
        let mut waited = false;
        poll_fn(|context| {
            let mut claims = self.claims.borrow_mut();
            if is_free(&claims, turn) {
                return Poll::Ready(());
            }
            let claim = claims
                .get_mut(&turn)
                .expect("a claim stands until its guard is dropped");
            claim.waker = Some(context.waker().clone());
            waited = true;
            Poll::Pending
        })
        .await;
        RangeGuard {
            lock: self,
            turn,
            waited,
        }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut claims = self.lock.claims.borrow_mut();
        claims.remove(&self.turn);
        let waiting: Vec<u64> = claims
            .iter()
            .filter(|(_, claim)| claim.waker.is_some())
            .map(|(turn, _)| *turn)
            .collect();
        let freed: Vec<u64> = waiting
            .into_iter()
            .filter(|turn| is_free(&claims, *turn))
            .collect();
        let wakers: Vec<Waker> = freed
            .into_iter()
            .filter_map(|turn| claims.get_mut(&turn).and_then(|claim| claim.waker.take()))
            .collect();
        drop(claims);
        for waker in wakers {
            waker.wake();
        }
    }
}

fn is_free(claims: &BTreeMap<u64, Claim>, turn: u64) -> bool {
    let own = &claims[&turn];
    claims.range(..turn).all(|(_, earlier)| {
        let apart = earlier.range.end <= own.range.start || own.range.end <= earlier.range.start;
        apart || (earlier.mode == Mode::Shared && own.mode == Mode::Shared)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::drive;

    #[test]
    fn exclusive_waits_for_shared_and_later_shared_waits_for_exclusive() {
        let lock = RangeLock::default();
        let first = drive(lock.lock(0..4, Mode::Shared)).expect("nothing stands in its way");
        assert!(
            drive(lock.lock(0..4, Mode::Shared)).is_some(),
            "shared beside shared"
        );
        let mut context = std::task::Context::from_waker(Waker::noop());
        let mut exclusive = std::pin::pin!(lock.lock(3..5, Mode::Exclusive));
        assert!(exclusive.as_mut().poll(&mut context).is_pending());
        let mut late = std::pin::pin!(lock.lock(4..6, Mode::Shared));
        assert!(
            late.as_mut().poll(&mut context).is_pending(),
            "no overtaking"
        );
        assert!(drive(lock.lock(6..9, Mode::Exclusive)).is_some(), "apart");
        drop(first);
        let Poll::Ready(guard) = exclusive.as_mut().poll(&mut context) else {
            panic!("the exclusive claim is next");
        };
        assert!(late.as_mut().poll(&mut context).is_pending());
        drop(guard);
        assert!(late.as_mut().poll(&mut context).is_ready());
    }
}
