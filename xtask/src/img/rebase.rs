//! `rebase`: another backing file for an image, which shows the same disk afterwards.
//!
//! What the old backing file shows and the new one does not is copied first. With `-u` only the name
//! changes, and the disk shows whatever the new backing file holds.

use std::fs;
use std::os::unix::fs::MetadataExt;

use engine::chain::{Rebase, Store, rebase};
use engine::defect::Planted;
use engine::error::Error;
use engine::image::Access;
use engine::manage::{BackingName, Manage};
use engine::qcow2::header::Header;

use super::create::open_beneath;
use super::getopt::{
    CACHE, FORMAT, HELP, IMAGE_OPTS, OBJECT, PROGRESS, Parsed, QUIET, flag, value,
};
use super::progress::{Progress, Shown};
use super::{Command, Stop, misuse, open_named, secrets, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::secret::Secrets;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing};

pub(super) const COMMAND: Command = Command {
    name: "rebase",
    about: "Change the backing file of an image",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        value(Some('b'), "backing", "the new backing file; empty for none"),
        value(
            Some('F'),
            "backing-format",
            "the format of the new backing file",
        ),
        flag(Some('u'), "backing-unsafe", "change the name only"),
        flag(Some('c'), "compress", "compress what is copied"),
        value(
            Some('T'),
            "backing-cache",
            "the cache mode of the backing files (writeback)",
        ),
        flag(
            Some('U'),
            "force-share",
            "others may write the backing files meanwhile",
        ),
        OBJECT,
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("rebase", "Expecting one image file name"));
    };
    let is_unsafe = parsed.has("backing-unsafe");
    if !is_unsafe && !parsed.has("backing") {
        return Err(misuse(
            "rebase",
            "Must specify backing file (-b) or use unsafe mode (-u)",
        ));
    }
    let cache = CacheMode::of_target(parsed.get("cache").unwrap_or("writeback"))?;
    CacheMode::of_source(parsed.get("backing-cache").unwrap_or("writeback"))?;
    let backing = parsed.get("backing").filter(|backing| !backing.is_empty());
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache,
        depth: if is_unsafe {
            Depth::Alone
        } else {
            Depth::Chain
        },
        secrets: &secrets,
    };
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    must_take_backing(&node, backing)?;
    let new = new_name(backing, parsed.get("backing-format"))?;
    if is_unsafe {
        at_once(node.image().manage(Manage::SetBacking(new)))
            .map_err(|error| not_changed(backing, &error))?;
    } else {
        let shown = Shown::when(parsed.has("progress") && !parsed.has("quiet"));
        let beneath = match backing {
            Some(backing) => Some(open_new(
                name,
                &node,
                backing,
                parsed.get("backing-format"),
                &secrets,
            )?),
            None => None,
        };
        move_over(&node, beneath.as_ref(), new, packing(parsed, &node)?, shown)
            .map_err(|error| not_changed(backing, &error))?;
    }
    at_once(node.image().close()).map_err(|error| not_changed(backing, &error))?;
    Ok(0)
}

fn not_changed(backing: Option<&str>, error: &Error) -> Failure {
    not_changed_because(backing, &engine_text(error))
}

fn not_changed_because(backing: Option<&str>, why: &str) -> Failure {
    Failure(format!(
        "Could not change the backing file to '{}': {why}",
        backing.unwrap_or_default(),
    ))
}

/// Refuses a backing file for a disk that a raw data file shows all of.
fn must_take_backing(node: &Node, backing: Option<&str>) -> Result<(), Failure> {
    let raw = node.header.as_ref().is_some_and(Header::has_raw_data_file);
    if raw && backing.is_some() {
        return Err(not_changed_because(backing, "Invalid argument"));
    }
    Ok(())
}

fn new_name(backing: Option<&str>, format: Option<&str>) -> Result<Option<BackingName>, Failure> {
    match (backing, format) {
        (None, _) => Ok(None),
        (Some(backing), None) => Err(Failure(format!(
            "Could not change the backing file to '{backing}': backing format must be specified"
        ))),
        (Some(backing), Some(format)) => Ok(Some(BackingName {
            name: backing.to_owned(),
            format: Some(format.to_owned()),
        })),
    }
}

/// Opens the new backing file, which must not be or lie over the image itself.
fn open_new(
    name: &str,
    node: &Node,
    backing: &str,
    format: Option<&str>,
    secrets: &Secrets,
) -> Result<Node, Failure> {
    if let Some(format) = format.filter(|format| Format::from_name(format).is_none()) {
        return Err(Failure(format!("Invalid format name: '{format}'")));
    }
    let failed = |why: &str| {
        Failure(format!(
            "Could not open new backing file '{backing}': {why}"
        ))
    };
    let extent = (Sharing::ByFormat, Depth::Chain);
    let new = open_beneath(name, backing, format, extent, secrets).map_err(|why| failed(&why.0))?;
    let identity = |node: &Node| {
        let metadata = fs::metadata(&node.file.path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let mut here = Some(&new);
    while let Some(image) = here {
        if identity(image) == identity(node) {
            return Err(failed(&format!(
                "Failed to get shared \"write\" lock\nIs another process using the image [{}]?",
                image.file.path
            )));
        }
        here = image.backing.as_deref();
    }
    Ok(new)
}

fn packing(parsed: &Parsed, node: &Node) -> Result<Store, Failure> {
    match &node.header {
        _ if !parsed.has("compress") => Ok(Store::Plain),
        Some(header) => Ok(Store::Compressed {
            cluster_bytes: header.geometry.cluster_bytes(),
        }),
        None => Err(Failure::new(
            "Compression not supported for this file format",
        )),
    }
}

fn move_over(
    node: &Node,
    beneath: Option<&Node>,
    name: Option<BackingName>,
    store: Store,
    shown: Shown,
) -> Result<(), Error> {
    let how = Rebase {
        name,
        store,
        planted: Planted::NONE,
    };
    let old = node.backing.as_deref();
    let mut progress = Progress::start(shown, node.virtual_bytes(), 1);
    at_once(rebase(
        node.image().as_ref(),
        old.map(|old| old.image().as_ref()),
        beneath.map(|beneath| beneath.image().as_ref()),
        &how,
        &mut |at| progress.at(at.done_bytes),
    ))?;
    progress.end();
    Ok(())
}
