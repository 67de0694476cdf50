//! Block devices that misbehave as real ones do: volatile caches, power loss, faults by event name.
//!
//! It knows requests and the event names that travel with them, and no format: what a request means
//! is the business of whoever made it. Everything here is single-threaded and deterministic; time is
//! a counter ([`record::Clock`]) that the devices of a run share with its guest.

pub mod class;
pub mod config;
pub mod contract;
pub mod disks;
pub mod fault;
pub mod filter;
pub mod layer;
pub mod log_writes;
pub mod mask;
pub mod record;
pub mod rule;
pub mod verify;
pub mod volatile;
