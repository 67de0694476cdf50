//! The bytes of a device, in pages that clones share until they write.
//!
//! A clone costs a few reference counts, whatever the size, so that thousands of crash states can
//! differ from one base in a few sectors each. The content hash is kept up to date sector by sector:
//! two images with the same bytes and length have the same hash, however they came to be.

mod chunk;
mod hash;
mod run;
mod stored;

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

pub use hash::{ContentHash, RunningHash, SectorHash, sector_hash};
pub use run::SectorRun;
pub use stored::StoredSectors;

use super::SECTOR_BYTES;
use crate::zeroes::leading_zeroes;
use chunk::{Chunk, Page};

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const SECTORS_PER_PAGE: usize = PAGE / SECTOR;
const PAGES_PER_CHUNK: usize = 64;
const PAGE_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = PAGE_BYTES * 64;
const SECTORS_PER_CHUNK: u64 = CHUNK_BYTES / SECTOR_BYTES;

/// A sparse image of bytes with cheap clones and an incremental content hash.
#[derive(Clone, Debug, Default)]
pub struct PageImage {
    len: u64,
    hash: u128,
    /// Shared as a whole until one side writes: most clones never do.
    chunks: Rc<BTreeMap<u64, Rc<Chunk>>>,
}

impl PageImage {
    /// The longest image, in bytes: offsets beyond are refused by the devices that hold one.
    pub const MAX_LEN: u64 = 1 << 62;

    /// An image of `len` zero bytes.
    pub fn zeroed(len: u64) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }

    /// An image with the content of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.write(0, bytes);
        image
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash of content and length.
    pub fn content_hash(&self) -> ContentHash {
        self.running_hash().finish()
    }

    /// The hash of content and length, ready to follow changes.
    pub fn running_hash(&self) -> RunningHash {
        RunningHash {
            sum: self.hash,
            len: self.len,
        }
    }

    /// What sector `index` contributes to the hash.
    pub fn stored_hash(&self, index: u64) -> SectorHash {
        let (chunk, page, slot) = locate(index);
        self.page(chunk, page).map_or(0, |page| page.hashes[slot])
    }

    /// What these sectors together contribute to the hash.
    pub fn hash_of(&self, sectors: Range<u64>) -> SectorHash {
        let Some(last) = sectors.end.checked_sub(1).filter(|_| !sectors.is_empty()) else {
            return 0;
        };
        let mut sum: SectorHash = 0;
        let numbers = sectors.start / SECTORS_PER_CHUNK..=last / SECTORS_PER_CHUNK;
        for (number, chunk) in self.chunks.range(numbers) {
            let start = number * SECTORS_PER_CHUNK;
            let within = sectors.start.max(start)..sectors.end.min(start + SECTORS_PER_CHUNK);
            for (page, slots) in Chunk::pages_of(within) {
                let hashes = chunk.pages[page]
                    .iter()
                    .flat_map(|page| &page.hashes[slots.clone()]);
                sum = hashes.fold(sum, |sum, hash| sum.wrapping_add(*hash));
            }
        }
        sum
    }

    /// Whether the other image has the same in these sectors. Costs next to nothing where both share their pages.
    pub fn is_same_within(&self, other: &Self, sectors: Range<u64>) -> bool {
        if Rc::ptr_eq(&self.chunks, &other.chunks) {
            return true;
        }
        let mut from = sectors.start;
        while from < sectors.end {
            let number = from / SECTORS_PER_CHUNK;
            let until = sectors.end.min((number + 1) * SECTORS_PER_CHUNK);
            let (here, there) = (self.chunks.get(&number), other.chunks.get(&number));
            let same = match (here, there) {
                (None, None) => true,
                (Some(here), Some(there)) => {
                    Rc::ptr_eq(here, there) || here.is_same_within(there, from..until)
                }
                (Some(one), None) | (None, Some(one)) => one.is_zero_within(from..until),
            };
            if !same {
                return false;
            }
            from = until;
        }
        true
    }

    /// The bytes of sector `index`, or `None` where the image holds zeroes without storing them.
    /// Beyond the end of the image there are only zeroes.
    pub fn sector(&self, index: u64) -> Option<&[u8; SECTOR]> {
        let (chunk, page, slot) = locate(index);
        Some(self.page(chunk, page)?.sector(slot).0)
    }

    /// Copies bytes out; what lies beyond the end reads zero.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        self.read_stored(offset, into);
    }

    /// Copies `len_bytes` bytes out.
    pub fn read_vec(&self, offset: u64, len_bytes: usize) -> Vec<u8> {
        /// Longer stretches are mostly holes, and fresh zeroes cost nothing until somebody looks at them.
        const LONG: usize = 64 << 10;
        if len_bytes > LONG {
            let mut data = vec![0; len_bytes];
            self.read_stored(offset, &mut data);
            return data;
        }
        let mut data = Vec::with_capacity(len_bytes);
        self.each_stored(offset, len_bytes, |at, bytes| {
            data.resize(at, 0);
            data.extend_from_slice(bytes);
        });
        data.resize(len_bytes, 0);
        data
    }

    /// Copies out what is stored, over zeroes.
    fn read_stored(&self, offset: u64, into: &mut [u8]) {
        self.each_stored(offset, into.len(), |at, bytes| {
            into[at..at + bytes.len()].copy_from_slice(bytes);
        });
    }

    /// Where the bytes from `offset` on first differ from `data`: how many are the same before.
    pub fn difference(&self, offset: u64, data: &[u8]) -> Option<usize> {
        let mut found = None;
        let mut seen = 0;
        let in_hole = |hole: Range<usize>| {
            let zeroes = leading_zeroes(&data[hole.clone()]);
            (zeroes < hole.len()).then_some(hole.start + zeroes)
        };
        self.each_stored(offset, data.len(), |at, bytes| {
            let shown = &data[at..at + bytes.len()];
            found = found.or_else(|| in_hole(seen..at));
            if found.is_none() && shown != bytes {
                let same = shown.iter().zip(bytes).take_while(|(one, two)| one == two);
                found = Some(at + same.count());
            }
            seen = at + bytes.len();
        });
        found.or_else(|| in_hole(seen..data.len()))
    }

    /// Shows what is stored of a range, page by page, and where in the range it stands.
    fn each_stored(&self, offset: u64, len_bytes: usize, mut show: impl FnMut(usize, &[u8])) {
        let end = offset.saturating_add(wide(len_bytes));
        if offset >= end {
            return;
        }
        let small =
            |value: u64| usize::try_from(value).expect("a place within the range fits memory");
        let mut show_chunk = |number: u64, chunk: &Chunk| {
            let chunk_start = number * CHUNK_BYTES;
            let first = offset.saturating_sub(chunk_start) / PAGE_BYTES;
            let last = (end - chunk_start).min(CHUNK_BYTES).div_ceil(PAGE_BYTES);
            let pages = &chunk.pages[small(first)..small(last)];
            for (page, index) in pages.iter().zip(first..) {
                let Some(page) = page else {
                    continue;
                };
                let start = chunk_start + index * PAGE_BYTES;
                let (from, to) = (start.max(offset), (start + PAGE_BYTES).min(end));
                let bytes = &page.bytes[small(from - start)..small(to - start)];
                show(small(from - offset), bytes);
            }
        };
        let (first, last) = (offset / CHUNK_BYTES, (end - 1) / CHUNK_BYTES);
        if first == last {
            if let Some(chunk) = self.chunks.get(&first) {
                show_chunk(first, chunk);
            }
            return;
        }
        for (number, chunk) in self.chunks.range(first..=last) {
            show_chunk(*number, chunk);
        }
    }

    /// Copies bytes in, growing the image where they end beyond its end.
    ///
    /// # Panics
    /// Where the range ends beyond [`Self::MAX_LEN`].
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + u64::try_from(data.len()).expect("a buffer's length fits 64 bits");
        assert!(
            end <= Self::MAX_LEN,
            "a write must end within the longest image"
        );
        for_each_sector(offset, data.len(), |index, within, at| {
            let source = &data[at..at + within.len()];
            if let Ok(whole) = source.try_into() {
                self.store(index, whole, sector_hash(index, whole));
            } else {
                let mut bytes = *self.sector(index).unwrap_or(&[0; SECTOR]);
                bytes[within].copy_from_slice(source);
                self.store(index, &bytes, sector_hash(index, &bytes));
            }
        });
        self.len = self.len.max(end);
    }

    /// Puts one whole sector whose hash is known already, growing the image to its end.
    pub fn put_sector(&mut self, index: u64, bytes: &[u8; SECTOR], hash: SectorHash) {
        // To hash a sector costs more than to put it, so one in sixteen is held to its word.
        debug_assert!(
            !index.is_multiple_of(16) || hash == sector_hash(index, bytes),
            "the caller's hash is of these bytes"
        );
        self.store(index, bytes, hash);
        self.len = self.len.max((index + 1) * SECTOR_BYTES);
    }

    /// Writes zeroes, growing the image where the range ends beyond its end.
    pub fn write_zeroes(&mut self, offset: u64, len_bytes: u64) {
        let end = offset + len_bytes;
        assert!(
            end <= Self::MAX_LEN,
            "a write must end within the longest image"
        );
        self.clear(offset, end);
        self.len = self.len.max(end);
    }

    /// Sets the length; what is cut off is gone, what is added reads zero.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len);
        }
        self.len = len;
    }

    /// Offsets and bytes of every stored page that is not all zeroes, in order. A page is 4096
    /// bytes; the last may reach beyond the end of the image with zeroes.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8; PAGE])> {
        self.chunks.iter().flat_map(|(number, chunk)| {
            chunk
                .pages
                .iter()
                .zip(0u64..)
                .filter_map(move |(page, slot)| {
                    let page = page.as_ref()?;
                    let stored = page.hashes.iter().any(|hash| *hash != 0);
                    stored.then_some((number * CHUNK_BYTES + slot * PAGE_BYTES, &page.bytes))
                })
        })
    }

    fn page(&self, chunk: u64, index: usize) -> Option<&Page> {
        self.chunks.get(&chunk)?.pages[index].as_deref()
    }

    fn chunk_mut(&mut self, number: u64) -> &mut Chunk {
        let chunks = Rc::make_mut(&mut self.chunks);
        Rc::make_mut(chunks.entry(number).or_insert_with(Chunk::empty))
    }

    fn store(&mut self, index: u64, bytes: &[u8; SECTOR], hash: SectorHash) {
        let (chunk, page, slot) = locate(index);
        if hash == 0 && self.page(chunk, page).is_none() {
            return;
        }
        let page = self.chunk_mut(chunk).pages[page].get_or_insert_with(Page::empty);
        let growth = Rc::make_mut(page).put(slot, bytes, &[hash]);
        self.hash = self.hash.wrapping_add(growth);
    }

    /// Zeroes `start..end`, visiting only what is stored.
    fn clear(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let small = |value: u64| usize::try_from(value).expect("a place within a chunk is small");
        let touched = start / CHUNK_BYTES..=(end - 1) / CHUNK_BYTES;
        let stored = self.chunks.range(touched).filter_map(|(number, chunk)| {
            let base = number * CHUNK_BYTES;
            let within = small(start.max(base) - base)..small(end.min(base + CHUNK_BYTES) - base);
            let pages = &chunk.pages[within.start / PAGE..within.end.div_ceil(PAGE)];
            let stores = pages.iter().any(Option::is_some);
            stores.then_some((*number, within))
        });
        for (number, within) in stored.collect::<Vec<_>>() {
            let chunks = Rc::make_mut(&mut self.chunks);
            let chunk = Rc::make_mut(chunks.get_mut(&number).expect("it was found just now"));
            let first = number * SECTORS_PER_CHUNK;
            for at in within.start / PAGE..within.end.div_ceil(PAGE) {
                let Some(page) = &mut chunk.pages[at] else {
                    continue;
                };
                let (from, to) = (
                    within.start.max(at * PAGE) - at * PAGE,
                    within.end.min((at + 1) * PAGE) - at * PAGE,
                );
                if page.is_zero_within(from / SECTOR..to.div_ceil(SECTOR)) {
                    continue;
                }
                let before = page.sum();
                if to - from == PAGE {
                    chunk.pages[at] = None;
                    self.hash = self.hash.wrapping_sub(before);
                    continue;
                }
                let page = Rc::make_mut(page);
                let sector = first + wide(at * SECTORS_PER_PAGE);
                page.clear(sector, from..to);
                self.hash = self.hash.wrapping_sub(before).wrapping_add(page.sum());
            }
        }
    }
}

impl PartialEq for PageImage {
    fn eq(&self, other: &Self) -> bool {
        self.content_hash() == other.content_hash()
    }
}

impl Eq for PageImage {}

fn wide(count: usize) -> u64 {
    u64::try_from(count).expect("a count fits 64 bits")
}

fn locate(sector: u64) -> (u64, usize, usize) {
    let small = |value: u64| usize::try_from(value).expect("a place within a chunk is small");
    let per_page = PAGE_BYTES / SECTOR_BYTES;
    (
        sector / SECTORS_PER_CHUNK,
        small(sector % SECTORS_PER_CHUNK / per_page),
        small(sector % per_page),
    )
}

/// Calls `visit(sector index, byte range within it, position within the whole range)`.
fn for_each_sector(offset: u64, len: usize, mut visit: impl FnMut(u64, Range<usize>, usize)) {
    let mut done = 0;
    while done < len {
        let here = offset + u64::try_from(done).expect("a position fits 64 bits");
        let within = usize::try_from(here % SECTOR_BYTES).expect("a sector is small");
        let count = (SECTOR - within).min(len - done);
        visit(here / SECTOR_BYTES, within..within + count, done);
        done += count;
    }
}

#[cfg(test)]
mod tests;
