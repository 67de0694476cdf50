//! What the user fixes about drawn images: `lazy_refcounts=on,cluster_size=4k,..`.

use std::fmt;

use engine::preallocation::Preallocation;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::{BackingFormat, DataFileContent};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::{GuestDiscards, OverlapChecks};
use engine::zeroes::DetectZeroes;

use super::shape::{Encrypted, backing_format};

/// The values that are not drawn. A field that is `None` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// 2 or 3.
    pub version: Option<u32>,
    /// Binary logarithm of the cluster size.
    pub cluster_bits: Option<u32>,
    /// Binary logarithm of the refcount width in bits.
    pub refcount_order: Option<u32>,
    /// Whether the image asks for lazy refcounts.
    pub lazy_refcounts: Option<bool>,
    /// Whether L2 entries are extended.
    pub extended_l2: Option<bool>,
    /// What lies beneath: `Some(None)` for nothing.
    pub backing: Option<Option<BackingFormat>>,
    /// The size of the guest's disk.
    pub virtual_bytes: Option<u64>,
    /// How many operations may be in flight at once.
    pub concurrency: Option<usize>,
    /// Whether operations on the image as a whole are in flight beside the guest's.
    pub overlap: Option<bool>,
    /// How many operations a workload has.
    pub operations: Option<usize>,
    /// How much room the refcount structures have left.
    pub room: Option<Room>,
    /// How compressed clusters are compressed; `Some(None)` for no compressed data at all.
    pub compression: Option<Option<Compression>>,
    /// How guest data are encrypted; `Some(None)` for not at all.
    pub encryption: Option<Option<Encrypted>>,
    /// Whether the image was left dirty, without its refcounts.
    pub abandoned: Option<bool>,
    /// Which operations on the image as a whole a workload has.
    pub manage: Option<Managed>,
    /// Whether there are snapshots, before the run and in it.
    pub snapshots: Option<bool>,
    /// Whether there are persistent bitmaps.
    pub bitmaps: Option<bool>,
    /// Whether key slots change, where there are any.
    pub key_slots: Option<bool>,
    /// Whether the image lies over a chain of files, and is committed, rebased and streamed.
    pub chain: Option<bool>,
    /// Whether the options of the open image are drawn; without, they are in one run of three.
    pub options: Option<bool>,
    /// What the guest's discards do.
    pub discard: Option<GuestDiscards>,
    /// Whether a discarded mapping keeps its cluster.
    pub discard_no_unref: Option<bool>,
    /// What is done with writes of zeroes.
    pub detect_zeroes: Option<DetectZeroes>,
    /// What writes are checked against.
    pub overlap_checks: Option<OverlapChecks>,
    /// How much has its place before the guest writes, in small images and where disks grow.
    pub preallocation: Option<Preallocation>,
    /// Whether disks become smaller.
    pub shrink: Option<bool>,
    /// What the external data file is by itself; `Some(None)` for none.
    pub data_file: Option<Option<DataFileContent>>,
    /// Whether processes are killed that have the image open.
    pub kill: Option<bool>,
    /// Whether requests fail; without, none does.
    pub faults: Option<bool>,
}

/// Operations that change an image as a whole, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Managed {
    /// All kinds.
    All,
    /// None.
    None,
    /// Changes of version, refcount width and lazy refcounts.
    Amend,
    /// Changes of the backing file's name.
    Rename,
    /// Giving up everything.
    Empty,
}

impl Managed {
    const NAMES: [(&str, Self); 5] = [
        ("on", Self::All),
        ("off", Self::None),
        ("amend", Self::Amend),
        ("rename", Self::Rename),
        ("empty", Self::Empty),
    ];

    /// Whether the kind of that number is among them, counted as the generator does.
    pub(super) fn allows(self, kind: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Amend => kind == 0,
            Self::Rename => kind == 1,
            Self::Empty => kind == 2,
        }
    }
}

/// How much room an image's refcount structures have before they must grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As it comes.
    Any,
    /// A few clusters more and a refcount block is due.
    Block,
    /// A few clusters more and a larger refcount table is due.
    Table,
}

/// Why a list of options was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPin(String);

impl fmt::Display for BadPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPin {}

/// The options that exist, for messages and help.
pub const OPTIONS: &str = "version=2|3, cluster_size=512..2M, refcount_bits=1|2|4|8|16|32|64, \
     lazy_refcounts=on|off, extended_l2=on|off, \
     backing=raw|qcow2|none, size=BYTES, concurrency=1.., overlap=on|off, operations=1.., \
     room=any|block|table, abandoned=on|off, manage=on|off|amend|rename|empty, \
     compression=zlib|zstd|off, snapshots=on|off, bitmaps=on|off, encrypt=aes|luks|off, \
     key_slots=on|off, chain=on|off, data_file=on|raw|off, \
     options=on|off, discard=unmap|ignore, discard_no_unref=on|off, detect_zeroes=off|on|unmap, \
     overlap_check=none|constant|cached|all, \
     preallocation=off|metadata|falloc|full, shrink=on|off, kill=on|off, faults=on|off";

/// The largest disk that a campaign makes: every written sector is looked at in every crash state.
const MAX_VIRTUAL_BYTES: u64 = 1 << 40;

impl Pins {
    /// Reads `name=value,name=value,..`.
    pub fn parse(text: &str) -> Result<Self, BadPin> {
        let mut pins = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| BadPin(format!("option `{option}` lacks a value: {OPTIONS}")))?;
            pins.set(name, value)?;
        }
        pins.check()?;
        Ok(pins)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), BadPin> {
        let wrong = |expected: &str| BadPin(format!("option {name}={value}: expected {expected}"));
        match name {
            "version" => {
                let version = value
                    .parse()
                    .ok()
                    .filter(|version| matches!(version, 2 | 3));
                self.version = Some(version.ok_or_else(|| wrong("2 or 3"))?);
            }
            "cluster_size" => {
                let bits = size(value).and_then(exponent);
                let bits = bits.filter(|bits| Geometry::CLUSTER_BITS.contains(bits));
                self.cluster_bits =
                    Some(bits.ok_or_else(|| wrong("a power of two from 512 to 2M"))?);
            }
            "refcount_bits" => {
                let order = size(value).and_then(exponent);
                let order = order.filter(|order| Geometry::REFCOUNT_ORDER.contains(order));
                self.refcount_order =
                    Some(order.ok_or_else(|| wrong("a power of two from 1 to 64"))?);
            }
            "lazy_refcounts" => {
                self.lazy_refcounts = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "extended_l2" => {
                self.extended_l2 = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "abandoned" => {
                self.abandoned = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "manage" => {
                let named = Managed::NAMES.iter().find(|(name, _)| *name == value);
                let (_, managed) = named.ok_or_else(|| wrong("on, off, amend, rename or empty"))?;
                self.manage = Some(*managed);
            }
            "overlap" => {
                self.overlap = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "snapshots" => {
                self.snapshots = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "bitmaps" => {
                self.bitmaps = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "key_slots" => {
                self.key_slots = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "chain" => {
                self.chain = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
            }
            "options" | "discard" | "discard_no_unref" | "detect_zeroes" | "overlap_check" => {
                self.set_option(name, value)?;
            }
            "preallocation" => self.preallocation = Some(preallocation(value).map_err(wrong)?),
            "shrink" => self.shrink = Some(switch(value).ok_or_else(|| wrong("on or off"))?),
            "kill" => self.kill = Some(switch(value).ok_or_else(|| wrong("on or off"))?),
            "faults" => self.faults = Some(switch(value).ok_or_else(|| wrong("on or off"))?),
            "data_file" => {
                self.data_file = Some(data_file(value).map_err(wrong)?);
            }
            "backing" => {
                self.backing = Some(backing(value).map_err(wrong)?);
            }
            "compression" => {
                self.compression = Some(match (value, Compression::from_name(value)) {
                    ("off", _) => None,
                    (_, Some(kind)) => Some(kind),
                    (_, None) => return Err(wrong("zlib, zstd or off")),
                });
            }
            "encrypt" => {
                self.encryption = Some(match (value, Encrypted::from_name(value)) {
                    ("off", _) => None,
                    (_, Some(method)) => Some(method),
                    (_, None) => return Err(wrong("aes, luks or off")),
                });
            }
            "size" => {
                let bytes = size(value).filter(|bytes| {
                    bytes.is_multiple_of(512) && (512..=MAX_VIRTUAL_BYTES).contains(bytes)
                });
                self.virtual_bytes =
                    Some(bytes.ok_or_else(|| wrong("a multiple of 512, at most 1T"))?);
            }
            "concurrency" => {
                self.concurrency = Some(count(value).ok_or_else(|| wrong("1 to 1000"))?);
            }
            "operations" => {
                self.operations = Some(count(value).ok_or_else(|| wrong("1 to 1000"))?);
            }
            "room" => {
                self.room = Some(room(value).ok_or_else(|| wrong("any, block or table"))?);
            }
            _ => {
                return Err(BadPin(format!("unknown option `{name}`: {OPTIONS}")));
            }
        }
        Ok(())
    }

    /// Whether nothing is pinned that an image with a data file goes without.
    pub(super) fn data_file_is_free(&self) -> bool {
        self.version != Some(2)
            && self.snapshots != Some(true)
            && self.chain != Some(true)
            && !matches!(self.compression, Some(Some(_)))
            && !matches!(self.encryption, Some(Some(_)))
    }

    /// Whether guest data stand in a raw file.
    pub(super) fn has_raw_data(&self) -> bool {
        self.data_file == Some(Some(DataFileContent::Raw))
    }

    /// The operations on an image as a whole that can be asked of one whose data file is raw.
    pub(super) fn raw_managed(&self) -> Managed {
        match self.manage {
            None | Some(Managed::All | Managed::Amend) => Managed::Amend,
            Some(Managed::None | Managed::Rename | Managed::Empty) => Managed::None,
        }
    }

    /// Whether nothing is pinned that a chain goes without.
    pub(super) fn chain_is_free(&self) -> bool {
        let managed = match self.manage {
            None | Some(Managed::None | Managed::Amend) => true,
            Some(Managed::All | Managed::Rename | Managed::Empty) => false,
        };
        let tame = self.kill != Some(true) && self.faults != Some(true);
        self.snapshots != Some(true) && self.bitmaps != Some(true) && managed && tame
    }

    /// Whether an option of the open image is fixed.
    pub(super) fn names_an_option(&self) -> bool {
        self.discard.is_some()
            || self.discard_no_unref.is_some()
            || self.detect_zeroes.is_some()
            || self.overlap_checks.is_some()
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), BadPin> {
        let wrong = |expected: &str| BadPin(format!("option {name}={value}: expected {expected}"));
        match name {
            "discard" => {
                self.discard = Some(match value {
                    "ignore" => GuestDiscards::Ignored,
                    "unmap" => GuestDiscards::Obeyed,
                    _ => return Err(wrong("unmap or ignore")),
                });
            }
            "detect_zeroes" => {
                let detect = DetectZeroes::from_name(value);
                self.detect_zeroes = Some(detect.ok_or_else(|| wrong("off, on or unmap"))?);
            }
            "overlap_check" => {
                let checks = OverlapChecks::from_name(value);
                let checks = checks.ok_or_else(|| wrong("none, constant, cached or all"))?;
                self.overlap_checks = Some(checks);
            }
            _ => {
                let on = Some(switch(value).ok_or_else(|| wrong("on or off"))?);
                if name == "options" {
                    self.options = on;
                } else {
                    self.discard_no_unref = on;
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), BadPin> {
        if self.options == Some(false) && self.names_an_option() {
            return Err(BadPin(
                "options=off leaves all of them as they are: leave it out".into(),
            ));
        }
        if self.extended_l2 == Some(true) {
            let small = self
                .cluster_bits
                .is_some_and(|bits| bits < Geometry::MIN_EXTENDED_BITS);
            if small || self.version == Some(2) {
                return Err(BadPin(
                    "extended_l2=on takes version=3 and clusters of 16k or more".into(),
                ));
            }
        }
        if self.chain == Some(true) && (self.kill == Some(true) || self.faults == Some(true)) {
            return Err(BadPin("chain=on goes without kill=on and faults=on".into()));
        }
        if self.chain == Some(true) && (self.backing == Some(None) || !self.chain_is_free()) {
            return Err(BadPin(
                "chain=on takes a backing file and goes without snapshots, bitmaps and manage=rename, \
                 empty or on"
                    .into(),
            ));
        }
        let beneath = matches!(self.backing, Some(Some(_)));
        if matches!(self.data_file, Some(Some(_))) && !self.data_file_is_free()
            || self.has_raw_data() && beneath
        {
            return Err(BadPin(
                "data_file=on takes version=3 and goes without snapshots, chain, compression and encrypt; \
                 data_file=raw without backing, too"
                    .into(),
            ));
        }
        let only_16 = self.refcount_order.is_some_and(|order| order != 4);
        if self.version == Some(2)
            && (only_16
                || self.lazy_refcounts == Some(true)
                || self.abandoned == Some(true)
                || self.bitmaps == Some(true))
        {
            return Err(BadPin(
                "version=2 has refcounts of 16 bits, no dirty bit and no bitmaps: use version=3"
                    .into(),
            ));
        }
        if self.version == Some(2) && self.compression == Some(Some(Compression::Zstd)) {
            return Err(BadPin(
                "version=2 has no compression=zstd: use version=3".into(),
            ));
        }
        Ok(())
    }
}

fn room(text: &str) -> Option<Room> {
    match text {
        "any" => Some(Room::Any),
        "block" => Some(Room::Block),
        "table" => Some(Room::Table),
        _ => None,
    }
}

fn preallocation(text: &str) -> Result<Preallocation, &'static str> {
    Preallocation::from_name(text).ok_or("off, metadata, falloc or full")
}

fn backing(text: &str) -> Result<Option<BackingFormat>, &'static str> {
    match (text, backing_format(text)) {
        ("none", _) => Ok(None),
        (_, Some(format)) => Ok(Some(format)),
        (_, None) => Err("raw, qcow2 or none"),
    }
}

fn data_file(text: &str) -> Result<Option<DataFileContent>, &'static str> {
    match text {
        "on" => Ok(Some(DataFileContent::Clusters)),
        "raw" => Ok(Some(DataFileContent::Raw)),
        "off" => Ok(None),
        _ => Err("on, raw or off"),
    }
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| (1..=1000).contains(count))
}

fn exponent(value: u64) -> Option<u32> {
    value.is_power_of_two().then(|| value.trailing_zeros())
}

/// A number of bytes with an optional binary suffix.
fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'k' | 'K' => 10,
        'm' | 'M' => 20,
        'g' | 'G' => 30,
        't' | 'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let pins =
            Pins::parse("lazy_refcounts=on,cluster_size=4k,refcount_bits=1,size=1M").unwrap();
        assert_eq!(
            pins,
            Pins {
                lazy_refcounts: Some(true),
                cluster_bits: Some(12),
                refcount_order: Some(0),
                virtual_bytes: Some(1 << 20),
                ..Pins::default()
            }
        );
        assert_eq!(Pins::parse("backing=none").unwrap().backing, Some(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("cluster_siz=4k", "unknown option `cluster_siz`"),
            ("cluster_size=3000", "cluster_size=3000: expected a power"),
            ("cluster_size=4M", "512 to 2M"),
            ("size=1é", "size=1é"),
            ("size=99999999999999999999T", "at most 1T"),
            ("lazy_refcounts", "lacks a value"),
            ("lazy_refcounts=yes", "on or off"),
            ("version=2,lazy_refcounts=on", "use version=3"),
            ("cluster_size=8k,extended_l2=on", "16k or more"),
            ("concurrency=0", "1 to 1000"),
            ("detect_zeroes=maybe", "off, on or unmap"),
            ("options=off,discard=ignore", "leave it out"),
            ("encrypt=rot13", "aes, luks or off"),
            ("compression=lzma", "zlib, zstd or off"),
            ("version=2,compression=zstd", "use version=3"),
            ("chain=on,snapshots=on", "goes without snapshots"),
            ("preallocation=on", "metadata, falloc or full"),
            ("shrink=1", "on or off"),
            ("kill=1", "on or off"),
            ("kill=on,chain=on", "without kill"),
            ("faults=1", "on or off"),
            ("faults=on,chain=on", "without kill=on and faults"),
            ("data_file=1", "on, raw or off"),
            ("data_file=on,version=2", "takes version=3"),
            ("data_file=on,encrypt=luks", "goes without snapshots, chain"),
            (
                "data_file=raw,backing=qcow2",
                "data_file=raw without backing",
            ),
        ] {
            let message = Pins::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
