//! Preallocation: space that a disk has before its guest writes there.

use crate::device::{Event, Port};
use crate::error::Error;

/// How much of a new disk, or of the new part of a larger one, has its place in the file before the guest
/// writes there. It reads as zeroes until then, or as what lies beneath.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preallocation {
    /// Nothing: places are found as the guest writes.
    #[default]
    Off,
    /// Every cluster has its place, and the file is long enough; where the file system has holes, they
    /// take no space. A raw disk has no metadata, and so not this.
    Metadata,
    /// The space is taken as well, in the way that costs the file system least.
    Falloc,
    /// The space is taken by writing zeroes.
    Full,
}

/// Zeroes are written in pieces of this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

impl Preallocation {
    /// Every mode, in the order of what it takes.
    pub const ALL: [Self; 4] = [Self::Off, Self::Metadata, Self::Falloc, Self::Full];

    /// The name on command lines and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Whether it takes space in the file for data.
    pub fn takes_space(self) -> bool {
        match self {
            Self::Off | Self::Metadata => false,
            Self::Falloc | Self::Full => true,
        }
    }
}

/// Takes the space of `len_bytes` bytes from `offset` on, all within the file, as `mode` does it: zeroes
/// stand there afterwards. Without a mode that takes space, nothing happens.
pub async fn occupy(
    file: &Port,
    offset: u64,
    len_bytes: u64,
    mode: Preallocation,
) -> Result<(), Error> {
    if len_bytes == 0 {
        return Ok(());
    }
    match mode {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => {
            let at = file.at(Event::PwritevZero);
            at.write_zeroes(offset, len_bytes, false).await?;
        }
        Preallocation::Full => {
            let end = offset + len_bytes;
            let mut here = offset;
            while here < end {
                let piece = PIECE_BYTES.min(end - here);
                let zeroes = vec![0; usize::try_from(piece).expect("a piece fits memory")];
                file.at(Event::WriteAio).write(here, zeroes).await?;
                here += piece;
            }
        }
    }
    Ok(())
}
