//! What the key slots of a LUKS image hold: before a change, step by step in it, and after it.

use std::fmt;

use crate::workload::ops::{KeySlotChange, KeySlotOperation};

/// What the key slots hold, and what stands in front of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeySlots {
    /// What each slot holds.
    pub slots: [Held; 8],
    /// A digest of the header in front of the slots, which no operation changes; 0 where there is none.
    pub header: u64,
}

/// What a key slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// Nothing: it is inactive, and what it had is gone.
    #[default]
    Nothing,
    /// It is inactive, but whoever made it active could open the image with the secret of this number.
    Residue(u8),
    /// The key, under the secret of this number.
    Secret(u8),
    /// It is active, and no secret of a run opens it.
    Unknown,
}

impl KeySlots {
    /// What they become in an operation, step by step; the last is what is asked for. What the engine
    /// refuses changes nothing.
    pub(super) fn steps(self, operation: KeySlotOperation) -> Vec<Self> {
        let KeySlotOperation { slot, change } = operation;
        let slot = usize::from(slot);
        let with = |held| {
            let mut slots = self;
            slots.slots[slot] = held;
            slots
        };
        match (change, self.slots[slot]) {
            _ if self == Self::default() => vec![self],
            (KeySlotChange::Fill { .. }, held) if held.is_active() => vec![self],
            (KeySlotChange::Fill { secret }, Held::Residue(_)) => {
                // The new key material goes where the old one still is, before the slot is switched.
                vec![self, with(Held::Nothing), with(Held::Secret(secret))]
            }
            (KeySlotChange::Fill { secret }, _) => vec![self, with(Held::Secret(secret))],
            (KeySlotChange::Erase, held) if held.is_active() && self.active() == 1 => vec![self],
            (KeySlotChange::Erase, Held::Secret(secret)) => {
                vec![self, with(Held::Residue(secret)), with(Held::Nothing)]
            }
            (KeySlotChange::Erase, _) => vec![self, with(Held::Nothing)],
        }
    }

    fn active(self) -> usize {
        self.slots.iter().filter(|held| held.is_active()).count()
    }
}

impl Held {
    fn is_active(self) -> bool {
        match self {
            Self::Secret(_) | Self::Unknown => true,
            Self::Nothing | Self::Residue(_) => false,
        }
    }
}

impl fmt::Display for KeySlots {
    /// Nothing where there are no slots, and else a part of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return Ok(());
        }
        write!(f, ", key slots ({:016x})", self.header)?;
        for (number, held) in (0..).zip(self.slots) {
            let number: u8 = number;
            match held {
                Held::Nothing => {}
                Held::Residue(secret) => write!(f, " {number}: left of secret {secret}")?,
                Held::Secret(secret) => write!(f, " {number}: secret {secret}")?,
                Held::Unknown => write!(f, " {number}: opened by no secret")?,
            }
        }
        Ok(())
    }
}
