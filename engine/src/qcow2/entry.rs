//! The words of the tables: what an L1, L2 or refcount table entry says, and how it is written.
//!
//! Specification: "L1 table entry", "L2 table entry", "Refcount table entry", "Compressed clusters
//! descriptor", "Extended L2 Entries". All words are big endian in the file.

use super::geometry::Geometry;
use super::subcluster::{Split, Subclusters};
use super::unit::HostOffset;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFTABLE_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// Whether an entry claims that its cluster has a refcount of exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The claim is made: the cluster may be written in place.
    Yes,
    /// It is not.
    No,
}

/// An entry with bits set that its version of the format reserves, or an offset that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Bits that must be zero are not.
    #[error("reserved bits {0:#x} are set")]
    Reserved(u64),
    /// The offset is not a multiple of the cluster size.
    #[error("offset {0:#x} is not aligned to a cluster")]
    Unaligned(u64),
    /// A subcluster is both allocated and zero, or allocated where there is no cluster.
    #[error("the subcluster bitmap {0:#018x} contradicts itself or the entry")]
    Bitmap(u64),
}

/// An L1 table entry as it stands in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct L1Word(pub u64);

/// A decoded L1 table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Entry {
    /// No L2 table: everything below is unallocated.
    Empty,
    /// The L2 table that maps this span.
    Table {
        /// Where the table stands.
        offset: HostOffset,
        /// Whether its refcount is exactly one.
        copied: Copied,
    },
}

impl L1Word {
    /// What the word says.
    pub fn decode(self, geometry: Geometry) -> Result<L1Entry, BadEntry> {
        let reserved = self.0 & !(COPIED | OFFSET);
        if reserved != 0 {
            return Err(BadEntry::Reserved(reserved));
        }
        match aligned(self.0 & OFFSET, geometry)? {
            HostOffset(0) => Ok(L1Entry::Empty),
            offset => Ok(L1Entry::Table {
                offset,
                copied: copied(self.0),
            }),
        }
    }
}

impl L1Entry {
    /// The word that says this.
    pub fn encode(self) -> L1Word {
        match self {
            Self::Empty => L1Word(0),
            Self::Table { offset, copied } => L1Word(offset.0 | copied_bit(copied)),
        }
    }
}

/// An L2 table entry as it stands in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// What every image has.
    pub word: u64,
    /// The subclusters, in images with extended entries: those allocated in the low half, those that
    /// read as zeroes in the high one.
    pub bitmap: u64,
}

/// A decoded L2 table entry: what a guest cluster is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The backing file's content, or zeroes without one.
    Unallocated,
    /// Zeroes. The cluster kept in reserve, where there is one, holds arbitrary bytes.
    Zero {
        /// The cluster in reserve, and whether its refcount is exactly one.
        reserve: Option<(HostOffset, Copied)>,
    },
    /// The content of a host cluster.
    Data {
        /// Where it stands.
        offset: HostOffset,
        /// Whether its refcount is exactly one.
        copied: Copied,
    },
    /// A compressed run of bytes.
    Compressed(Compressed),
    /// Not the same in every subcluster.
    Split(Split),
}

/// Where a compressed cluster's bytes stand. Specification: "Compressed Clusters Descriptor".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// The first byte; not aligned to anything.
    pub offset: HostOffset,
    /// The most bytes that the data may take: to the end of the last 512-byte sector counted.
    pub len_bytes: u64,
}

impl Compressed {
    /// How many bits the offset has in a descriptor.
    pub(super) fn offset_bits(geometry: Geometry) -> u32 {
        62 - (geometry.cluster_bits() - 8)
    }
}

impl L2Entry {
    /// The entry at `index` of a table.
    #[inline]
    pub fn read(table: &[u8], index: usize, geometry: Geometry) -> Self {
        if geometry.has_subclusters() {
            Self {
                word: u64::from_be_bytes(word(table, 2 * index)),
                bitmap: u64::from_be_bytes(word(table, 2 * index + 1)),
            }
        } else {
            Self {
                word: u64::from_be_bytes(word(table, index)),
                bitmap: 0,
            }
        }
    }

    /// Puts the entry at `index` of a table.
    pub fn write(self, table: &mut [u8], index: usize, geometry: Geometry) {
        let len = if geometry.has_subclusters() { 16 } else { 8 };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.word.to_be_bytes());
        bytes[8..].copy_from_slice(&self.bitmap.to_be_bytes());
        table[index * len..(index + 1) * len].copy_from_slice(&bytes[..len]);
    }

    /// What the entry says in an image of this version (2 or 3) and geometry.
    pub fn decode(self, geometry: Geometry, version: u32) -> Result<Mapping, BadEntry> {
        if self.word & COMPRESSED != 0 {
            return Ok(Mapping::Compressed(self.compressed(geometry)));
        }
        // Extended entries have no use for the bit, and QEMU does not look at it there.
        let zero_bit = if version >= 3 { ZERO } else { 0 };
        let reserved = self.word & !(COPIED | OFFSET | zero_bit);
        if reserved != 0 {
            return Err(BadEntry::Reserved(reserved));
        }
        if geometry.has_subclusters() {
            return self.decode_split(geometry);
        }
        let offset = aligned(self.word & OFFSET, geometry)?;
        Ok(match (self.word & zero_bit != 0, offset.0 != 0) {
            (true, false) => Mapping::Zero { reserve: None },
            (true, true) => Mapping::Zero {
                reserve: Some((offset, copied(self.word))),
            },
            (false, false) if !self.is_first_of_data_file(geometry) => Mapping::Unallocated,
            (false, _) => Mapping::Data {
                offset,
                copied: copied(self.word),
            },
        })
    }

    fn decode_split(self, geometry: Geometry) -> Result<Mapping, BadEntry> {
        let parts = self.subclusters();
        let nowhere = self.word & OFFSET == 0 && !self.is_first_of_data_file(geometry);
        let homeless = nowhere && parts.allocated != 0;
        if parts.allocated & parts.zero != 0 || homeless {
            return Err(BadEntry::Bitmap(self.bitmap));
        }
        let offset = aligned(self.word & OFFSET, geometry)?;
        let cluster = (!nowhere).then_some((offset, copied(self.word)));
        Ok(Mapping::of_parts(cluster, parts))
    }

    /// Whether offset 0 means the first cluster of an external data file: COPIED, which is set on every
    /// cluster there, tells that from no cluster at all.
    fn is_first_of_data_file(self, geometry: Geometry) -> bool {
        geometry.has_external_data() && self.word & (COPIED | OFFSET) == COPIED
    }

    fn subclusters(self) -> Subclusters {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits are left");
        Subclusters {
            allocated: half(self.bitmap),
            zero: half(self.bitmap >> 32),
        }
    }

    /// Whether nothing of the cluster's content is looked for where the offset points: then a wrong
    /// offset costs no data.
    pub(super) fn shows_no_cluster(self, geometry: Geometry, version: u32) -> bool {
        if geometry.has_subclusters() {
            self.subclusters().allocated == 0
        } else {
            version >= 3 && self.word & ZERO != 0
        }
    }

    /// The entry that shows the same with no cluster in reserve.
    pub(super) fn without_reserve(self, geometry: Geometry) -> Self {
        let word = if geometry.has_subclusters() { 0 } else { ZERO };
        Self { word, ..self }
    }

    /// Whether COPIED is set, whatever else the entry says.
    pub fn claims_copied(self) -> bool {
        self.word & COPIED != 0
    }

    fn compressed(self, geometry: Geometry) -> Compressed {
        let offset_bits = Compressed::offset_bits(geometry);
        let offset = self.word & ((1 << offset_bits) - 1);
        let more_sectors = (self.word & !(COPIED | COMPRESSED)) >> offset_bits;
        Compressed {
            offset: HostOffset(offset),
            len_bytes: (more_sectors + 1) * 512 - offset % 512,
        }
    }
}

impl Mapping {
    /// The entry that says this, in an image of this geometry.
    ///
    /// # Panics
    /// Where a compressed descriptor does not fit its fields.
    pub fn encode(self, geometry: Geometry) -> L2Entry {
        if let Self::Compressed(compressed) = self {
            return compressed.encode(geometry);
        }
        let (cluster, parts) = self.parts();
        let at = cluster.map_or(0, |(offset, copied)| offset.0 | copied_bit(copied));
        if geometry.has_subclusters() {
            return L2Entry {
                word: at,
                bitmap: u64::from(parts.zero) << 32 | u64::from(parts.allocated),
            };
        }
        let zero_bit = if parts.zero == 0 { 0 } else { ZERO };
        L2Entry {
            word: at | zero_bit,
            bitmap: 0,
        }
    }
}

impl Compressed {
    fn encode(self, geometry: Geometry) -> L2Entry {
        let Self { offset, len_bytes } = self;
        let offset_bits = Compressed::offset_bits(geometry);
        assert!(
            offset.0 >> offset_bits == 0,
            "a compressed offset fits its field"
        );
        let more_sectors = (offset.0 % 512 + len_bytes).div_ceil(512) - 1;
        assert!(
            more_sectors >> (62 - offset_bits) == 0,
            "a sector count fits its field"
        );
        L2Entry {
            word: COMPRESSED | more_sectors << offset_bits | offset.0,
            bitmap: 0,
        }
    }
}

/// A refcount table entry as it stands in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ReftableWord(pub u64);

impl ReftableWord {
    /// The offset of the refcount block, or `None` where there is none and all its counts are zero.
    pub fn decode(self, geometry: Geometry) -> Result<Option<HostOffset>, BadEntry> {
        let reserved = self.0 & !REFTABLE_OFFSET;
        if reserved != 0 {
            return Err(BadEntry::Reserved(reserved));
        }
        let offset = aligned(self.0, geometry)?;
        Ok((offset.0 != 0).then_some(offset))
    }
}

/// The bytes of word number `index` of a table.
#[inline]
fn word(table: &[u8], index: usize) -> [u8; 8] {
    table[index * 8..][..8]
        .try_into()
        .expect("a slice of a word's length is a word")
}

fn aligned(offset: u64, geometry: Geometry) -> Result<HostOffset, BadEntry> {
    let offset = HostOffset(offset);
    if geometry.is_aligned(offset) {
        Ok(offset)
    } else {
        Err(BadEntry::Unaligned(offset.0))
    }
}

fn copied(word: u64) -> Copied {
    if word & COPIED != 0 {
        Copied::Yes
    } else {
        Copied::No
    }
}

fn copied_bit(copied: Copied) -> u64 {
    match copied {
        Copied::Yes => COPIED,
        Copied::No => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry() -> impl Strategy<Value = Geometry> {
        (Geometry::CLUSTER_BITS, Geometry::REFCOUNT_ORDER)
            .prop_map(|(bits, order)| Geometry::new(bits, order).unwrap())
    }

    proptest! {
        #[test]
        fn any_l2_word_that_decodes_encodes_back(word: u64, geometry in geometry()) {
            let entry = L2Entry { word, bitmap: 0 };
            if let Ok(mapping) = entry.decode(geometry, 3)
                && !matches!(mapping, Mapping::Compressed(_))
                && !matches!(mapping, Mapping::Unallocated | Mapping::Zero { reserve: None })
            {
                prop_assert_eq!(mapping.encode(geometry), entry);
            }
        }

        #[test]
        fn an_extended_entry_comes_back(
            bits in Geometry::MIN_EXTENDED_BITS..=21, cluster in 0u64..3,
            allocated in prop_oneof![Just(0), Just(u32::MAX), any::<u32>()],
            zero in prop_oneof![Just(0), Just(u32::MAX), any::<u32>()],
        ) {
            let geometry = Geometry::new(bits, 4).unwrap().with_extended_l2().unwrap();
            let word = if cluster == 0 { 0 } else { cluster << bits | COPIED };
            let bitmap = u64::from(zero) << 32 | u64::from(allocated);
            let entry = L2Entry { word, bitmap };
            let wrong = allocated & zero != 0 || (cluster == 0 && allocated != 0);
            match entry.decode(geometry, 3) {
                Ok(mapping) => {
                    prop_assert!(!wrong);
                    prop_assert_eq!(mapping.encode(geometry), entry);
                    let mut within = 0;
                    let mut shown = 0;
                    while within < geometry.cluster_bytes() {
                        let (at, len) = mapping.at(geometry, within);
                        if matches!(at, Mapping::Data { .. }) {
                            shown += len;
                        }
                        within += len;
                    }
                    let expected = u64::from(allocated.count_ones()) * geometry.subcluster_bytes();
                    prop_assert_eq!(shown, expected);
                    prop_assert_eq!(within, geometry.cluster_bytes());
                }
                Err(error) => prop_assert_eq!((wrong, error), (true, BadEntry::Bitmap(bitmap))),
            }
        }

        #[test]
        fn a_compressed_descriptor_comes_back(
            geometry in geometry(), offset in 0u64..1 << 40, sectors in 1u64..2,
        ) {
            let len_bytes = sectors * 512 - offset % 512;
            let mapping = Mapping::Compressed(Compressed { offset: HostOffset(offset), len_bytes });
            prop_assert_eq!(mapping.encode(geometry).decode(geometry, 3), Ok(mapping));
        }
    }
}
