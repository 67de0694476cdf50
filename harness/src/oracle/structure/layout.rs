//! The header as the oracle reads it: sizes, places and marks. Specification: "Header".

use engine::device::PageImage;

use xxhash_rust::xxh3::xxh3_64;

use super::bounds::{Bounded, MAX_SNAPSHOTS};
use crate::guest::Facts;
use crate::oracle::key_slots;

const MAGIC: u32 = 0x5146_49fb;
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
const LAZY_REFCOUNTS: u64 = 1 << 0;
const BITMAPS: u64 = 1 << 0;
const RAW_DATA: u64 = 1 << 1;
/// The kinds of header extensions that are looked for.
const ENCRYPTION_HEADER: u64 = 0x0537_be77;
const DATA_FILE_NAME: u64 = 0x4441_5441;

/// What the header says, as far as the oracle needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of the header")]
pub struct Layout {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Binary logarithm of the refcount width in bits.
    pub refcount_order: u32,
    /// The size of the guest's disk in bytes.
    pub virtual_bytes: u64,
    /// Where the active L1 table stands, in bytes.
    pub l1_offset: u64,
    /// Entries in the active L1 table.
    pub l1_entries: u64,
    /// Where the refcount table stands, in bytes.
    pub reftable_offset: u64,
    /// Clusters that the refcount table takes.
    pub reftable_clusters: u64,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table stands, in bytes.
    pub snapshots_offset: u64,
    /// The length of the backing file's name; 0 where there is none.
    pub backing_name_bytes: u32,
    /// A digest of that name.
    pub backing_name: u64,
    /// Whether the header asks for lazy refcounts.
    pub lazy_refcounts: bool,
    /// Whether the refcounts may be wrong.
    pub dirty: bool,
    /// Whether the image is marked as damaged.
    pub corrupt: bool,
    /// How guest data are encrypted: the number in the header, 0 where they are not.
    pub encryption: u32,
    /// Offset and length in bytes of the encryption header; 0 where there is none.
    pub encryption_header: (u64, u64),
    /// Whether L2 entries carry a bitmap of 32 subclusters.
    pub extended_l2: bool,
    /// Whether guest data stand in an external data file.
    pub external_data: bool,
    /// Whether compressed clusters are zstd frames instead of deflate streams.
    pub zstd: bool,
    /// The autoclear bits.
    pub autoclear: u64,
}

/// Why a header yields no layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Illegible {
    /// It cannot be right.
    Bad(&'static str),
    /// It uses what the oracle does not judge.
    NotMeasured(&'static str),
}

impl Layout {
    pub(super) fn read(image: &PageImage) -> Result<Self, Illegible> {
        let Some(sector) = image.sector(0) else {
            return Err(Illegible::Bad("there is no header"));
        };
        let header = Header(sector);
        let version = header.word(4);
        if header.word(0) != MAGIC || !(2..=3).contains(&version) {
            return Err(Illegible::Bad("this is not qcow2 version 2 or 3"));
        }
        let version_3 = |value: u64| if version >= 3 { value } else { 0 };
        let incompatible = version_3(header.long(72));
        measured(incompatible)?;
        let layout = Self {
            version,
            cluster_bits: header.word(20),
            refcount_order: if version >= 3 { header.word(96) } else { 4 },
            virtual_bytes: header.long(24),
            l1_offset: header.long(40),
            l1_entries: u64::from(header.word(36)),
            reftable_offset: header.long(48),
            reftable_clusters: u64::from(header.word(56)),
            snapshot_count: header.word(60),
            snapshots_offset: header.long(64),
            backing_name_bytes: if header.long(8) == 0 {
                0
            } else {
                header.word(16)
            },
            backing_name: name(image, header.long(8), header.word(16)),
            lazy_refcounts: version_3(header.long(80)) & LAZY_REFCOUNTS != 0,
            dirty: incompatible & DIRTY != 0,
            corrupt: incompatible & CORRUPT != 0,
            encryption: header.word(32),
            encryption_header: encryption_pointer(image, &header, version)?,
            extended_l2: incompatible & EXTENDED_L2 != 0,
            external_data: incompatible & DATA_FILE != 0,
            autoclear: version_3(header.long(88)),
            zstd: incompatible & COMPRESSION_TYPE != 0 && sector[104] != 0,
        };
        layout.validate().map_err(Illegible::Bad)?;
        Ok(layout)
    }

    /// What of this, and of the encryption header, an operation on the image as a whole can change.
    /// `image` is the one that this was read from.
    pub fn facts(&self, image: &PageImage) -> Facts {
        let (data_file_name_bytes, data_file_name) = data_file_name(image);
        Facts {
            key_slots: key_slots::read(image, self.encryption_header),
            version: self.version,
            refcount_order: self.refcount_order,
            lazy_refcounts: self.lazy_refcounts,
            backing_name_bytes: self.backing_name_bytes,
            backing_name: self.backing_name,
            external_data: self.external_data,
            data_file_name_bytes,
            data_file_name,
            raw_data: self.has_raw_data(),
        }
    }

    /// Whether it has autoclear bits of features that are not known.
    pub fn keeps_unknown(&self) -> bool {
        self.autoclear & !(BITMAPS | RAW_DATA) != 0
    }

    /// Whether the bitmaps extension is up to date.
    pub fn has_bitmaps(&self) -> bool {
        self.autoclear & BITMAPS != 0
    }

    /// Whether the external data file is, by itself, a raw image of the disk.
    pub fn has_raw_data(&self) -> bool {
        self.external_data && self.autoclear & RAW_DATA != 0
    }

    /// Bytes in a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Sectors in a cluster.
    pub fn cluster_sectors(&self) -> u64 {
        1 << (self.cluster_bits - 9)
    }

    /// Sectors on the guest's disk.
    pub fn virtual_sectors(&self) -> u64 {
        self.virtual_bytes / 512
    }

    /// Entries in an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / if self.extended_l2 { 16 } else { 8 }
    }

    /// Refcounts in a refcount block.
    pub fn counts_per_block(&self) -> u64 {
        (self.cluster_bytes() * 8) >> self.refcount_order
    }

    fn validate_places(&self) -> Result<(), &'static str> {
        let admits =
            |what: Bounded, offset, len_bytes| what.admits(offset, len_bytes, self.cluster_bytes());
        if !admits(Bounded::L1Table, self.l1_offset, self.l1_entries * 8) {
            return Err("the L1 table is out of range");
        }
        let len_bytes = self.reftable_clusters * self.cluster_bytes();
        if !admits(Bounded::RefcountTable, self.reftable_offset, len_bytes) {
            return Err("the refcount table is out of range");
        }
        if len_bytes == 0 || self.reftable_offset == 0 {
            return Err("there is no refcount table");
        }
        if self.external_data && self.snapshot_count > 0 {
            return Err("there are snapshots although guest data stand in another file");
        }
        if self.snapshot_count > MAX_SNAPSHOTS {
            return Err("there are more snapshots than the format allows");
        }
        if self.snapshot_count > 0 && !admits(Bounded::SnapshotTable, self.snapshots_offset, 0) {
            return Err("the snapshot table is out of range");
        }
        let (offset, len_bytes) = self.encryption_header;
        if !admits(Bounded::EncryptionHeader, offset, len_bytes) {
            return Err("the encryption header is out of range");
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), &'static str> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err("the cluster size is out of range");
        }
        if self.refcount_order > 6 {
            return Err("the refcount width is out of range");
        }
        if self.extended_l2 && self.cluster_bits < 14 {
            return Err("clusters are too small for extended L2 entries");
        }
        self.validate_places()?;
        let needed = self
            .virtual_bytes
            .div_ceil(self.cluster_bytes() * self.l2_entries());
        if self.l1_entries < needed {
            return Err("the L1 table is too short for the guest's disk");
        }
        Ok(())
    }
}

/// A digest of the backing file's name, no longer than the format allows.
fn name(image: &PageImage, offset: u64, len_bytes: u32) -> u64 {
    let len = usize::try_from(len_bytes.min(1023)).unwrap_or(0);
    if offset == 0 || len == 0 || offset > 1 << 21 {
        return 0;
    }
    xxh3_64(&image.read_vec(offset, len))
}

/// Offset and length in bytes of the encryption header, where there is one.
pub(crate) fn encryption_header(image: &PageImage) -> Option<(u64, u64)> {
    let header = Header(image.sector(0)?);
    let area = encryption_pointer(image, &header, header.word(4)).ok()?;
    (area != (0, 0)).then_some(area)
}

/// Specification: "Header extensions", "Full disk encryption header pointer".
fn encryption_pointer(
    image: &PageImage,
    header: &Header<'_>,
    version: u32,
) -> Result<(u64, u64), Illegible> {
    if header.word(32) < 2 {
        return Ok((0, 0));
    }
    match extension(image, header, version, ENCRYPTION_HEADER) {
        Some((at, 16)) => Ok((long(image, at), long(image, at + 8))),
        Some(_) | None => Err(Illegible::Bad("nothing points to the encryption header")),
    }
}

/// Length and digest of the external data file's name; zeroes without one.
fn data_file_name(image: &PageImage) -> (u64, u64) {
    let named = image.sector(0).and_then(|sector| {
        let header = Header(sector);
        extension(image, &header, header.word(4), DATA_FILE_NAME)
    });
    // No name is longer than cluster 0.
    let Some((at, len)) = named.filter(|(_, len)| (1..1 << 21).contains(len)) else {
        return (0, 0);
    };
    let bytes = usize::try_from(len).expect("cluster 0 fits memory");
    (len, xxh3_64(&image.read_vec(at, bytes)))
}

/// Where the data of an extension stand, and how long they are. Specification: "Header extensions".
fn extension(
    image: &PageImage,
    header: &Header<'_>,
    version: u32,
    wanted: u64,
) -> Option<(u64, u64)> {
    let mut at = if version >= 3 {
        u64::from(header.word(100))
    } else {
        72
    };
    // No cluster 0 is longer.
    while at < 1 << 21 {
        let (kind, len) = (long(image, at) >> 32, long(image, at) & 0xffff_ffff);
        if kind == wanted {
            return Some((at + 8, len));
        }
        if kind == 0 {
            break;
        }
        at += 8 + len.next_multiple_of(8);
    }
    None
}

fn long(image: &PageImage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read(at, &mut bytes);
    u64::from_be_bytes(bytes)
}

fn measured(incompatible: u64) -> Result<(), Illegible> {
    if incompatible & !KNOWN != 0 {
        return Err(Illegible::NotMeasured("unknown incompatible features"));
    }
    Ok(())
}

struct Header<'a>(&'a [u8; 512]);

impl Header<'_> {
    fn word(&self, at: usize) -> u32 {
        self.0[at..at + 4]
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }
}
