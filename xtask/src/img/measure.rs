//! `measure`: how large a file a new image would need.

use engine::qcow2::bounds::MAX_L1_BYTES;
use engine::qcow2::geometry::Geometry;

use super::convert::supports_bitmaps;
use super::create::{new_creation, option_lists};
use super::creation::Creation;
use super::encryption::header_bytes;
use super::getopt::{FORCE_SHARE, FORMAT, HELP, IMAGE_OPTS, OBJECT, OUTPUT, Parsed, value};
use super::json::Json;
use super::snapshot::Wanted;
use super::{Command, Output, Stop, open_named, print, reading, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::status::{Content, Reach, status};
use crate::block::{Depth, Failure, Format, Node};

pub(super) const COMMAND: Command = Command {
    name: "measure",
    about: "Tell the file size that a new image would need",
    operands: "(--size SIZE | FILENAME)",
    options: &[
        HELP,
        value(
            Some('O'),
            "target-format",
            "the format of the new image (raw)",
        ),
        value(Some('o'), "options", "options of the new image"),
        value(Some('s'), "size", "the size of an empty disk"),
        FORMAT,
        IMAGE_OPTS,
        value(Some('l'), "snapshot", "an internal snapshot of FILENAME"),
        FORCE_SHARE,
        OBJECT,
        OUTPUT,
    ],
    run,
};

/// Of an entry of the bitmap directory without its name.
const DIRECTORY_ENTRY_BYTES: u64 = 24;

/// Sizes of files in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measured {
    required: u64,
    fully_allocated: u64,
    bitmaps: Option<u64>,
}

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let output = Output::of("measure", parsed)?;
    let size = sizes::option(parsed, "size", "image size")?;
    let lists = option_lists(parsed, "options")?;
    let wanted = parsed.get("snapshot").map(Wanted::read).transpose()?;
    let name = match parsed.operands.as_slice() {
        [] => None,
        [name] => Some(name),
        _ => return Err(Failure::new("At most one filename argument is allowed.").into()),
    };
    if name.is_none()
        && ["image-opts", "format", "snapshot"]
            .iter()
            .any(|option| parsed.has(option))
    {
        return Err(Failure::new("--image-opts, -f, and -l require a filename argument.").into());
    }
    let target = parsed.get("target-format").unwrap_or("raw");
    let secrets = secrets(parsed)?;
    let source = match (name, size) {
        (None, None) => {
            return Err(Failure::new("Either --size N or one filename must be specified.").into());
        }
        (Some(_), Some(_)) => {
            return Err(Failure::new("--size N cannot be used together with a filename.").into());
        }
        (Some(name), None) => {
            let opening = reading(parsed, &secrets, Depth::Chain);
            let spec = spec_of(name, parsed)?;
            Some(match wanted {
                Some(wanted) => wanted.open(name, spec, &opening)?,
                None => open_named(name, &spec, &opening)?,
            })
        }
        (None, Some(_)) => None,
    };
    let mut creation = new_creation(target, &[])?;
    for list in lists {
        // Of all commands, only this one says besides whose options they were.
        creation.read(list).map_err(|why| {
            Failure(format!(
                "{}\nqemu-img: Invalid options for file format '{target}'",
                why.0
            ))
        })?;
    }
    let virtual_bytes = match &source {
        Some(node) => node.virtual_bytes(),
        None => size.unwrap_or(0).next_multiple_of(512),
    };
    creation.set("size", &virtual_bytes.to_string())?;
    let measured = measure(&creation, source.as_ref(), virtual_bytes)?;
    print(&match output {
        Output::Human => human(measured),
        Output::Json => json(measured),
    });
    Ok(0)
}

fn measure(
    creation: &Creation,
    source: Option<&Node>,
    virtual_bytes: u64,
) -> Result<Measured, Failure> {
    match creation.format() {
        Format::Raw => Ok(Measured {
            required: virtual_bytes,
            fully_allocated: virtual_bytes,
            bitmaps: None,
        }),
        Format::Qcow2 => {
            let geometry = creation.geometry()?;
            let header_bytes = header_bytes(creation)?;
            let metadata = metadata_clusters(geometry, virtual_bytes, header_bytes)
                .filter(|_| geometry.l1_entries_for(virtual_bytes) * 8 <= MAX_L1_BYTES)
                .ok_or_else(|| {
                    let text = "The image size is too large (try using a larger cluster size)";
                    Failure::new(text)
                })?;
            let whole = geometry.clusters_for(virtual_bytes);
            let preallocated = matches!(creation.get("preallocation"), Some("full" | "falloc"));
            let data = match source {
                _ if preallocated || creation.get("backing_file").is_some() => whole,
                None => 0,
                Some(node) => data_clusters(node, geometry)?,
            };
            Ok(Measured {
                required: (metadata + data) * geometry.cluster_bytes(),
                fully_allocated: (metadata + whole) * geometry.cluster_bytes(),
                bitmaps: bitmap_bytes(creation, source, geometry)?,
            })
        }
    }
}

/// Clusters of header, tables and refcounts of a disk whose every cluster has a place.
fn metadata_clusters(geometry: Geometry, virtual_bytes: u64, encryption_bytes: u64) -> Option<u64> {
    let data = geometry.clusters_for(virtual_bytes);
    let tables = data.div_ceil(geometry.l2_entries());
    let l1 = geometry.clusters_for(tables.checked_mul(8)?);
    let encryption = geometry.clusters_for(encryption_bytes);
    let fixed = tables.checked_add(l1)?.checked_add(1 + encryption)?;
    let counted = data.checked_add(fixed)?;
    let (mut blocks, mut reftable) = (1, 1);
    loop {
        let all = counted + blocks + reftable;
        let more_blocks = all.div_ceil(geometry.refcounts_per_block());
        let more_table = geometry.clusters_for(more_blocks * 8);
        if (more_blocks, more_table) == (blocks, reftable) {
            return Some(fixed + blocks + reftable);
        }
        (blocks, reftable) = (more_blocks, more_table);
    }
}

/// Clusters that the content of a disk takes.
fn data_clusters(node: &Node, geometry: Geometry) -> Result<u64, Failure> {
    let end = node.virtual_bytes();
    let (mut at, mut clusters, mut counted_to) = (0, 0, 0);
    while at < end {
        let stretch = status(node, Reach::Chain, at, end - at).map_err(|error| {
            Failure(format!(
                "Unable to get block status: {}",
                engine_text(&error)
            ))
        })?;
        let next = at + stretch.len_bytes;
        match stretch.content {
            Content::Hole | Content::Zero | Content::Nothing => {}
            Content::Data | Content::Compressed => {
                let first = (at / geometry.cluster_bytes()).max(counted_to);
                counted_to = geometry.clusters_for(next);
                clusters += counted_to - first;
            }
        }
        at = next;
    }
    Ok(clusters)
}

/// What the bitmaps of a source would take: told only where source and new image could have some.
fn bitmap_bytes(
    creation: &Creation,
    source: Option<&Node>,
    geometry: Geometry,
) -> Result<Option<u64>, Failure> {
    let Some(node) = source.filter(|node| supports_bitmaps(node)) else {
        return Ok(None);
    };
    if creation.version() < 3 {
        return Ok(None);
    }
    let bitmaps = node.bitmaps()?;
    let (mut clusters, mut directory_bytes) = (0, 0);
    for bitmap in &bitmaps {
        let bits = node
            .virtual_bytes()
            .div_ceil(bitmap.granularity_bytes.max(1));
        let data = geometry.clusters_for(bits.div_ceil(8));
        clusters += data + geometry.clusters_for(data * 8);
        let name_len = u64::try_from(bitmap.name.len()).unwrap_or(u64::MAX);
        directory_bytes += (DIRECTORY_ENTRY_BYTES + name_len).next_multiple_of(8);
    }
    clusters += geometry.clusters_for(directory_bytes);
    Ok(Some(clusters * geometry.cluster_bytes()))
}

fn human(measured: Measured) -> String {
    let mut text = format!(
        "required size: {}\nfully allocated size: {}\n",
        measured.required, measured.fully_allocated
    );
    if let Some(bytes) = measured.bitmaps {
        text.push_str(&format!("bitmaps size: {bytes}\n"));
    }
    text
}

fn json(measured: Measured) -> String {
    let mut members = Vec::new();
    if let Some(bytes) = measured.bitmaps {
        members.push(("bitmaps", bytes.into()));
    }
    members.push(("required", measured.required.into()));
    members.push(("fully-allocated", measured.fully_allocated.into()));
    Json::Object(members).print()
}
