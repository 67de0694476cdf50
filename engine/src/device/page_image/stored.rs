//! Going through what an image stores.

use std::collections::btree_map;
use std::ops::Range;
use std::rc::Rc;

use super::chunk::Chunk;
use super::{PageImage, SECTOR, SECTORS_PER_CHUNK, SECTORS_PER_PAGE, locate, wide};

/// An iterator of sectors that are not all zeroes.
#[derive(Clone, Debug)]
pub struct StoredSectors<'a> {
    chunks: btree_map::Range<'a, u64, Rc<Chunk>>,
    /// Where the chunk begins that is at hand, in sectors.
    chunk: Option<(u64, &'a Chunk)>,
    next: u64,
    end: u64,
}

impl<'a> Iterator for StoredSectors<'a> {
    type Item = (u64, &'a [u8; SECTOR]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let Some((start, chunk)) = self.chunk else {
                let (number, chunk) = self.chunks.next()?;
                let start = number * SECTORS_PER_CHUNK;
                self.next = self.next.max(start);
                self.chunk = Some((start, chunk));
                continue;
            };
            let index = self.next;
            if index >= start + SECTORS_PER_CHUNK {
                self.chunk = None;
                continue;
            }
            let (_, page, slot) = locate(index);
            let Some(page) = &chunk.pages[page] else {
                self.next = (index / wide(SECTORS_PER_PAGE) + 1) * wide(SECTORS_PER_PAGE);
                continue;
            };
            self.next = index + 1;
            let (bytes, hash) = page.sector(slot);
            if hash != 0 {
                return Some((index, bytes));
            }
        }
        None
    }
}

impl PageImage {
    /// The sectors within a range that are not all zeroes, in order: the number and the bytes of each.
    pub fn stored_sectors(&self, sectors: Range<u64>) -> StoredSectors<'_> {
        let numbers = sectors.start / SECTORS_PER_CHUNK..sectors.end.div_ceil(SECTORS_PER_CHUNK);
        StoredSectors {
            chunks: self
                .chunks
                .range(numbers.start.min(numbers.end)..numbers.end),
            chunk: None,
            next: sectors.start,
            end: sectors.end,
        }
    }
}
