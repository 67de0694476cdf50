//! What a judgement looked at: the recovery-read filter.
//!
//! Whoever judges a crash state is a function of the bytes that it reads. Two states that are the same there have one
//! verdict, however they differ elsewhere: in clusters that nothing refers to, above all, where most of what a power
//! loss scatters ends up.

use std::ops::Range;

use engine::device::{ContentHash, PageImage, RunningHash};

use crate::sectors::merge;

/// Sectors of the image's own disk, as ascending disjoint ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint(Vec<Range<u64>>);

impl Footprint {
    /// All sectors in any of the ranges.
    pub fn of(ranges: Vec<Range<u64>>) -> Self {
        Self(merge(ranges, u64::MAX))
    }

    /// The ranges.
    pub fn ranges(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// What names the content of an image within it, and its length.
    pub fn tag(&self, image: &PageImage) -> ContentHash {
        let mut hash = RunningHash::default();
        for sectors in &self.0 {
            hash.replace(0, image.hash_of(sectors.clone()));
        }
        hash.set_len(image.len());
        hash.finish()
    }

    /// Whether any of `sectors` is among them.
    pub fn meets(&self, sectors: &Range<u64>) -> bool {
        let first = self.0.partition_point(|range| range.end <= sectors.start);
        let next = self.0.get(first);
        !sectors.is_empty() && next.is_some_and(|range| range.start < sectors.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_where_they_share_a_sector() {
        let footprint = Footprint::of(vec![8..9, 0..2, 1..4]);
        for (sectors, meets) in [
            (0..1, true),
            (3..4, true),
            (4..8, false),
            (4..9, true),
            (9..20, false),
            (3..3, false),
        ] {
            assert_eq!(footprint.meets(&sectors), meets, "{sectors:?}");
        }
    }

    #[test]
    fn a_tag_names_what_stands_within_and_the_length() {
        let footprint = Footprint::of(vec![0..1, 4..6]);
        let image = PageImage::from_bytes(&[7; 16 * 512]);
        let tag = footprint.tag(&image);
        for (sector, is_within) in [(0, true), (1, false), (3, false), (5, true), (6, false)] {
            let mut other = image.clone();
            other.write(sector * 512, &[8]);
            assert_eq!(footprint.tag(&other) != tag, is_within, "{sector}");
        }
        let mut longer = image.clone();
        longer.set_len(17 * 512);
        assert_ne!(footprint.tag(&longer), tag);
    }
}
