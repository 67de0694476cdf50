//! A limit to how many bytes a second are written.

#![allow(clippy::disallowed_methods, reason = "the command line has the clock")]

use std::time::{Duration, Instant};

/// Lets bytes pass at a rate, after a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    began: Instant,
    passed_bytes: u64,
}

impl Pace {
    /// A pace of so many bytes a second, from now on; none where that is zero.
    pub(super) fn new(bytes_per_second: u64) -> Option<Self> {
        (bytes_per_second > 0).then(|| Self {
            bytes_per_second,
            began: Instant::now(),
            passed_bytes: 0,
        })
    }

    /// Waits until `len_bytes` more may pass.
    pub(super) fn wait(&mut self, len_bytes: u64) {
        self.passed_bytes += len_bytes;
        std::thread::sleep(self.due().saturating_sub(self.began.elapsed()));
    }

    /// How long after the start the bytes may have passed.
    fn due(&self) -> Duration {
        let late = u128::from(self.passed_bytes.saturating_sub(self.bytes_per_second));
        let nanoseconds = late * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_a_second_of_the_rate_waits_its_time() {
        let mut pace = Pace::new(1000).unwrap();
        pace.passed_bytes = 1000;
        assert_eq!(pace.due(), Duration::ZERO);
        pace.passed_bytes = 3500;
        assert_eq!(pace.due(), Duration::from_millis(2500));
        assert!(Pace::new(0).is_none());
    }
}
