//! The hash of an image's content: a sum over its sectors, so that it follows changes without the rest.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::SECTOR;

/// The contribution of one sector to a [`ContentHash`]; zero for a sector of zeroes.
pub type SectorHash = u128;

/// A hash of the whole content and the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u128);

/// A [`ContentHash`] in the making: it follows changes without the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunningHash {
    pub(super) sum: u128,
    pub(super) len: u64,
}

impl RunningHash {
    /// A sector's contribution changes from `old` to `new`.
    pub fn replace(&mut self, old: SectorHash, new: SectorHash) {
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
    }

    /// The length becomes `len` bytes.
    pub fn set_len(&mut self, len: u64) {
        self.len = len;
    }

    /// The hash of what the content is now.
    pub fn finish(self) -> ContentHash {
        let len = u128::from(self.len);
        ContentHash(self.sum ^ len.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }
}

/// The hash contribution of `bytes` standing at sector number `index`.
pub fn sector_hash(index: u64, bytes: &[u8; SECTOR]) -> SectorHash {
    if is_zero(bytes) {
        0
    } else {
        xxh3_128_with_seed(bytes, index)
    }
}

pub(super) fn is_zero(bytes: &[u8; SECTOR]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}
