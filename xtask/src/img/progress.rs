//! Progress as qemu-img shows it: a percentage that is written over itself.

use super::print;

/// How far a command is, in hundredths of a percent.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Shown,
    total: u64,
    last: Option<u64>,
    step: u64,
}

/// Whether progress is shown at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Yes,
    No,
}

impl Shown {
    pub(super) fn when(asked: bool) -> Self {
        if asked { Self::Yes } else { Self::No }
    }
}

impl Progress {
    /// Progress towards `total`; what changes by less than `step` percent is not shown.
    pub(super) fn start(shown: Shown, total: u64, step: u64) -> Self {
        let mut progress = Self {
            shown,
            total: total.max(1),
            last: None,
            step: step * 100,
        };
        progress.at(0);
        progress
    }

    /// Shows that `done` of the total is done.
    pub(super) fn at(&mut self, done: u64) {
        let share = u128::from(done.min(self.total)) * 10000 / u128::from(self.total);
        let share = u64::try_from(share).expect("a share is at most the whole");
        let due = self
            .last
            .is_none_or(|last| share >= last + self.step || (share == 10000 && last < share));
        if self.shown == Shown::Yes && due {
            self.last = Some(share);
            print(&format!("    ({}.{:02}/100%)\r", share / 100, share % 100));
        }
    }

    /// Ends the line as it stands.
    pub(super) fn end(self) {
        if self.shown == Shown::Yes {
            print("\n");
        }
    }
}
