//! `info`: what an image says of itself.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;

use engine::qcow2::BitmapInfo;
use engine::qcow2::header::{Header, incompatible};

use super::getopt::{FORCE_SHARE, FORMAT, HELP, IMAGE_OPTS, OBJECT, OUTPUT, Parsed, flag};
use super::json::Json;
use super::{
    Command, Output, Stop, encryption, misuse, open_named, print, reading, secrets, snapshot,
    spec_of,
};
use crate::block::spec::FileSpec;
use crate::block::{Depth, Failure, Format, Node, size};

pub(super) const COMMAND: Command = Command {
    name: "info",
    about: "Display information about an image",
    operands: "FILENAME",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag(Some('b'), "backing-chain", "go on with what lies beneath"),
        FORCE_SHARE,
        OBJECT,
        OUTPUT,
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let output = Output::of("info", parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("info", "Expecting one image file name"));
    };
    let secrets = secrets(parsed)?;
    let opening = reading(parsed, &secrets, Depth::Header);
    let mut nodes = vec![open_named(name, &spec_of(name, parsed)?, &opening)?];
    if parsed.has("backing-chain") {
        let mut seen = vec![identity(&nodes[0])];
        while let Some(spec) = nodes[nodes.len() - 1].backing_spec()? {
            let node = open_named(&spec.called, &spec, &opening)?;
            let identity = identity(&node);
            if seen.contains(&identity) {
                return Err(Failure(format!(
                    "Backing file '{}' creates an infinite loop.",
                    spec.called
                ))
                .into());
            }
            seen.push(identity);
            nodes.push(node);
        }
    }
    let text = match output {
        Output::Json if parsed.has("backing-chain") => {
            let nodes: Result<_, _> = nodes.iter().map(json_of).collect();
            Json::List(nodes?).print()
        }
        Output::Json => json_of(&nodes[0])?.print(),
        Output::Human => {
            let texts: Result<Vec<String>, _> = nodes.iter().map(human_of).collect();
            texts?.join("\n")
        }
    };
    print(&text);
    Ok(0)
}

fn identity(node: &Node) -> Option<(u64, u64)> {
    fs::metadata(&node.file.path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Bytes that the file takes on its disk.
fn actual_bytes(path: &str) -> Option<u64> {
    fs::metadata(path)
        .ok()
        .map(|metadata| metadata.blocks() * 512)
}

/// What lies beneath: as it stands in the image, as it is found from here, and its format.
fn backing_names(node: &Node) -> Option<(String, String, Option<String>)> {
    let header = node.header.as_ref()?;
    let name = String::from_utf8_lossy(header.backing_name.as_deref()?).into_owned();
    let full = if crate::block::name::has_protocol(&name) {
        name.clone()
    } else {
        match &node.file.spec {
            FileSpec::Local { path, .. } => crate::block::name::beside(path, &name),
            FileSpec::Blkdebug { .. } | FileSpec::Blkverify { .. } | FileSpec::Image(_) => {
                name.clone()
            }
        }
    };
    let format = header
        .extension(engine::qcow2::extension::BACKING_FORMAT)
        .map(|format| String::from_utf8_lossy(format).into_owned());
    Some((name, full, format))
}

/// What only this format has to say, in qemu-img's order.
fn specific_of(node: &Node, header: &Header) -> Result<Vec<(&'static str, Json)>, Failure> {
    let encrypt = encryption::info(node)?.map(|info| ("encrypt", info));
    if header.version < 3 {
        let mut members = vec![
            ("compat", "0.10".into()),
            ("compression-type", "zlib".into()),
            ("refcount-bits", refcount_bits(header).into()),
        ];
        members.extend(encrypt);
        return Ok(members);
    }
    let has = |bit| header.incompatible & bit != 0;
    let mut members: Vec<(&'static str, Json)> = vec![
        ("compat", "1.1".into()),
        ("compression-type", header.compression.name().into()),
        ("lazy-refcounts", header.wants_lazy_refcounts().into()),
    ];
    let bitmaps = node.bitmaps()?;
    if !bitmaps.is_empty() {
        members.push(("bitmaps", Json::List(bitmaps.iter().map(bitmap).collect())));
    }
    members.push(("refcount-bits", refcount_bits(header).into()));
    let external = header.geometry.has_external_data();
    let name = header.data_file_name().map(String::from_utf8_lossy);
    members.extend(name.map(|name| ("data-file", name.as_ref().into())));
    members.extend(encrypt);
    if external {
        members.push(("data-file-raw", header.has_raw_data_file().into()));
    }
    members.extend([
        ("corrupt", header.is_corrupt().into()),
        ("extended-l2", has(incompatible::EXTENDED_L2).into()),
    ]);
    Ok(members)
}

fn bitmap(bitmap: &BitmapInfo) -> Json {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.enabled)];
    let set = flags.into_iter().filter(|(_, is_set)| *is_set);
    Json::Object(vec![
        (
            "flags",
            Json::List(set.map(|(name, _)| name.into()).collect()),
        ),
        ("name", bitmap.name.as_str().into()),
        ("granularity", bitmap.granularity_bytes.into()),
    ])
}

fn refcount_bits(header: &Header) -> u64 {
    1 << header.geometry.refcount_order()
}

fn is_dirty(node: &Node) -> bool {
    node.header.as_ref().is_some_and(Header::is_dirty)
}

fn is_encrypted(node: &Node) -> bool {
    let header = node.header.as_ref();
    header.is_some_and(|header| header.encryption.is_some())
}

fn json_of(node: &Node) -> Result<Json, Failure> {
    let backing = backing_names(node);
    let actual = actual_of(node);
    let mut members = vec![(
        "children",
        children_of(&node.file.spec, node.file.port.len()),
    )];
    if let Some((_, _, Some(format))) = &backing {
        members.push(("backing-filename-format", format.as_str().into()));
    }
    let snapshots = node.snapshots()?;
    if !snapshots.is_empty() {
        let snapshots = snapshots.iter().map(snapshot::json).collect();
        members.push(("snapshots", Json::List(snapshots)));
    }
    members.push(("virtual-size", node.virtual_bytes().into()));
    members.push(("filename", node.filename.as_str().into()));
    if let Some(header) = &node.header {
        members.push(("cluster-size", header.geometry.cluster_bytes().into()));
    }
    members.push(("format", node.format.name().into()));
    if let Some(bytes) = actual {
        members.push(("actual-size", bytes.into()));
    }
    if let Some(header) = &node.header {
        members.push((
            "format-specific",
            Json::Object(vec![
                ("type", node.format.name().into()),
                ("data", Json::Object(specific_of(node, header)?)),
            ]),
        ));
    }
    let (name, full) = match backing {
        Some((name, full, _)) => (Some(name), Some(full)),
        None => (None, None),
    };
    members.extend(full.map(|full| ("full-backing-filename", full.into())));
    if is_encrypted(node) {
        members.push(("encrypted", true.into()));
    }
    members.extend(name.map(|name| ("backing-filename", name.into())));
    members.push(("dirty-flag", is_dirty(node).into()));
    Ok(Json::Object(members))
}

/// Behind a filter nobody asks how much a file takes.
fn actual_of(node: &Node) -> Option<u64> {
    match node.file.spec {
        FileSpec::Local { .. } | FileSpec::Image(_) => actual_bytes(&node.file.path),
        FileSpec::Blkdebug { .. } | FileSpec::Blkverify { .. } => None,
    }
}

fn children_of(file: &FileSpec, len_bytes: u64) -> Json {
    let (name, info) = match file {
        FileSpec::Local { path, .. } => {
            let mut members = vec![
                ("children", Json::List(vec![])),
                ("virtual-size", len_bytes.next_multiple_of(512).into()),
                ("filename", path.as_str().into()),
                ("format", "file".into()),
            ];
            if let Some(bytes) = actual_bytes(path) {
                members.push(("actual-size", bytes.into()));
            }
            members.push((
                "format-specific",
                Json::Object(vec![
                    ("type", "file".into()),
                    ("data", Json::Object(vec![])),
                ]),
            ));
            members.push(("dirty-flag", false.into()));
            ("file", members)
        }
        FileSpec::Blkdebug { below, .. } => {
            let below = children_of(below, len_bytes);
            let members = vec![
                ("children", rename_only_child(below, "image")),
                ("virtual-size", len_bytes.next_multiple_of(512).into()),
                ("filename", file.filename().into()),
                ("format", "blkdebug".into()),
                ("dirty-flag", false.into()),
            ];
            ("file", members)
        }
        FileSpec::Blkverify { raw, test } => {
            let members = vec![
                ("children", verified_children(raw, test)),
                ("virtual-size", len_bytes.next_multiple_of(512).into()),
                ("filename", file.filename().into()),
                ("format", "blkverify".into()),
                ("dirty-flag", false.into()),
            ];
            ("file", members)
        }
        FileSpec::Image(spec) => {
            let mut members = vec![
                (
                    "children",
                    children_of(&spec.file, file_bytes(spec.file.path())),
                ),
                ("virtual-size", len_bytes.next_multiple_of(512).into()),
                ("filename", file.filename().into()),
                ("format", spec.format.map_or("raw", Format::name).into()),
            ];
            if let Some(bytes) = actual_bytes(spec.file.path()) {
                members.push(("actual-size", bytes.into()));
            }
            members.push(("dirty-flag", false.into()));
            ("file", members)
        }
    };
    Json::List(vec![Json::Object(vec![
        ("name", name.into()),
        ("info", Json::Object(info)),
    ])])
}

/// The image and the raw file that blkverify compares.
fn verified_children(raw: &FileSpec, test: &FileSpec) -> Json {
    let mut children = Vec::new();
    for (file, name) in [(test, "test"), (raw, "raw")] {
        let child = children_of(file, file_bytes(file.path()));
        if let Json::List(items) = rename_only_child(child, name) {
            children.extend(items);
        }
    }
    Json::List(children)
}

/// The length of a local file; of one that is gone meanwhile, nothing.
fn file_bytes(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn rename_only_child(children: Json, name: &str) -> Json {
    let Json::List(mut items) = children else {
        return children;
    };
    if let Some(Json::Object(members)) = items.first_mut() {
        members[0].1 = name.into();
    }
    Json::List(items)
}

fn human_of(node: &Node) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name}: {value}").expect("a string takes any text");
    };
    line("image", &node.filename);
    line("file format", node.format.name());
    line("virtual size", &with_bytes(node.virtual_bytes()));
    line("disk size", &disk_size(actual_of(node)));
    if is_encrypted(node) {
        line("encrypted", "yes");
    }
    if let Some(header) = &node.header {
        line("cluster_size", &header.geometry.cluster_bytes().to_string());
    }
    if is_dirty(node) {
        line("cleanly shut down", "no");
    }
    if let Some((name, full, format)) = backing_names(node) {
        if name == full {
            line("backing file", &name);
        } else {
            line("backing file", &format!("{name} (actual path: {full})"));
        }
        if let Some(format) = format {
            line("backing file format", &format);
        }
    }
    text.push_str(&snapshot::list(&node.snapshots()?));
    text.push_str(&specific_text(node)?);
    write_children(&mut text, &node.file.spec, node.file.port.len(), "/file", 0);
    Ok(text)
}

/// What only this format has to say, in lines.
pub(crate) fn specific_text(node: &Node) -> Result<String, Failure> {
    let Some(header) = &node.header else {
        return Ok(String::new());
    };
    let mut text = "Format specific information:\n".to_owned();
    for (name, value) in specific_of(node, header)? {
        write_human(&mut text, &name.replace('-', " "), &value, 1);
    }
    Ok(text)
}

/// A member of the format's own information, `level` steps in.
fn write_human(text: &mut String, name: &str, value: &Json, level: usize) {
    let indent = "    ".repeat(level);
    match value {
        Json::Text(value) => text.push_str(&format!("{indent}{name}: {value}\n")),
        Json::Number(value) => text.push_str(&format!("{indent}{name}: {value}\n")),
        Json::Flag(value) => text.push_str(&format!("{indent}{name}: {value}\n")),
        Json::List(items) => {
            text.push_str(&format!("{indent}{name}:\n"));
            for (index, item) in items.iter().enumerate() {
                write_human(text, &format!("[{index}]"), item, level + 1);
            }
        }
        Json::Object(members) => {
            text.push_str(&format!("{indent}{name}:\n"));
            for (name, value) in members {
                write_human(text, &name.replace('-', " "), value, level + 1);
            }
        }
    }
}

fn write_children(text: &mut String, file: &FileSpec, len_bytes: u64, path: &str, level: usize) {
    let indent = "    ".repeat(level);
    let within = "    ".repeat(level + 1);
    text.push_str(&format!("{indent}Child node '{path}':\n"));
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{within}{name}: {value}").expect("a string takes any text");
    };
    let len_bytes = len_bytes.next_multiple_of(512);
    match file {
        FileSpec::Local { path: name, .. } => {
            line("filename", name);
            line("protocol type", "file");
            line("file length", &with_bytes(len_bytes));
            line("disk size", &disk_size(actual_bytes(name)));
        }
        FileSpec::Blkdebug { below, .. } => {
            line("image", &file.filename());
            line("file format", "blkdebug");
            line("virtual size", &with_bytes(len_bytes));
            line("disk size", "unavailable");
            write_children(text, below, len_bytes, &format!("{path}/image"), level + 1);
        }
        FileSpec::Blkverify { raw, test } => {
            line("image", &file.filename());
            line("file format", "blkverify");
            line("virtual size", &with_bytes(len_bytes));
            line("disk size", "unavailable");
            write_children(text, test, len_bytes, &format!("{path}/test"), level + 1);
            let raw_bytes = file_bytes(raw.path());
            write_children(text, raw, raw_bytes, &format!("{path}/raw"), level + 1);
        }
        FileSpec::Image(spec) => {
            let below = spec.file.path();
            line("image", &file.filename());
            line("file format", spec.format.map_or("raw", Format::name));
            line("virtual size", &with_bytes(len_bytes));
            line("disk size", &disk_size(actual_bytes(below)));
            let path = format!("{path}/file");
            write_children(text, &spec.file, file_bytes(below), &path, level + 1);
        }
    }
}

fn with_bytes(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size::human(bytes))
}

fn disk_size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unavailable".to_owned(), size::human)
}
