//! `resize`: another size for a disk.

use engine::error::{Error, Refused};
use engine::image::Access;
use engine::manage::{Manage, Resizing};
use engine::preallocation::Preallocation;

use super::creation::{no_raw_metadata, not_a_size};
use super::getopt::{Parsed, flag, value};
use super::{Command, Stop, misuse, print, secrets, spec_of, tell};
use crate::block::failure::engine_text;
use crate::block::open::{at_once, open_to_resize};
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing, size};

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
            "off, metadata, falloc or full, of what is added",
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
    let preallocation = match parsed.get("preallocation") {
        None => Preallocation::Off,
        Some(name) => Preallocation::from_name(name)
            .ok_or_else(|| Failure(format!("Invalid preallocation mode '{name}'")))?,
    };
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
        sharing: Sharing::ByFormat,
        cache: CacheMode::WriteBack,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let node = open_to_resize(&spec_of(name, parsed)?, &opening)
        .map_err(|why| Failure::could_not_open(name, &why))?;
    node.claim_resize()
        .map_err(|why| Failure::could_not_open(name, &why))?;
    let now = node.virtual_bytes();
    let wanted = relation.apply(now, amount);
    let Some(wanted) = wanted.filter(|wanted| *wanted > 0) else {
        return Err(Failure::new("New image size must be positive").into());
    };
    if wanted <= now && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images").into());
    }
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
    if node.format == Format::Raw && preallocation == Preallocation::Metadata {
        return Err(no_raw_metadata().into());
    }
    at_once(async {
        let resizing = resizing(&node, virtual_bytes, preallocation);
        node.image().manage(resizing).await?;
        node.image().close().await
    })
    .map_err(|error| resize_failure(&error))?;
    if !parsed.has("quiet") {
        print("Image resized.\n");
    }
    Ok(0)
}

/// The operation that gives the disk this size: whoever calls has been asked about a smaller one.
pub(crate) fn resizing(node: &Node, virtual_bytes: u64, preallocation: Preallocation) -> Manage {
    let resizing = if virtual_bytes < node.virtual_bytes() {
        Resizing::Shrink
    } else {
        Resizing::Grow(preallocation)
    };
    Manage::Resize {
        virtual_bytes,
        resizing,
    }
}

/// Why a disk keeps its size.
pub(crate) fn resize_failure(error: &Error) -> Failure {
    if *error == Refused::ResizeWithSnapshots.into() {
        return Failure::new("Can't resize a v2 image which has snapshots");
    }
    Failure(engine_text(error))
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
