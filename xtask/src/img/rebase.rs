//! `rebase -u`: another backing file's name in an image's header, and nothing else.

use engine::error::Error;
use engine::image::Access;
use engine::manage::{BackingName, Manage};

use super::getopt::{Parsed, flag, value};
use super::{Command, Stop, misuse, open_named, secrets, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Opening, Sharing};

pub(super) const COMMAND: Command = Command {
    name: "rebase",
    about: "Change the backing file of an image",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        flag(Some('p'), "progress", "show how far it is"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('t'), "cache", "the cache mode (writeback)"),
        value(Some('b'), "backing", "the new backing file; empty for none"),
        value(
            Some('F'),
            "backing-format",
            "the format of the new backing file",
        ),
        flag(
            Some('u'),
            "backing-unsafe",
            "change the name only; needed so far",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("rebase", "Expecting one image file name"));
    };
    if !parsed.has("backing-unsafe") {
        if !parsed.has("backing") {
            return Err(misuse(
                "rebase",
                "Must specify backing file (-b) or use unsafe mode (-u)",
            ));
        }
        return Err(Failure::new(
            "Rebasing in safe mode is not supported yet: -u changes the name only",
        )
        .into());
    }
    let cache = CacheMode::of_target(parsed.get("cache").unwrap_or("writeback"))?;
    let backing = parsed.get("backing").filter(|backing| !backing.is_empty());
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::Readers,
        cache,
        depth: Depth::Alone,
        secrets: &secrets,
    };
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    let new = match (backing, parsed.get("backing-format")) {
        (None, _) => None,
        (Some(backing), None) => {
            return Err(Failure(format!(
                "Could not change the backing file to '{backing}': backing format must be specified"
            ))
            .into());
        }
        (Some(backing), Some(format)) => Some(BackingName {
            name: backing.to_owned(),
            format: Some(format.to_owned()),
        }),
    };
    at_once(async {
        node.image().manage(Manage::SetBacking(new)).await?;
        node.image().close().await
    })
    .map_err(|error: Error| {
        Failure(format!(
            "Could not change the backing file to '{}': {}",
            backing.unwrap_or_default(),
            engine_text(&error)
        ))
    })?;
    Ok(0)
}
