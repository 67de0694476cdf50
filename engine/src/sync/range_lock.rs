//! Locks on ranges of a line: shared or exclusive, first come first served.
//!
//! A claim waits for every earlier claim that overlaps it, unless both are shared. Since claims wait
//! only for earlier ones, they cannot deadlock among themselves.

use std::cell::{Cell, RefCell};
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
    /// In order of arrival.
    claims: RefCell<Vec<Claim>>,
}

#[derive(Debug)]
struct Claim {
    turn: u64,
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
        self.claims.borrow_mut().push(Claim {
            turn,
            range,
            mode,
            waker: None,
        });
        let mut waited = false;
        poll_fn(|context| {
            let mut claims = self.claims.borrow_mut();
            let place = place_of(&claims, turn);
            if is_free(&claims, place) {
                return Poll::Ready(());
            }
            claims[place].waker = Some(context.waker().clone());
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
        let place = place_of(&claims, self.turn);
        claims.remove(place);
        let freed: Vec<usize> = (0..claims.len())
            .filter(|place| claims[*place].waker.is_some() && is_free(&claims, *place))
            .collect();
        let wakers: Vec<Waker> = freed
            .into_iter()
            .filter_map(|place| claims[place].waker.take())
            .collect();
        drop(claims);
        for waker in wakers {
            waker.wake();
        }
    }
}

/// Where a claim stands among all.
fn place_of(claims: &[Claim], turn: u64) -> usize {
    claims
        .binary_search_by_key(&turn, |claim| claim.turn)
        .expect("a claim stands until its guard is dropped")
}

fn is_free(claims: &[Claim], place: usize) -> bool {
    let own = &claims[place];
    claims[..place].iter().all(|earlier| {
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
