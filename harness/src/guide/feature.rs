//! What runs are told apart by: features, and sets of them.
//!
//! A feature is something about what happened in a run that a later run may have or lack: that an event came after
//! another, that a class of metadata survived a power loss at some event, what a repair had to do. It is kept as a number
//! of 64 bits; two that share one by chance are taken for the same, which costs a run that is not kept.

/// What a feature is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// How often a request was made for an event, in powers of two.
    Event,
    /// Which event's request came after which.
    EventPair,
    /// For which event a request was made during which operation.
    Cause,
    /// Which operation came after which.
    OperationPair,
    /// Which operation was refused.
    Failure,
    /// How often the engine was in a rare situation, in powers of two.
    Probe,
    /// Which two rare situations one run was in.
    ProbePair,
    /// Which class of metadata survived a power loss before or after which event.
    Survivor,
    /// Which classes survived together, and which were lost.
    Survivors,
    /// What was wrong with a crash state, and what its repair wrote.
    Repair,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 10] = [
        Self::Event,
        Self::EventPair,
        Self::Cause,
        Self::OperationPair,
        Self::Failure,
        Self::Probe,
        Self::ProbePair,
        Self::Survivor,
        Self::Survivors,
        Self::Repair,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::EventPair => "event-pair",
            Self::Cause => "cause",
            Self::OperationPair => "operation-pair",
            Self::Failure => "failure",
            Self::Probe => "probe",
            Self::ProbePair => "probe-pair",
            Self::Survivor => "survivor",
            Self::Survivors => "survivors",
            Self::Repair => "repair",
        }
    }

    /// What a new feature of this topic is worth: most where a few features stand for much.
    pub fn weight(self) -> u64 {
        match self {
            Self::Survivors => 1,
            Self::OperationPair | Self::Cause | Self::ProbePair => 4,
            Self::Event | Self::Failure => 8,
            Self::EventPair | Self::Survivor => 16,
            Self::Probe | Self::Repair => 32,
        }
    }

    fn number(self) -> u64 {
        let place = Self::ALL.iter().position(|topic| *topic == self);
        let place = place.expect("every topic is listed");
        u64::try_from(place).expect("there are few topics")
    }
}

/// A feature: its topic is in the highest four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature(pub u64);

const TOPIC_SHIFT: u32 = 60;

impl Feature {
    /// The feature of these parts.
    pub fn of(topic: Topic, parts: [u64; 2]) -> Self {
        let first = mix(parts[0] ^ topic.number().rotate_left(TOPIC_SHIFT));
        let hash = mix(first.wrapping_add(parts[1]));
        // Never 0, which stands for nothing in a set.
        Self(hash >> 4 | 1 | topic.number() << TOPIC_SHIFT)
    }

    /// What it is about, if it is a feature at all.
    pub fn topic(self) -> Option<Topic> {
        let number = usize::try_from(self.0 >> TOPIC_SHIFT).ok()?;
        Topic::ALL.get(number).copied()
    }
}

/// A number of which every bit hangs on every bit of another one.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// A set of numbers, none of them 0: open addressing, since a run asks a thousand times.
#[derive(Clone, Debug, Default)]
pub struct NumberSet {
    /// A power of two of slots, or none; 0 is empty.
    slots: Vec<u64>,
    len: usize,
}

impl NumberSet {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `number` is among them.
    pub fn contains(&self, number: u64) -> bool {
        !self.slots.is_empty() && self.slots[self.find(number)] == number
    }

    /// Adds `number`, which is not 0; says whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        assert_ne!(number, 0, "0 stands for an empty slot");
        if self.len * 2 >= self.slots.len() {
            self.grow();
        }
        let slot = self.find(number);
        if self.slots[slot] == number {
            return false;
        }
        self.slots[slot] = number;
        self.len += 1;
        true
    }

    /// The numbers, ascending.
    pub fn sorted(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.slots.iter().copied().filter(|it| *it != 0).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The slot that holds `number`, or the empty one where it belongs.
    fn find(&self, number: u64) -> usize {
        let mask = self.slots.len() - 1;
        let low = usize::try_from(mix(number) & 0x7fff_ffff).expect("31 bits fit");
        let mut slot = low & mask;
        while self.slots[slot] != 0 && self.slots[slot] != number {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(256);
        let old = std::mem::replace(&mut self.slots, vec![0; len]);
        for number in old.into_iter().filter(|number| *number != 0) {
            let slot = self.find(number);
            self.slots[slot] = number;
        }
    }
}

impl PartialEq for NumberSet {
    /// Whether the same numbers are in both, in whatever order they came.
    fn eq(&self, other: &Self) -> bool {
        let mut numbers = self.slots.iter().filter(|number| **number != 0);
        self.len == other.len && numbers.all(|number| other.contains(*number))
    }
}

impl Eq for NumberSet {}

impl FromIterator<u64> for NumberSet {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut set = Self::default();
        for number in numbers.into_iter().filter(|number| *number != 0) {
            set.insert(number);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_feature_knows_its_topic_and_differs_by_each_part() {
        let mut all = BTreeSet::new();
        for topic in Topic::ALL {
            for one in 0..100 {
                for other in 0..10 {
                    let feature = Feature::of(topic, [one, other]);
                    assert_eq!(feature.topic(), Some(topic));
                    all.insert(feature);
                }
            }
        }
        assert_eq!(all.len(), Topic::ALL.len() * 1000);
    }

    #[test]
    fn a_set_holds_what_a_tree_holds() {
        let mut set = NumberSet::default();
        let mut tree = BTreeSet::new();
        assert!(!set.contains(7));
        for number in 0..5000u64 {
            let number = mix(number % 3000) | 1;
            assert_eq!(set.insert(number), tree.insert(number));
            assert!(set.contains(number));
        }
        assert!(!set.contains(2));
        assert_eq!(set.len(), tree.len());
        assert_eq!(set.sorted(), tree.into_iter().collect::<Vec<u64>>());
        let again: NumberSet = set.sorted().into_iter().collect();
        assert_eq!(again.sorted(), set.sorted());
        assert!(again == set);
        let fewer: NumberSet = set.sorted().into_iter().skip(1).collect();
        assert!(fewer != set);
    }
}
