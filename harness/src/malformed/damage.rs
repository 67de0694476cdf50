//! Changing an image where it hurts.

use std::fmt;

use engine::device::PageImage;

use super::atlas::{Atlas, Field, Group, number};
use crate::prng::Prng;

/// Where choices come from.
pub trait Draw {
    /// Any number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64;

    /// 64 bits.
    fn bits(&mut self) -> u64;
}

impl Draw for Prng {
    fn below(&mut self, bound: u64) -> u64 {
        Self::below(self, bound)
    }

    fn bits(&mut self) -> u64 {
        Self::bits(self)
    }
}

/// Choices by the bytes of a fuzzer; when they are used up every choice is the first.
#[derive(Clone, Debug)]
pub struct FuzzBytes<'a>(pub &'a [u8]);

impl Draw for FuzzBytes<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let mut value = 0;
        let mut reach = 1;
        while reach < bound {
            value = value << 8 | u64::from(self.byte());
            reach = reach.saturating_mul(256);
        }
        value % bound
    }

    fn bits(&mut self) -> u64 {
        (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }
}

impl FuzzBytes<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }
}

/// One change of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A field was set.
    Field {
        /// Which.
        field: Field,
        /// What it said.
        from: u64,
        /// What it says now.
        to: u64,
    },
    /// The file was cut or made longer.
    Length {
        /// Its length now.
        to: u64,
    },
    /// A header extension was added behind the others.
    Extension {
        /// Where it starts.
        offset: u64,
        /// Its type.
        kind: u32,
        /// The length that it claims, in bytes.
        len_bytes: u32,
    },
    /// A cluster was overwritten with another of the file's, with zeroes, or with noise.
    Cluster {
        /// Where it starts.
        offset: u64,
        /// What stands there now.
        with: Filling,
    },
}

/// What a cluster is overwritten with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// The cluster that starts there.
    CopyOf(u64),
    /// Zeroes.
    Zeroes,
    /// Bytes that mean nothing.
    Noise,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field { field, from, to } => write!(
                f,
                "{} field at {:#x}, {} bytes: {from:#x} becomes {to:#x}",
                field.group, field.offset, field.len_bytes
            ),
            Self::Length { to } => write!(f, "the file becomes {to} bytes long"),
            Self::Extension {
                offset,
                kind,
                len_bytes,
            } => write!(
                f,
                "an extension {kind:#x} of {len_bytes} bytes is added at {offset:#x}"
            ),
            Self::Cluster { offset, with } => match with {
                Filling::CopyOf(other) => {
                    write!(f, "the cluster at {offset:#x} becomes that at {other:#x}")
                }
                Filling::Zeroes => write!(f, "the cluster at {offset:#x} becomes zeroes"),
                Filling::Noise => write!(f, "the cluster at {offset:#x} becomes noise"),
            },
        }
    }
}

/// Damages an image of which `atlas` was drawn, at one to four places.
pub fn damage(image: &mut PageImage, atlas: &Atlas, draw: &mut impl Draw) -> Vec<Change> {
    let count = [1, 1, 1, 2, 2, 3, 4][usize::try_from(draw.below(7)).expect("below 7")];
    (0..count)
        .map(|_| match draw.below(16) {
            0 => change_length(image, atlas, draw),
            1 | 2 => change_cluster(image, atlas, draw),
            3 => add_extension(image, atlas, draw),
            _ => change_field(image, atlas, draw),
        })
        .collect()
}

fn change_field(image: &mut PageImage, atlas: &Atlas, draw: &mut impl Draw) -> Change {
    let groups = atlas.groups();
    let group = groups[pick(draw, groups.len())].clone();
    let field = atlas.fields[group.start + pick(draw, group.len())];
    let from = number(image, field.offset, field.len_bytes);
    let to = value(image, atlas, draw, field, from) & mask(field);
    image.write(field.offset, &to.to_be_bytes()[8 - field.len_bytes..]);
    Change::Field { field, from, to }
}

/// A telling value for a field that says `from`.
fn value(image: &PageImage, atlas: &Atlas, draw: &mut impl Draw, field: Field, from: u64) -> u64 {
    let cluster = draw.below(atlas.file_bytes / atlas.cluster_bytes + 4) * atlas.cluster_bytes;
    let flags = [0, 1 << 63, 1 << 62, 1, 1 << 63 | 1, 3 << 62];
    let bits = draw.below(64);
    match draw.below(14) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => from.wrapping_add(1),
        4 => from.wrapping_sub(1),
        5 => from ^ 1 << draw.below(8 * u64::try_from(field.len_bytes).expect("at most 8")),
        6 => 1 << bits,
        7 => (1u64 << bits).wrapping_sub(1),
        8 => cluster | flags[pick(draw, flags.len())],
        9 => cluster + [8, 0x200, 0x1f8][pick(draw, 3)],
        10 => draw.below(1024),
        11 => other_field(image, atlas, draw, field.group),
        12 => from.wrapping_mul(draw.below(16)),
        _ => draw.bits(),
    }
}

/// What another field of that group says.
fn other_field(image: &PageImage, atlas: &Atlas, draw: &mut impl Draw, group: Group) -> u64 {
    let same: Vec<&Field> = atlas
        .fields
        .iter()
        .filter(|field| field.group == group)
        .collect();
    let field = same[pick(draw, same.len())];
    number(image, field.offset, field.len_bytes)
}

fn change_length(image: &mut PageImage, atlas: &Atlas, draw: &mut impl Draw) -> Change {
    let to = match draw.below(4) {
        0 => draw.below(atlas.file_bytes + 1),
        1 => draw.below(atlas.file_bytes / atlas.cluster_bytes + 1) * atlas.cluster_bytes,
        2 => draw.below(atlas.file_bytes / 512 + 1) * 512,
        _ => atlas.file_bytes << draw.below(16),
    };
    image.set_len(to);
    Change::Length { to }
}

fn change_cluster(image: &mut PageImage, atlas: &Atlas, draw: &mut impl Draw) -> Change {
    let clusters = atlas.file_bytes.div_ceil(atlas.cluster_bytes).max(1);
    let offset = draw.below(clusters) * atlas.cluster_bytes;
    let len = usize::try_from(atlas.cluster_bytes).expect("a cluster fits memory");
    let (with, bytes) = match draw.below(4) {
        0 => (Filling::Zeroes, vec![0; len]),
        1 => {
            let word = draw.bits();
            let noise = (0u64..).flat_map(|index| {
                (word ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .wrapping_mul(0xbf58_476d_1ce4_e5b9)
                    .to_be_bytes()
            });
            (Filling::Noise, noise.take(len).collect())
        }
        _ => {
            let other = draw.below(clusters) * atlas.cluster_bytes;
            (Filling::CopyOf(other), image.read_vec(other, len))
        }
    };
    image.write(offset, &bytes);
    Change::Cluster { offset, with }
}

/// The extensions of the format, one that nobody knows, and the incompatible bit that goes with it.
/// Specification: "Header extensions".
const EXTENSIONS: [(u32, u64); 6] = [
    (0x4441_5441, 1 << 2),
    (0x2385_2875, 0),
    (0x0537_be77, 0),
    (0x6803_f857, 0),
    (0xe279_2aca, 0),
    (0x1234_5678, 1 << 40),
];

/// Adds an extension that the image does without, now and then with its feature bit. Where there is no
/// room it overwrites what follows.
fn add_extension(image: &mut PageImage, atlas: &Atlas, draw: &mut impl Draw) -> Change {
    let (kind, incompatible) = EXTENSIONS[pick(draw, EXTENSIONS.len())];
    let offset = atlas.extensions_end.unwrap_or(104);
    let room = atlas.extensions_limit.saturating_sub(offset + 16);
    let len = draw.below(room.clamp(1, 64));
    let claimed = match draw.below(4) {
        0 => draw.bits() & 0xffff_ffff,
        _ => len,
    };
    let len_bytes = u32::try_from(claimed).expect("32 bits are left");
    let data: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|_| draw.bits().to_be_bytes())
        .collect();
    let record = [
        kind.to_be_bytes().to_vec(),
        len_bytes.to_be_bytes().to_vec(),
        data,
        vec![0; 8],
    ];
    image.write(offset, &record.concat());
    if number(image, 4, 4) >= 3 && draw.below(2) == 0 {
        let bits = number(image, 72, 8) | incompatible;
        image.write(72, &bits.to_be_bytes());
    }
    Change::Extension {
        offset,
        kind,
        len_bytes,
    }
}

fn pick(draw: &mut impl Draw, len: usize) -> usize {
    let bound = u64::try_from(len).expect("a length fits 64 bits");
    usize::try_from(draw.below(bound)).expect("less than a length")
}

fn mask(field: Field) -> u64 {
    u64::MAX >> (64 - 8 * field.len_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::malformed::Specimens;
    use crate::workload::pin::Pins;

    /// Every kind of field is damaged, every field of the header, of a snapshot, of a bitmap and of an
    /// encryption header among them, and every other kind of change happens.
    #[test]
    fn nothing_of_the_format_is_left_alone() {
        let mut specimens = Specimens::new(7, Pins::default());
        let mut groups = BTreeSet::new();
        let mut header = BTreeSet::new();
        let mut extensions = BTreeSet::new();
        let mut others = BTreeSet::new();
        for index in 0..6000 {
            for change in specimens.get(index).changes {
                match change {
                    Change::Field { field, .. } => {
                        groups.insert(field.group);
                        if field.group == Group::Header {
                            header.insert(field.offset);
                        }
                    }
                    Change::Extension { kind, .. } => {
                        extensions.insert(kind);
                    }
                    Change::Length { .. } => {
                        others.insert("length");
                    }
                    Change::Cluster { with, .. } => {
                        others.insert(match with {
                            Filling::CopyOf(_) => "copy",
                            Filling::Zeroes => "zeroes",
                            Filling::Noise => "noise",
                        });
                    }
                }
            }
        }
        assert_eq!(groups.len(), Group::ALL.len(), "{groups:?}");
        assert_eq!(header, Atlas::header_offsets().collect());
        assert_eq!(extensions, EXTENSIONS.map(|(kind, _)| kind).into());
        assert_eq!(others, ["length", "copy", "zeroes", "noise"].into());
    }

    #[test]
    fn a_fuzzer_reaches_every_number_below_a_bound() {
        let reached: BTreeSet<u64> = (0..=u8::MAX)
            .map(|byte| FuzzBytes(&[byte]).below(7))
            .collect();
        assert_eq!(reached, (0..7).collect());
        assert_eq!(FuzzBytes(&[1, 0]).below(300), 256);
        assert_eq!(FuzzBytes(&[]).below(300), 0);
    }
}
