//! Cache modes: when written data must be on the medium.
//!
//! The modes that bypass the host's page cache (`none`, `directsync`) keep their promises about
//! durability here and use the page cache nevertheless.

use super::Failure;

/// What a write's completion promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CacheMode {
    /// Durable after a flush.
    #[default]
    WriteBack,
    /// Durable at once.
    WriteThrough,
    /// Nothing: flushes are not passed on.
    Unsafe,
}

impl CacheMode {
    /// The mode of QEMU's name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" | "off" | "writeback" => Some(Self::WriteBack),
            "directsync" | "writethrough" => Some(Self::WriteThrough),
            "unsafe" => Some(Self::Unsafe),
            _ => None,
        }
    }

    /// The mode of a `-t` option.
    pub(crate) fn of_target(name: &str) -> Result<Self, Failure> {
        Self::from_name(name).ok_or_else(|| Failure(format!("Invalid cache option: {name}")))
    }

    /// The mode of a `-T` option.
    pub(crate) fn of_source(name: &str) -> Result<Self, Failure> {
        Self::from_name(name).ok_or_else(|| Failure(format!("Invalid source cache option: {name}")))
    }
}
