//! QEMU's qcow2 format, versions 2 and 3. Specification: `docs/interop/qcow2.rst` of QEMU.

pub mod entry;
pub mod geometry;
pub mod header;
pub mod unit;
