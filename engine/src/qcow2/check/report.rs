//! What a check found: values, counted exactly and listed up to a limit.

use std::fmt;

use crate::device::{Cause, DeviceError};
use crate::error::Structure;
use crate::qcow2::bounds::Excess;
use crate::qcow2::entry::BadEntry;

/// How many findings a report lists; the counts go on.
pub const MAX_FINDINGS: usize = 1000;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// The structure that says so.
    pub structure: Structure,
    /// Where in the file that structure stands; for refcounts, where the cluster stands that is
    /// counted wrongly.
    pub offset: u64,
    /// The index of the entry in its table; for refcounts, the number of the cluster.
    pub index: u64,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entry with reserved bits or an unaligned offset.
    Entry(BadEntry),
    /// A reference to a range that ends beyond the end of the file by a cluster or more.
    BeyondEnd {
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        len_bytes: u64,
    },
    /// A compressed cluster whose entry has COPIED set.
    CompressedCopied,
    /// COPIED set on a cluster whose refcount is not one, or clear on one whose refcount is.
    Copied {
        /// The refcount in the file.
        refcount: u64,
    },
    /// A refcount below the number of references.
    TooLow {
        /// The refcount in the file.
        found: u64,
        /// The number of references.
        expected: u64,
    },
    /// A refcount above the number of references: the space is lost, and nothing else.
    Leak {
        /// The refcount in the file.
        found: u64,
        /// The number of references.
        expected: u64,
    },
    /// More references than a refcount of this image can say.
    TooManyReferences {
        /// The number of references.
        references: u64,
    },
    /// A cluster of the refcount structures that something else refers to as well.
    SharedRefcounts {
        /// The number of references.
        references: u64,
    },
    /// The table that an entry names cannot stand there, or not be so long.
    Place(Excess),
    /// A field of a snapshot or of a bitmap that cannot be right.
    Field(&'static str),
    /// A range that the device could not read.
    Unreadable(Cause),
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space is lost.
    Leak,
    /// Data are lost, or would be by writing on.
    Corruption,
    /// It could not be checked.
    CheckError,
}

impl Kind {
    /// How much this weighs.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Leak { .. } => Severity::Leak,
            Self::Unreadable(_) => Severity::CheckError,
            Self::Entry(_)
            | Self::BeyondEnd { .. }
            | Self::CompressedCopied
            | Self::Copied { .. }
            | Self::TooLow { .. }
            | Self::TooManyReferences { .. }
            | Self::SharedRefcounts { .. }
            | Self::Place(_)
            | Self::Field(_) => Severity::Corruption,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            structure,
            offset,
            index,
        } = self;
        match kind {
            Kind::Leak { found, expected } => {
                write!(
                    f,
                    "leaked cluster {index} refcount={found} reference={expected}"
                )
            }
            Kind::TooLow { found, expected } => {
                write!(f, "cluster {index} refcount={found} reference={expected}")
            }
            Kind::TooManyReferences { references } => write!(
                f,
                "cluster {index} has {references} references, more than its refcount can say"
            ),
            Kind::SharedRefcounts { references } => write!(
                f,
                "{structure} at offset {offset:#x} has {references} references instead of one"
            ),
            Kind::Entry(bad) => {
                write!(f, "{structure} at offset {offset:#x}, entry {index}: {bad}")
            }
            Kind::BeyondEnd {
                offset: to,
                len_bytes,
            } => write!(
                f,
                "{structure} at offset {offset:#x}, entry {index}: {len_bytes} bytes at {to:#x} lie beyond the end of the file"
            ),
            Kind::CompressedCopied => write!(
                f,
                "{structure} at offset {offset:#x}, entry {index}: COPIED is set on a compressed cluster"
            ),
            Kind::Copied { refcount } => write!(
                f,
                "{structure} at offset {offset:#x}, entry {index}: COPIED contradicts refcount {refcount}"
            ),
            Kind::Place(excess) => {
                write!(
                    f,
                    "{structure} at offset {offset:#x}, entry {index}: its table {excess}"
                )
            }
            Kind::Field(problem) => {
                write!(
                    f,
                    "{structure} at offset {offset:#x}, entry {index}: {problem}"
                )
            }
            Kind::Unreadable(cause) => {
                write!(
                    f,
                    "{structure} at offset {offset:#x} cannot be read: {cause}"
                )
            }
        }
    }
}

/// Counts of findings by weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Findings of corruption.
    pub corruptions: u64,
    /// Leaked clusters.
    pub leaks: u64,
}

/// Sizes that a check learns on the way, named as in `qemu-img check --output=json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The end of the last cluster of the file that is referenced or counted.
    pub image_end_offset: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Guest clusters that have a host cluster.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Guest clusters that do not follow the one before in the file.
    pub fragmented_clusters: u64,
}

/// What a check found and what its repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What was found, before any repair: the first [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// What was found before any repair.
    pub found: Tally,
    /// What of it was repaired.
    pub fixed: Tally,
    /// What is still wrong.
    pub remaining: Tally,
    /// Structures that could not be read.
    pub check_errors: u64,
    /// Why the first of those could not.
    pub unreadable: Option<DeviceError>,
    /// Sizes.
    pub totals: Totals,
}

impl CheckReport {
    /// Corruptions and check errors that are left: what makes an image unfit for writing.
    pub fn errors_remaining(&self) -> u64 {
        self.remaining.corruptions + self.check_errors
    }

    /// This report, of the state that a repair started from, with what the repair left.
    pub(super) fn repaired_to(self, remaining: Tally) -> Self {
        Self {
            fixed: Tally {
                corruptions: self.found.corruptions.saturating_sub(remaining.corruptions),
                leaks: self.found.leaks.saturating_sub(remaining.leaks),
            },
            remaining,
            ..self
        }
    }

    /// Whether nothing at all is left to say against the image.
    pub fn is_clean(&self) -> bool {
        self.errors_remaining() == 0 && self.remaining.leaks == 0
    }

    pub(super) fn note(&mut self, kind: Kind, structure: Structure, offset: u64, index: u64) {
        match kind.severity() {
            Severity::Leak => self.count(Tally {
                leaks: 1,
                corruptions: 0,
            }),
            Severity::Corruption => self.count(Tally {
                leaks: 0,
                corruptions: 1,
            }),
            Severity::CheckError => self.check_errors += 1,
        }
        if !self.is_full() {
            self.findings.push(Finding {
                kind,
                structure,
                offset,
                index,
            });
        }
    }

    /// Whether further findings are counted and no longer listed.
    pub(super) fn is_full(&self) -> bool {
        self.findings.len() >= MAX_FINDINGS
    }

    /// Counts findings.
    pub(super) fn count(&mut self, more: Tally) {
        for tally in [&mut self.found, &mut self.remaining] {
            tally.leaks += more.leaks;
            tally.corruptions += more.corruptions;
        }
    }

    pub(super) fn note_unreadable(&mut self, structure: Structure, error: &DeviceError) {
        self.unreadable.get_or_insert_with(|| error.clone());
        self.note(Kind::Unreadable(error.cause), structure, error.offset, 0);
    }
}
