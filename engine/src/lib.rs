//! An engine for virtual-disk image formats.
//!
//! It does no I/O but through [`device::Device`], and it has no clock, no randomness, no threads and
//! no environment: what it does is a function of the calls it gets and of what its device answers.
//! It does not know that faults exist; a device that misbehaves is a device like any other.
//!
//! Code that overlaps requests is `async` and runs on any executor that polls it; a device that
//! always completes at once (RAM, a real file) lets [`device::drive`] run it as straight-line code.

pub mod barrier;
pub mod chain;
pub mod defect;
pub mod device;
pub mod error;
pub mod image;
pub mod luks;
pub mod manage;
pub mod preallocation;
pub mod probe;
pub mod qcow2;
pub mod raw;
pub mod sync;
pub mod zeroes;
