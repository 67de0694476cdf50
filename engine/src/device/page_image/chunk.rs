//! Pages, and chunks of them: what clones of an image share.

use std::ops::Range;
use std::rc::Rc;

use super::hash::{SectorHash, sector_hash};
use super::{PAGE, PAGES_PER_CHUNK, SECTOR, SECTORS_PER_PAGE, locate, wide};

#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) pages: [Option<Rc<Page>>; PAGES_PER_CHUNK],
}

#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) bytes: [u8; PAGE],
    pub(super) hashes: [SectorHash; SECTORS_PER_PAGE],
}

impl Chunk {
    pub(super) fn empty() -> Rc<Self> {
        Rc::new(Self {
            pages: [const { None }; PAGES_PER_CHUNK],
        })
    }

    /// The pages that these sectors, which are all of the chunk, lie in: each with the slots in question.
    pub(super) fn pages_of(sectors: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut from = sectors.start;
        std::iter::from_fn(move || {
            let (_, page, slot) = locate(from);
            let left = sectors.end.checked_sub(from).filter(|left| *left > 0)?;
            let len = (SECTORS_PER_PAGE - slot).min(usize::try_from(left).unwrap_or(usize::MAX));
            from += wide(len);
            Some((page, slot..slot + len))
        })
    }

    pub(super) fn is_same_within(&self, other: &Self, sectors: Range<u64>) -> bool {
        Self::pages_of(sectors).all(
            |(page, slots)| match (&self.pages[page], &other.pages[page]) {
                (None, None) => true,
                (Some(here), Some(there)) => {
                    Rc::ptr_eq(here, there) || here.hashes[slots.clone()] == there.hashes[slots]
                }
                (Some(one), None) | (None, Some(one)) => one.is_zero_within(slots),
            },
        )
    }

    pub(super) fn is_zero_within(&self, sectors: Range<u64>) -> bool {
        Self::pages_of(sectors).all(|(page, slots)| {
            let page = self.pages[page].as_ref();
            page.is_none_or(|page| page.is_zero_within(slots))
        })
    }
}

impl Page {
    pub(super) fn empty() -> Rc<Self> {
        Rc::new(Self {
            bytes: [0; PAGE],
            hashes: [0; SECTORS_PER_PAGE],
        })
    }

    /// The page with these bytes, whose first sector has this number.
    pub(super) fn of(first: u64, bytes: &[u8; PAGE]) -> Rc<Self> {
        let mut hashes = [0; SECTORS_PER_PAGE];
        let sectors = bytes.as_chunks().0.iter().zip(first..);
        for (hash, (sector, index)) in hashes.iter_mut().zip(sectors) {
            *hash = sector_hash(index, sector);
        }
        Rc::new(Self {
            bytes: *bytes,
            hashes,
        })
    }

    /// The bytes and the hash of one of its sectors.
    pub(super) fn sector(&self, slot: usize) -> (&[u8; SECTOR], SectorHash) {
        (&self.bytes.as_chunks().0[slot], self.hashes[slot])
    }

    /// Puts sectors with these hashes from a slot on, and says by how much the page's contribution grows.
    pub(super) fn put(&mut self, slot: usize, bytes: &[u8], hashes: &[SectorHash]) -> SectorHash {
        self.bytes[slot * SECTOR..slot * SECTOR + bytes.len()].copy_from_slice(bytes);
        let mut growth: SectorHash = 0;
        for (old, new) in self.hashes[slot..].iter_mut().zip(hashes) {
            growth = growth.wrapping_add(*new).wrapping_sub(*old);
            *old = *new;
        }
        growth
    }

    /// What it contributes to the hash.
    pub(super) fn sum(&self) -> SectorHash {
        let hashes = self.hashes.iter();
        hashes.fold(0, |sum, hash| sum.wrapping_add(*hash))
    }

    /// Whether each of these sectors is zero.
    pub(super) fn is_zero_within(&self, slots: Range<usize>) -> bool {
        self.hashes[slots].iter().all(|hash| *hash == 0)
    }

    /// Zeroes these bytes; the first sector has this number.
    pub(super) fn clear(&mut self, first: u64, bytes: Range<usize>) {
        self.bytes[bytes.clone()].fill(0);
        let slots = bytes.start / SECTOR..bytes.end.div_ceil(SECTOR);
        for (slot, index) in slots.clone().zip(first + wide(slots.start)..) {
            let (start, end) = (slot * SECTOR, (slot + 1) * SECTOR);
            if bytes.start <= start && end <= bytes.end {
                self.hashes[slot] = 0;
                continue;
            }
            let sector = self.bytes[start..end].try_into();
            self.hashes[slot] = sector_hash(index, sector.expect("a sector is 512 bytes"));
        }
    }
}
