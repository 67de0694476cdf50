//! What the guest's sectors contain, so that any sector read back names its origin.
//!
//! A stamped sector is 64 little-endian words: who wrote it, the guest sector it was written to, and 62
//! words derived from these two. In a thin stamp most of those are alike, so that it can be compressed: how
//! many differs from sector to sector. [`identify`] verifies all of them, so that a sector that was patched
//! together from two writes, or shifted by a few bytes, is never taken for either.

use xxhash_rust::xxh3::xxh3_64;

use super::ops::OperationId;

const SECTOR: usize = 512;
const WORDS: usize = SECTOR / 8;
/// Half of the first word, by which a stamp is told from other content at a glance.
const MAGIC: u64 = 0x7172_6173_0000_0000;
/// The same in a thin stamp.
const THIN_MAGIC: u64 = 0x7172_6174_0000_0000;
const MAGIC_MASK: u64 = 0xffff_ffff_0000_0000;
/// What sets each word of a sector apart from its neighbours.
const SPREAD: [u64; WORDS] = spread();

/// Who gave a sector its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writer {
    /// An operation of the workload.
    Operation(OperationId),
    /// The image already held it when the workload began.
    Image,
    /// The backing file holds it.
    Backing,
    /// The file beneath the backing file holds it.
    Base,
    /// Another file that the image can be put over holds it.
    Other,
}

/// What a sector contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectorValue {
    /// 512 zero bytes.
    Zero,
    /// A stamp: who wrote it, and to which guest sector.
    Stamp {
        /// Who wrote it.
        writer: Writer,
        /// The guest sector it was written to.
        sector: u64,
    },
    /// Anything else, by its hash.
    Other(u64),
}

impl Writer {
    /// The highest operation number that a stamp can name.
    pub const LAST_OPERATION: OperationId = OperationId(u32::MAX - 4);

    fn code(self) -> u64 {
        match self {
            Self::Operation(id) => {
                assert!(id <= Self::LAST_OPERATION, "a stamp can name the operation");
                u64::from(id.0)
            }
            Self::Image => 0xffff_ffff,
            Self::Backing => 0xffff_fffe,
            Self::Base => 0xffff_fffd,
            Self::Other => 0xffff_fffc,
        }
    }

    fn from_code(code: u64) -> Self {
        match u32::try_from(code & !MAGIC_MASK).expect("the mask leaves 32 bits") {
            0xffff_ffff => Self::Image,
            0xffff_fffe => Self::Backing,
            0xffff_fffd => Self::Base,
            0xffff_fffc => Self::Other,
            id => Self::Operation(OperationId(id)),
        }
    }
}

/// The content that `writer` gives to guest sector `sector`.
pub fn stamp(writer: Writer, sector: u64) -> [u8; SECTOR] {
    stamp_of(MAGIC, writer, sector)
}

/// The same where it is to be compressed.
pub fn thin_stamp(writer: Writer, sector: u64) -> [u8; SECTOR] {
    stamp_of(THIN_MAGIC, writer, sector)
}

fn stamp_of(magic: u64, writer: Writer, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let words = words_of(magic | writer.code(), sector);
    for (into, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *into = word.to_le_bytes();
    }
    bytes
}

/// The content that `writer` gives to `len_bytes` bytes from byte `offset` on, both multiples of 512.
pub fn stamp_range(writer: Writer, offset: u64, len_bytes: u64) -> Vec<u8> {
    sectors_of(offset, len_bytes)
        .flat_map(|sector| stamp(writer, sector))
        .collect()
}

/// The same where it is to be compressed.
pub fn thin_stamp_range(writer: Writer, offset: u64, len_bytes: u64) -> Vec<u8> {
    sectors_of(offset, len_bytes)
        .flat_map(|sector| thin_stamp(writer, sector))
        .collect()
}

fn sectors_of(offset: u64, len_bytes: u64) -> std::ops::Range<u64> {
    assert!(
        offset.is_multiple_of(512) && len_bytes.is_multiple_of(512),
        "guests write whole sectors"
    );
    offset / 512..offset / 512 + len_bytes / 512
}

/// What a sector contains.
pub fn identify(bytes: &[u8; SECTOR]) -> SectorValue {
    let words = bytes.as_chunks::<8>().0;
    let first = u64::from_le_bytes(words[0]);
    if matches!(first & MAGIC_MASK, MAGIC | THIN_MAGIC) {
        let sector = u64::from_le_bytes(words[1]);
        let difference = words
            .iter()
            .zip(words_of(first, sector))
            .fold(0, |all, (word, expected)| {
                all | u64::from_le_bytes(*word) ^ expected
            });
        if difference == 0 {
            let writer = Writer::from_code(first);
            return SectorValue::Stamp { writer, sector };
        }
    }
    if words
        .iter()
        .fold(0, |all, word| all | u64::from_le_bytes(*word))
        == 0
    {
        SectorValue::Zero
    } else {
        SectorValue::Other(xxh3_64(bytes))
    }
}

impl SectorValue {
    /// The value of a sector of which an image stores nothing where it holds zeroes.
    pub fn of(bytes: Option<&[u8; SECTOR]>) -> Self {
        bytes.map_or(Self::Zero, identify)
    }
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation(id) => write!(f, "operation {}", id.0),
            Self::Image => f.write_str("the initial image"),
            Self::Backing => f.write_str("the backing file"),
            Self::Base => f.write_str("the base file"),
            Self::Other => f.write_str("the other file"),
        }
    }
}

impl std::fmt::Display for SectorValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => f.write_str("zeroes"),
            Self::Stamp { writer, sector } => {
                write!(f, "what {writer} put into guest sector {sector}")
            }
            Self::Other(hash) => write!(f, "unknown bytes (hash {hash:016x})"),
        }
    }
}

fn words_of(first: u64, sector: u64) -> [u64; WORDS] {
    let base = mix(mix(first) ^ sector);
    let mut words = SPREAD.map(|spread| base ^ spread);
    if first & MAGIC_MASK == THIN_MAGIC {
        let thick = usize::try_from(base % 40).expect("less than 40");
        words[thick..].fill(base);
    }
    words[0] = first;
    words[1] = sector;
    words
}

/// A bijection of 64 bits in which every input bit reaches every output bit (Stafford's variant 13,
/// the finaliser of splitmix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const fn spread() -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let mut state = 0u64;
    let mut index = 0;
    while index < WORDS {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        words[index] = mix(state);
        index += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn writer() -> impl Strategy<Value = Writer> {
        prop_oneof![
            (0..=Writer::LAST_OPERATION.0).prop_map(|id| Writer::Operation(OperationId(id))),
            Just(Writer::Image),
            Just(Writer::Backing),
            Just(Writer::Base),
            Just(Writer::Other),
        ]
    }

    proptest! {
        #[test]
        fn a_stamp_names_its_origin(writer in writer(), sector: u64) {
            for bytes in [stamp(writer, sector), thin_stamp(writer, sector)] {
                prop_assert_eq!(identify(&bytes), SectorValue::Stamp { writer, sector });
            }
        }

        #[test]
        fn one_changed_bit_anywhere_is_noticed(
            writer in writer(), sector: u64, byte in 0usize..SECTOR, bit in 0u32..8,
        ) {
            for mut bytes in [stamp(writer, sector), thin_stamp(writer, sector)] {
                bytes[byte] ^= 1 << bit;
                prop_assert!(matches!(identify(&bytes), SectorValue::Other(_)));
            }
        }

        #[test]
        fn halves_of_two_stamps_are_neither(
            one in writer(), other in writer(), sector in 0u64..1000, cut in 1usize..63,
        ) {
            prop_assume!(one != other);
            let mut bytes = stamp(one, sector);
            bytes[cut * 8..].copy_from_slice(&stamp(other, sector)[cut * 8..]);
            prop_assert!(matches!(identify(&bytes), SectorValue::Other(_)));
        }
    }

    #[test]
    fn zeroes_are_zeroes_and_one_byte_is_not() {
        assert_eq!(identify(&[0; SECTOR]), SectorValue::Zero);
        let mut bytes = [0; SECTOR];
        bytes[511] = 1;
        assert!(matches!(identify(&bytes), SectorValue::Other(_)));
    }

    #[test]
    fn a_range_is_stamped_sector_by_sector() {
        let writer = Writer::Operation(OperationId(3));
        let bytes = stamp_range(writer, 1024, 1024);
        assert_eq!(bytes[..SECTOR], stamp(writer, 2));
        assert_eq!(bytes[SECTOR..], stamp(writer, 3));
    }
}
