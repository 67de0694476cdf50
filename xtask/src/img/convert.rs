//! `convert`: one disk, or several in a row, into a new image.

use std::rc::Rc;

use engine::image::Access;
use engine::manage::BitmapState;
use engine::qcow2::{BitmapInfo, Standing};

use super::copy::{Blank, Fill, Packing, Salvage, Target};
use super::create::{new_creation, option_lists};
use super::creation::{Creation, asks_for_help, help, local_path};
use super::getopt::{Parsed, flag, value};
use super::pace::Pace;
use super::pack::Packer;
use super::progress::{Progress, Shown};
use super::snapshot::Wanted;
use super::{Command, Stop, bitmap, open_named, print, secrets, sharing, sizes, tell};
use crate::block::open::identity;
use crate::block::secret::Secrets;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing, Spec};

pub(super) const COMMAND: Command = Command {
    name: "convert",
    about: "Copy a disk into an image of any format",
    operands: "SOURCE.. TARGET",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        flag(Some('p'), "progress", "show how far it is"),
        value(Some('f'), "source-format", "the format of the sources"),
        flag(None, "source-image-opts", "the sources are sets of options"),
        flag(None, "image-opts", "the sources are sets of options"),
        value(
            Some('l'),
            "source-snapshot",
            "an internal snapshot of the source",
        ),
        value(
            Some('T'),
            "source-cache",
            "the cache mode of the sources (writeback)",
        ),
        value(Some('O'), "target-format", "the format of the target (raw)"),
        flag(None, "target-image-opts", "the target is a set of options"),
        value(
            Some('o'),
            "target-options",
            "options of the target's format",
        ),
        flag(Some('c'), "compress", "compress what is written"),
        value(
            Some('t'),
            "target-cache",
            "the cache mode of the target (unsafe)",
        ),
        value(Some('B'), "backing", "what lies beneath the target"),
        value(
            Some('F'),
            "backing-format",
            "the format of what lies beneath",
        ),
        flag(Some('n'), "no-create", "the target exists"),
        flag(
            None,
            "target-is-zero",
            "the target that exists is all zeroes",
        ),
        value(
            Some('S'),
            "sparse-size",
            "shorter runs of zeroes are written (4k)",
        ),
        flag(None, "bitmaps", "copy the persistent dirty bitmaps too"),
        flag(
            None,
            "skip-broken-bitmaps",
            "with --bitmaps: pass over those that are inconsistent",
        ),
        flag(
            Some('U'),
            "force-share",
            "others may write the sources meanwhile",
        ),
        value(Some('r'), "rate", "bytes written a second, at most"),
        value(
            Some('m'),
            "parallel",
            "pieces compressed at a time, 1 to 16",
        ),
        flag(
            Some('C'),
            "copy-range-offloading",
            "may be asked for; data are read and written",
        ),
        flag(None, "salvage", "what cannot be read is zero"),
        flag(
            Some('W'),
            "oob-writes",
            "the order of writes does not matter",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

/// The longest run of zeroes that may be asked to be written.
const MAX_SPARSE_BYTES: u64 = 16 << 20;

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let sparse_bytes = check_options(parsed)?;
    if asks_for_help(&option_lists(parsed, "target-options")?) {
        let format = parsed.get("target-format").unwrap_or("raw");
        let target = match parsed.operands.as_slice() {
            [_, .., target] => Some(target.as_str()),
            _ => None,
        };
        print(&help(format, target)?);
        return Ok(0);
    }
    let rate = sizes::option(parsed, "rate", "rate limit")?.unwrap_or(0);
    let cache = CacheMode::of_target(parsed.get("target-cache").unwrap_or("unsafe"))?;
    let [sources @ .., target_name] = parsed.operands.as_slice() else {
        return Err(Failure::new("Must specify image file name").into());
    };
    if sources.is_empty() {
        return Err(Failure::new("Must specify image file name").into());
    }
    let secrets = secrets(parsed)?;
    let sources = open_sources(parsed, sources, &secrets)?;
    let creation = if parsed.has("no-create") {
        None
    } else {
        Some(read_creation(parsed)?)
    };
    if sources.len() > 1 && names_backing(parsed) {
        return Err(Failure::new(
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        )
        .into());
    }
    let bitmaps = bitmaps_of(parsed, &sources)?;
    let total: u64 = sources.iter().map(Node::virtual_bytes).sum();
    let mut key_secret = None;
    if let Some(creation) = creation {
        key_secret = create_target(parsed, creation, target_name, &sources, total, &secrets)?;
    }
    let target = open_target(parsed, target_name, cache, key_secret, &secrets)?;
    if target.virtual_bytes() < total {
        return Err(Failure::new("output file is smaller than input file").into());
    }
    must_take_bitmaps(parsed, &target)?;
    let mut progress = Progress::start(
        Shown::when(parsed.has("progress") && !parsed.has("quiet")),
        total,
        1,
    );
    let mut copy = Target {
        image: Rc::clone(target.image()),
        cache,
        blank: blank(parsed, &target),
        sparse_bytes,
        fill: if sparse_bytes == 0 {
            Fill::Everything
        } else {
            Fill::Data
        },
        packing: packing(parsed, &target, cache)?,
        pace: Pace::new(rate),
        salvage: if parsed.has("salvage") {
            Salvage::Yes
        } else {
            Salvage::No
        },
        progress: &mut progress,
    };
    copy.take_all(&sources)?;
    copy.settle()?;
    copy_bitmaps(&sources[0], &target, &bitmaps)?;
    copy.finish()?;
    progress.end();
    Ok(0)
}

/// Refuses what does not go together, and hands back the sparse size.
fn check_options(parsed: &Parsed) -> Result<u64, Stop> {
    let refuse = |text: &str| Err(Failure::new(text).into());
    option_lists(parsed, "target-options")?;
    let sparse = sizes::option(parsed, "sparse-size", "buffer size for sparse output")?;
    if sparse.is_some_and(|bytes| !bytes.is_multiple_of(512) || bytes > MAX_SPARSE_BYTES) {
        return refuse(&format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output)."
        ));
    }
    if let Some(count) = parsed.get("parallel") {
        sizes::number(count, "number of coroutines", 1..=16)?;
    }
    if parsed.has("copy-range-offloading") && sparse.is_some() {
        return refuse("Cannot enable copy offloading when -S is used");
    }
    if parsed.has("copy-range-offloading") && parsed.has("compress") {
        return refuse("Cannot enable copy offloading when -c is used");
    }
    if parsed.has("target-is-zero") && !parsed.has("no-create") {
        return refuse("--target-is-zero requires use of -n flag");
    }
    if parsed.has("skip-broken-bitmaps") && !parsed.has("bitmaps") {
        return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    if parsed.has("target-image-opts") && !parsed.has("no-create") {
        return refuse("--target-image-opts requires use of -n flag");
    }
    if parsed.has("no-create") && parsed.has("target-options") {
        return refuse("-o has no effect when skipping image creation");
    }
    Ok(sparse.unwrap_or(4096))
}

/// Whether an image could have persistent dirty bitmaps.
pub(super) fn supports_bitmaps(node: &Node) -> bool {
    node.header
        .as_ref()
        .is_some_and(|header| header.version >= 3)
}

/// The bitmaps that are to be copied.
fn bitmaps_of(parsed: &Parsed, sources: &[Node]) -> Result<Vec<BitmapInfo>, Failure> {
    if !parsed.has("bitmaps") {
        return Ok(Vec::new());
    }
    let [source] = sources else {
        return Err(Failure::new(
            "Copying bitmaps only possible with single source",
        ));
    };
    if !supports_bitmaps(source) {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    let mut bitmaps = source.bitmaps()?;
    let broken = |bitmap: &BitmapInfo| bitmap.standing != Standing::Clean;
    // They are looked through from the last to the first.
    for bitmap in bitmaps.iter().rev().filter(|bitmap| broken(bitmap)) {
        if !parsed.has("skip-broken-bitmaps") {
            return Err(Failure(format!(
                "Cannot copy inconsistent bitmap '{}'\n\
                 Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
                bitmap.name
            )));
        }
        tell(&format!(
            "warning: Skipping inconsistent bitmap '{}'",
            bitmap.name
        ));
    }
    bitmaps.retain(|bitmap| !broken(bitmap));
    Ok(bitmaps)
}

fn must_take_bitmaps(parsed: &Parsed, target: &Node) -> Result<(), Failure> {
    if !parsed.has("bitmaps") || supports_bitmaps(target) {
        return Ok(());
    }
    Err(Failure(format!(
        "Format driver '{}' does not support bitmaps",
        target.format.name()
    )))
}

/// Copies bitmaps with their bits, granularity and state.
fn copy_bitmaps(source: &Node, target: &Node, bitmaps: &[BitmapInfo]) -> Result<(), Failure> {
    let (Some(from), Some(to)) = (&source.qcow2, &target.qcow2) else {
        return Ok(());
    };
    let there = bitmap::all(target)?;
    for one in bitmaps {
        let name = &one.name;
        let not_created = |why: &str| Failure(format!("Failed to create bitmap {name}: {why}"));
        let not_filled =
            |why: Failure| Failure(format!("Failed to populate bitmap {name}: {}", why.0));
        if there.iter().any(|other| other.name == *name) {
            return Err(not_created(&format!("Bitmap already exists: {name}")));
        }
        let state = if one.enabled {
            BitmapState::Enabled
        } else {
            BitmapState::Disabled
        };
        bitmap::must_fit(target, source).map_err(not_filled)?;
        bitmap::create(target, name, one.granularity_bytes, state)
            .map_err(|why| not_created(&why.0))?;
        let dirty = bitmap::dirty_ranges(from, name).map_err(not_filled)?;
        bitmap::mark(to, name, &dirty).map_err(not_filled)?;
    }
    Ok(())
}

fn open_sources(parsed: &Parsed, names: &[String], secrets: &Secrets) -> Result<Vec<Node>, Stop> {
    let opening = Opening {
        access: Access::ReadOnly,
        sharing: match sharing(parsed) {
            // What is raw must not change under the copy either.
            Sharing::ByFormat => Sharing::Readers,
            asked @ (Sharing::Readers | Sharing::Anyone | Sharing::Unasked) => asked,
        },
        cache: CacheMode::of_source(parsed.get("source-cache").unwrap_or("writeback"))?,
        depth: Depth::Chain,
        secrets,
    };
    let by_options = parsed.has("image-opts") || parsed.has("source-image-opts");
    let format = parsed.get("source-format");
    if by_options && format.is_some() {
        return Err(Failure::new("--image-opts and --format are mutually exclusive").into());
    }
    let wanted = parsed.get("source-snapshot");
    let wanted = wanted.map(Wanted::read).transpose()?;
    if matches!(wanted, Some(Wanted::Either(_))) && names.len() > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot").into());
    }
    let mut nodes = Vec::new();
    for name in names {
        let spec = if by_options {
            Spec::from_image_opts(name)
        } else {
            Spec::from_name(name, format)
        };
        let spec = spec.map_err(|why| Failure::could_not_open(name, &why))?;
        // Of several sources, a snapshot that is named exactly is one of the first.
        nodes.push(match &wanted {
            Some(wanted) if nodes.is_empty() => wanted.open(name, spec, &opening)?,
            _ => open_named(name, &spec, &opening)?,
        });
    }
    Ok(nodes)
}

/// What the target is made from, as far as `-O`, `-o`, `-B` and `-F` say.
fn read_creation(parsed: &Parsed) -> Result<Creation, Failure> {
    let format = parsed.get("target-format").unwrap_or("raw");
    let lists: Vec<&str> = parsed.all("target-options").collect();
    let mut creation = new_creation(format, &lists)?;
    if let Some(backing) = parsed.get("backing") {
        if creation.format() == Format::Raw {
            return Err(Failure::new(
                "Backing file not supported for file format 'raw'",
            ));
        }
        creation.set("backing_file", backing)?;
    }
    if let Some(format) = parsed.get("backing-format") {
        creation.set("backing_fmt", format)?;
    }
    Ok(creation)
}

/// Makes the target, and names the secret that opens it.
fn create_target(
    parsed: &Parsed,
    mut creation: Creation,
    name: &str,
    sources: &[Node],
    total: u64,
    secrets: &Secrets,
) -> Result<Option<String>, Stop> {
    if creation.get("backing_file").is_some() && creation.get("backing_fmt").is_none() {
        return Err(Failure::new("Use of backing file requires explicit backing format").into());
    }
    if parsed.has("compress") {
        must_compress(creation.format())?;
        if !matches!(creation.get("preallocation"), None | Some("off")) {
            return Err(Failure::new(
                "Compression and preallocation not supported at the same time",
            )
            .into());
        }
        if creation.is_on("encryption") || creation.get("encrypt.format").is_some() {
            return Err(
                Failure::new("Compression and encryption not supported at the same time").into(),
            );
        }
    }
    // A size among the options does not count: the sources say how large the disk is.
    creation.set("size", &total.to_string())?;
    make(&creation, name, sources, secrets).map_err(|why| {
        Failure(format!(
            "{name}: error while converting {}: {}",
            creation.format().name(),
            why.0
        ))
    })?;
    Ok(creation.get("encrypt.key-secret").map(ToOwned::to_owned))
}

/// Makes the image, unless that would overwrite what is being read.
pub(super) fn make(
    creation: &Creation,
    name: &str,
    sources: &[Node],
    secrets: &Secrets,
) -> Result<(), Failure> {
    for path in [Some(local_path(name)?), creation.data_file()?]
        .into_iter()
        .flatten()
    {
        if let Ok(target) = identity(path) {
            for source in sources {
                must_not_use(source, target, path)?;
            }
        }
    }
    creation.make(name, secrets)
}

/// Refuses to overwrite what is being read, wherever in the chain it stands.
fn must_not_use(source: &Node, target: (u64, u64), path: &str) -> Result<(), Failure> {
    let mut node = Some(source);
    while let Some(here) = node {
        let mut files = here.files();
        if files.any(|file| identity(&file.path).is_ok_and(|used| used == target)) {
            return Err(Failure(format!(
                "Failed to get \"write\" lock\nIs another process using the image [{path}]?"
            )));
        }
        node = here.backing.as_deref();
    }
    Ok(())
}

fn open_target(
    parsed: &Parsed,
    name: &str,
    cache: CacheMode,
    key_secret: Option<String>,
    secrets: &Secrets,
) -> Result<Node, Stop> {
    let format = parsed.get("target-format").unwrap_or("raw");
    let spec = if parsed.has("target-image-opts") {
        if parsed.has("target-format") {
            return Err(Failure::new("--image-opts and --format are mutually exclusive").into());
        }
        Spec::from_image_opts(name)
    } else {
        if Format::from_name(format).is_none() {
            return Err(Failure(format!("Unknown file format '{format}'")).into());
        }
        Spec::from_name(name, Some(format))
    };
    let mut spec = spec.map_err(|why| Failure::could_not_open(name, &why))?;
    spec.key_secret = key_secret.or(spec.key_secret);
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache,
        depth: Depth::Chain,
        secrets,
    };
    Ok(open_named(name, &spec, &opening)?)
}

/// Whether the target lies over another disk.
fn names_backing(parsed: &Parsed) -> bool {
    let mut lists = parsed.all("target-options");
    parsed.has("backing") || lists.any(|list| list.contains("backing_file="))
}

fn blank(parsed: &Parsed, target: &Node) -> Blank {
    if names_backing(parsed) {
        let beneath = target.backing.as_deref().map(Node::virtual_bytes);
        Blank::Beneath {
            images: 1,
            zero_from: beneath
                .filter(|_| !parsed.has("no-create"))
                .unwrap_or(u64::MAX),
        }
    } else if !parsed.has("no-create") || parsed.has("target-is-zero") {
        Blank::Yes
    } else {
        Blank::No
    }
}

fn must_compress(format: Format) -> Result<(), Failure> {
    match format {
        Format::Qcow2 => Ok(()),
        Format::Raw => Err(Failure::new(
            "Compression not supported for this file format",
        )),
    }
}

fn packing(parsed: &Parsed, target: &Node, cache: CacheMode) -> Result<Packing, Failure> {
    if !parsed.has("compress") {
        return Ok(Packing::Plain);
    }
    must_compress(target.format)?;
    let image = Rc::clone(target.qcow2.as_ref().expect("the format was looked at"));
    let most = parsed.get("parallel").and_then(|count| count.parse().ok());
    Ok(Packing::Compressed(Packer::new(image, cache, most)))
}
