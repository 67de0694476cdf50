//! Operations on chains of images: an overlay, and what it lies over.
//!
//! They take open images, and never look at a file's name: which file a name means is for the caller to
//! say. Nobody else may use the images meanwhile. Each keeps what the guest sees through the chain, also
//! where power is lost on the way: data are copied first, made durable, and only then is given up or
//! unlinked what they were copied from. Copies go in steps of bounded size.

mod commit;
mod rebase;

pub use commit::{Commit, Overlay, commit};
pub use rebase::{Rebase, Store, rebase, stream};

use crate::error::Error;
use crate::image::Image;
use crate::qcow2::unit::{byte_count, mem_len};

/// The most that is held in memory at once.
const STEP_BYTES: u64 = 1 << 20;

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the guest's disk that are dealt with.
    pub done_bytes: u64,
    /// Bytes of the guest's disk.
    pub total_bytes: u64,
}

/// What is told of the progress.
pub type Watch<'a> = &'a mut dyn FnMut(Progress);

/// What an image shows in a range, zeroes behind its end; all zeroes where there is no image.
async fn content(image: Option<&dyn Image>, offset: u64, len_bytes: u64) -> Result<Vec<u8>, Error> {
    let mut data = vec![0; mem_len(len_bytes)];
    if let Some(image) = image {
        let there = image.virtual_bytes().saturating_sub(offset).min(len_bytes);
        if there > 0 {
            let read = image.read(offset, mem_len(there)).await?;
            data[..read.len()].copy_from_slice(&read);
        }
    }
    Ok(data)
}

/// The ranges of `data` that differ from `other`, in bytes, of whole pieces of `unit` bytes.
fn differences(data: &[u8], other: &[u8], unit: u64) -> Vec<std::ops::Range<u64>> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    let pieces = data.chunks(mem_len(unit)).zip(other.chunks(mem_len(unit)));
    let mut at = 0;
    for (piece, other) in pieces {
        let end = at + byte_count(piece.len());
        if piece != other {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = end,
                Some(_) | None => ranges.push(at..end),
            }
        }
        at = end;
    }
    ranges
}
