//! `commit`: what an image holds goes into its backing file, or into one further down.
//!
//! The backing file has it all, durably, before the image is made empty: whenever the power fails, the
//! image shows the same disk. Into an image further down goes what all images above it hold, and they keep
//! it: what lies between shows less than it did, where the lowest now shows more.

use std::fs;
use std::rc::Rc;

use engine::error::Error;
use engine::image::Access;
use engine::manage::Manage;

use super::copy::{Blank, Fill, Packing, Salvage, Target};
use super::getopt::{
    CACHE, FORMAT, HELP, IMAGE_OPTS, OBJECT, PROGRESS, Parsed, QUIET, flag, value,
};
use super::pace::Pace;
use super::progress::{Progress, Shown};
use super::{Command, Stop, misuse, open_named, print, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::{at_once, open_to_resize};
use crate::block::{CacheMode, Depth, Failure, Node, Opening, Sharing, Spec, name};

pub(super) const COMMAND: Command = Command {
    name: "commit",
    about: "Move what an image holds into its backing file",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        flag(Some('d'), "drop", "leave FILENAME as it is"),
        value(
            Some('b'),
            "base",
            "the image to commit to, further down; FILENAME stays as it is",
        ),
        value(Some('r'), "rate", "bytes written a second, at most"),
        OBJECT,
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("commit", "Expecting one image file name"));
    };
    let cache = CacheMode::of_target(parsed.get("cache").unwrap_or("writeback"))?;
    let rate = sizes::option(parsed, "rate", "rate limit")?.unwrap_or(0);
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let spec = spec_of(name, parsed)?;
    let top = open_named(name, &spec, &opening)?;
    let (above, images) = match parsed.get("base") {
        Some(base) => above_base(name, &top, base)?,
        None if top.backing.is_none() => {
            return Err(Failure::new("Image does not have a backing file").into());
        }
        None => (&top, 1),
    };
    let named = above.backing_spec()?;
    let spec = spec_beneath(spec, &top, images)?;
    let is_named = |spec: &Spec| named.is_some_and(|named| named.file == spec.file);
    let Some(spec) = spec.filter(is_named) else {
        return Err(Failure::new(
            "Committing to another backing file than the one that the image names is not supported yet",
        )
        .into());
    };
    // Two handles to one file are two who would write it.
    if let Some(beneath) = &above.backing {
        beneath.release()?;
    }
    let base = open_to_resize(&spec, &opening)?;
    let shown = Shown::when(parsed.has("progress") && !parsed.has("quiet"));
    let mut progress = Progress::start(shown, top.virtual_bytes(), 1);
    let virtual_bytes = top.virtual_bytes();
    if virtual_bytes > base.virtual_bytes() {
        base.claim_resize()?;
        manage(&base, Manage::grow(virtual_bytes))?;
    }
    let mut copy = Target {
        image: Rc::clone(base.image()),
        cache,
        blank: Blank::Beneath {
            images,
            zero_from: u64::MAX,
        },
        sparse_bytes: 0,
        fill: Fill::Data,
        packing: Packing::Plain,
        pace: Pace::new(rate),
        salvage: Salvage::No,
        progress: &mut progress,
    };
    copy.take_disk(&top)?;
    copy.finish()?;
    if !parsed.has("drop") && !parsed.has("base") {
        at_once(top.image().manage(Manage::MakeEmpty))
            .map_err(|error| Failure(format!("Failed to empty {name}: {}", engine_text(&error))))?;
    }
    at_once(top.image().close()).map_err(|error| failed(&error))?;
    progress.end();
    if !parsed.has("quiet") {
        print("Image committed.\n");
    }
    Ok(0)
}

/// The image of the chain of `top` that lies next above `base`, and how many images there are down to it. As a
/// backing file's name in an image, `base` starts at the folder of the image above it.
fn above_base<'a>(called: &str, top: &'a Node, base: &str) -> Result<(&'a Node, u64), Failure> {
    let (mut above, mut images) = (top, 1);
    while let Some(beneath) = above.backing.as_deref() {
        let here = fs::canonicalize(&beneath.file.path).ok();
        let meant = fs::canonicalize(name::beside(&above.file.path, base)).ok();
        let is_called_so = name::has_protocol(base) && beneath.filename == base;
        if is_called_so || here.is_some() && here == meant {
            return Ok((above, images));
        }
        above = beneath;
        images += 1;
    }
    Err(Failure(format!(
        "Did not find '{base}' in the backing chain of '{called}'"
    )))
}

/// What lies so many images beneath `top`, which `spec` describes: as the caller describes it, or else the image.
fn spec_beneath(mut spec: Spec, top: &Node, images: u64) -> Result<Option<Spec>, Failure> {
    let mut above = Some(top);
    for _ in 0..images {
        let by_image = || above.map_or(Ok(None), Node::backing_spec);
        let Some(beneath) = spec.backing.resolve(by_image)? else {
            return Ok(None);
        };
        spec = beneath;
        above = above.and_then(|node| node.backing.as_deref());
    }
    Ok(Some(spec))
}

fn manage(node: &Node, operation: Manage) -> Result<(), Failure> {
    at_once(node.image().manage(operation)).map_err(|error| failed(&error))
}

fn failed(error: &Error) -> Failure {
    Failure(format!("Block job failed: {}", engine_text(error)))
}
