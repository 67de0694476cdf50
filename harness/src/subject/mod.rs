//! What is under test: whoever opens a crash image and works on with it.
//!
//! A subject is asked three things, each with an image that it may change as it likes: to recover it,
//! to check and repair it, and to serve a guest on it. It answers with what came of it and with a
//! recording of its requests, so that the power can go out in the middle of a repair too. Panics and
//! hangs are answers like any other.

mod engine;
mod metered;

use std::ops::Range;
use std::rc::Rc;

use ::engine::device::PageImage;
use blkdebug::record::Recording;

use crate::caught::Panic;
use crate::crash::footprint::Footprint;
use crate::workload::ops::{Happening, Operation, OperationId};

pub use engine::EngineSubject;
pub(crate) use metered::Metered;

/// What came of asking a subject for something.
#[derive(Clone, Debug)]
pub struct Attempt<T> {
    /// What was asked for, or why it did not come about.
    pub result: Result<T, Failure>,
    /// Every request that the subject made; its base is the image that was given.
    pub recording: Recording,
    /// The image as the subject left it.
    pub image: PageImage,
    /// The file of its guest data as the subject left it, where that is another.
    pub data: Option<PageImage>,
}

/// Why a subject did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It said so.
    Error {
        /// The kind of error, for failure classes.
        kind: String,
        /// What it said.
        message: String,
    },
    /// It panicked.
    Panic(Panic),
    /// It waits for ever, or makes requests for ever.
    Hang {
        /// How many requests it had made by then.
        requests: u64,
    },
    /// It cannot do that, so nothing can be said.
    NotMeasured(String),
}

/// How much a check may repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Nothing.
    None,
    /// Refcounts that are too high.
    Leaks,
    /// Everything.
    All,
}

/// What a check found, and what was left of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Errors that remain.
    pub errors: u64,
    /// Leaks that remain.
    pub leaks: u64,
}

/// What came of each of several reads.
pub type Answers = Vec<Result<Vec<u8>, Failure>>;

/// An implementation of an image format, over a chain of images below that never changes.
pub trait Subject {
    /// Opens the image for reading and writing, with whatever repair the format promises at that;
    /// reads each of `reads`, ranges of guest bytes; closes it.
    fn recover(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Vec<Vec<u8>>>;

    /// The same, with an answer to each of `reads` by itself; what closing comes to is not told. Unless a subject knows
    /// better, each is asked of an image that was opened for it.
    fn read_each(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Answers> {
        let opened = self.recover(image, &[]);
        let read = |range: &Range<u64>| {
            let one = self.recover(image, std::slice::from_ref(range));
            one.result.map(|mut data| data.pop().unwrap_or_default())
        };
        Attempt {
            result: opened.result.map(|_| reads.iter().map(read).collect()),
            recording: opened.recording,
            image: opened.image,
            data: opened.data,
        }
    }

    /// Checks the image, and repairs it as far as `repair` says.
    fn check(&self, image: &PageImage, repair: Repair) -> Attempt<Tally>;

    /// What [`Self::settle`] was told of an image that is the same as this one in length and within those sectors.
    fn is_settled(&self, _image: &PageImage) -> Option<Rc<Footprint>> {
        None
    }

    /// Takes note that the subject leaves this image as it is, when it is recovered and when it is repaired, having
    /// read these sectors. A subject that answers otherwise another time does not remember.
    fn settle(&self, _image: &PageImage, _read: Footprint) {}

    /// Opens the image, carries out the operations one after the other, and closes it. Moments in
    /// the answer are those of the recording.
    fn serve(
        &self,
        image: &PageImage,
        operations: &[(OperationId, Operation)],
    ) -> Attempt<Vec<Happening>>;
}
