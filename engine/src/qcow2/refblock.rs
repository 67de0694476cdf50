//! The counts in a refcount block: one of them, or [`GROUP`] at a time where a whole block is gone
//! through, of which there may be sixteen million counts.
//!
//! Specification: "Refcount block entry". Counts narrower than a byte stand lowest bit first, wider ones
//! are big endian.

use crate::zeroes::trailing_zeroes;

/// Counts that are looked at together. Every block holds a multiple of so many.
pub const GROUP: usize = 64;

/// The refcount at `index` of a refcount block.
#[inline]
pub fn refcount(block: &[u8], index: usize, refcount_order: u32) -> u64 {
    match refcount_order {
        6.. => u64::from_be_bytes(word(block, index)),
        5 => u32::from_be_bytes(word(block, index)).into(),
        4 => u16::from_be_bytes(word(block, index)).into(),
        3 => block[index].into(),
        order => {
            let (byte, shift, mask) = sub_byte(index, order);
            u64::from(block[byte] >> shift & mask)
        }
    }
}

/// The bytes of count number `index`.
fn word<const LEN: usize>(block: &[u8], index: usize) -> [u8; LEN] {
    block[index * LEN..][..LEN]
        .try_into()
        .expect("a slice of a word's length is a word")
}

/// Sets the refcount at `index` of a refcount block.
///
/// # Panics
/// Where `value` does not fit the width.
#[inline]
pub fn set_refcount(block: &mut [u8], index: usize, refcount_order: u32, value: u64) {
    if refcount_order >= 3 {
        let width = 1usize << (refcount_order - 3);
        let bytes = value.to_be_bytes();
        assert!(
            bytes[..8 - width].iter().all(|byte| *byte == 0),
            "a refcount fits its width"
        );
        block[index * width..(index + 1) * width].copy_from_slice(&bytes[8 - width..]);
    } else {
        let (byte, shift, mask) = sub_byte(index, refcount_order);
        let value = u8::try_from(value).expect("a refcount fits its width");
        assert!(value <= mask, "a refcount fits its width");
        block[byte] = block[byte] & !(mask << shift) | value << shift;
    }
}

/// The bytes of the [`GROUP`] counts from number `first` on, a multiple of that.
#[inline]
pub fn group_bytes(block: &[u8], first: usize, refcount_order: u32) -> &[u8] {
    &block[(first << refcount_order) / 8..][..(GROUP << refcount_order) / 8]
}

/// The number of the count behind the last group that has any, which is 0 where all are zero.
pub fn counts_end(block: &[u8], refcount_order: u32) -> usize {
    let group_len = (GROUP << refcount_order) / 8;
    let used = (block.len() - trailing_zeroes(block)).div_ceil(group_len);
    used * GROUP
}

/// Reads the [`GROUP`] counts from number `first` on, a multiple of that, into `counts`, and tells whether any of
/// them is not zero.
#[inline]
pub fn read_group(
    block: &[u8],
    first: usize,
    refcount_order: u32,
    counts: &mut [u64; GROUP],
) -> bool {
    let bytes = group_bytes(block, first, refcount_order);
    match refcount_order {
        0 => unpack_bits::<1>(bytes, counts),
        1 => unpack_bits::<2>(bytes, counts),
        2 => unpack_bits::<4>(bytes, counts),
        3 => unpack_words(bytes, counts, |[byte]| byte.into()),
        4 => unpack_words(bytes, counts, |word| u16::from_be_bytes(word).into()),
        5 => unpack_words(bytes, counts, |word| u32::from_be_bytes(word).into()),
        6.. => unpack_words(bytes, counts, u64::from_be_bytes),
    }
    bytes.iter().fold(0, |all, byte| all | byte) != 0
}

/// What the compiler makes quick for each width.
fn unpack_bits<const WIDTH: usize>(bytes: &[u8], counts: &mut [u64; GROUP]) {
    for (byte, counts) in bytes.iter().zip(counts.chunks_exact_mut(8 / WIDTH)) {
        for (within, count) in counts.iter_mut().enumerate() {
            *count = u64::from(byte >> (within * WIDTH) & (u8::MAX >> (8 - WIDTH)));
        }
    }
}

fn unpack_words<const LEN: usize>(
    bytes: &[u8],
    counts: &mut [u64; GROUP],
    read: impl Fn([u8; LEN]) -> u64,
) {
    let words = bytes.as_chunks().0;
    let words: &[[u8; LEN]; GROUP] = words.first_chunk().expect("a group is whole");
    for (word, count) in words.iter().zip(counts) {
        *count = read(*word);
    }
}

fn sub_byte(index: usize, refcount_order: u32) -> (usize, usize, u8) {
    let width = 1usize << refcount_order;
    let per_byte = 8 / width;
    (
        index / per_byte,
        index % per_byte * width,
        u8::MAX >> (8 - width),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::qcow2::geometry::Geometry;

    proptest! {
        #[test]
        fn a_refcount_set_is_the_refcount_got_and_no_neighbour_changes(
            order in Geometry::REFCOUNT_ORDER, index in 0usize..64, value: u64,
            mut block in prop::collection::vec(any::<u8>(), 512),
        ) {
            let value = value & Geometry::new(9, order).unwrap().max_refcount();
            let before: Vec<u64> = (0..64).map(|i| refcount(&block, i, order)).collect();
            set_refcount(&mut block, index, order, value);
            for (i, old) in before.into_iter().enumerate() {
                prop_assert_eq!(refcount(&block, i, order), if i == index { value } else { old });
            }
        }

        #[test]
        fn a_group_says_what_its_refcounts_say_one_by_one(
            order in Geometry::REFCOUNT_ORDER, group_index in 0usize..64,
            block in prop::collection::vec(any::<u8>(), 512),
        ) {
            let groups = 4096 / (GROUP << order);
            let first = group_index % groups * GROUP;
            let expected: Vec<u64> = (first..first + GROUP).map(|i| refcount(&block, i, order)).collect();
            let mut found = [7; GROUP];
            let any = read_group(&block, first, order, &mut found);
            prop_assert_eq!(&found[..], expected.as_slice());
            prop_assert_eq!(any, expected.iter().any(|count| *count != 0));
            prop_assert!(!read_group(&[0; 512], first, order, &mut found));
            prop_assert_eq!(found, [0; GROUP]);
        }
    }

    proptest! {
        #[test]
        fn behind_the_end_of_the_counts_all_are_zero(
            order in Geometry::REFCOUNT_ORDER, used in 0usize..=512, last in 1u8..,
        ) {
            let mut block = vec![0; 512];
            if let Some(index) = used.checked_sub(1) {
                block[index] = last;
            }
            let group_len = (GROUP << order) / 8;
            prop_assert_eq!(counts_end(&block, order), used.div_ceil(group_len) * GROUP);
        }
    }

    #[test]
    fn one_bit_refcounts_stand_lowest_bit_first() {
        let mut block = vec![0; 512];
        set_refcount(&mut block, 0, 0, 1);
        set_refcount(&mut block, 9, 0, 1);
        assert_eq!(block[..2], [0b1, 0b10]);
    }
}
