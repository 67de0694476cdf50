//! What a power loss may leave behind: every crash state worth visiting, from a recording alone.
//!
//! Nothing here runs engine code. A state is a function of the recording, the moment of the cut and
//! which of the volatile requests survived; [`durability`] says which are volatile, [`state`] builds
//! the content, [`explore`] chooses, [`classes`] leaves nothing out, [`dedupe`] knows what was seen, [`explain`] names the pair of
//! requests that a failing state has in the wrong order.
//!
//! The rules, and where they are enforced:
//! 1. A flush that succeeded makes durable what had completed when it was submitted. What was in
//!    flight then is not covered. ([`durability`])
//! 2. A write with FUA is durable at its own completion, and drains nothing else. ([`durability`])
//! 3. Each volatile request survives or does not, in any subset that the contract allows. Of one
//!    sector the last surviving write wins, in order of completion; what was in flight comes last,
//!    in order of submission. ([`state`])
//! 4. A surviving write is whole, or, where the contract tears, any subset of its sectors.
//! 5. Until a discard is durable, each of its sectors reads old, zero or garbage; so does a write of
//!    zeroes that may unmap. Durable, it reads zero.
//! 6. The length is metadata of its own: an extension may be lost, with the data beyond it, or
//!    survive without its data, which then read zero. A durable write is within the length.
//! 7. Under `epoch-torn-garbage` a sector of any volatile request may read as garbage; a liar ignores, from some
//!    moment on, what it acknowledged. [`destroyed`] says what no other disk could have left.
//! 8. Several disks lose power at one moment. Each has a cache and a length of its own: a flush of one
//!    says nothing about another. ([`durability`])

pub mod classes;
mod cuts;
pub mod dedupe;
pub mod destroyed;
pub mod durability;
pub mod explain;
pub mod explore;
mod filter;
pub mod footprint;
mod forecast;
pub(crate) mod recall;
mod recipe;
#[cfg(test)]
mod reference;
pub mod state;
#[cfg(test)]
mod tests;

pub use blkdebug::class::Class;
