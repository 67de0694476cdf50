//! Locks for overlapping requests on one thread, served in the order in which they were asked for.
//!
//! Nothing here is cancelled: a future that waits for a lock is polled to its end, or everything is
//! dropped together. A waiter dropped alone would keep its turn for ever.

mod mutex;
mod range_lock;

pub use mutex::{Mutex, MutexGuard};
pub use range_lock::{Mode, RangeGuard, RangeLock};
