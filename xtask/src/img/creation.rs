//! Creation options (`-o`): what each format knows, how they are told, and the image made from them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;

use engine::device::{FileDevice, Port, SECTOR_BYTES};
use engine::error::{Error, Refused, Structure};
use engine::preallocation::Preallocation;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::{
    self, Backing, BackingFormat, CreateOptions, DataFileContent, NewDataFile,
};
use engine::qcow2::geometry::Geometry;
use engine::raw;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::encryption::new_encryption;
use crate::block::claims;
use crate::block::failure::{engine_text, os_text};
use crate::block::open::{at_once, identity};
use crate::block::secret::Secrets;
use crate::block::{Failure, Format, name, options, size};

/// What an option's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Flag,
    Number,
    /// A number that may be negative.
    Integer,
    Size,
}

impl Kind {
    /// The value of the option `name`, as it is told.
    pub(super) fn read(self, name: &str, value: &str) -> Result<String, Failure> {
        match self {
            Self::Text => Ok(value.to_owned()),
            Self::Flag => match options::flag(value) {
                Some(_) => Ok(value.to_owned()),
                None => Err(Failure(format!("Parameter '{name}' expects 'on' or 'off'"))),
            },
            Self::Number => number(name, value).map(|_| value.to_owned()),
            Self::Integer => integer(name, value).map(|number| number.to_string()),
            Self::Size => size::parse(value)
                .map(|bytes| bytes.to_string())
                .map_err(|bad| bad_size(name, value, bad)),
        }
    }

    fn placeholder(self) -> &'static str {
        match self {
            Self::Text => "<str>",
            Self::Flag => "<bool (on/off)>",
            Self::Number | Self::Integer => "<num>",
            Self::Size => "<size>",
        }
    }
}

/// One line of the help for options.
pub(super) fn help_line(name: &str, kind: Kind, about: &str) -> String {
    let left = format!("{name}={}", kind.placeholder());
    format!("  {left:22} - {about}\n")
}

/// One option that a format knows.
#[derive(Clone, Copy, Debug)]
struct Known {
    name: &'static str,
    kind: Kind,
    /// The value that counts, and is told, where none is given.
    default: Option<&'static str>,
    about: &'static str,
}

const fn known(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    about: &'static str,
) -> Known {
    Known {
        name,
        kind,
        default,
        about,
    }
}

/// In the order in which they are told.
const QCOW2: [Known; 23] = [
    known(
        "encryption",
        Kind::Flag,
        None,
        "the old word for encrypt.format=aes",
    ),
    known(
        "encrypt.format",
        Kind::Text,
        None,
        "luks, or the legacy aes",
    ),
    known(
        "encrypt.key-secret",
        Kind::Text,
        None,
        "the secret that opens it, by its id",
    ),
    known(
        "encrypt.cipher-alg",
        Kind::Text,
        None,
        "aes, serpent or twofish, with the bits of the key (aes-256)",
    ),
    known("encrypt.cipher-mode", Kind::Text, None, "xts or cbc (xts)"),
    known(
        "encrypt.ivgen-alg",
        Kind::Text,
        None,
        "plain, plain64 or essiv (plain64)",
    ),
    known(
        "encrypt.ivgen-hash-alg",
        Kind::Text,
        None,
        "the hash of essiv (sha256)",
    ),
    known(
        "encrypt.hash-alg",
        Kind::Text,
        None,
        "the hash of key derivation (sha256)",
    ),
    known(
        "encrypt.iter-time",
        Kind::Integer,
        None,
        "milliseconds that a key takes (2000)",
    ),
    known(
        "cluster_size",
        Kind::Size,
        Some("65536"),
        "bytes in a cluster",
    ),
    known("extended_l2", Kind::Flag, Some("off"), "subclusters"),
    known(
        "preallocation",
        Kind::Text,
        None,
        "off, metadata, falloc or full",
    ),
    known("compression_type", Kind::Text, Some("zlib"), "zlib or zstd"),
    known("size", Kind::Size, None, "the size of the disk"),
    known("compat", Kind::Text, None, "v2 (0.10) or v3 (1.1)"),
    known("backing_file", Kind::Text, None, "what lies beneath"),
    known(
        "backing_fmt",
        Kind::Text,
        None,
        "the format of what lies beneath",
    ),
    known(
        "data_file",
        Kind::Text,
        None,
        "a file of its own for the guest's data",
    ),
    known(
        "data_file_raw",
        Kind::Flag,
        None,
        "the data file stays a raw image of the disk",
    ),
    known(
        "lazy_refcounts",
        Kind::Flag,
        Some("off"),
        "postpone refcount updates",
    ),
    known(
        "refcount_bits",
        Kind::Number,
        Some("16"),
        "the width of a refcount",
    ),
    known(
        "nocow",
        Kind::Flag,
        None,
        "turn off copy-on-write of the host's file system (btrfs)",
    ),
    known(
        "extent_size_hint",
        Kind::Size,
        None,
        "accepted, and without effect",
    ),
];

const RAW: [Known; 4] = [
    known("size", Kind::Size, None, "the size of the disk"),
    known(
        "nocow",
        Kind::Flag,
        None,
        "turn off copy-on-write of the host's file system (btrfs)",
    ),
    known("preallocation", Kind::Text, None, "off, falloc or full"),
    known(
        "extent_size_hint",
        Kind::Size,
        None,
        "accepted, and without effect",
    ),
];

fn table(format: Format) -> &'static [Known] {
    match format {
        Format::Raw => &RAW,
        Format::Qcow2 => &QCOW2,
    }
}

/// The options of one image that is to be made.
#[derive(Clone, Debug)]
pub(super) struct Creation {
    format: Format,
    /// One value for each option of the format's table.
    values: Vec<Option<String>>,
}

/// An option and its value; a flag may stand without one, and be turned off by a `no` before it.
pub(super) fn name_and_value(part: &str, is_known: impl Fn(&str) -> bool) -> (&str, &str) {
    match (part.split_once('='), part.strip_prefix("no")) {
        (Some(both), _) => both,
        (None, Some(name)) if is_known(name) => (name, "off"),
        (None, _) => (part, "on"),
    }
}

/// Whether a name is that of an option of new images.
pub(super) fn is_of_creation(format: Format, name: &str) -> bool {
    table(format).iter().any(|known| known.name == name)
}

/// Whether an option list asks which options there are.
pub(super) fn asks_for_help(lists: &[&str]) -> bool {
    lists
        .iter()
        .flat_map(|list| options::split_list(list))
        .any(|part| part == "help" || part == "?")
}

/// Options of the file that holds an image, whatever its format.
const OF_FILE: [&str; 2] = ["extent_size_hint", "nocow"];

/// The options of a format, and of the file `target` if that is named, for a person.
pub(super) fn help(format_name: &str, target: Option<&str>) -> Result<String, Failure> {
    let format = Format::from_name(format_name)
        .ok_or_else(|| Failure(format!("Unknown file format '{format_name}'")))?;
    // A raw image is its file, and leaves preallocation to it.
    let is_of_file =
        |name: &str| OF_FILE.contains(&name) || (format == Format::Raw && name == "preallocation");
    let mut known: Vec<&Known> = table(format)
        .iter()
        .filter(|known| target.is_some() || !is_of_file(known.name))
        .collect();
    known.sort_by_key(|known| known.name);
    let mut text = match target {
        Some(_) => "Supported options:\n".to_owned(),
        None => format!("Supported {} options:\n", format.name()),
    };
    for known in known {
        text.push_str(&help_line(known.name, known.kind, known.about));
    }
    if target.is_none() {
        text.push_str(
            "\nThe protocol level may support further options.\n\
             Specify the target filename to include those options.\n",
        );
    }
    Ok(text)
}

impl Creation {
    /// No option but the defaults.
    pub(super) fn new(format: Format) -> Self {
        let values = table(format)
            .iter()
            .map(|known| known.default.map(ToOwned::to_owned))
            .collect();
        Self { format, values }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Takes in a list of options, `key=value,key=value`.
    pub(super) fn read(&mut self, list: &str) -> Result<(), Failure> {
        for part in options::split_list(list) {
            let (name, value) = name_and_value(&part, |name| self.index(name).is_some());
            self.set(name, value)?;
        }
        Ok(())
    }

    fn index(&self, name: &str) -> Option<usize> {
        table(self.format)
            .iter()
            .position(|known| known.name == name)
    }

    /// Sets one option.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let Some(index) = self.index(name) else {
            return Err(Failure(format!("Invalid parameter '{name}'")));
        };
        let value = table(self.format)[index].kind.read(name, value)?;
        self.values[index] = Some(value);
        Ok(())
    }

    /// The value of an option, given or by default.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values[self.index(name)?].as_deref()
    }

    /// Whether a flag is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).and_then(options::flag) == Some(true)
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name)
            .and_then(|value| number(name, value).ok())
            .unwrap_or(0)
    }

    /// The size of the disk, so far as it is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.get("size").and_then(|value| value.parse().ok())
    }

    /// The line that tells what is made.
    pub(super) fn describe(&self, filename: &str) -> String {
        let mut text = format!("Formatting '{filename}', fmt={}", self.format.name());
        for (known, value) in table(self.format).iter().zip(&self.values) {
            if let Some(value) = value {
                text.push_str(&format!(" {}={}", known.name, value.replace(',', ",,")));
            }
        }
        text.push('\n');
        text
    }

    /// Makes the image; what stood in the file before is gone.
    pub(super) fn make(&self, filename: &str, secrets: &Secrets) -> Result<(), Failure> {
        let path = local_path(filename)?;
        match self.format {
            Format::Raw => self.make_raw(path),
            Format::Qcow2 => {
                let options = self.qcow2_options(secrets)?;
                let made = match self.data_file()? {
                    None => at_once(create::create(
                        &self.open_empty(path, Format::Qcow2)?,
                        &options,
                    )),
                    Some(data_path) => {
                        must_differ(path, data_path)?;
                        // Where this cannot be made there is no new image either.
                        let data = self.open_empty(data_path, Format::Raw)?;
                        let image = self.open_empty(path, Format::Qcow2)?;
                        at_once(create::create_with_data_file(&image, &data, &options))
                    }
                };
                made.map_err(|error| qcow2_failure(&error))
            }
        }
    }

    /// The local file for the guest's data, where that is another.
    pub(super) fn data_file(&self) -> Result<Option<&str>, Failure> {
        self.get("data_file").map(local_path).transpose()
    }

    /// The data file as the image names it.
    fn new_data_file(&self, version: u32) -> Result<Option<NewDataFile>, Failure> {
        let raw = self.is_on("data_file_raw");
        let Some(name) = self.data_file()? else {
            return if raw {
                Err(Failure::new("data-file-raw requires data-file"))
            } else {
                Ok(None)
            };
        };
        if version == 2 {
            return Err(Failure::new(
                "External data files are only supported with compatibility level 1.1 and above (use \
                 version=v3 or greater)",
            ));
        }
        if raw && self.get("backing_file").is_some() {
            return Err(Failure::new(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        Ok(Some(NewDataFile {
            name: name.to_owned(),
            content: if raw {
                DataFileContent::Raw
            } else {
                DataFileContent::Clusters
            },
        }))
    }

    /// What is to have its place before anything is written.
    fn preallocation(&self) -> Result<Preallocation, Failure> {
        let Some(name) = self.get("preallocation") else {
            return Ok(Preallocation::Off);
        };
        Preallocation::from_name(name).ok_or_else(|| {
            Failure(match self.format {
                Format::Raw => format!("invalid parameter value: {name}"),
                Format::Qcow2 => {
                    format!("Parameter 'preallocation' does not accept value '{name}'")
                }
            })
        })
    }

    /// Opens a file for a new image of this format, made where it does not exist.
    fn open_empty(&self, path: &str, format: Format) -> Result<Port, Failure> {
        let local = Path::new(path);
        let missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
        let opened = FileDevice::open_unclaimed(local).or_else(|error| {
            if missing(&error) {
                File::create_new(local)?;
            }
            FileDevice::open_unclaimed(local)
        });
        let claimable = opened.and_then(|device| Ok((device.claims()?, device)));
        let (claims, device) = claimable.map_err(|error| {
            let why = if local.is_dir() {
                "Is a directory".to_owned()
            } else {
                os_text(&error)
            };
            Failure(format!("Could not create '{path}': {why}"))
        })?;
        claims
            .take(claims::creation(format))
            .map_err(|error| claims::refusal(path, error))?;
        if self.is_on("nocow") {
            keep_in_place(local);
        }
        Ok(Port::new(Rc::new(device)))
    }

    fn make_raw(&self, path: &str) -> Result<(), Failure> {
        let mode = self.preallocation()?;
        let bytes = self.size().unwrap_or(0);
        let bytes = bytes.checked_next_multiple_of(SECTOR_BYTES);
        let bytes = bytes
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .ok_or_else(too_large)?;
        let port = self.open_empty(path, Format::Raw)?;
        if mode == Preallocation::Metadata {
            return Err(no_raw_metadata());
        }
        at_once(raw::create(&port, bytes, mode))
            .map_err(|error| Failure(format!("Could not resize file: {}", engine_text(&error))))
    }

    /// The sizes that the options ask for.
    pub(super) fn geometry(&self) -> Result<Geometry, Failure> {
        let cluster_bytes = self.number("cluster_size");
        let cluster_bits = cluster_bytes.trailing_zeros();
        if !cluster_bytes.is_power_of_two() || !Geometry::CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Failure::new(
                "Cluster size must be a power of two between 512 and 2048k",
            ));
        }
        let refcount_bits = self.number("refcount_bits");
        let refcount_order = refcount_bits.trailing_zeros();
        if !refcount_bits.is_power_of_two() || !Geometry::REFCOUNT_ORDER.contains(&refcount_order) {
            return Err(Failure::new(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        let geometry =
            Geometry::new(cluster_bits, refcount_order).expect("both are within their ranges");
        if !self.is_on("extended_l2") {
            return Ok(geometry);
        }
        geometry.with_extended_l2().ok_or_else(|| {
            Failure::new(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            )
        })
    }

    /// The version of the format, so far as the options name one that there is.
    pub(super) fn version(&self) -> u32 {
        match self.get("compat") {
            Some("v2" | "0.10") => 2,
            None | Some(_) => 3,
        }
    }

    fn qcow2_options(&self, secrets: &Secrets) -> Result<CreateOptions, Failure> {
        let version = match self.get("compat") {
            None | Some("v3" | "1.1") => 3,
            Some("v2" | "0.10") => 2,
            Some(other) => {
                return Err(Failure(format!(
                    "Parameter 'version' does not accept value '{other}'"
                )));
            }
        };
        if version == 2 && self.is_on("extended_l2") {
            return Err(Failure::new(
                "Extended L2 entries are only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)",
            ));
        }
        let geometry = self.geometry()?;
        let preallocation = self.preallocation()?;
        let hides = self.get("backing_file").is_some() && !geometry.has_subclusters();
        if preallocation != Preallocation::Off && hides {
            return Err(Failure::new(
                "Backing file and preallocation can only be used at the same time if extended_l2 \
                 is on",
            ));
        }
        let (cluster_bits, refcount_order) = (geometry.cluster_bits(), geometry.refcount_order());
        if version == 2 && refcount_order != 4 {
            return Err(Failure::new(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above \
                 (use version=v3 or greater)",
            ));
        }
        let lazy_refcounts = self.is_on("lazy_refcounts");
        if version == 2 && lazy_refcounts {
            return Err(Failure::new(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use \
                 version=v3 or greater)",
            ));
        }
        let name = self.get("compression_type").unwrap_or("zlib");
        let compression = Compression::from_name(name).ok_or_else(|| {
            Failure(format!(
                "Parameter 'compression-type' does not accept value '{name}'"
            ))
        })?;
        if version == 2 && compression != Compression::Zlib {
            return Err(Failure::new(
                "Non-zlib compression type is only supported with compatibility level 1.1 and \
                 above (use version=v3 or greater)",
            ));
        }
        let bytes = self.size().unwrap_or(0);
        Ok(CreateOptions {
            virtual_bytes: bytes
                .checked_next_multiple_of(SECTOR_BYTES)
                .ok_or_else(too_large)?,
            version,
            cluster_bits,
            refcount_order,
            lazy_refcounts,
            compression,
            extended_l2: geometry.has_subclusters(),
            encryption: new_encryption(self, secrets)?,
            preallocation,
            backing: self.backing()?,
            data_file: self.new_data_file(version)?,
        })
    }

    fn backing(&self) -> Result<Option<Backing>, Failure> {
        let (name, format) = (self.get("backing_file"), self.get("backing_fmt"));
        match (name, format) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Failure::new(
                "Backing format cannot be used without backing file",
            )),
            (Some(_), None) => Err(Failure::new(
                "Backing file specified without backing format",
            )),
            (Some(name), Some(format)) => Ok(Some(Backing {
                name: name.to_owned(),
                format: BackingFormat::from_name(format.as_bytes()).ok_or_else(|| {
                    Failure(format!(
                        "Parameter 'backing-fmt' does not accept value '{format}'"
                    ))
                })?,
            })),
        }
    }
}

/// The local file that a name of a new image means.
pub(super) fn local_path(filename: &str) -> Result<&str, Failure> {
    match name::parse(filename) {
        name::Name::Plain(path) => Ok(path),
        name::Name::Json(_) => Err(Failure::new("Unknown protocol 'json'")),
        name::Name::Blkdebug(_) => Err(Failure::new(
            "Driver 'blkdebug' does not support image creation",
        )),
        name::Name::Blkverify(_) => Err(Failure::new(
            "Driver 'blkverify' does not support image creation",
        )),
        name::Name::Protocol(other) => Err(Failure(format!("Unknown protocol '{other}'"))),
    }
}

/// A number of 64 bits without its sign, and whether it has one.
fn magnitude(name: &str, value: &str) -> Result<(u64, bool), Failure> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    if !is_digits(digits) {
        return Err(Failure(format!("Parameter '{name}' expects a number")));
    }
    let magnitude = digits.parse().map_err(|_| {
        Failure(format!(
            "Value '{value}' is too large for parameter '{name}'"
        ))
    })?;
    Ok((magnitude, digits.len() < value.len()))
}

/// A number of 64 bits. One with a sign wraps around, as in C, so that it is too large for whatever it is for.
pub(super) fn number(name: &str, value: &str) -> Result<u64, Failure> {
    Ok(match magnitude(name, value)? {
        (magnitude, true) => magnitude.wrapping_neg(),
        (magnitude, false) => magnitude,
    })
}

/// A number of 64 bits with its sign. QEMU reads it in two steps, and says of each what it misses.
fn integer(name: &str, value: &str) -> Result<i64, Failure> {
    magnitude(name, value)?;
    value
        .parse()
        .map_err(|_| Failure(format!("Parameter '{name}' expects integer")))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn bad_size(name: &str, value: &str, bad: size::BadSize) -> Failure {
    let negative = value.strip_prefix('-').is_some_and(is_digits);
    Failure(match bad {
        size::BadSize::TooLarge => {
            format!("Value '{value}' is out of range for parameter '{name}'")
        }
        size::BadSize::Syntax if negative => {
            format!("Value '{value}' is out of range for parameter '{name}'")
        }
        size::BadSize::Syntax => not_a_size(name),
    })
}

/// The words for a text that is no size.
pub(super) fn not_a_size(name: &str) -> String {
    format!(
        "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P \
         or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
    )
}

/// The words for metadata that a raw image does not have.
pub(crate) fn no_raw_metadata() -> Failure {
    Failure::new("Unsupported preallocation mode: metadata")
}

fn too_large() -> Failure {
    Failure::new("The image size is too large")
}

fn qcow2_failure(error: &Error) -> Failure {
    let too_large = if let Error::Refused(Refused::Option(text)) = error {
        text.contains("can map")
    } else {
        *error == Error::Refused(Refused::TableFull(Structure::RefcountTable))
    };
    if too_large {
        return Failure::new(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        );
    }
    Failure(engine_text(error))
}

/// Refuses an image that would hold its own data file.
fn must_differ(path: &str, data_path: &str) -> Result<(), Failure> {
    let same = match (identity(path), identity(data_path)) {
        (Ok(image), Ok(data)) => image == data,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => path == data_path,
    };
    if same {
        return Err(claims::in_use(path, "shared \"resize\""));
    }
    Ok(())
}

/// Asks the file system to write this file in place (`nocow`). Most do so anyway, and not doing it is no
/// error, as in QEMU.
fn keep_in_place(path: &Path) {
    if let Ok(file) = File::open(path)
        && let Ok(flags) = ioctl_getflags(&file)
    {
        let _ = ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
}
