//! What becomes of discards, and of the space of clusters that are in use no more.
//!
//! None of this changes what the guest may read, nor what is allocated where nothing was discarded:
//! it is about who is asked to give space back, and when a mapping lets go of its cluster.

use super::entry::{Copied, Mapping};
use super::free::Unlink;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::unit::{GuestCluster, HostOffset};
use crate::defect::Defect;
use crate::error::Error;
use crate::image::Unmap;

/// How an open image treats discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Discards {
    /// What the guest's discards do (QEMU's `discard`).
    pub guest: GuestDiscards,
    /// What a discarded mapping does with its cluster (`discard-no-unref`). Version 2 has no entry that
    /// says "zeroes" and names a cluster, and never keeps one.
    pub cluster: DiscardedCluster,
    /// Whether the file is told of what the guest discarded or zeroed (`pass-discard-request`).
    pub request: Pass,
    /// Whether the file is told of what a deleted snapshot or an emptied image held
    /// (`pass-discard-snapshot`).
    pub snapshot: Pass,
    /// Whether the file is told of what anything else freed (`pass-discard-other`).
    pub other: Pass,
    /// Whether the file is told of what a write replaced. QEMU never does that: the next write that
    /// needs a cluster takes it.
    pub replaced: Pass,
}

/// What the guest's discards do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestDiscards {
    /// Nothing, and zeroes that the guest writes keep their space.
    Ignored,
    /// They are carried out.
    Obeyed,
}

/// What a discarded mapping does with its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiscardedCluster {
    /// It lets go of it.
    Freed,
    /// It keeps it in reserve and says "zeroes", where nobody else uses the cluster: later writes go
    /// where they went before, and the file does not fragment.
    Kept,
}

/// Whether the file is asked to give the space of a cluster back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// It is not: the space is used again.
    No,
    /// It is.
    Yes,
}

/// Why a cluster is in use no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The guest discarded or zeroed it.
    Request,
    /// It belonged to a snapshot that is gone, to an image that was emptied, or to the end of a disk that is
    /// smaller now.
    Snapshot,
    /// A write went elsewhere.
    Replaced,
    /// Anything else.
    Other,
}

impl Discards {
    /// The file is told of everything.
    pub const ALL_PASSED: Self = Self {
        guest: GuestDiscards::Obeyed,
        cluster: DiscardedCluster::Freed,
        request: Pass::Yes,
        snapshot: Pass::Yes,
        other: Pass::Yes,
        replaced: Pass::Yes,
    };

    /// Whether the file is told of a cluster that is free for this reason.
    pub(super) fn passes(self, source: Source) -> bool {
        let pass = match source {
            Source::Request => self.request,
            Source::Snapshot => self.snapshot,
            Source::Replaced => self.replaced,
            Source::Other => self.other,
        };
        pass == Pass::Yes
    }

    /// How to zero where the caller asks for `unmap`.
    pub(super) fn unmap(self, unmap: Unmap) -> Unmap {
        match self.guest {
            GuestDiscards::Ignored => Unmap::Keep,
            GuestDiscards::Obeyed => unmap,
        }
    }
}

impl Default for Discards {
    /// QEMU's defaults, where the caller lets it discard.
    fn default() -> Self {
        Self {
            other: Pass::No,
            replaced: Pass::No,
            ..Self::ALL_PASSED
        }
    }
}

impl Qcow2 {
    /// What a mapping becomes that lets go of its content and may keep its cluster: rule 29.
    pub(super) fn with_cluster_kept(&self, old: Mapping) -> Option<Mapping> {
        let freed = self.discards.cluster == DiscardedCluster::Freed;
        // In an external data file every cluster has its place anyway.
        if freed || self.version.get() < 3 || self.geometry.has_external_data() {
            return None;
        }
        let offset = owned(old)?;
        if self.planted.has(Defect::KeptForgetsZero) {
            return Some(old);
        }
        Some(Mapping::Zero {
            reserve: Some((offset, Copied::Yes)),
        })
    }
}

impl Metadata {
    /// Rule 29: gives the space back of what discarded mappings, from `first` on and within one slice,
    /// keep; after the write of that slice.
    pub(super) fn punch_kept(
        &mut self,
        first: GuestCluster,
        old: &[Mapping],
        new: &[Mapping],
    ) -> Result<(), Error> {
        if self.discards.request == Pass::No {
            return Ok(());
        }
        let Some(slice) = self.slice_of(first)? else {
            return Ok(());
        };
        for (old, new) in old.iter().zip(new) {
            let emptied = old.has_content() || self.planted.has(Defect::KeptForgetsZero);
            if let Some(offset) = owned(*new).filter(|kept| emptied && owned(*old) == Some(*kept)) {
                self.punch_after(Unlink::BySlice(slice), self.geometry.cluster_of(offset));
            }
        }
        Ok(())
    }
}

/// The cluster that a mapping refers to alone.
fn owned(mapping: Mapping) -> Option<HostOffset> {
    match mapping.parts() {
        (Some((offset, Copied::Yes)), _) => Some(offset),
        (Some((_, Copied::No)) | None, _) => None,
    }
}
