//! Operations of a run that have to do with the files beneath its image.

use std::rc::Rc;

use blkdebug::disks::Disk;
use engine::chain::{self, Commit, Overlay, Progress};
use engine::error::{Error, Refused};
use engine::image::Image;
use engine::manage::Manage;

use super::client::Opener;
use super::files::Opened;
use crate::workload::ops::ChainOperation;

/// Carries out an operation on what the image lies over. An image that is moved must be opened anew
/// afterwards.
pub(super) async fn perform(
    opener: &dyn Opener,
    opened: &Opened,
    operation: ChainOperation,
) -> Result<(), Error> {
    match operation {
        ChainOperation::Commit { overlay } => commit(opener, opened, overlay).await,
        ChainOperation::Rebase { onto } => rebase(opener, opened, onto).await,
        ChainOperation::Stream { base } => stream(opener, opened, base).await,
        ChainOperation::Repoint { onto } => {
            let name = opener.rebase_onto(onto)?.name;
            opened.image.manage(Manage::SetBacking(name)).await
        }
    }
}

/// Commits the image into what it is open over.
async fn commit(opener: &dyn Opener, opened: &Opened, overlay: Overlay) -> Result<(), Error> {
    let backing = opened.beneath.first().ok_or_else(nothing_beneath)?;
    let how = Commit {
        overlay,
        planted: opener.rebase_onto(None)?.planted,
    };
    chain::commit(&*opened.image, &*backing.image, how, &mut unwatched).await
}

/// Moves the image over another file, or over nothing.
async fn rebase(opener: &dyn Opener, opened: &Opened, onto: Option<Disk>) -> Result<(), Error> {
    let how = opener.rebase_onto(onto)?;
    let old = opened.beneath.first();
    let new = match onto {
        Some(disk) => Some(open_once(opener, opened, disk).await?),
        None => None,
    };
    chain::rebase(
        &*opened.image,
        old.map(|file| &*file.image),
        new.as_deref(),
        &how,
        &mut unwatched,
    )
    .await
}

/// Copies up what the files between the image and `base` hold.
async fn stream(opener: &dyn Opener, opened: &Opened, base: Option<Disk>) -> Result<(), Error> {
    let how = opener.rebase_onto(base)?;
    let files = &opened.beneath;
    let count = match base {
        Some(base) => files.iter().position(|file| file.disk == base),
        None => Some(files.len()),
    };
    let count = count
        .filter(|count| *count > 0)
        .ok_or_else(nothing_beneath)?;
    let (between, below) = files.split_at(count);
    let between: Vec<&dyn Image> = between.iter().map(|file| &*file.image).collect();
    let base = below.first().map(|file| &*file.image);
    chain::stream(&*opened.image, &between, base, &how, &mut unwatched).await
}

/// A file for reading: as it is open already, if it is.
async fn open_once(
    opener: &dyn Opener,
    opened: &Opened,
    disk: Disk,
) -> Result<Rc<dyn Image>, Error> {
    let mut open = opened.beneath.iter();
    match open.find(|file| file.disk == disk) {
        Some(file) => Ok(Rc::clone(&file.image)),
        None => opener.open_file(disk).await,
    }
}

fn unwatched(_: Progress) {}

fn nothing_beneath() -> Error {
    Refused::Option("the image does not lie over such a file".into()).into()
}
