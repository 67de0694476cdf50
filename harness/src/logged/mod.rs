//! Crash states of what somebody else did to a disk, from the log of its writes; and such logs of what was done here.
//!
//! [`blkdebug::log_writes`] reads and writes the format; [`import()`] makes a recording of a log, [`export()`] a log of a
//! recording. Of whoever wrote the log nothing is known but what reached the disk, so [`versions`] takes from the log
//! itself what a guest may find, [`judge`] holds a crash state against that and against all that is asked of any image,
//! and [`explore()`] goes through the states. `docs/LOG_WRITES.md` says what follows from a log and what does not.

pub mod explore;
mod export;
mod import;
pub mod judge;
pub mod versions;

pub use explore::{Explored, Finding, Plan, Progress, explore};
pub use export::{Exported, export};
pub use import::{Discards, How, ImportError, Imported, Mark, import};

#[cfg(test)]
mod tests;
