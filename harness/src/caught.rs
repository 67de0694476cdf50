//! Panics of what is under test, caught and turned into values.
//!
//! The hook that this installs stays out of the way of every panic that is not inside [`catch`].

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// A panic: what it said and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// Its message.
    pub message: String,
    /// The place in the source, `file:line`.
    pub place: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked at {}: {}", self.place, self.message)
    }
}

#[derive(Default)]
struct Watch {
    depth: usize,
    last: Option<Panic>,
}

thread_local! {
    static WATCH: RefCell<Watch> = RefCell::default();
}

static HOOK: Once = Once::new();

/// Runs `body`; a panic inside becomes an error and is not printed.
///
/// What `body` was changing when it panicked is in an unknown state: the caller throws it away.
pub fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Panic> {
    HOOK.call_once(install);
    WATCH.with_borrow_mut(|watch| watch.depth += 1);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let last = WATCH.with_borrow_mut(|watch| {
        watch.depth -= 1;
        watch.last.take()
    });
    outcome.map_err(|_| {
        last.unwrap_or_else(|| Panic {
            message: "unknown".into(),
            place: "unknown".into(),
        })
    })
}

fn install() {
    let outer = take_hook();
    set_hook(Box::new(move |info| {
        if !WATCH.with_borrow_mut(|watch| note(watch, info)) {
            outer(info);
        }
    }));
}

fn note(watch: &mut Watch, info: &PanicHookInfo<'_>) -> bool {
    if watch.depth == 0 {
        return false;
    }
    watch.last = Some(Panic {
        message: info
            .payload_as_str()
            .unwrap_or("a panic without a message")
            .to_owned(),
        place: info.location().map_or_else(
            || "unknown".into(),
            |location| format!("{}:{}", location.file(), location.line()),
        ),
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_message_and_place() {
        let panic = catch(|| assert_eq!(1, 2, "the sum")).unwrap_err();
        assert!(panic.message.contains("the sum"), "{panic}");
        assert!(panic.place.contains("caught.rs:"), "{panic}");
    }

    #[test]
    fn what_does_not_panic_passes_through() {
        assert_eq!(catch(|| 5), Ok(5));
    }

    #[test]
    fn an_inner_catch_does_not_blind_the_outer() {
        let outer = catch(|| {
            let inner = catch(|| panic!("inner"));
            assert_eq!(inner.unwrap_err().message, "inner");
            panic!("outer")
        });
        assert_eq!(outer.map(|(): ()| ()).unwrap_err().message, "outer");
    }
}
