//! The bits of one bitmap in memory: which pieces of the guest's disk were changed.
//!
//! Pieces that are clean cost nothing, and long dirty stretches next to nothing, so that memory follows
//! what was written and not the size of the disk.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::qcow2::unit::mem_len;

/// Bits that are kept together.
const CHUNK_BITS: u64 = 4096;
/// Bytes that they take in the file.
pub(super) const CHUNK_BYTES: u64 = CHUNK_BITS / 8;
const WORDS: usize = 64;

/// The bits of a disk of which each stands for `1 << granularity_bits` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    /// As a binary logarithm.
    granularity: u32,
    disk_bytes: u64,
    /// Chunks with a bit that is set, by index.
    chunks: BTreeMap<u64, Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    /// Every bit is set.
    Full,
    /// The bits, lowest first.
    Part(Box<[u64; WORDS]>),
}

impl Chunk {
    fn set(&mut self, bits: Range<u64>) {
        if let Self::Part(words) = self {
            for bit in bits {
                words[mem_len(bit / 64)] |= 1 << (bit % 64);
            }
            if **words == [u64::MAX; WORDS] {
                *self = Self::Full;
            }
        }
    }

    fn words(&self) -> [u64; WORDS] {
        match self {
            Self::Full => [u64::MAX; WORDS],
            Self::Part(words) => **words,
        }
    }
}

impl Bits {
    /// No bit is set.
    pub(super) fn clean(granularity_bits: u32, disk_bytes: u64) -> Self {
        Self {
            granularity: granularity_bits,
            disk_bytes,
            chunks: BTreeMap::new(),
        }
    }

    /// Bits that it takes to say something of every byte of a disk.
    pub(super) fn count_for(granularity_bits: u32, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(1 << granularity_bits)
    }

    fn count(&self) -> u64 {
        Self::count_for(self.granularity, self.disk_bytes)
    }

    /// Sets the bits of a range of the disk, in bytes.
    pub(super) fn set(&mut self, offset: u64, len_bytes: u64) {
        let end = offset.saturating_add(len_bytes).min(self.disk_bytes);
        if offset < end {
            let last = end.div_ceil(1 << self.granularity);
            self.set_bits(offset >> self.granularity..last);
        }
    }

    fn set_bits(&mut self, bits: Range<u64>) {
        let mut at = bits.start;
        while at < bits.end {
            let index = at / CHUNK_BITS;
            let next = ((index + 1) * CHUNK_BITS).min(bits.end);
            if next - at == CHUNK_BITS {
                self.chunks.insert(index, Chunk::Full);
            } else {
                let chunk = self
                    .chunks
                    .entry(index)
                    .or_insert_with(|| Chunk::Part(Box::new([0; WORDS])));
                chunk.set(at % CHUNK_BITS..at % CHUNK_BITS + (next - at));
            }
            at = next;
        }
    }

    /// Clears every bit.
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
    }

    /// Sets every bit that another bitmap of the same disk sets, whatever its granularity.
    pub(super) fn merge(&mut self, other: &Self) {
        for range in other.ranges() {
            self.set(range.start, range.end - range.start);
        }
    }

    /// Goes over to a disk of another size. What is added is clean.
    pub(super) fn resize(&mut self, disk_bytes: u64) {
        self.disk_bytes = disk_bytes;
        let count = self.count();
        self.chunks.split_off(&count.div_ceil(CHUNK_BITS));
        self.mask_last();
    }

    /// Clears the bits behind the end of the disk.
    fn mask_last(&mut self) {
        let count = self.count();
        let (index, valid) = (count / CHUNK_BITS, count % CHUNK_BITS);
        let Some(chunk) = self.chunks.get_mut(&index).filter(|_| valid > 0) else {
            return;
        };
        let mut words = chunk.words();
        for bit in valid..CHUNK_BITS {
            words[mem_len(bit / 64)] &= !(1 << (bit % 64));
        }
        if words == [0; WORDS] {
            self.chunks.remove(&index);
        } else {
            *chunk = Chunk::Part(Box::new(words));
        }
    }

    /// The dirty ranges of the disk in bytes, ascending and apart.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut add = |bits: Range<u64>| {
            let start = bits.start << self.granularity;
            let end = (bits.end << self.granularity).min(self.disk_bytes);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                Some(_) | None => ranges.push(start..end),
            }
        };
        for (index, chunk) in &self.chunks {
            let first = index * CHUNK_BITS;
            let Chunk::Part(words) = chunk else {
                add(first..first + CHUNK_BITS);
                continue;
            };
            for (word, at) in words.iter().zip((first..).step_by(64)) {
                let mut rest = *word;
                while rest != 0 {
                    let start = rest.trailing_zeros();
                    let run = (!(rest >> start)).trailing_zeros().min(64 - start);
                    let from = at + u64::from(start);
                    add(from..from + u64::from(run));
                    let done = start + run;
                    rest = if done == 64 { 0 } else { rest >> done << done };
                }
            }
        }
        ranges
    }

    /// How many bytes of the disk are dirty.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.ranges()
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    /// Whether no bit is set, or every bit, of the stretch that stands at `offset` of the stored bitmap.
    pub(super) fn stretch(&self, offset: u64, len_bytes: u64) -> Stretch {
        let chunks = offset / CHUNK_BYTES..(offset + len_bytes) / CHUNK_BYTES;
        let here = self.chunks.range(chunks.clone());
        let (mut present, mut full) = (0, 0);
        for (_, chunk) in here {
            present += 1;
            full += u64::from(*chunk == Chunk::Full);
        }
        if present == 0 {
            Stretch::Clean
        } else if full == chunks.end - chunks.start {
            Stretch::Dirty
        } else {
            Stretch::Mixed
        }
    }

    /// The bytes of a stretch of the stored bitmap. Specification: "Bitmap data".
    pub(super) fn bytes(&self, offset: u64, len_bytes: u64) -> Vec<u8> {
        let mut bytes = vec![0; mem_len(len_bytes)];
        let first = offset / CHUNK_BYTES;
        for (index, chunk) in self.chunks.range(first..(offset + len_bytes) / CHUNK_BYTES) {
            let at = mem_len((index - first) * CHUNK_BYTES);
            for (word, into) in chunk.words().iter().zip(bytes[at..].chunks_exact_mut(8)) {
                into.copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    /// Takes over a stretch of the stored bitmap.
    pub(super) fn load(&mut self, offset: u64, bytes: &[u8]) {
        let count = self.count();
        for (piece, index) in bytes
            .chunks_exact(mem_len(CHUNK_BYTES))
            .zip(offset / CHUNK_BYTES..)
        {
            if index * CHUNK_BITS >= count {
                break;
            }
            let mut words = [0; WORDS];
            for (word, from) in words.iter_mut().zip(piece.chunks_exact(8)) {
                *word = u64::from_le_bytes(from.try_into().expect("a word is 8 bytes"));
            }
            if words == [u64::MAX; WORDS] {
                self.chunks.insert(index, Chunk::Full);
            } else if words != [0; WORDS] {
                self.chunks.insert(index, Chunk::Part(Box::new(words)));
            }
        }
        self.mask_last();
    }

    /// Sets every bit of a stretch of the stored bitmap.
    pub(super) fn fill(&mut self, offset: u64, len_bytes: u64) {
        let end = ((offset + len_bytes) * 8).min(self.count());
        self.set_bits(offset * 8..end.max(offset * 8));
    }
}

/// What a stretch of a bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// No bit is set.
    Clean,
    /// Every bit is set.
    Dirty,
    /// Anything else.
    Mixed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(bits: &Bits, disk_bytes: u64) -> Vec<bool> {
        let mut sectors = vec![false; mem_len(disk_bytes / 512)];
        for range in bits.ranges() {
            sectors[mem_len(range.start / 512)..mem_len(range.end.div_ceil(512))].fill(true);
        }
        sectors
    }

    proptest! {
        #[test]
        fn bits_cover_what_was_set_and_nothing_beside_its_granules(
            granularity_bits in 9u32..14,
            disk_sectors in 1u64..40_000,
            writes in prop::collection::vec((0u64..40_000, 1u64..9_000), 0..6),
            resized in 1u64..40_000,
        ) {
            let disk_bytes = disk_sectors * 512;
            let granule = 1 << (granularity_bits - 9);
            let mut bits = Bits::clean(granularity_bits, disk_bytes);
            let mut expected = vec![false; mem_len(disk_sectors)];
            for (first, count) in writes {
                bits.set(first * 512, count * 512);
                if first < disk_sectors {
                    let start = first / granule * granule;
                    let end = (first + count).min(disk_sectors).next_multiple_of(granule);
                    expected[mem_len(start)..mem_len(end.min(disk_sectors))].fill(true);
                }
            }
            prop_assert_eq!(model(&bits, disk_bytes), &*expected);
            let len_bytes = bits.count().div_ceil(8).next_multiple_of(CHUNK_BYTES);
            let mut loaded = Bits::clean(granularity_bits, disk_bytes);
            loaded.load(0, &bits.bytes(0, len_bytes));
            prop_assert_eq!(&loaded, &bits);
            let mut merged = Bits::clean(granularity_bits, disk_bytes);
            merged.merge(&bits);
            prop_assert_eq!(merged.ranges(), bits.ranges());
            bits.resize(resized * 512);
            expected.resize(mem_len(resized), false);
            let kept = model(&bits, resized * 512);
            for (sector, dirty) in expected.iter().enumerate() {
                prop_assert!(!dirty || kept[sector]);
            }
        }
    }

    #[test]
    fn a_long_stretch_costs_no_word_for_each_bit() {
        let mut bits = Bits::clean(9, 1 << 40);
        bits.set(512, 1 << 30);
        assert_eq!(bits.chunks.len(), (1 << 30 >> 9) / 4096 + 1);
        assert_eq!(bits.dirty_bytes(), 1 << 30);
        assert_eq!(bits.stretch(0, 4 * CHUNK_BYTES), Stretch::Mixed);
        assert_eq!(bits.stretch(CHUNK_BYTES, 4 * CHUNK_BYTES), Stretch::Dirty);
        assert_eq!(bits.stretch(1 << 27, CHUNK_BYTES), Stretch::Clean);
    }

    #[test]
    fn the_first_bit_is_the_lowest_of_the_first_byte() {
        let mut bits = Bits::clean(9, 1 << 20);
        bits.set(0, 512);
        bits.set(9 * 512, 512);
        assert_eq!(bits.bytes(0, CHUNK_BYTES)[..2], [1, 2]);
    }
}
