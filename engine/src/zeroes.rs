//! Telling writes of zeroes from other writes, as `detect-zeroes` asks.

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
        (!data.is_empty() && data.iter().all(|byte| *byte == 0)).then_some(unmap)
    }
}
