//! The counts in a refcount block: one of them, or [`GROUP`] at a time where a whole block is gone
//! through, of which there may be sixteen million counts.
//!
//! Specification: "Refcount block entry". Counts narrower than a byte stand lowest bit first, wider ones
//! are big endian.

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

/// The [`GROUP`] counts from number `first` on, a multiple of that, or `None` where all are zero.
#[inline]
pub fn group(block: &[u8], first: usize, refcount_order: u32) -> Option<[u64; GROUP]> {
    let bytes = &block[(first << refcount_order) / 8..][..(GROUP << refcount_order) / 8];
    if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
        return None;
    }
    let mut counts = [0; GROUP];
    match refcount_order {
        0 => unpack_bits::<1>(bytes, &mut counts),
        1 => unpack_bits::<2>(bytes, &mut counts),
        2 => unpack_bits::<4>(bytes, &mut counts),
        3 => unpack_bytes::<1>(bytes, &mut counts),
        4 => unpack_bytes::<2>(bytes, &mut counts),
        5 => unpack_bytes::<4>(bytes, &mut counts),
        6.. => unpack_bytes::<8>(bytes, &mut counts),
    }
    Some(counts)
}

/// What the compiler makes quick for each width.
fn unpack_bits<const WIDTH: usize>(bytes: &[u8], counts: &mut [u64; GROUP]) {
    for (byte, counts) in bytes.iter().zip(counts.chunks_exact_mut(8 / WIDTH)) {
        for (within, count) in counts.iter_mut().enumerate() {
            *count = u64::from(byte >> (within * WIDTH) & (u8::MAX >> (8 - WIDTH)));
        }
    }
}

fn unpack_bytes<const WIDTH: usize>(bytes: &[u8], counts: &mut [u64; GROUP]) {
    for (bytes, count) in bytes.as_chunks::<WIDTH>().0.iter().zip(counts) {
        let mut word = [0; 8];
        word[8 - WIDTH..].copy_from_slice(bytes);
        *count = u64::from_be_bytes(word);
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
            let found = group(&block, first, order);
            prop_assert_eq!(found.map_or(vec![0; GROUP], Vec::from), expected);
            prop_assert_eq!(group(&[0; 512], first, order), None);
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
