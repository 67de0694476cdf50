//! A trace: everything needed to run one case again, and what it must come to.
//!
//! A run is reproduced by its trace, not by its seed: a trace spells out the image, the operations, the
//! schedule, the faults and the crash, by names that a person can read. `docs/TRACE.md` describes the
//! format and how it changes. The types that runs are made of know nothing of JSON; `json` does.
//!
//! What a trace is read from may come from anywhere: reading it ends with a trace that means something or
//! with one line that says what is wrong and where.

mod bytes;
mod faults;
mod json;
mod locate;
mod text;

use std::fmt;

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use engine::device::{Event, OpKind, PageImage};

use crate::fault::silent::Wound;
use crate::oracle::Acceptance;
use crate::workload::shape::Scenario;

pub use locate::Misplaced;
pub use text::{BadText, operation_text};

/// The major version of the format that is read and written here.
pub const MAJOR: u32 = 1;
/// The newest minor version that is understood.
pub const MINOR: u32 = 13;

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What happened, in a sentence for people.
    pub about: String,
    /// What the run starts from.
    pub scenario: Scenario,
    /// The schedule.
    pub choices: Vec<u32>,
    /// The power loss; `None` where the run itself went wrong, or where all its crash states matter.
    pub crash: Option<Crash>,
    /// What became of the image without a word, at rest behind the workload. Then there is no power loss.
    pub damage: Option<Wound>,
    /// What it must come to.
    pub expected: Expected,
    /// How little it takes to come to that, where it was found out.
    pub shown: Option<Shown>,
    /// The digest of the run when the trace was written; another digest means that the engine writes
    /// something else by now.
    pub digest: Option<u128>,
}

/// What a case must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing is wrong.
    Survived,
    /// A violation of this class.
    Violated(String),
}

/// How little it takes for a violation to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The weakest contract under which it does.
    pub contract: Contract,
    /// The mildest acceptance under which the state of the trace still fails.
    pub breaks: Acceptance,
}

impl fmt::Display for Shown {
    /// What follows on "shown by".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { contract, breaks } = self;
        let disk = contract.describe();
        write!(
            f,
            "any disk that {disk} ({contract}); breaks: {}",
            breaks.broken()
        )
    }
}

/// A power loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// When.
    pub cut: Cut,
    /// What of the volatile requests survived; the others are lost.
    pub survivors: Vec<Survivor>,
    /// The first flush, or write with FUA, that the disks acknowledged and ignored, as they did all that followed.
    pub ignored_from: Option<RequestRef>,
    /// What came after it, where that is what went wrong.
    pub then: Option<Then>,
}

/// What comes after a power loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// A second power loss, while the image was being repaired.
    Repair {
        /// On which disk.
        disk: Disk,
        /// Which of the attempts on it that wrote something, from 0.
        attempt: usize,
        /// When, among the requests of that attempt, and what survived.
        crash: Box<Crash>,
    },
    /// Work on the recovered image.
    Service {
        /// A second power loss during that work.
        crash: Option<Box<Crash>>,
    },
}

/// Power losses one after the other, each inside an attempt to repair what the one before left on a disk; `None` where
/// there are none.
pub fn in_repairs(disk: Disk, way: Vec<(usize, Crash)>) -> Option<Then> {
    way.into_iter().rev().fold(None, |then, (attempt, crash)| {
        let crash = Box::new(Crash { then, ..crash });
        Some(Then::Repair {
            disk,
            attempt,
            crash,
        })
    })
}

/// The moment of a power loss: just before something would have happened on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What was about to happen; `None` at the end of the run.
    pub before: Option<(Edge, RequestRef)>,
    /// The moment as it was counted when the trace was written.
    pub moment: u64,
}

/// One of the two ends of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It is handed to the device.
    Submission,
    /// The device answers.
    Completion,
}

/// A request, named so that it is found again: by what caused it and how many came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestRef {
    /// Of which disk.
    pub disk: Disk,
    /// On whose behalf it was made.
    pub event: Event,
    /// What was asked.
    pub kind: OpKind,
    /// How many requests of the same event and kind came before it on its device.
    pub ordinal: u64,
}

/// A volatile request of which something survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Which request.
    pub request: RequestRef,
    /// What is left of its content.
    pub content: Left,
    /// What became of the file's new length, where the request changes it.
    pub length: LengthLeft,
}

/// What is left of a request's content. Sectors are counted from the request's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// All of it.
    Whole,
    /// These sectors, ascending.
    Sectors(Vec<usize>),
    /// These sectors read as asked, which of a discard is zero, and those read garbage.
    Scattered {
        /// Ascending.
        asked: Vec<usize>,
        /// Ascending.
        garbage: Vec<usize>,
    },
}

/// What became of a change of the file's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthLeft {
    /// It survived with what is left of the content.
    Kept,
    /// It is lost, and the content beyond it with it.
    Lost,
}

/// Why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTrace {
    /// It is not JSON, or not of this form.
    #[error("line {line}, column {column}: {problem}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// It is of a version that is not known here.
    #[error("{0}")]
    Version(String),
    /// It is well-formed and means nothing.
    #[error("{field}: {problem}")]
    Meaning {
        /// The field, from the top.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Loads an image that a trace refers to by path.
pub type Loader<'a> = &'a dyn Fn(&str) -> Result<PageImage, String>;

impl Trace {
    /// The trace as text.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a trace; images that it refers to by path are fetched by `loader`.
    pub fn from_json(text: &str, loader: Loader<'_>) -> Result<Self, BadTrace> {
        json::read(text, loader)
    }
}

#[cfg(test)]
mod tests;
