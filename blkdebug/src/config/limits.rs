//! The limits of requests that blkdebug pretends to have.

use crate::layer::MAX_BYTES;

/// Limits of requests, in bytes; zero where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// Where requests start and end: a power of two.
    pub align: u64,
    /// The longest read or write.
    pub max_transfer: u64,
    /// Where writes of zeroes best start and end.
    pub opt_write_zero: u64,
    /// The longest write of zeroes.
    pub max_write_zero: u64,
    /// Where discards best start and end.
    pub opt_discard: u64,
    /// The longest discard.
    pub max_discard: u64,
}

/// The name of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitKey {
    /// `align`
    Align,
    /// `max-transfer`
    MaxTransfer,
    /// `opt-write-zero`
    OptWriteZero,
    /// `max-write-zero`
    MaxWriteZero,
    /// `opt-discard`
    OptDiscard,
    /// `max-discard`
    MaxDiscard,
}

/// A limit that cannot be kept. The text is QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot meet constraints with {} {value}", key.name())]
pub struct BadLimit {
    /// Which.
    pub key: LimitKey,
    /// Its value, in bytes.
    pub value: u64,
}

impl LimitKey {
    /// Every limit, in the order in which QEMU looks at them.
    pub const ALL: [Self; 6] = [
        Self::Align,
        Self::MaxTransfer,
        Self::OptWriteZero,
        Self::MaxWriteZero,
        Self::OptDiscard,
        Self::MaxDiscard,
    ];

    /// The name of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Align => "align",
            Self::MaxTransfer => "max-transfer",
            Self::OptWriteZero => "opt-write-zero",
            Self::MaxWriteZero => "max-write-zero",
            Self::OptDiscard => "opt-discard",
            Self::MaxDiscard => "max-discard",
        }
    }
}

impl BlockLimits {
    /// The limit of that name.
    pub fn get(&self, key: LimitKey) -> u64 {
        match key {
            LimitKey::Align => self.align,
            LimitKey::MaxTransfer => self.max_transfer,
            LimitKey::OptWriteZero => self.opt_write_zero,
            LimitKey::MaxWriteZero => self.max_write_zero,
            LimitKey::OptDiscard => self.opt_discard,
            LimitKey::MaxDiscard => self.max_discard,
        }
    }

    /// Sets the limit of that name.
    pub fn set(&mut self, key: LimitKey, bytes: u64) {
        *match key {
            LimitKey::Align => &mut self.align,
            LimitKey::MaxTransfer => &mut self.max_transfer,
            LimitKey::OptWriteZero => &mut self.opt_write_zero,
            LimitKey::MaxWriteZero => &mut self.max_write_zero,
            LimitKey::OptDiscard => &mut self.opt_discard,
            LimitKey::MaxDiscard => &mut self.max_discard,
        } = bytes;
    }

    /// Refuses limits that contradict each other or that no request keeps.
    pub fn check(&self) -> Result<(), BadLimit> {
        let bad = |key| BadLimit {
            key,
            value: self.get(key),
        };
        if self.align >= MAX_BYTES || self.align > 0 && !self.align.is_power_of_two() {
            return Err(bad(LimitKey::Align));
        }
        let align = self.align.max(1);
        for (key, unit) in [
            (LimitKey::MaxTransfer, align),
            (LimitKey::OptWriteZero, align),
            (LimitKey::MaxWriteZero, align.max(self.opt_write_zero)),
            (LimitKey::OptDiscard, align),
            (LimitKey::MaxDiscard, align.max(self.opt_discard)),
        ] {
            let value = self.get(key);
            if value >= MAX_BYTES || !value.is_multiple_of(unit) {
                return Err(bad(key));
            }
        }
        Ok(())
    }

    /// Where requests start and end, in bytes.
    pub(crate) fn request_unit(&self) -> u64 {
        self.align.max(1)
    }

    /// Where writes of zeroes start and end, but for the first and the last, in bytes.
    pub(crate) fn zero_unit(&self) -> u64 {
        self.request_unit().max(self.opt_write_zero)
    }

    /// Where discards start and end, but for the first and the last, in bytes.
    pub(crate) fn discard_unit(&self) -> u64 {
        self.request_unit().max(self.opt_discard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(values: &[(LimitKey, u64)]) -> Option<LimitKey> {
        let mut limits = BlockLimits::default();
        for (key, value) in values {
            limits.set(*key, *value);
            assert_eq!(limits.get(*key), *value);
        }
        limits.check().err().map(|bad| bad.key)
    }

    #[test]
    fn limits_are_multiples_of_those_that_they_stand_on() {
        use LimitKey::{Align, MaxDiscard, MaxTransfer, MaxWriteZero, OptDiscard, OptWriteZero};
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&[(Align, 4096), (MaxTransfer, 8192)]), None);
        assert_eq!(refused(&[(Align, 3)]), Some(Align));
        assert_eq!(refused(&[(Align, 1 << 31)]), Some(Align));
        assert_eq!(refused(&[(MaxTransfer, 100)]), None);
        assert_eq!(
            refused(&[(MaxTransfer, 1000), (Align, 512)]),
            Some(MaxTransfer)
        );
        assert_eq!(refused(&[(OptWriteZero, 3)]), None);
        assert_eq!(
            refused(&[(OptWriteZero, 100), (Align, 8)]),
            Some(OptWriteZero)
        );
        assert_eq!(
            refused(&[(OptWriteZero, 3000), (MaxWriteZero, 1000)]),
            Some(MaxWriteZero)
        );
        assert_eq!(refused(&[(OptWriteZero, 3000), (MaxWriteZero, 6000)]), None);
        assert_eq!(refused(&[(OptDiscard, 1), (Align, 2)]), Some(OptDiscard));
        assert_eq!(
            refused(&[(OptDiscard, 2), (MaxDiscard, 5)]),
            Some(MaxDiscard)
        );
        let bad = BlockLimits {
            align: 3,
            ..BlockLimits::default()
        }
        .check()
        .unwrap_err();
        assert_eq!(bad.to_string(), "Cannot meet constraints with align 3");
    }
}
