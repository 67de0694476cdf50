//! `create`: a new, empty image.

use super::creation::{Creation, asks_for_help, help, local_path};
use super::getopt::{Parsed, flag, value};
use super::{Command, Stop, misuse, print, secrets, sizes};
use crate::block::secret::Secrets;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing, Spec, open};
use engine::image::Access;

pub(super) const COMMAND: Command = Command {
    name: "create",
    about: "Create and format a new image file",
    operands: "FILENAME [SIZE]",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        value(Some('f'), "format", "the format of the new image (raw)"),
        value(
            Some('o'),
            "options",
            "options of the format; `-o help` lists them",
        ),
        value(Some('b'), "backing", "what lies beneath"),
        value(
            Some('F'),
            "backing-format",
            "the format of what lies beneath",
        ),
        flag(
            Some('u'),
            "backing-unsafe",
            "do not look at what lies beneath",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let format_name = parsed.get("format").unwrap_or("raw");
    let lists = option_lists(parsed, "options")?;
    if asks_for_help(&lists) {
        let target = parsed.operands.first().map(String::as_str);
        print(&help(format_name, target)?);
        return Ok(0);
    }
    let (name, size) = match parsed.operands.as_slice() {
        [] => return Err(misuse("create", "Expecting image file name")),
        [name] => (name, None),
        [name, size] => (name, Some(sizes::read(size, "image size")?)),
        [_, _, extra, ..] => {
            return Err(misuse("create", format!("Unexpected argument: {extra}")));
        }
    };
    let secrets = secrets(parsed)?;
    let named = |why: Failure| Failure(format!("{name}: {}", why.0));
    let mut creation = new_creation(format_name, &lists).map_err(named)?;
    local_path(name).map_err(named)?;
    add_backing(&mut creation, parsed).map_err(named)?;
    settle(&mut creation, name, size, parsed, &secrets).map_err(named)?;
    if !parsed.has("quiet") {
        print(&creation.describe(name));
    }
    creation.make(name, &secrets).map_err(named)?;
    Ok(0)
}

/// The lists that were given with an option, none of which may be empty, or start or end with a comma of its own.
pub(super) fn option_lists<'a>(parsed: &'a Parsed, option: &str) -> Result<Vec<&'a str>, Failure> {
    let is_invalid = |list: &&&str| {
        let trailing = list.len() - list.trim_end_matches(',').len();
        list.is_empty() || list.starts_with(',') || trailing % 2 == 1
    };
    let lists: Vec<&str> = parsed.all(option).collect();
    match lists.iter().find(is_invalid) {
        Some(list) => Err(Failure(format!("Invalid option list: {list}"))),
        None => Ok(lists),
    }
}

/// The options of `-f` and `-o`.
pub(super) fn new_creation(format: &str, lists: &[&str]) -> Result<Creation, Failure> {
    let format = Format::from_name(format)
        .ok_or_else(|| Failure(format!("Unknown file format '{format}'")))?;
    let mut creation = Creation::new(format);
    for list in lists {
        creation.read(list)?;
    }
    Ok(creation)
}

/// The options of `-b` and `-F`.
fn add_backing(creation: &mut Creation, parsed: &Parsed) -> Result<(), Failure> {
    let unsupported = |what: &str, format: Format| {
        Failure(format!(
            "{what} not supported for file format '{}'",
            format.name()
        ))
    };
    if let Some(backing) = parsed.get("backing") {
        creation
            .set("backing_file", backing)
            .map_err(|_| unsupported("Backing file", creation.format()))?;
    }
    if let Some(format) = parsed.get("backing-format") {
        creation
            .set("backing_fmt", format)
            .map_err(|_| unsupported("Backing format", creation.format()))?;
    }
    Ok(())
}

/// Finds the size of the disk, and looks at what lies beneath.
fn settle(
    creation: &mut Creation,
    name: &str,
    size: Option<u64>,
    parsed: &Parsed,
    secrets: &Secrets,
) -> Result<(), Failure> {
    if let Some(size) = size {
        if creation.size().is_some() {
            return Err(Failure::new("The image size must be specified only once"));
        }
        creation.set("size", &size.to_string())?;
    }
    if let Some(backing) = creation.get("backing_file").map(ToOwned::to_owned) {
        if backing.is_empty() {
            return Err(Failure::new("Expected backing file name, got empty string"));
        }
        if backing == name {
            return Err(Failure::new(
                "Error: Trying to create an image with the same filename as the backing file",
            ));
        }
        let format = creation.get("backing_fmt").map(ToOwned::to_owned);
        if !parsed.has("backing-unsafe") {
            // Without its data, which may take a secret.
            let extent = (Sharing::Unasked, Depth::Headers);
            let beneath = open_beneath(name, &backing, format.as_deref(), extent, secrets)
                .map_err(|why| Failure(format!("{}\nCould not open backing image.", why.0)))?;
            if format.is_none() {
                return Err(Failure(format!(
                    "Backing file specified without backing format\nDetected format of {}.",
                    beneath.format.name()
                )));
            }
            if creation.size().is_none() {
                creation.set("size", &beneath.virtual_bytes().to_string())?;
            }
        } else if format.is_none() {
            return Err(Failure::new(
                "Backing file specified without backing format",
            ));
        }
    }
    if creation.size().is_none() {
        return Err(Failure::new("Image creation needs a size parameter"));
    }
    Ok(())
}

/// Opens what shall lie beneath the image `name`, for reading: relative names start beside it.
pub(super) fn open_beneath(
    name: &str,
    backing: &str,
    format: Option<&str>,
    (sharing, depth): (Sharing, Depth),
    secrets: &Secrets,
) -> Result<Node, Failure> {
    let full = if crate::block::name::has_protocol(backing) {
        backing.to_owned()
    } else {
        crate::block::name::beside(name, backing)
    };
    let spec = Spec::from_name(&full, format)?;
    open(
        &spec,
        &Opening {
            access: Access::ReadOnly,
            sharing,
            cache: CacheMode::WriteBack,
            depth,
            secrets,
        },
    )
}
