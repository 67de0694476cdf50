//! `amend`: options of an image that exists.
//!
//! What one call asks for is done in steps, each of them before or after, in an order that lets every step
//! stand on those before it: first the higher version, then widths, flags and size, last the lower version.
//! What the call rules out by itself is refused before the first.

use engine::error::Error;
use engine::image::Access;
use engine::manage::{Amend, DataFileChange, Manage, RawPromise};
use engine::preallocation::Preallocation;
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::Header;

use super::create::option_lists;
use super::creation::{Kind, asks_for_help, help_line, is_of_creation, name_and_value, number};
use super::getopt::{Parsed, flag, value};
use super::key_slots::{Force, KeySlots};
use super::progress::{Progress, Shown};
use super::resize::{resize_failure, resizing};
use super::{Command, Stop, misuse, open_named, print, secrets, spec_of};
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing, options};

pub(super) const COMMAND: Command = Command {
    name: "amend",
    about: "Change options of an image that exists",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        flag(Some('p'), "progress", "show how far it is"),
        value(
            Some('o'),
            "options",
            "options of the format; `-o help` lists them",
        ),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('t'), "cache", "the cache mode (writeback)"),
        flag(None, "force", "allow what may lose data"),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

/// What can be amended, by name.
const AMENDABLE: [(&str, Kind, &str); 13] = [
    ("backing_file", Kind::Text, "what lies beneath; see rebase"),
    ("backing_fmt", Kind::Text, "its format; see rebase"),
    ("compat", Kind::Text, "v2 (0.10) or v3 (1.1)"),
    ("data_file", Kind::Text, "the file of the guest's data"),
    (
        "data_file_raw",
        Kind::Flag,
        "the data file stays a raw image of the disk",
    ),
    ("encrypt.iter-time", Kind::Integer, "milliseconds to derive"),
    ("encrypt.keyslot", Kind::Integer, "one key slot"),
    ("encrypt.new-secret", Kind::Text, "a secret to be set"),
    ("encrypt.old-secret", Kind::Text, "the slots it opens"),
    ("encrypt.state", Kind::Text, "active or inactive"),
    ("lazy_refcounts", Kind::Flag, "postpone refcount updates"),
    ("refcount_bits", Kind::Number, "the width of a refcount"),
    ("size", Kind::Size, "the size of the disk"),
];

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let lists = option_lists(parsed, "options")?;
    if lists.is_empty() {
        return Err(misuse("amend", "Must specify options (-o)"));
    }
    let secrets = secrets(parsed)?;
    if let (true, Some(format)) = (asks_for_help(&lists), parsed.get("format")) {
        return tell_options(Format::to_open(format)?);
    }
    let cache = CacheMode::of_target(parsed.get("cache").unwrap_or("writeback"))
        .map_err(|_| Failure(invalid_cache(parsed)))?;
    let [name] = parsed.operands.as_slice() else {
        return Err(Failure::new("Expecting one image file name").into());
    };
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    if asks_for_help(&lists) {
        return tell_options(node.format);
    }
    let Some(header) = node.header.as_ref() else {
        return Err(not_amendable(node.format).into());
    };
    let mut wanted = Wanted::default();
    for part in lists.iter().flat_map(|list| options::split_list(list)) {
        let is_known = |name: &str| AMENDABLE.iter().any(|(known, ..)| *known == name);
        let (name, value) = name_and_value(&part, is_known);
        wanted.set(name, value)?;
    }
    wanted.must_suit(header)?;
    let shown = Shown::when(parsed.has("progress") && !parsed.has("quiet"));
    let mut progress = Progress::start(shown, 100, 1);
    if wanted.key_slots.is_asked_for() {
        let force = if parsed.has("force") {
            Force::Yes
        } else {
            Force::No
        };
        wanted.key_slots.carry_out(&node, &secrets, force)?;
    }
    wanted.carry_out(&node)?;
    progress.at(100);
    progress.end();
    Ok(0)
}

fn invalid_cache(parsed: &Parsed) -> String {
    format!(
        "Invalid cache option: {}",
        parsed.get("cache").unwrap_or_default()
    )
}

fn not_amendable(format: Format) -> Failure {
    Failure(format!(
        "Format driver '{}' does not support option amendment",
        format.name()
    ))
}

fn tell_options(format: Format) -> Result<u8, Stop> {
    if format != Format::Qcow2 {
        return Err(not_amendable(format).into());
    }
    print("Amend options for 'qcow2':\n");
    for (name, kind, about) in AMENDABLE {
        print(&help_line(name, kind, about));
    }
    Ok(0)
}

/// What a call asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    version: Option<u32>,
    lazy_refcounts: Option<bool>,
    refcount_bits: Option<u64>,
    virtual_bytes: Option<u64>,
    backing_file: Option<String>,
    backing_format: Option<String>,
    data_file: Option<String>,
    data_file_raw: Option<bool>,
    key_slots: KeySlots,
}

impl Wanted {
    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let Some((_, kind, _)) = AMENDABLE.iter().find(|(known, ..)| *known == name) else {
            let mut text = format!("Invalid parameter '{name}'");
            let at_creation = is_of_creation(Format::Qcow2, name)
                || matches!(name, "encryption" | "encrypt.format");
            if at_creation && !matches!(name, "nocow" | "extent_size_hint") {
                text.push_str("\nThis option is only supported for image creation");
            }
            return Err(Failure(text));
        };
        let value = kind.read(name, value)?;
        match name {
            "compat" => self.version = Some(version_of(&value)?),
            "lazy_refcounts" => self.lazy_refcounts = options::flag(&value),
            "refcount_bits" => self.refcount_bits = Some(number(name, &value)?),
            // A size of nothing is no size.
            "size" => self.virtual_bytes = value.parse().ok().filter(|bytes| *bytes > 0),
            "backing_file" => self.backing_file = Some(value),
            "backing_fmt" => self.backing_format = Some(value),
            "data_file" => self.data_file = Some(value),
            "data_file_raw" => self.data_file_raw = options::flag(&value),
            _ => self
                .key_slots
                .set(name.trim_start_matches("encrypt."), value),
        }
        Ok(())
    }

    /// Refuses what this image cannot be.
    fn must_suit(&self, header: &Header) -> Result<(), Failure> {
        let refuse = |text: &str| Err(Failure::new(text));
        if self.key_slots.is_asked_for() {
            KeySlots::must_suit(header.encryption)?;
        }
        if self.data_file.is_some() && !header.geometry.has_external_data() {
            return refuse("data-file can only be set for images that use an external data file");
        }
        if self.data_file_raw == Some(true) && !header.has_raw_data_file() {
            return refuse("data-file-raw cannot be set on existing images");
        }
        self.must_keep_backing(header)?;
        if self.refcount_bits.is_some() && self.refcount_order().is_none() {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        let version = self.version.unwrap_or(header.version);
        if version < 3 && header.geometry.has_external_data() {
            return refuse("Cannot downgrade an image with a data file");
        }
        if version < 3 && self.refcount_bits.is_some_and(|bits| bits != 16) {
            return refuse(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use \
                 compat=1.1 or greater)",
            );
        }
        if version < 3 && self.refcount_bits.is_none() && header.geometry.refcount_order() != 4 {
            return refuse("compat=0.10 requires refcount_bits=16");
        }
        if version < 3 && header.version < 3 && self.lazy_refcounts == Some(true) {
            return refuse(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use \
                 compat=1.1 or greater)",
            );
        }
        if self
            .virtual_bytes
            .is_some_and(|bytes| !bytes.is_multiple_of(512))
        {
            return refuse("The new size must be a multiple of 512");
        }
        Ok(())
    }

    /// The backing file may be named, but not changed.
    fn must_keep_backing(&self, header: &Header) -> Result<(), Failure> {
        if self.backing_file.is_none() && self.backing_format.is_none() {
            return Ok(());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let format = header.extension(engine::qcow2::extension::BACKING_FORMAT);
        let same = self.backing_file.clone() == header.backing_name.as_deref().map(text)
            && self.backing_format.clone() == format.map(text);
        if same {
            return Ok(());
        }
        Err(Failure::new(
            "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.",
        ))
    }

    fn refcount_order(&self) -> Option<u32> {
        let bits = self.refcount_bits.filter(|bits| bits.is_power_of_two())?;
        let order = bits.trailing_zeros();
        Geometry::REFCOUNT_ORDER.contains(&order).then_some(order)
    }

    /// What is to be said of the data file, where that is something new.
    fn data_file_change(&self, node: &Node) -> Option<DataFileChange> {
        let external = |header: &Header| header.geometry.has_external_data();
        node.header.as_ref().filter(|header| external(header))?;
        let raw = match self.data_file_raw {
            Some(false) => RawPromise::Withdraw,
            Some(true) | None => RawPromise::Keep,
        };
        let name = self.data_file.clone();
        (name.is_some() || raw == RawPromise::Withdraw).then_some(DataFileChange { name, raw })
    }

    fn carry_out(&self, node: &Node) -> Result<(), Failure> {
        let downgrade = self.version == Some(2);
        let first = Amend {
            version: self.version.filter(|version| *version > 2),
            // Version 2 will forget it.
            lazy_refcounts: self.lazy_refcounts.filter(|on| !(*on && downgrade)),
            refcount_order: self.refcount_order(),
        };
        at_once(async {
            let image = node.image();
            image.manage(Manage::Amend(first)).await?;
            if let Some(change) = self.data_file_change(node) {
                image.manage(Manage::SetDataFile(change)).await?;
            }
            if let Some(virtual_bytes) = self.virtual_bytes {
                let resizing = resizing(node, virtual_bytes, Preallocation::Off);
                image.manage(resizing).await?;
            }
            if downgrade {
                let last = Amend {
                    version: Some(2),
                    ..Amend::default()
                };
                image.manage(Manage::Amend(last)).await?;
            }
            image.close().await
        })
        .map_err(|error: Error| resize_failure(&error))
    }
}

fn version_of(compat: &str) -> Result<u32, Failure> {
    match compat {
        "v2" | "0.10" => Ok(2),
        "v3" | "1.1" => Ok(3),
        other => Err(Failure(format!("Unknown compatibility level {other}"))),
    }
}
