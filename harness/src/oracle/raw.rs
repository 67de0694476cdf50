//! Judges a raw file: it has no structure, so that its length and its sectors are all there is.

use engine::device::PageImage;

use super::explain;
use super::verdict::Verdict;
use crate::guest::{Expectation, SectorViolation};
use crate::workload::stamp::SectorValue;

/// Judges what a power loss left of a raw file.
pub fn judge_raw(image: &PageImage, expectation: &Expectation<'_>) -> Verdict {
    if !expectation.virtual_sizes().contains(&image.len()) {
        return explain::size(image.len(), expectation).into();
    }
    let mut checker = expectation.checker();
    let misses: Vec<SectorViolation> = (0..image.len() / 512)
        .filter_map(|sector| checker.check(sector, SectorValue::of(image.sector(sector))))
        .collect();
    match misses.iter().map(|miss| miss.level).max() {
        None => Verdict::Survived,
        Some(worst) => explain::guest(worst, &misses, misses.len()).into(),
    }
}
