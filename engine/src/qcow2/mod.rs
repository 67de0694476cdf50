//! QEMU's qcow2 format, versions 2 and 3. Specification: `docs/interop/qcow2.rst` of QEMU.

pub mod create;
pub mod entry;
pub mod extension;
mod feature;
pub mod geometry;
pub mod header;
pub mod unit;

pub use header::probe;
