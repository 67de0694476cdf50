//! Which stretches of a guest's disk were found legal with which content.
//!
//! Crash states of one life differ from one another in few sectors, and to look at all the others again is most of what
//! their guests' disks cost. What was legal once is legal wherever the same values are, and that is remembered here,
//! by hashes of all that decides it. What was not legal is looked at again each time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

/// A stretch of the disk: where it is, what it holds, and how it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The guest sectors.
    pub sectors: Range<u64>,
    /// A hash of what they hold.
    pub content: u128,
    /// Whatever else decides what is made of it.
    pub manner: u64,
}

/// The stretches that were found legal, and where in each are sectors that must be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(BTreeMap<u128, Rc<[Range<u64>]>>);

impl Known {
    /// As many are remembered.
    const MOST: usize = 1 << 16;

    pub(super) fn get(&self, legal: u128, stretch: &Stretch) -> Option<Rc<[Range<u64>]>> {
        self.0.get(&key(legal, stretch)).cloned()
    }

    pub(super) fn insert(&mut self, legal: u128, stretch: &Stretch, written: Rc<[Range<u64>]>) {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(key(legal, stretch), written);
    }
}

/// `legal` names the values that each sector may have.
fn key(legal: u128, stretch: &Stretch) -> u128 {
    let Stretch {
        sectors,
        content,
        manner,
    } = stretch;
    let mut bytes = [0; 56];
    bytes[..16].copy_from_slice(&legal.to_le_bytes());
    bytes[16..32].copy_from_slice(&content.to_le_bytes());
    bytes[32..40].copy_from_slice(&sectors.start.to_le_bytes());
    bytes[40..48].copy_from_slice(&sectors.end.to_le_bytes());
    bytes[48..].copy_from_slice(&manner.to_le_bytes());
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::rc::Rc;

    use crate::guest::{Content, Ledger, Moment, Operation, OperationId, Stretch};
    use crate::workload::ops::{Answer, Happening};

    use super::Known;

    fn stretch() -> Stretch {
        Stretch {
            sectors: 0..4,
            content: 7,
            manner: 1,
        }
    }

    fn only(range: Range<u64>) -> Rc<[Range<u64>]> {
        std::iter::once(range).collect()
    }

    #[test]
    fn what_one_expectation_found_legal_another_knows_if_it_allows_the_same() {
        let write = Operation::Write {
            offset: 0,
            len_bytes: 2048,
        };
        let operations = [write, Operation::Flush, write];
        let happening = |(id, operation)| Happening {
            id: OperationId(id),
            operation,
            submitted: Moment(u64::from(id) * 2),
            completed: Some((Moment(u64::from(id) * 2 + 1), Answer::Done)),
        };
        let history: Vec<Happening> = (0..).zip(operations).map(happening).collect();
        let ledger = Ledger::new(Content::zeroes(), 4096, &history);
        let at = |cut| ledger.expect(Moment(cut));
        // Zeroes or the first write; the first write; the same; either write.
        let (early, flushed, same, late) = (at(2), at(3), at(3), at(4));
        early.found_legal(&stretch(), only(0..1));
        assert_eq!(early.known(&stretch()), Some(only(0..1)));
        assert_eq!(flushed.known(&stretch()), None);
        assert_eq!(late.known(&stretch()), None);
        flushed.found_legal(&stretch(), only(0..4));
        assert_eq!(same.known(&stretch()), Some(only(0..4)));
        assert_eq!(early.known(&stretch()), Some(only(0..1)));
        assert_eq!(late.known(&stretch()), None);
    }

    #[test]
    fn whatever_decides_it_tells_stretches_apart() {
        let mut known = Known::default();
        known.insert(5, &stretch(), only(0..4));
        let others = [
            Stretch {
                sectors: 1..4,
                ..stretch()
            },
            Stretch {
                sectors: 0..5,
                ..stretch()
            },
            Stretch {
                content: 8,
                ..stretch()
            },
            Stretch {
                manner: 0,
                ..stretch()
            },
        ];
        assert!(known.get(5, &stretch()).is_some());
        assert_eq!(known.get(6, &stretch()), None);
        for other in others {
            assert_eq!(known.get(5, &other), None, "{other:?}");
        }
    }

    #[test]
    fn no_more_is_remembered_than_is_meant_to_be() {
        let mut known = Known::default();
        for content in 0..100_000 {
            let one = Stretch {
                content,
                ..stretch()
            };
            known.insert(5, &one, [].into());
            assert!(known.get(5, &one).is_some());
            assert!(known.0.len() <= Known::MOST);
        }
    }
}
