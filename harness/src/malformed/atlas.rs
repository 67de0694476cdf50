//! Where the fields of a qcow2 image stand. Specification: `docs/interop/qcow2.rst` of QEMU.
//!
//! The atlas is drawn from a sound image and shares no code with the engine. It need not be complete: a
//! field that it misses is not damaged by name, only by chance.

use std::fmt;
use std::ops::Range;

use engine::device::PageImage;

/// What a field belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The header's fixed fields.
    Header,
    /// Type, length and content of a header extension.
    Extension,
    /// The name of the backing file.
    BackingName,
    /// An entry of the active L1 table.
    L1,
    /// An entry of an L2 table.
    L2,
    /// An entry of the refcount table.
    RefcountTable,
    /// Eight bytes of a refcount block.
    RefcountBlock,
    /// A field of a snapshot table entry.
    Snapshot,
    /// An entry of a snapshot's L1 table.
    SnapshotL1,
    /// A field of a bitmap directory entry.
    Bitmap,
    /// An entry of a bitmap table.
    BitmapTable,
    /// A field of the encryption header.
    Encryption,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 12] = [
        Self::Header,
        Self::Extension,
        Self::BackingName,
        Self::L1,
        Self::L2,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::Snapshot,
        Self::SnapshotL1,
        Self::Bitmap,
        Self::BitmapTable,
        Self::Encryption,
    ];
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Extension => "header extension",
            Self::BackingName => "backing name",
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::Snapshot => "snapshot table",
            Self::SnapshotL1 => "snapshot's L1 table",
            Self::Bitmap => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::Encryption => "encryption header",
        })
    }
}

/// A big-endian number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it belongs to.
    pub group: Group,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is: 1, 2, 4 or 8 bytes.
    pub len_bytes: usize,
}

/// The fields of an image.
#[derive(Clone, Debug)]
pub struct Atlas {
    /// All fields, those of a group together.
    pub fields: Vec<Field>,
    /// Bytes in a cluster.
    pub cluster_bytes: u64,
    /// The length of the file.
    pub file_bytes: u64,
    /// Where the header extensions end: the offset of their end marker.
    pub extensions_end: Option<u64>,
    /// Where extensions must end at the latest: at the backing file's name, or at the end of cluster 0.
    pub extensions_limit: u64,
}

/// No more entries of one table are taken down: the rest is like them.
const MAX_ENTRIES: u64 = 4096;
/// No more tables of one kind are followed.
const MAX_TABLES: usize = 64;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const BITMAPS: u64 = 0x2385_2875;
const ENCRYPTION: u64 = 0x0537_be77;

/// Offset and length of the header's fixed fields; those from 72 on are version 3's.
const HEADER: [(u64, usize); 20] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (105, 1),
];

/// Offset and length of the fields of a snapshot table entry, extra data of version 3 included.
const SNAPSHOT: [(u64, usize); 13] = [
    (0, 8),
    (8, 4),
    (12, 2),
    (14, 2),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
];

/// Offset and length of the fields of a bitmap directory entry.
const BITMAP: [(u64, usize); 8] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 1),
    (17, 1),
    (18, 2),
    (20, 4),
    (24, 4),
];

impl Atlas {
    /// The atlas of a sound image; `None` for what has no header of qcow2.
    pub fn draw(image: &PageImage) -> Option<Self> {
        if number(image, 0, 4) != 0x5146_49fb {
            return None;
        }
        let cluster_bits = u32::try_from(number(image, 20, 4)).ok()?;
        if !(9..=21).contains(&cluster_bits) {
            return None;
        }
        let mut atlas = Self {
            fields: Vec::new(),
            cluster_bytes: 1 << cluster_bits,
            file_bytes: image.len(),
            extensions_end: None,
            extensions_limit: match number(image, 8, 8) {
                0 => 1 << cluster_bits,
                name => name,
            },
        };
        let version_3 = number(image, 4, 4) >= 3;
        let fixed = if version_3 { 105 } else { 72 };
        let header = HEADER.iter().filter(|(offset, _)| *offset <= fixed);
        for (offset, len_bytes) in header {
            atlas.note(Group::Header, *offset, *len_bytes);
        }
        atlas.note_extensions(image, if version_3 { number(image, 100, 4) } else { 72 });
        atlas.note_words(
            Group::BackingName,
            number(image, 8, 8),
            number(image, 16, 4).div_ceil(8),
        );
        let l1 = (number(image, 40, 8), number(image, 36, 4));
        atlas.note_tables(image, Group::L1, l1, Group::L2);
        let reftable_entries = number(image, 56, 4) * atlas.cluster_bytes / 8;
        let reftable = (number(image, 48, 8), reftable_entries);
        atlas.note_tables(image, Group::RefcountTable, reftable, Group::RefcountBlock);
        atlas.note_snapshots(image);
        atlas.fields.sort_by_key(|field| field.group);
        Some(atlas)
    }

    /// Where the header's fixed fields stand.
    pub fn header_offsets() -> impl Iterator<Item = u64> {
        HEADER.iter().map(|(offset, _)| *offset)
    }

    /// The groups that have fields, each with the range of its fields.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        self.fields
            .chunk_by(|one, other| one.group == other.group)
            .map(|group| {
                let range = start..start + group.len();
                start = range.end;
                range
            })
            .collect()
    }

    fn note(&mut self, group: Group, offset: u64, len_bytes: usize) {
        let end = offset.saturating_add(8);
        if end <= self.file_bytes {
            self.fields.push(Field {
                group,
                offset,
                len_bytes,
            });
        }
    }

    fn note_words(&mut self, group: Group, offset: u64, count: u64) {
        for index in 0..count.min(MAX_ENTRIES) {
            self.note(group, offset + index * 8, 8);
        }
    }

    /// A table of pointers, and the first of the clusters that it points to.
    fn note_tables(
        &mut self,
        image: &PageImage,
        group: Group,
        (offset, entries): (u64, u64),
        below: Group,
    ) {
        self.note_words(group, offset, entries);
        let words = self.cluster_bytes / 8;
        let tables: Vec<u64> = (0..entries.min(MAX_ENTRIES))
            .map(|index| number(image, offset + index * 8, 8) & OFFSET)
            .filter(|table| *table != 0)
            .take(MAX_TABLES)
            .collect();
        for table in tables {
            self.note_words(below, table, words);
        }
    }

    fn note_extensions(&mut self, image: &PageImage, start: u64) {
        let mut at = start;
        while at + 8 <= self.cluster_bytes.min(self.file_bytes) {
            let (kind, len) = (number(image, at, 4), number(image, at + 4, 4));
            self.note(Group::Extension, at, 4);
            self.note(Group::Extension, at + 4, 4);
            if kind == 0 {
                self.extensions_end = Some(at);
                return;
            }
            self.note_words(Group::Extension, at + 8, len.div_ceil(8).min(64));
            if kind == BITMAPS {
                self.note_bitmaps(image, at + 8);
            }
            if kind == ENCRYPTION {
                let words = number(image, at + 16, 8).min(592) / 4;
                for index in 0..words {
                    self.note(Group::Encryption, number(image, at + 8, 8) + index * 4, 4);
                }
            }
            at += 8 + len.next_multiple_of(8);
        }
    }

    fn note_bitmaps(&mut self, image: &PageImage, extension: u64) {
        let count = number(image, extension, 4);
        let mut entry = number(image, extension + 16, 8);
        for _ in 0..count.min(64) {
            for (offset, len_bytes) in BITMAP {
                self.note(Group::Bitmap, entry + offset, len_bytes);
            }
            let table = (number(image, entry, 8), number(image, entry + 8, 4));
            self.note_words(Group::BitmapTable, table.0, table.1);
            let name = number(image, entry + 18, 2);
            let extra = number(image, entry + 20, 4);
            entry += (24 + extra + name).next_multiple_of(8);
        }
    }

    fn note_snapshots(&mut self, image: &PageImage) {
        let count = number(image, 60, 4);
        let mut entry = number(image, 64, 8);
        for _ in 0..count.min(64) {
            for (offset, len_bytes) in SNAPSHOT {
                self.note(Group::Snapshot, entry + offset, len_bytes);
            }
            let l1 = (number(image, entry, 8), number(image, entry + 8, 4));
            self.note_tables(image, Group::SnapshotL1, l1, Group::L2);
            let names = number(image, entry + 12, 2) + number(image, entry + 14, 2);
            let extra = number(image, entry + 36, 4);
            entry += (40 + extra + names).next_multiple_of(8);
        }
    }
}

/// The big-endian number of `len_bytes` bytes at `offset`; what lies beyond the end is zero.
pub(super) fn number(image: &PageImage, offset: u64, len_bytes: usize) -> u64 {
    let bytes = image.read_vec(offset.min(PageImage::MAX_LEN), len_bytes);
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
