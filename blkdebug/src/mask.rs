//! Which sectors of a request happened.

/// A set of sectors of one request, numbered from the request's first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorMask {
    words: Vec<u64>,
    count: usize,
}

/// A pattern of sectors that is worth trying on any request with more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// The first half, rounded down.
    FirstHalf,
    /// What [`Self::FirstHalf`] leaves.
    LastHalf,
    /// The first sector.
    OnlyFirst,
    /// The last sector.
    OnlyLast,
    /// All but the first sector.
    AllButFirst,
    /// All but the last sector.
    AllButLast,
    /// Every other sector, from the first.
    Alternate,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 7] = [
        Self::FirstHalf,
        Self::LastHalf,
        Self::OnlyFirst,
        Self::OnlyLast,
        Self::AllButFirst,
        Self::AllButLast,
        Self::Alternate,
    ];

    /// The name used in rules, traces and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstHalf => "first-half",
            Self::LastHalf => "last-half",
            Self::OnlyFirst => "only-first",
            Self::OnlyLast => "only-last",
            Self::AllButFirst => "all-but-first",
            Self::AllButLast => "all-but-last",
            Self::Alternate => "alternate",
        }
    }

    /// The shape of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    fn contains(self, sector: usize, count: usize) -> bool {
        match self {
            Self::FirstHalf => sector < count / 2,
            Self::LastHalf => sector >= count / 2,
            Self::OnlyFirst => sector == 0,
            Self::OnlyLast => sector + 1 == count,
            Self::AllButFirst => sector != 0,
            Self::AllButLast => sector + 1 != count,
            Self::Alternate => sector.is_multiple_of(2),
        }
    }
}

impl SectorMask {
    /// No sector of `count`.
    pub fn none(count: usize) -> Self {
        Self {
            words: vec![0; count.div_ceil(64)],
            count,
        }
    }

    /// The sectors of `count` that a predicate picks.
    pub fn from_fn(count: usize, mut picks: impl FnMut(usize) -> bool) -> Self {
        let mut mask = Self::none(count);
        for sector in 0..count {
            if picks(sector) {
                mask.insert(sector);
            }
        }
        mask
    }

    /// The sectors of `count` that a shape picks.
    pub fn of_shape(shape: Shape, count: usize) -> Self {
        Self::from_fn(count, |sector| shape.contains(sector, count))
    }

    /// The mask with these words, lowest bit first; bits beyond `count` and missing words are zero.
    pub fn from_words(words: &[u64], count: usize) -> Self {
        Self::from_fn(count, |sector| {
            words
                .get(sector / 64)
                .is_some_and(|word| word >> (sector % 64) & 1 == 1)
        })
    }

    /// The words, lowest bit first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many sectors the request has.
    pub fn sector_count(&self) -> usize {
        self.count
    }

    /// Adds a sector.
    ///
    /// # Panics
    /// Where the request has no such sector.
    pub fn insert(&mut self, sector: usize) {
        assert!(sector < self.count, "the sector belongs to the request");
        self.words[sector / 64] |= 1 << (sector % 64);
    }

    /// Whether the set has this sector; it has none beyond the request's end.
    pub fn contains(&self, sector: usize) -> bool {
        self.words
            .get(sector / 64)
            .is_some_and(|word| word >> (sector % 64) & 1 == 1)
    }

    /// Whether the set has no sector.
    pub fn is_none(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether the set has every sector.
    pub fn is_all(&self) -> bool {
        self.iter().count() == self.count
    }

    /// The sectors in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.count).filter(|sector| self.contains(*sector))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(shape: Shape, count: usize) -> Vec<usize> {
        SectorMask::of_shape(shape, count).iter().collect()
    }

    #[test]
    fn shapes_pick_what_they_say() {
        assert_eq!(picked(Shape::FirstHalf, 5), [0, 1]);
        assert_eq!(picked(Shape::LastHalf, 5), [2, 3, 4]);
        assert_eq!(picked(Shape::OnlyFirst, 5), [0]);
        assert_eq!(picked(Shape::OnlyLast, 5), [4]);
        assert_eq!(picked(Shape::AllButFirst, 5), [1, 2, 3, 4]);
        assert_eq!(picked(Shape::AllButLast, 5), [0, 1, 2, 3]);
        assert_eq!(picked(Shape::Alternate, 5), [0, 2, 4]);
    }

    #[test]
    fn words_lead_back_to_their_mask_and_stray_bits_are_dropped() {
        let mask = SectorMask::from_fn(130, |sector| sector % 3 == 0);
        assert_eq!(SectorMask::from_words(mask.words(), 130), mask);
        assert!(SectorMask::from_words(&[u64::MAX], 5).is_all());
        assert!(SectorMask::from_words(&[], 5).is_none());
    }

    #[test]
    fn every_name_leads_back_to_its_shape() {
        for shape in Shape::ALL {
            assert_eq!(Shape::from_name(shape.name()), Some(shape));
        }
    }
}
