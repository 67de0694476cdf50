//! The feature families, and what distinguishes them.

use std::fmt;

use clap::ValueEnum;

/// A family of features that histories are drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Family {
    /// Version 2.
    V2,
    /// Version 3, any refcount width.
    Plain,
    /// Lazy refcounts.
    Lazy,
    /// Over a raw or qcow2 backing file, shorter or longer.
    Backing,
    /// Writes of compressed clusters, zlib.
    Zlib,
    /// Writes of compressed clusters, zstd.
    Zstd,
    /// Growing and shrinking.
    Resize,
    /// Metadata or data allocated beforehand.
    Preallocation,
    /// Changes of version, refcount width and lazy refcounts.
    Amend,
    /// Extended L2 entries.
    ExtendedL2,
    /// Guest data in another file.
    DataFile,
    /// Internal snapshots.
    Snapshots,
    /// Persistent bitmaps.
    Bitmaps,
    /// Encryption by LUKS.
    Luks,
    /// Encryption as it was before LUKS.
    Aes,
    /// Committing to the backing file.
    Commit,
    /// Moving to another backing file.
    Rebase,
    /// Options of the open image: discards, zeroes, overlaps, caches.
    Options,
    /// Rules of blkdebug and blkverify, each side on an image of its own.
    Blkdebug,
}

impl Family {
    pub(super) const ALL: [Self; 19] = [
        Self::V2,
        Self::Plain,
        Self::Lazy,
        Self::Backing,
        Self::Zlib,
        Self::Zstd,
        Self::Resize,
        Self::Preallocation,
        Self::Amend,
        Self::ExtendedL2,
        Self::DataFile,
        Self::Snapshots,
        Self::Bitmaps,
        Self::Luks,
        Self::Aes,
        Self::Commit,
        Self::Rebase,
        Self::Options,
        Self::Blkdebug,
    ];

    /// Whether images open only with the secret.
    pub(super) fn is_encrypted(self) -> bool {
        matches!(self, Self::Luks | Self::Aes)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no family is hidden");
        f.pad(value.get_name())
    }
}
