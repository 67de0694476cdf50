//! Putting an overlay over another image without changing what it shows.

use super::{Progress, STEP_BYTES, Watch, content, differences};
use crate::defect::{Defect, Planted};
use crate::device::SECTOR_BYTES;
use crate::error::Error;
use crate::image::{Image, StatusKind, Unmap};
use crate::manage::{BackingName, Manage};
use crate::qcow2::unit::{byte_count, mem_len};
use crate::zeroes::is_zero;

/// How copies are stored in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// As they are, and no more of them than must be.
    Plain,
    /// Compressed, cluster by cluster.
    Compressed {
        /// Bytes in a cluster of the overlay.
        cluster_bytes: u64,
    },
}

impl Store {
    /// What is copied at once: no smaller part is compared.
    fn unit_bytes(self) -> u64 {
        match self {
            Self::Plain => SECTOR_BYTES,
            Self::Compressed { cluster_bytes } => cluster_bytes,
        }
    }
}

/// How to rebase.
#[derive(Clone, Debug)]
pub struct Rebase {
    /// What the overlay says of its new backing file; `None` for none.
    pub name: Option<BackingName>,
    /// How copies are stored.
    pub store: Store,
    /// A defect of the operation, in builds that have them.
    pub planted: Planted,
}

/// Moves `overlay` from `old`, which it is open over, to `new`: copies whatever the overlay shows of `old`
/// and `new` would show otherwise, makes that durable, and then names the new backing file. Without a
/// backing file the disk shows zeroes.
///
/// The overlay must be closed and opened over `new` afterwards. To change the name alone, whatever the
/// files hold, ask for [`Manage::SetBacking`].
pub async fn rebase(
    overlay: &dyn Image,
    old: Option<&dyn Image>,
    new: Option<&dyn Image>,
    how: &Rebase,
    watch: Watch<'_>,
) -> Result<(), Error> {
    if how.planted.has(Defect::RebaseNamesFirst) {
        let name = how.name.clone();
        overlay.manage(Manage::SetBacking(name)).await?;
    }
    let total_bytes = overlay.virtual_bytes();
    // Behind the ends of both nothing differs.
    let ends = [old, new].map(|image| image.map_or(0, Image::virtual_bytes));
    let end = if how.planted.has(Defect::RebaseIgnoresEnd) {
        ends[1]
    } else {
        ends[0].max(ends[1])
    };
    let end = end.next_multiple_of(how.store.unit_bytes());
    let mut done_bytes = 0;
    while done_bytes < total_bytes {
        let status = overlay.status(done_bytes, total_bytes - done_bytes).await?;
        let mut len_bytes = status.len_bytes;
        if status.kind == StatusKind::Unallocated && done_bytes < end {
            len_bytes = len_bytes.min(end - done_bytes);
            len_bytes = len_bytes.min(STEP_BYTES.max(how.store.unit_bytes()));
            let data = content(old, done_bytes, len_bytes).await?;
            let other = content(new, done_bytes, len_bytes).await?;
            for range in differences(&data, &other, how.store.unit_bytes()) {
                let part = &data[mem_len(range.start)..mem_len(range.end)];
                let at = done_bytes + range.start;
                keep(overlay, old, at, part, how.store).await?;
            }
        }
        done_bytes += len_bytes;
        watch(Progress {
            done_bytes,
            total_bytes,
        });
    }
    switch(overlay, how, Defect::RebaseBeforeFlush).await
}

/// Copies into `active` what the images between it and `base` hold, makes that durable, and then names
/// `base` as the backing file: the images between are needed no more. `between` are those, from the one
/// that `active` is open over down to the one above `base`. Without a base all is copied.
///
/// The active image must be closed and opened over `base` afterwards.
pub async fn stream(
    active: &dyn Image,
    between: &[&dyn Image],
    base: Option<&dyn Image>,
    how: &Rebase,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let Some(top) = between.first().copied() else {
        return active.manage(Manage::SetBacking(how.name.clone())).await;
    };
    let looked_at = if how.planted.has(Defect::StreamLooksOneDeep) {
        &between[..1]
    } else {
        between
    };
    let total_bytes = active.virtual_bytes();
    let unit = how.store.unit_bytes();
    let mut done_bytes = 0;
    while done_bytes < total_bytes {
        let status = active.status(done_bytes, total_bytes - done_bytes).await?;
        let mut len_bytes = status.len_bytes;
        if status.kind == StatusKind::Unallocated {
            let held;
            (held, len_bytes) = whole_units(looked_at, done_bytes, len_bytes, unit).await?;
            if held {
                len_bytes = len_bytes.min(STEP_BYTES.max(unit));
                let data = content(Some(top), done_bytes, len_bytes).await?;
                let hides = base.is_some() && !how.planted.has(Defect::StreamSkipsZeroes);
                if hides || !is_zero(&data) {
                    keep(active, Some(top), done_bytes, &data, how.store).await?;
                }
            }
        }
        done_bytes += len_bytes;
        watch(Progress {
            done_bytes,
            total_bytes,
        });
    }
    switch(active, how, Defect::StreamBeforeFlush).await
}

/// Names the new backing file, after what was copied for it is durable; `early` is the defect that does
/// not wait for that.
async fn switch(overlay: &dyn Image, how: &Rebase, early: Defect) -> Result<(), Error> {
    if !how.planted.has(early) {
        overlay.flush().await?;
    }
    overlay.manage(Manage::SetBacking(how.name.clone())).await
}

/// As [`holding`], for what is copied at once: a unit of which any part is held counts as held.
async fn whole_units(
    images: &[&dyn Image],
    offset: u64,
    len_bytes: u64,
    unit: u64,
) -> Result<(bool, u64), Error> {
    let (mut held, mut reach) = holding(images, offset, len_bytes).await?;
    if reach > unit {
        reach -= reach % unit;
    }
    while !reach.is_multiple_of(unit) && reach < len_bytes {
        let rest = (unit - reach % unit).min(len_bytes - reach);
        let (more, len) = holding(images, offset + reach, rest).await?;
        held |= more;
        reach += len;
    }
    Ok((held, reach))
}

/// Whether any of these images decides what the disk shows at `offset`, and how far that goes. Behind its
/// end an image shows zeroes, and so decides too.
async fn holding(images: &[&dyn Image], offset: u64, len_bytes: u64) -> Result<(bool, u64), Error> {
    let mut len_bytes = len_bytes;
    for image in images {
        let there = image.virtual_bytes().saturating_sub(offset).min(len_bytes);
        if there == 0 {
            return Ok((true, len_bytes));
        }
        let status = image.status(offset, there).await?;
        len_bytes = status.len_bytes;
        if status.kind != StatusKind::Unallocated {
            return Ok((true, len_bytes));
        }
    }
    Ok((false, len_bytes))
}

/// Stores in `overlay` what it shows already, so that it shows it whatever lies beneath.
async fn keep(
    overlay: &dyn Image,
    beneath: Option<&dyn Image>,
    offset: u64,
    data: &[u8],
    store: Store,
) -> Result<(), Error> {
    if is_zero(data) {
        // Over nothing, an image may represent zeroes by holding nothing, which would let the new file show.
        return match beneath {
            Some(_) => {
                let len_bytes = byte_count(data.len());
                overlay.write_zeroes(offset, len_bytes, Unmap::Allow).await
            }
            None => overlay.write_held(offset, data.to_vec()).await,
        };
    }
    match store {
        Store::Plain => overlay.write(offset, data.to_vec()).await,
        Store::Compressed { .. } => overlay.write_compressed(offset, data.to_vec()).await,
    }
}
