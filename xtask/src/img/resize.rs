//! `resize`: another size for a disk.

use engine::error::Error;
use engine::image::Access;
use engine::manage::Manage;

use super::creation::not_a_size;
use super::getopt::{Parsed, flag, value};
use super::{Command, Stop, misuse, open_named, print, secrets, spec_of, tell};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Opening, Sharing, size};

pub(super) const COMMAND: Command = Command {
    name: "resize",
    about: "Change the size of a disk",
    operands: "FILENAME [+-]SIZE",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        flag(None, "shrink", "a smaller disk is meant"),
        value(
            None,
            "preallocation",
            "off; other modes are not supported yet",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let (name, text) = match parsed.operands.as_slice() {
        [name, size] => (name, size.as_str()),
        [] | [_] => return Err(misuse("resize", "Expecting image file name and size")),
        _ => return Err(misuse("resize", "Extra argument(s) in command line")),
    };
    match parsed.get("preallocation") {
        None | Some("off") => {}
        Some(mode @ ("metadata" | "falloc" | "full")) => {
            return Err(Failure(format!("Preallocation '{mode}' is not supported yet")).into());
        }
        Some(mode) => {
            return Err(misuse(
                "resize",
                format!("Invalid preallocation mode '{mode}'"),
            ));
        }
    }
    let (digits, relation) = match text.as_bytes().first() {
        Some(b'+') => (&text[1..], Relation::More),
        Some(b'-') => (&text[1..], Relation::Less),
        _ => (text, Relation::Exactly),
    };
    let amount = size::parse(digits).map_err(|bad| match bad {
        size::BadSize::Syntax => Failure(not_a_size("size")),
        size::BadSize::TooLarge => Failure(format!(
            "Value '{digits}' is out of range for parameter 'size'"
        )),
    })?;
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::Readers,
        cache: CacheMode::WriteBack,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    let now = node.virtual_bytes();
    let wanted = relation.apply(now, amount);
    let Some(wanted) = wanted.filter(|wanted| *wanted > 0) else {
        return Err(Failure::new("New image size must be positive").into());
    };
    if wanted < now && !parsed.has("shrink") {
        tell("Use the --shrink option to perform a shrink operation.");
        tell(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. \
             Before performing such an operation, make sure there is no important data there.",
        );
        return Ok(1);
    }
    let virtual_bytes = wanted
        .checked_next_multiple_of(512)
        .ok_or_else(|| Failure::new("New image size is too large"))?;
    at_once(async {
        node.image()
            .manage(Manage::Resize { virtual_bytes })
            .await?;
        node.image().close().await
    })
    .map_err(|error: Error| Failure(engine_text(&error)))?;
    if !parsed.has("quiet") {
        print("Image resized.\n");
    }
    Ok(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Exactly,
    More,
    Less,
}

impl Relation {
    fn apply(self, now: u64, amount: u64) -> Option<u64> {
        match self {
            Self::Exactly => Some(amount),
            Self::More => now.checked_add(amount),
            Self::Less => now.checked_sub(amount),
        }
    }
}
