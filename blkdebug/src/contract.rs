//! What a disk may do to the requests that were not durable when the power went out.
//!
//! The contracts are ordered: every state that one allows, the next allows too, so that the weakest
//! contract under which a failure still shows is a statement about the failure.

use std::fmt;

/// A storage contract, from the weakest adversary to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contract {
    /// Every completed request survives: the process was killed, the disk was not. Each request in
    /// flight happened whole or not at all.
    Perfect,
    /// An ordered cache: what survives of the completed requests is a prefix of their completion
    /// order. Requests in flight may have entered the cache in any order, behind all the others.
    Prefix,
    /// Any subset of the volatile requests survives, each write whole. The length is metadata of
    /// its own, and what was discarded may read as garbage.
    Epoch,
    /// As [`Self::Epoch`], and any subset of the sectors of each request survives.
    #[default]
    EpochTorn,
    /// As [`Self::EpochTorn`], and each sector of a volatile write may hold garbage: it was being
    /// written when the power went out.
    EpochTornGarbage,
    /// As [`Self::EpochTornGarbage`], on a disk that acknowledges flushes and writes with FUA and,
    /// from some moment on, ignores them.
    Liar,
}

impl Contract {
    /// Every contract, from the weakest adversary to the strongest.
    pub const ALL: [Self; 6] = [
        Self::Perfect,
        Self::Prefix,
        Self::Epoch,
        Self::EpochTorn,
        Self::EpochTornGarbage,
        Self::Liar,
    ];

    /// The name used in traces, options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perfect => "perfect",
            Self::Prefix => "prefix",
            Self::Epoch => "epoch",
            Self::EpochTorn => "epoch-torn",
            Self::EpochTornGarbage => "epoch-torn-garbage",
            Self::Liar => "liar",
        }
    }

    /// The plainest disk that it speaks of, as in "shown by any disk that ..".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Perfect => "loses nothing but what was in flight",
            Self::Prefix => "loses the end of an ordered cache",
            Self::Epoch => "reorders whole writes",
            Self::EpochTorn => "tears writes between sectors",
            Self::EpochTornGarbage => "leaves garbage in the sectors that it was writing",
            Self::Liar => "acknowledges flushes that it ignores",
        }
    }

    /// Whether it destroys what had been durable: a sector that was being overwritten, or what a
    /// flush was to keep. No format that changes its tables in place can rebuild that.
    pub fn destroys(self) -> bool {
        self >= Self::EpochTornGarbage
    }

    /// The contract of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|contract| contract.name() == name)
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Contract;

    #[test]
    fn every_name_leads_back_to_its_contract() {
        for contract in Contract::ALL {
            assert_eq!(Contract::from_name(contract.name()), Some(contract));
        }
        assert_eq!(Contract::from_name("lier"), None);
    }

    #[test]
    fn contracts_are_listed_from_weakest_to_strongest() {
        assert!(Contract::ALL.is_sorted());
    }
}
