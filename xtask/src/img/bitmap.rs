//! `bitmap`: persistent dirty bitmaps, made, changed and removed.
//!
//! The actions of one call are carried out in the order given. Each is durable when it ends, and the first
//! that fails is the last.

use std::ops::Range;

use engine::image::{Access, Image};
use engine::manage::{BitmapState, Manage};
use engine::qcow2::{BitmapInfo, Qcow2, Standing};

use super::getopt::{FORMAT, HELP, IMAGE_OPTS, OBJECT, Parsed, flag, value};
use super::{Command, Stop, open_named, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::secret::Secrets;
use crate::block::{CacheMode, Depth, Failure, Node, Opening, Sharing, Spec};

pub(super) const COMMAND: Command = Command {
    name: "bitmap",
    about: "Change the persistent dirty bitmaps of an image",
    operands: "FILENAME BITMAP",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag(None, "add", "make BITMAP, enabled"),
        flag(None, "remove", "remove BITMAP"),
        flag(None, "clear", "clear every bit of BITMAP"),
        flag(None, "enable", "let writes set bits from now on"),
        flag(None, "disable", "let writes set no bits from now on"),
        value(None, "merge", "set the bits that this bitmap has set"),
        value(
            Some('g'),
            "granularity",
            "bytes that a bit stands for, with --add",
        ),
        value(
            Some('b'),
            "source-file",
            "the image that --merge's bitmaps are in",
        ),
        value(Some('F'), "source-format", "the format of that image"),
        OBJECT,
    ],
    run,
};

/// The longest name of a bitmap.
const MAX_NAME: usize = 1023;

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let granularity = check_options(parsed)?;
    let [name, bitmap] = parsed.operands.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name").into());
    };
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache: CacheMode::WriteBack,
        depth: Depth::Alone,
        secrets: &secrets,
    };
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    let source = open_source(parsed, &secrets)?;
    for (action, argument) in &parsed.options {
        let done = match *action {
            "add" => add(&node, bitmap, granularity),
            "remove" => remove(&node, bitmap),
            "clear" => clear(&node, bitmap),
            "enable" => set_state(&node, bitmap, BitmapState::Enabled),
            "disable" => set_state(&node, bitmap, BitmapState::Disabled),
            "merge" => merge(&node, bitmap, source.as_ref(), argument),
            _ => continue,
        };
        if let Err(Failure(why)) = done {
            close(&node)?;
            return Err(Failure(format!(
                "Operation {action} on bitmap {bitmap} failed: {why}"
            ))
            .into());
        }
    }
    close(&node)?;
    Ok(0)
}

/// Refuses what does not go together, and hands back the granularity.
fn check_options(parsed: &Parsed) -> Result<Option<u64>, Failure> {
    let granularity = sizes::option(parsed, "granularity", "granularity")?;
    let actions = ["add", "remove", "clear", "enable", "disable", "merge"];
    if !actions.iter().any(|action| parsed.has(action)) {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    let granularity = granularity.filter(|bytes| *bytes > 0);
    if granularity.is_some() && !parsed.has("add") {
        return Err(Failure::new("granularity only supported with --add"));
    }
    if parsed.has("source-format") && !parsed.has("source-file") {
        return Err(Failure::new("-F only supported with -b"));
    }
    if parsed.has("source-file") && !parsed.has("merge") {
        return Err(Failure::new(
            "Merge bitmap source file only supported with --merge",
        ));
    }
    Ok(granularity)
}

fn open_source(parsed: &Parsed, secrets: &Secrets) -> Result<Option<Node>, Failure> {
    let Some(name) = parsed.get("source-file") else {
        return Ok(None);
    };
    let opening = Opening {
        access: Access::ReadOnly,
        sharing: Sharing::ByFormat,
        cache: CacheMode::WriteBack,
        depth: Depth::Alone,
        secrets,
    };
    let spec = Spec::from_name(name, parsed.get("source-format"))
        .map_err(|why| Failure::could_not_open(name, &why))?;
    open_named(name, &spec, &opening).map(Some)
}

fn close(node: &Node) -> Result<(), Failure> {
    at_once(node.image().close()).map_err(|error| Failure(engine_text(&error)))
}

fn add(node: &Node, name: &str, granularity: Option<u64>) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::new("Bitmap name cannot be empty"));
    }
    let granularity_bytes = granularity.unwrap_or_else(|| default_granularity(node));
    if !granularity_bytes.is_power_of_two() || !(512..=1 << 31).contains(&granularity_bytes) {
        return Err(Failure::new(
            "Granularity must be power of 2 and at least 512",
        ));
    }
    let known = all(node)?;
    if known.iter().any(|bitmap| bitmap.name == name) {
        return Err(Failure(format!("Bitmap already exists: {name}")));
    }
    let cannot = |why: &str| {
        Failure(format!(
            "Can't make bitmap '{name}' persistent in '{}': {why}",
            node.filename
        ))
    };
    match &node.header {
        None => {
            return Err(Failure(format!(
                "Can't store persistent bitmaps to {}: Operation not supported",
                node.filename
            )));
        }
        Some(header) if header.version < 3 => {
            return Err(cannot("Cannot store dirty bitmaps in qcow2 v2 files"));
        }
        Some(_) if name.len() > MAX_NAME => {
            return Err(cannot(&format!(
                "Name length exceeds maximum ({MAX_NAME} characters)"
            )));
        }
        Some(_) => {}
    }
    create(node, name, granularity_bytes, BitmapState::Enabled)
}

/// Makes a bitmap.
pub(super) fn create(
    node: &Node,
    name: &str,
    granularity_bytes: u64,
    state: BitmapState,
) -> Result<(), Failure> {
    manage(
        node,
        Manage::BitmapCreate {
            name: name.to_owned(),
            granularity_bytes,
            state,
        },
    )
}

/// A cluster, within bounds.
fn default_granularity(node: &Node) -> u64 {
    let header = node.header.as_ref();
    let cluster_bytes = header.map_or(65536, |header| header.geometry.cluster_bytes());
    cluster_bytes.clamp(4096, 65536)
}

fn remove(node: &Node, name: &str) -> Result<(), Failure> {
    find(node, name)?;
    let name = name.to_owned();
    manage(node, Manage::BitmapRemove { name })
}

fn clear(node: &Node, name: &str) -> Result<(), Failure> {
    find_usable(node, name)?;
    let name = name.to_owned();
    manage(node, Manage::BitmapClear { name })
}

fn set_state(node: &Node, name: &str, state: BitmapState) -> Result<(), Failure> {
    find_usable(node, name)?;
    let name = name.to_owned();
    manage(node, Manage::BitmapSetState { name, state })
}

fn merge(node: &Node, name: &str, source: Option<&Node>, from: &str) -> Result<(), Failure> {
    let (target, _) = find_usable(node, name)?;
    let there = source.unwrap_or(node);
    let (image, bitmap) = find_usable(there, from)?;
    must_fit(node, there)?;
    let dirty = dirty_ranges(image, &bitmap.name)?;
    mark(target, name, &dirty)
}

/// Refuses bitmaps of disks of different sizes.
pub(super) fn must_fit(target: &Node, source: &Node) -> Result<(), Failure> {
    let (target, source) = (target.virtual_bytes(), source.virtual_bytes());
    if target == source {
        return Ok(());
    }
    Err(Failure(format!(
        "Bitmaps are of different sizes (destination size is {target}, source size is {source}) and can't \
         be merged"
    )))
}

/// What a bitmap calls dirty.
pub(super) fn dirty_ranges(image: &Qcow2, name: &str) -> Result<Vec<Range<u64>>, Failure> {
    at_once(image.dirty_ranges(name)).map_err(|error| Failure(engine_text(&error)))
}

/// Sets the bits of these ranges.
pub(super) fn mark(image: &Qcow2, name: &str, dirty: &[Range<u64>]) -> Result<(), Failure> {
    let (name, ranges) = (name.to_owned(), dirty.to_vec());
    let operation = Manage::BitmapMark { name, ranges };
    at_once(image.manage(operation)).map_err(|error| Failure(engine_text(&error)))
}

/// The bitmaps of an open image, where its format has any.
pub(super) fn all(node: &Node) -> Result<Vec<BitmapInfo>, Failure> {
    match &node.qcow2 {
        Some(image) => at_once(image.bitmaps()).map_err(|error| Failure(engine_text(&error))),
        None => Ok(Vec::new()),
    }
}

fn find<'a>(node: &'a Node, name: &str) -> Result<(&'a Qcow2, BitmapInfo), Failure> {
    let found = all(node)?.into_iter().find(|bitmap| bitmap.name == name);
    let image = node.qcow2.as_deref();
    image
        .zip(found)
        .ok_or_else(|| Failure(format!("Dirty bitmap '{name}' not found")))
}

fn find_usable<'a>(node: &'a Node, name: &str) -> Result<(&'a Qcow2, BitmapInfo), Failure> {
    let (image, bitmap) = find(node, name)?;
    match bitmap.standing {
        Standing::Clean => Ok((image, bitmap)),
        Standing::Inconsistent => Err(Failure(format!(
            "Bitmap '{name}' is inconsistent and cannot be used\n\
             Try block-dirty-bitmap-remove to delete this bitmap from disk"
        ))),
        Standing::Foreign => Err(Failure(format!(
            "Bitmap '{name}' is of a kind that is not known here"
        ))),
    }
}

fn manage(node: &Node, operation: Manage) -> Result<(), Failure> {
    at_once(node.image().manage(operation)).map_err(|error| Failure(engine_text(&error)))
}
