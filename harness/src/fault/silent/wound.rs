//! What of an image at rest is not what was written last: one sector of it, or where the file ends.
//!
//! A wound is told in few words, from which the same bytes come again behind the same life.

use std::fmt;
use std::str::FromStr;

use blkdebug::class::Class;
use blkdebug::record::{Entry, RecordedOp};
use blkdebug::volatile::lay;
use engine::device::{PageImage, SECTOR_BYTES};

use crate::crash::destroyed::Ruin;
use crate::prng::Prng;
use crate::run::Life;

/// What became of a sector, or of the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is another.
    Flipped,
    /// It holds what nobody wrote.
    Rotten,
    /// The last write to it never happened.
    Lost,
    /// The last write to it went to another sector.
    Misdirected,
}

/// One wound of the image's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wound {
    /// One bit of a sector is another, counted from the lowest of its first byte.
    Flipped {
        /// The sector.
        sector: u64,
        /// Which bit, of 4096.
        bit: u64,
    },
    /// A sector holds what nobody wrote.
    Rotten {
        /// The sector.
        sector: u64,
        /// Where the generator of that starts.
        seed: u64,
    },
    /// The last write to a sector never happened.
    Lost {
        /// The sector.
        sector: u64,
    },
    /// The last write to a sector went to another.
    Misdirected {
        /// The sector.
        sector: u64,
        /// The other.
        to: u64,
    },
    /// The file ends elsewhere.
    Length {
        /// There, in bytes.
        len_bytes: u64,
    },
}

/// A wounded image.
#[derive(Clone, Debug)]
pub struct Wounded {
    /// The bytes.
    pub image: PageImage,
    /// The sectors that hold something else than what was written last, or are not there any more.
    pub sectors: Vec<(u64, Ruin)>,
}

/// The text is none that a wound is told in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no damage, which is one of: sector N flipped BIT, sector N rotten SEED, sector N lost, \
     sector N misdirected SECTOR, length BYTES"
)]
pub struct NoWound(String);

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Flipped, Self::Rotten, Self::Lost, Self::Misdirected];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flipped => "flipped bit",
            Self::Rotten => "rot",
            Self::Lost => "lost write",
            Self::Misdirected => "misdirected write",
        }
    }
}

impl fmt::Display for Wound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flipped { sector, bit } => write!(f, "sector {sector} flipped {bit}"),
            Self::Rotten { sector, seed } => write!(f, "sector {sector} rotten {seed}"),
            Self::Lost { sector } => write!(f, "sector {sector} lost"),
            Self::Misdirected { sector, to } => write!(f, "sector {sector} misdirected {to}"),
            Self::Length { len_bytes } => write!(f, "length {len_bytes}"),
        }
    }
}

impl FromStr for Wound {
    type Err = NoWound;

    fn from_str(text: &str) -> Result<Self, NoWound> {
        let bad = || NoWound(text.into());
        let number = |word: &str| word.parse::<u64>().map_err(|_| bad());
        let words: Vec<&str> = text.split(' ').collect();
        Ok(match words[..] {
            ["sector", sector, "flipped", bit] => {
                let (sector, bit) = (number(sector)?, number(bit)?);
                Self::Flipped { sector, bit }
            }
            ["sector", sector, "rotten", seed] => {
                let (sector, seed) = (number(sector)?, number(seed)?);
                Self::Rotten { sector, seed }
            }
            ["sector", sector, "lost"] => Self::Lost {
                sector: number(sector)?,
            },
            ["sector", sector, "misdirected", to] => {
                let (sector, to) = (number(sector)?, number(to)?);
                Self::Misdirected { sector, to }
            }
            ["length", len_bytes] => Self::Length {
                len_bytes: number(len_bytes)?,
            },
            _ => return Err(bad()),
        })
    }
}

impl Wound {
    /// Draws one that a structure suffers; `None` where there is none of that kind to be had.
    pub fn draw(life: &Life, class: Class, damage: Damage, draw: &mut Prng) -> Option<Self> {
        if class == Class::Length {
            return Self::draw_length(life, damage, draw);
        }
        let entries = &life.lived.recordings[0].entries;
        let writes: Vec<&Entry> = entries
            .iter()
            .filter(|entry| Class::of(entry) == class && entry.succeeded().is_some())
            .filter(|entry| matches!(entry.op, RecordedOp::Write { .. }))
            .collect();
        if writes.is_empty() {
            return None;
        }
        let write = writes[draw.index(writes.len())];
        let index = draw.index(write.op.sector_count().max(1));
        let sector = write.op.sectors().start + u64::try_from(index).ok()?;
        let image = life.last.image();
        if sector >= image.len() / SECTOR_BYTES {
            return None;
        }
        Some(match damage {
            Damage::Flipped => Self::Flipped {
                sector,
                bit: draw.below(SECTOR_BYTES * 8),
            },
            Damage::Rotten => Self::Rotten {
                sector,
                seed: draw.bits(),
            },
            Damage::Lost => Self::Lost { sector },
            Damage::Misdirected => Self::Misdirected {
                sector,
                to: draw.below(image.len().div_ceil(SECTOR_BYTES)),
            },
        })
    }

    /// A length of which a bit is another, any other, or the one before the last change. It stands nowhere, so that it
    /// cannot be misdirected.
    fn draw_length(life: &Life, damage: Damage, draw: &mut Prng) -> Option<Self> {
        let now = life.last.image().len();
        let sectors = now / SECTOR_BYTES;
        let len_bytes = match damage {
            Damage::Flipped => {
                let bits = u64::from(u64::BITS - sectors.leading_zeros());
                (sectors ^ 1 << draw.below(bits + 1)) * SECTOR_BYTES
            }
            Damage::Rotten => draw.below(2 * sectors + 1) * SECTOR_BYTES,
            Damage::Lost => length_before(life)?,
            Damage::Misdirected => return None,
        };
        Some(Self::Length { len_bytes })
    }

    /// The image that a life has left with this wound; `None` where that leaves it as it was.
    pub fn of(self, life: &Life) -> Option<Wounded> {
        let image = life.last.image();
        let mut wounded = image.clone();
        let read = |sector: u64| image.read_vec(sector * SECTOR_BYTES, 512);
        let is_there = |sector: u64| sector < image.len() / SECTOR_BYTES;
        let sectors = match self {
            Self::Flipped { sector, bit } if is_there(sector) => {
                let mut bytes = read(sector);
                let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX) % bytes.len();
                bytes[byte] ^= 1 << (bit % 8);
                wounded.write(sector * SECTOR_BYTES, &bytes);
                vec![(sector, Ruin::Stale)]
            }
            Self::Rotten { sector, seed } if is_there(sector) => {
                let mut draw = Prng::from_seed(seed).fork("rot");
                let mut byte = || u8::try_from(draw.below(256)).expect("less than 256");
                let bytes: Vec<u8> = (0..512).map(|_| byte()).collect();
                wounded.write(sector * SECTOR_BYTES, &bytes);
                vec![(sector, Ruin::Garbage)]
            }
            Self::Lost { sector } if is_there(sector) => {
                wounded.write(sector * SECTOR_BYTES, &before(life, sector));
                vec![(sector, Ruin::Stale)]
            }
            Self::Misdirected { sector, to } if is_there(sector) && is_there(to) => {
                wounded.write(sector * SECTOR_BYTES, &before(life, sector));
                wounded.write(to * SECTOR_BYTES, &read(sector));
                let other = (to != sector).then_some((to, Ruin::Stale));
                std::iter::once((sector, Ruin::Stale))
                    .chain(other)
                    .collect()
            }
            Self::Length { len_bytes } if len_bytes <= PageImage::MAX_LEN => {
                wounded.set_len(len_bytes);
                let cut_off = len_bytes / SECTOR_BYTES..image.len().div_ceil(SECTOR_BYTES);
                cut_off.map(|sector| (sector, Ruin::Stale)).collect()
            }
            Self::Flipped { .. }
            | Self::Rotten { .. }
            | Self::Lost { .. }
            | Self::Misdirected { .. }
            | Self::Length { .. } => return None,
        };
        let changed = wounded.content_hash() != image.content_hash();
        changed.then_some(Wounded {
            image: wounded,
            sectors,
        })
    }
}

/// The requests that happened, in the order in which they did.
fn happened(life: &Life) -> Vec<&Entry> {
    let entries = life.lived.recordings[0].entries.iter();
    let mut happened: Vec<&Entry> = entries
        .filter(|entry| entry.answered().is_some() && entry.changes_content())
        .collect();
    happened.sort_by_key(|entry| entry.answered());
    happened
}

/// How long the file was before its length changed last; `None` where it never did.
fn length_before(life: &Life) -> Option<u64> {
    let mut image = life.lived.recordings[0].bases.image().clone();
    let mut before = None;
    for entry in happened(life) {
        let len = image.len();
        lay(&mut image, entry);
        if image.len() != len {
            before = Some(len);
        }
    }
    before
}

/// What a sector of the image held before the last write to it.
fn before(life: &Life, sector: u64) -> Vec<u8> {
    let recording = &life.lived.recordings[0];
    let mut touching = happened(life);
    touching.retain(|entry| entry.op.sectors().contains(&sector));
    touching.pop();
    match touching.last() {
        None => recording.bases.image().read_vec(sector * SECTOR_BYTES, 512),
        Some(entry) => match &entry.op {
            RecordedOp::Write { run, .. } => {
                let index = usize::try_from(sector - run.sectors().start);
                run.sector(index.expect("a request fits memory")).to_vec()
            }
            RecordedOp::Read { .. }
            | RecordedOp::WriteZeroes { .. }
            | RecordedOp::Discard { .. }
            | RecordedOp::Flush
            | RecordedOp::SetLen { .. } => vec![0; 512],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wound_comes_back_from_its_text() {
        for wound in [
            Wound::Flipped { sector: 3, bit: 77 },
            Wound::Rotten { sector: 0, seed: 9 },
            Wound::Lost { sector: 12 },
            Wound::Misdirected { sector: 4, to: 40 },
            Wound::Length { len_bytes: 65536 },
        ] {
            assert_eq!(wound.to_string().parse(), Ok(wound));
        }
        for text in [
            "",
            "sector 3",
            "sector x lost",
            "length -1",
            "sector 1 lost 2",
        ] {
            assert!(text.parse::<Wound>().is_err(), "{text}");
        }
    }
}
