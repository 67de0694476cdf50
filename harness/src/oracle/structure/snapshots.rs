//! The snapshot table as the oracle reads it, and the disk of each snapshot. Specification: "Snapshots".

use engine::device::PageImage;

use super::references::{entries, mapping_of};
use super::{Layout, Mapped, Scan, StructureReport};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Names are kept up to this length; longer ones are nobody's but a hostile image's.
const MAX_NAME: u64 = 1024;

/// A snapshot, as the table lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The size of its disk in bytes.
    pub virtual_bytes: u64,
    l1_offset: u64,
    l1_entries: u64,
}

/// The disk of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotDisk {
    /// The layout of the image, with the size of this disk.
    pub layout: Layout,
    /// Every guest cluster of it with a mapping of its own, ascending.
    pub mapped: Vec<Mapped>,
}

impl Snapshot {
    /// The snapshot whose entry of 40 bytes, `head`, stands at `at`.
    pub(super) fn read(image: &PageImage, layout: &Layout, head: &[u8; 40], at: u64) -> Self {
        let field = |from: usize, len: usize| {
            let bytes = &head[from..from + len];
            bytes
                .iter()
                .fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
        };
        let (id_bytes, name_bytes, extra_bytes) = (field(12, 2), field(14, 2), field(36, 4));
        let len = usize::try_from(name_bytes.min(MAX_NAME)).expect("a short name");
        let name = image.read_vec(at + 40 + extra_bytes + id_bytes, len);
        let mut size = [0; 8];
        image.read(at + 48, &mut size);
        Self {
            name: String::from_utf8_lossy(&name).into_owned(),
            virtual_bytes: if extra_bytes >= 16 {
                u64::from_be_bytes(size)
            } else {
                layout.virtual_bytes
            },
            l1_offset: field(0, 8),
            l1_entries: field(8, 4),
        }
    }

    /// Where its L1 table starts, and how many entries it has.
    pub(super) fn l1(&self) -> (u64, u64) {
        (self.l1_offset, self.l1_entries)
    }

    /// Its disk, by its own L1 table.
    pub fn disk(&self, image: &PageImage, layout: &Layout) -> SnapshotDisk {
        let layout = Layout {
            virtual_bytes: self.virtual_bytes,
            ..*layout
        };
        let mut unheard = StructureReport::default();
        let mut scan = Scan::new(image, layout, &mut unheard);
        let per_table = layout.l2_entries();
        let mut mapped = Vec::new();
        let tables: Vec<_> = scan.words(self.l1_offset, self.l1_entries).collect();
        for table in tables.iter().filter(|table| table.value & OFFSET != 0) {
            let words_per_entry = if layout.extended_l2 { 2 } else { 1 };
            let words = scan.words(table.value & OFFSET, per_table * words_per_entry);
            for (word, bitmap) in entries(words, words_per_entry) {
                let guest_cluster = table.index * per_table + word.index;
                if guest_cluster << layout.cluster_bits >= self.virtual_bytes {
                    break;
                }
                if let Some(mapping) = mapping_of(&layout, word.value, bitmap) {
                    mapped.push(Mapped {
                        guest_cluster,
                        mapping,
                    });
                }
            }
        }
        SnapshotDisk { layout, mapped }
    }
}
