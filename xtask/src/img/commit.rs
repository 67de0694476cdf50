//! `commit`: what an image holds goes into its backing file.
//!
//! The backing file has it all, durably, before the image is made empty: whenever the power fails, the
//! image shows the same disk.

use std::rc::Rc;

use engine::error::Error;
use engine::image::Access;
use engine::manage::Manage;

use super::copy::{Blank, Packing, Salvage, Target};
use super::getopt::{Parsed, flag, value};
use super::progress::{Progress, Shown};
use super::{Command, Stop, misuse, open_named, print, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Node, Opening, Sharing};

pub(super) const COMMAND: Command = Command {
    name: "commit",
    about: "Move what an image holds into its backing file",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        flag(Some('p'), "progress", "show how far it is"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('t'), "cache", "the cache mode (writeback)"),
        flag(Some('d'), "drop", "leave FILENAME as it is"),
        value(
            Some('b'),
            "base",
            "an image further down; not supported yet",
        ),
        value(Some('r'), "rate", "bytes a second; no limit is kept yet"),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("commit", "Expecting one image file name"));
    };
    let cache = CacheMode::of_target(parsed.get("cache").unwrap_or("writeback"))?;
    sizes::option(parsed, "rate", "rate limit")?;
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::Readers,
        cache,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let top = open_named(name, &spec_of(name, parsed)?, &opening)?;
    if parsed.has("base") {
        return Err(Failure::new("Committing to a base (-b) is not supported yet").into());
    }
    let Some(beneath) = &top.backing else {
        return Err(Failure::new("Image does not have a backing file").into());
    };
    let spec = top.backing_spec()?;
    let Some(spec) = spec.filter(|spec| spec.file == beneath.file.spec) else {
        return Err(Failure::new(
            "Committing to another backing file than the one that the image names is not supported yet",
        )
        .into());
    };
    let base = open_named(&spec.called, &spec, &opening)?;
    let shown = Shown::when(parsed.has("progress") && !parsed.has("quiet"));
    let mut progress = Progress::start(shown, top.virtual_bytes(), 1);
    copy_down(&top, &base, cache, &mut progress)?;
    if !parsed.has("drop") {
        manage(&top, Manage::MakeEmpty)?;
    }
    at_once(top.image().close()).map_err(|error| failed(&error))?;
    progress.end();
    if !parsed.has("quiet") {
        print("Image committed.\n");
    }
    Ok(0)
}

fn copy_down(
    top: &Node,
    base: &Node,
    cache: CacheMode,
    progress: &mut Progress,
) -> Result<(), Stop> {
    let virtual_bytes = top.virtual_bytes();
    if virtual_bytes > base.virtual_bytes() {
        manage(base, Manage::Resize { virtual_bytes })?;
    }
    let mut copy = Target {
        image: Rc::clone(base.image()),
        cache,
        blank: Blank::Beneath,
        sparse_bytes: 0,
        packing: Packing::Plain,
        salvage: Salvage::No,
        progress,
    };
    copy.take(top, 0)?;
    copy.finish()
}

fn manage(node: &Node, operation: Manage) -> Result<(), Failure> {
    at_once(node.image().manage(operation)).map_err(|error| failed(&error))
}

fn failed(error: &Error) -> Failure {
    Failure(format!("Block job failed: {}", engine_text(error)))
}
