//! Committing: what an overlay holds goes into the image beneath it.

use super::{Progress, STEP_BYTES, Watch};
use crate::defect::{Defect, Planted};
use crate::error::Error;
use crate::image::{Image, Status, StatusKind, Unmap};
use crate::manage::Manage;
use crate::qcow2::unit::mem_len;
use crate::zeroes::is_zero;

/// What becomes of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlay {
    /// It gives up what it held.
    Empty,
    /// It stays as it is, for the caller to delete.
    Keep,
}

/// How to commit.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// What becomes of the overlay.
    pub overlay: Overlay,
    /// A defect of the operation, in builds that have them.
    pub planted: Planted,
}

/// Copies what `overlay` holds, zeroes included, into `backing`, which it is open over, and makes it
/// durable there. A shorter backing image grows first.
///
/// Until the backing image is durable the overlay hides it, so that the guest sees no difference at any
/// moment; then the overlay is emptied, which happens or does not.
pub async fn commit(
    overlay: &dyn Image,
    backing: &dyn Image,
    how: Commit,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let total_bytes = overlay.virtual_bytes();
    if backing.virtual_bytes() < total_bytes {
        let virtual_bytes = total_bytes;
        backing.manage(Manage::grow(virtual_bytes)).await?;
    }
    let mut done_bytes = 0;
    while done_bytes < total_bytes {
        let status = overlay.status(done_bytes, total_bytes - done_bytes).await?;
        done_bytes += pass_down(overlay, backing, done_bytes, status, how.planted).await?;
        watch(Progress {
            done_bytes,
            total_bytes,
        });
    }
    if how.planted.has(Defect::CommitFlushesOverlay) {
        overlay.flush().await?;
    } else if !how.planted.has(Defect::CommitBeforeFlush) {
        backing.flush().await?;
    }
    match how.overlay {
        Overlay::Empty => overlay.manage(Manage::MakeEmpty).await,
        Overlay::Keep => Ok(()),
    }
}

/// Copies a stretch that is of one kind, or a step of it, and says how much that was in bytes.
async fn pass_down(
    overlay: &dyn Image,
    backing: &dyn Image,
    offset: u64,
    status: Status,
    planted: Planted,
) -> Result<u64, Error> {
    match status.kind {
        StatusKind::Unallocated => Ok(status.len_bytes),
        StatusKind::Zero => {
            if !planted.has(Defect::CommitSkipsZeroes) {
                let unmap = Unmap::Allow;
                backing
                    .write_zeroes(offset, status.len_bytes, unmap)
                    .await?;
            }
            Ok(status.len_bytes)
        }
        StatusKind::Data | StatusKind::Compressed => {
            let len_bytes = status.len_bytes.min(STEP_BYTES);
            let data = overlay.read(offset, mem_len(len_bytes)).await?;
            if is_zero(&data) {
                let unmap = Unmap::Allow;
                backing.write_zeroes(offset, len_bytes, unmap).await?;
            } else {
                backing.write(offset, data).await?;
            }
            Ok(len_bytes)
        }
    }
}
