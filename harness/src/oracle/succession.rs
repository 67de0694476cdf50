//! A history that goes on from what an image shows.
//!
//! Whoever opens an image that another process left finds one content, whatever that process had asked for:
//! what comes after is held against what was found there.

use engine::device::PageImage;

use super::judge::{Witness, interest};
use super::view::Backing;
use crate::guest::{Content, Expectation, Ledger};
use crate::workload::ops::Happening;

/// An image from which another history starts.
#[derive(Clone, Debug)]
pub struct Succession<'a> {
    /// The image.
    pub witness: &'a Witness,
    /// What lies below it.
    pub backing: Option<&'a Backing>,
    /// The file that its guest data stand in, where that is another.
    pub data: Option<&'a PageImage>,
    /// What would show if the image held nothing.
    pub beneath: Content,
}

impl Succession<'_> {
    /// The history of these operations on the disk that the image shows. `before` is what might have been
    /// found: it tells where to look. `None` where the image cannot be read.
    pub fn ledger(self, before: &Expectation<'_>, history: &[Happening]) -> Option<Ledger> {
        let Self {
            witness,
            backing,
            data,
            beneath,
        } = self;
        let view = witness.view(backing, data)?;
        let content = view.content(interest(&view, before));
        let past = witness.past(backing);
        let bytes = view.virtual_bytes();
        let ledger = Ledger::from_start(content, beneath, bytes, past, history);
        Some(ledger.with_bitmaps(&witness.report.bitmaps))
    }
}
