//! Consecutive sectors of data in the shape in which an image keeps them.
//!
//! What is written once may be laid on thousands of images. Where it fills pages, they share these.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use super::chunk::Page;
use super::hash::{SectorHash, sector_hash};
use super::{
    PAGE, PAGES_PER_CHUNK, PageImage, SECTOR, SECTOR_BYTES, SECTORS_PER_PAGE, locate, wide,
};

/// Consecutive sectors of data, each hashed once.
pub struct SectorRun {
    first: u64,
    /// What stands before the first whole page: all of it, where there is none.
    head: Loose,
    pages: Vec<Rc<Page>>,
    /// What stands behind the last.
    tail: Loose,
}

/// Sectors that do not fill a page.
#[derive(Default)]
struct Loose {
    bytes: Vec<u8>,
    hashes: Vec<SectorHash>,
}

impl Loose {
    /// The whole sectors of `bytes`, from sector `first` on.
    fn new(first: u64, bytes: Vec<u8>) -> Self {
        let sectors = bytes.as_chunks::<SECTOR>().0.iter().zip(first..);
        let hashes = sectors.map(|(sector, index)| sector_hash(index, sector));
        Self {
            hashes: hashes.collect(),
            bytes,
        }
    }

    fn sector(&self, index: usize) -> (&[u8; SECTOR], SectorHash) {
        (&self.bytes.as_chunks().0[index], self.hashes[index])
    }
}

impl SectorRun {
    /// The sectors that `bytes` fill from sector `first` on; a rest of less than a sector is not kept.
    pub fn new(first: u64, bytes: Vec<u8>) -> Self {
        let (_, _, slot) = locate(first);
        let before = (SECTORS_PER_PAGE - slot) % SECTORS_PER_PAGE * SECTOR;
        let whole = bytes.len().saturating_sub(before) / PAGE;
        if whole == 0 {
            return Self {
                first,
                head: Loose::new(first, bytes),
                pages: Vec::new(),
                tail: Loose::default(),
            };
        }
        let (head, rest) = bytes.split_at(before);
        let (pages, tail) = rest.as_chunks::<PAGE>();
        let from = first + wide(before / SECTOR);
        let numbers = (from..).step_by(SECTORS_PER_PAGE);
        let behind = from + wide(pages.len() * SECTORS_PER_PAGE);
        Self {
            first,
            head: Loose::new(first, head.to_vec()),
            pages: pages
                .iter()
                .zip(numbers)
                .map(|(page, first)| Page::of(first, page))
                .collect(),
            tail: Loose::new(behind, tail.to_vec()),
        }
    }

    /// How many sectors there are.
    fn count(&self) -> usize {
        let loose = self.head.hashes.len() + self.tail.hashes.len();
        loose + self.pages.len() * SECTORS_PER_PAGE
    }

    /// The sectors' numbers on the device.
    pub fn sectors(&self) -> Range<u64> {
        self.first..self.first + wide(self.count())
    }

    /// The bytes of sector number `index` of the run, from 0.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn sector(&self, index: usize) -> &[u8; SECTOR] {
        self.at(index).0
    }

    /// Its hash.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn hash(&self, index: usize) -> SectorHash {
        self.at(index).1
    }

    /// Both.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn at(&self, index: usize) -> (&[u8; SECTOR], SectorHash) {
        let head = self.head.hashes.len();
        if index < head {
            return self.head.sector(index);
        }
        let index = index - head;
        match self.pages.get(index / SECTORS_PER_PAGE) {
            Some(page) => page.sector(index % SECTORS_PER_PAGE),
            None => self
                .tail
                .sector(index - self.pages.len() * SECTORS_PER_PAGE),
        }
    }
}

impl fmt::Debug for SectorRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorRun")
            .field("sectors", &self.sectors())
            .finish_non_exhaustive()
    }
}

impl PageImage {
    /// Puts all of a run, growing the image to its end.
    ///
    /// # Panics
    /// Where it ends beyond [`Self::MAX_LEN`].
    pub fn put_run(&mut self, run: &SectorRun) {
        let sectors = run.sectors();
        if sectors.is_empty() {
            return;
        }
        let end = sectors.end * SECTOR_BYTES;
        assert!(
            end <= Self::MAX_LEN,
            "a write must end within the longest image"
        );
        let mut at = sectors.start;
        self.put_loose(&mut at, &run.head);
        let mut rest = &run.pages[..];
        while !rest.is_empty() {
            let (number, first, _) = locate(at);
            let (here, beyond) = rest.split_at(rest.len().min(PAGES_PER_CHUNK - first));
            let chunk = self.chunk_mut(number);
            let mut growth: SectorHash = 0;
            for (place, page) in chunk.pages[first..].iter_mut().zip(here) {
                let old = place.replace(Rc::clone(page));
                growth = growth
                    .wrapping_add(page.sum())
                    .wrapping_sub(old.map_or(0, |old| old.sum()));
            }
            self.hash = self.hash.wrapping_add(growth);
            at += wide(here.len() * SECTORS_PER_PAGE);
            rest = beyond;
        }
        self.put_loose(&mut at, &run.tail);
        self.len = self.len.max(end);
    }

    /// Puts loose sectors at sector `at`, which is then the one behind them.
    fn put_loose(&mut self, at: &mut u64, loose: &Loose) {
        let mut from = 0;
        while from < loose.hashes.len() {
            let (number, index, slot) = locate(*at);
            let count = (SECTORS_PER_PAGE - slot).min(loose.hashes.len() - from);
            let hashes = &loose.hashes[from..from + count];
            let bytes = &loose.bytes[from * SECTOR..(from + count) * SECTOR];
            from += count;
            *at += wide(count);
            let is_zero = hashes.iter().all(|hash| *hash == 0);
            if is_zero && self.page(number, index).is_none() {
                continue;
            }
            let page = self.chunk_mut(number).pages[index].get_or_insert_with(Page::empty);
            let growth = Rc::make_mut(page).put(slot, bytes, hashes);
            self.hash = self.hash.wrapping_add(growth);
        }
    }
}
