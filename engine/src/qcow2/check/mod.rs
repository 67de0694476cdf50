//! Check and repair: does every refcount say how often its cluster is referenced?
//!
//! Specification: "Refcounts"; the findings are those of `qemu-img check`, whose counts they match.
//! A check ends on any bytes, without panic, and collects what it finds. What it can repair it repairs
//! so that one later check finds nothing at all.

mod bitmaps;
mod claims;
mod compare;
mod counts;
mod rebuild;
mod repair;
mod report;
mod snapshots;
mod stored;
mod survey;
mod walk;

pub(super) use repair::repair_all;
pub use report::{CheckReport, Finding, Kind, MAX_FINDINGS, Severity, Tally, Totals};

use self::survey::Survey;
use super::header;
use crate::defect::Planted;
use crate::device::Port;
use crate::error::Error;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Nothing.
    None,
    /// Refcounts that are too high, and nothing else.
    Leaks,
    /// Everything that can be repaired without losing a byte of the guest's.
    All,
}

/// How to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// A defect of the repair, in builds that have them.
    pub planted: Planted,
}

/// Checks the image in `file`, and repairs as much as `repair` allows. An image that needs no repair
/// is not written.
///
/// Findings are in the report; an error means that the check could not be made, or that a repair was
/// cut short by its device and has to be run again.
pub async fn check(
    file: &Port,
    repair: Repair,
    options: &CheckOptions,
) -> Result<CheckReport, Error> {
    let loaded = header::load(file).await?;
    match repair {
        Repair::None => Ok(Survey::take(file, &loaded.0, Planted::NONE).await.report),
        Repair::Leaks => repair::repair_leaks(file, loaded, options.planted).await,
        Repair::All => repair_all(file, loaded, options.planted).await,
    }
}
