//! Which states were seen already.

use blkdebug::record::Tick;
use engine::device::ContentHash;
use xxhash_rust::xxh3::xxh3_128;

/// A set of states, by content and by what the guest may expect of it.
///
/// The same content may be legal at one cut and a loss at a later one, where a flush was acknowledged
/// in between: the caller names each expectation by a key. Of two cuts with one key the earlier is
/// the stricter, so a state is new again if it comes back at an earlier cut.
#[derive(Clone, Debug, Default)]
pub struct Visited {
    /// Open addressing, a power of two of slots; a tag of 0 is an empty slot.
    slots: Vec<Slot>,
    distinct: u64,
    generated: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    tag: u128,
    earliest: Tick,
}

impl Visited {
    /// Whether the state is new, or was seen at later cuts only; from now on it is not.
    pub fn first_visit(&mut self, content: ContentHash, expectation: u128, cut: Tick) -> bool {
        self.generated += 1;
        if self.distinct * 2 >= count(self.slots.len()) {
            self.grow();
        }
        let tag = tag(content, expectation);
        let index = self.find(tag);
        let slot = &mut self.slots[index];
        if slot.tag == 0 {
            *slot = Slot { tag, earliest: cut };
            self.distinct += 1;
            return true;
        }
        let earlier = cut < slot.earliest;
        slot.earliest = slot.earliest.min(cut);
        earlier
    }

    /// How many states were asked about.
    pub fn generated(&self) -> u64 {
        self.generated
    }

    /// How many different ones there were.
    pub fn distinct(&self) -> u64 {
        self.distinct
    }

    /// The slot that holds `tag`, or the empty one where it belongs.
    fn find(&self, tag: u128) -> usize {
        let mask = self.slots.len() - 1;
        let start = tag & u128::from(count(mask));
        let mut index = usize::try_from(start).expect("less than a length");
        while self.slots[index].tag != 0 && self.slots[index].tag != tag {
            index = (index + 1) & mask;
        }
        index
    }

    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(64);
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); len]);
        for slot in old.into_iter().filter(|slot| slot.tag != 0) {
            let index = self.find(slot.tag);
            self.slots[index] = slot;
        }
    }
}

fn tag(content: ContentHash, expectation: u128) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&content.0.to_le_bytes());
    bytes[16..].copy_from_slice(&expectation.to_le_bytes());
    xxh3_128(&bytes).max(1)
}

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_new_once_for_each_expectation() {
        let mut visited = Visited::default();
        assert!(visited.first_visit(ContentHash(7), 1, Tick(5)));
        assert!(!visited.first_visit(ContentHash(7), 1, Tick(6)));
        assert!(visited.first_visit(ContentHash(7), 2, Tick(6)));
        assert!(visited.first_visit(ContentHash(8), 1, Tick(6)));
        assert_eq!((visited.generated(), visited.distinct()), (4, 3));
    }

    #[test]
    fn a_state_is_new_again_at_an_earlier_cut() {
        let mut visited = Visited::default();
        assert!(visited.first_visit(ContentHash(7), 1, Tick(5)));
        assert!(visited.first_visit(ContentHash(7), 1, Tick(3)));
        assert!(!visited.first_visit(ContentHash(7), 1, Tick(4)));
        assert_eq!(visited.distinct(), 1);
    }

    #[test]
    fn nothing_is_forgotten_as_the_set_grows() {
        let mut visited = Visited::default();
        for round in 0..2 {
            for state in 0..10_000 {
                let new = visited.first_visit(ContentHash(state), 0, Tick(0));
                assert_eq!(new, round == 0);
            }
        }
        assert_eq!(visited.distinct(), 10_000);
    }
}
