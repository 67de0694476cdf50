//! What judges a crash state, by means of its own.
//!
//! [`structure`] walks the tables, [`view`] reads the guest's disk through them, and [`judge`] holds
//! both against the guest's history and against what recovery makes of the state. None of them shares
//! code with the engine's allocation, check or repair, and none writes to the state it judges.

pub mod damage;
mod explain;
mod inflated;
pub mod judge;
mod key_slots;
mod raw;
#[cfg(test)]
pub(crate) mod sample;
mod service;
mod snapshots;
pub mod structure;
mod succession;
mod sweep;
pub mod verdict;
pub mod view;
mod walked;

pub use damage::{Damage, Readings, Standing};
pub use judge::{Judge, Judgement, Witness};
pub(crate) use key_slots::fingerprint;
pub use raw::judge_raw;
pub use service::Service;
pub use succession::Succession;
pub use verdict::{Acceptance, FailureClass, Oracle, Verdict, Violation};
