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
