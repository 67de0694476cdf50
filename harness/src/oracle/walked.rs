//! What walks over images found lately.
//!
//! Thousands of crash states differ in guest data and not in what the image says of them. A walk hangs on the latter
//! alone, so what one found is remembered by the content of the metadata. That changes no result: it is a function of
//! these bytes and of the file's length. One walk in [`AUDITED`] is made all the same, and compared.

use std::cell::RefCell;
use std::rc::Rc;

use engine::device::PageImage;

use super::structure::{StructureReport, walk};
use crate::crash::footprint::Footprint;
use crate::crash::recall::Recall;

/// Reports of so many bytes are remembered, on each thread.
const MOST_BYTES: usize = 16 << 20;
/// One in so many that were remembered is held to its word.
const AUDITED: u64 = 256;

#[derive(Default)]
struct Known {
    reports: Recall<Rc<StructureReport>>,
    bytes: usize,
    recalled: u64,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// What a walk over `image` finds.
pub(super) fn walked(image: &PageImage) -> Rc<StructureReport> {
    KNOWN.with_borrow_mut(|known| match known.reports.of(image) {
        Some((_, report)) => {
            known.recalled += 1;
            assert!(
                !known.recalled.is_multiple_of(AUDITED) || *report == walk(image),
                "the same metadata are walked alike"
            );
            report
        }
        None => known.learn(image),
    })
}

impl Known {
    fn learn(&mut self, image: &PageImage) -> Rc<StructureReport> {
        let report = Rc::new(walk(image));
        // Where something is wrong, the walk may have looked at what it does not list.
        if report.layout.is_none() || report.finding_count > 0 || report.not_measured.is_some() {
            return report;
        }
        if self.bytes >= MOST_BYTES {
            (self.reports, self.bytes) = (Recall::default(), 0);
        }
        self.bytes += size_of_val(&*report)
            + size_of_val(&*report.mapped)
            + size_of_val(&*report.referred)
            + size_of_val(&*report.metadata);
        let metadata = Footprint::of(report.metadata.clone());
        self.reports.learn(image, metadata, Rc::clone(&report));
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::sample::Sample;

    /// What is remembered of an image is what a walk finds, and how often it was remembered.
    fn recalled(sample: &Sample) -> u64 {
        let before = KNOWN.with_borrow(|known| known.recalled);
        assert_eq!(*walked(&sample.image), walk(&sample.image));
        KNOWN.with_borrow(|known| known.recalled) - before
    }

    #[test]
    fn a_walk_is_remembered_until_metadata_or_the_length_change() {
        let mut sample = Sample::new();
        let data = sample.map(3, 7);
        assert_eq!((recalled(&sample), recalled(&sample)), (0, 1));
        let mut other = sample.clone();
        other.image.write(other.offset(data), &[8; 512]);
        assert_eq!(recalled(&other), 1, "guest data");
        for change in 0..5 {
            let mut other = sample.clone();
            match change {
                0 => other.image.set_len(other.image.len() + 512),
                1 => other.count(data + 1, 1),
                2 => other.entry(3, other.offset(data)),
                3 => other.entry(4, 1),
                _ => other = other.dirty(),
            }
            assert_eq!((recalled(&other), recalled(&other)), (0, 1), "{change}");
        }
        assert_eq!(recalled(&sample), 1, "the first is still known");
    }

    #[test]
    fn what_is_wrong_is_found_each_time() {
        let mut sample = Sample::new();
        let data = sample.map(3, 7);
        sample.count(data, 0);
        assert_eq!((recalled(&sample), recalled(&sample)), (0, 0));
    }
}
