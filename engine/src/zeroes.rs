//! Telling zeroes from other bytes: writes of zeroes, as `detect-zeroes` asks, and the empty stretches of tables.

use crate::image::Unmap;

/// What is done with a write whose bytes are all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DetectZeroes {
    /// It is a write like any other.
    #[default]
    Off,
    /// The range is made to read as zeroes, and keeps its space.
    On,
    /// The range is made to read as zeroes, and may lose its space.
    Unmap,
}

impl DetectZeroes {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Off, Self::On, Self::Unmap];

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }

    /// The choice of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }

    /// How to zero the range instead of writing `data`, if that is to be done. All of the request
    /// counts: a write of which only a part is zero is written.
    pub fn instead_of(self, data: &[u8]) -> Option<Unmap> {
        let unmap = match self {
            Self::Off => return None,
            Self::On => Unmap::Keep,
            Self::Unmap => Unmap::Allow,
        };
        (!data.is_empty() && is_zero(data)).then_some(unmap)
    }
}

/// So many bytes are looked at together, without a branch within: that is what a compiler makes wide instructions of.
const PIECE: usize = 128;

/// Whether there is no byte but zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (pieces, rest) = bytes.as_chunks::<PIECE>();
    pieces.iter().all(|piece| nothing_in(piece)) && nothing_in(rest)
}

fn nothing_in(piece: &[u8]) -> bool {
    piece.iter().fold(0, |any, byte| any | byte) == 0
}

/// How many bytes are zero before the first that is not.
pub fn leading_zeroes(bytes: &[u8]) -> usize {
    let pieces = bytes.as_chunks::<PIECE>().0.iter();
    let skipped = pieces.take_while(|piece| nothing_in(*piece)).count() * PIECE;
    let rest = bytes[skipped..].iter();
    skipped + rest.take_while(|byte| **byte == 0).count()
}

/// How many bytes are zero behind the last that is not.
pub(crate) fn trailing_zeroes(bytes: &[u8]) -> usize {
    let pieces = bytes.as_rchunks::<PIECE>().1.iter().rev();
    let skipped = pieces.take_while(|piece| nothing_in(*piece)).count() * PIECE;
    let rest = bytes[..bytes.len() - skipped].iter().rev();
    skipped + rest.take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_counted_from_either_end_up_to_the_first_byte_that_is_none() {
        for len in [0, 7, 127, 128, 129, 1000] {
            let mut bytes = vec![0; len];
            assert_eq!(leading_zeroes(&bytes), len);
            assert_eq!(trailing_zeroes(&bytes), len);
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert_eq!(leading_zeroes(&bytes), at, "of {len}");
                assert_eq!(trailing_zeroes(&bytes), len - at - 1, "of {len}");
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
