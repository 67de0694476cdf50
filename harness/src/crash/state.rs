//! A crash state: the content that is left, as a function of the recording, the cut and the
//! survivors.

use std::collections::BTreeMap;
use std::fmt;

use blkdebug::contract::Contract;
use blkdebug::disks::Disks;
use blkdebug::mask::SectorMask;
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, RequestId, SectorContent, Tick};
use engine::device::{ContentHash, PageImage, SECTOR_BYTES, sector_hash};
use xxhash_rust::xxh3::xxh3_128;

use super::durability::{Frontier, Standing, Tail, Trust};

const SECTOR: usize = 512;

/// What became of the content that a request carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Every sector reads as if the request had not been made.
    #[default]
    Lost,
    /// Every sector reads as asked.
    Whole,
    /// These sectors read as asked, the others as before.
    Torn(SectorMask),
    /// Of advice, and where the disk leaves garbage in what it was writing: some sectors read as
    /// asked, some garbage, the others as before.
    Scattered {
        /// The sectors that read as asked.
        asked: SectorMask,
        /// The sectors that read garbage; what was asked wins.
        garbage: SectorMask,
    },
}

/// What became of a request's change of the file's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Length {
    /// The length does not hang on this request.
    #[default]
    Untouched,
    /// The change is lost.
    Lost,
    /// The change survives.
    Kept,
}

/// What became of one volatile request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Which.
    pub request: RequestId,
    /// Its content.
    pub content: Fate,
    /// Its change of length.
    pub length: Length,
}

/// What became of every volatile request at a cut, in the order of the frontier.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Survivors {
    parts: Vec<Part>,
    /// How long the disks kept their word, on which hangs what was volatile.
    trust: Trust,
}

/// Survivors that the cut cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The request is not volatile at the cut.
    #[error("request {} is not volatile at this cut", .0.0)]
    NotVolatile(RequestId),
    /// A mask is not of the request's sectors.
    #[error("request {} has {found} sectors, the mask is for {masked}", request.0)]
    WrongMask {
        /// The request.
        request: RequestId,
        /// How many sectors it has.
        found: usize,
        /// How many the mask is for.
        masked: usize,
    },
    /// Only advice leaves garbage on a disk that keeps this contract.
    #[error("request {} is not a discard, and leaves no garbage on a disk that is `{contract}`", request.0)]
    NotAdvice {
        /// The request.
        request: RequestId,
        /// The contract.
        contract: Contract,
    },
    /// Only a liar ignores what it acknowledged.
    #[error("a disk that is `{0}` ignores no flush that it acknowledged")]
    NoLiar(Contract),
}

/// The kind of search that came upon a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Prefixes of the order: nothing, each prefix, everything.
    Prefix,
    /// Only one request, and all but one.
    Single,
    /// Only two requests, and all but two.
    Pair,
    /// Everything up to one request, without another.
    Without,
    /// Every subset.
    Every,
    /// Sampled subsets.
    Sampled,
    /// Torn requests.
    Torn,
    /// Given by name, as in a replay.
    Given,
}

/// What is left after a power loss, on each disk.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// The moment of the power loss.
    pub cut: Tick,
    /// What became of the volatile requests.
    pub survivors: Survivors,
    /// The contents.
    pub disks: Disks<PageImage>,
    /// The hash of all contents.
    pub hash: ContentHash,
    /// How the state was found.
    pub level: Level,
}

impl Level {
    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefix => "L0",
            Self::Single => "L1",
            Self::Pair => "L2",
            Self::Without => "L3",
            Self::Every => "L4",
            Self::Sampled => "L5",
            Self::Torn => "L6",
            Self::Given => "given",
        }
    }
}

impl CrashState {
    /// The state at a cut with these survivors; volatile requests that they do not name are lost.
    pub fn build(
        recording: &Recording,
        cut: Tick,
        survivors: &Survivors,
    ) -> Result<Self, Mismatch> {
        let frontier = survivors.frontier(recording, cut);
        let survivors = survivors.fit(&frontier)?;
        Ok(Self::at(&frontier, survivors, Level::Given))
    }

    /// The state at a frontier with survivors that name each of its volatile requests, in order.
    pub(super) fn at(frontier: &Frontier<'_>, survivors: Survivors, level: Level) -> Self {
        let disks = frontier.settled().map(|disk, settled| {
            let mut medium = Medium::new((*settled).clone());
            let along = survivors.along(frontier);
            for (tail, part) in along.filter(|(tail, _)| tail.disk == disk) {
                medium.lay(frontier.entry(tail), part.0, part.1);
            }
            medium.finish()
        });
        Self {
            cut: frontier.cut(),
            survivors,
            hash: joint_hash(&disks.map(|_, image| image.content_hash())),
            disks,
            level,
        }
    }
}

/// The hash of all contents together; of one disk alone that of its content.
pub(super) fn joint_hash(hashes: &Disks<ContentHash>) -> ContentHash {
    let mut joint = *hashes.image();
    for (_, hash) in hashes.others() {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&joint.0.to_le_bytes());
        bytes[16..].copy_from_slice(&hash.0.to_le_bytes());
        joint = ContentHash(xxh3_128(&bytes));
    }
    joint
}

impl Survivors {
    /// These parts, in any order.
    pub fn from_parts(parts: Vec<Part>) -> Self {
        Self {
            parts,
            trust: Trust::Always,
        }
    }

    /// The same on disks that kept their word for so long.
    #[must_use]
    pub fn with_trust(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Nothing volatile survives.
    pub fn nothing(frontier: &Frontier<'_>) -> Self {
        Self::from_parts(frontier.volatile().map(Part::lost).collect()).with_trust(frontier.trust())
    }

    /// Everything survives.
    pub fn everything(frontier: &Frontier<'_>) -> Self {
        Self::from_parts(frontier.volatile().map(Part::whole).collect())
            .with_trust(frontier.trust())
    }

    /// What became of each request.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    /// How long the disks kept their word.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// What these survivors survive: the frontier at a cut, on disks that kept their word for so long.
    pub fn frontier<'a>(&self, recording: &'a Recording, cut: Tick) -> Frontier<'a> {
        let mut frontier = Frontier::trusting(recording, self.trust);
        frontier.advance(cut);
        frontier
    }

    /// The same survivors as the cut has them: in its order, what is not named lost, what has no
    /// length of its own without one.
    pub fn fit(&self, frontier: &Frontier<'_>) -> Result<Self, Mismatch> {
        let mut named: BTreeMap<RequestId, &Part> =
            self.parts.iter().map(|part| (part.request, part)).collect();
        let fitted = frontier
            .volatile()
            .map(|tail| match named.remove(&tail.request) {
                Some(part) => part.fit(tail),
                None => Ok(Part::lost(tail)),
            })
            .collect::<Result<_, _>>()?;
        match named.into_keys().next() {
            Some(request) => Err(Mismatch::NotVolatile(request)),
            None => Ok(Self::from_parts(fitted).with_trust(frontier.trust())),
        }
    }

    /// Whether nothing of this is more than `contract` lets a disk destroy.
    pub fn destroy_by(
        &self,
        recording: &Recording,
        cut: Tick,
        contract: Contract,
    ) -> Result<(), Mismatch> {
        if self.trust != Trust::Always && contract != Contract::Liar {
            return Err(Mismatch::NoLiar(contract));
        }
        if contract.destroys() {
            return Ok(());
        }
        let frontier = self.frontier(recording, cut);
        let fitted = self.fit(&frontier)?;
        let spoilt = |(tail, part): &(&Tail, &Part)| {
            let garbage =
                matches!(&part.content, Fate::Scattered { garbage, .. } if !garbage.is_none());
            garbage && !tail.advisory
        };
        match frontier.volatile().zip(fitted.parts()).find(spoilt) {
            None => Ok(()),
            Some((tail, _)) => Err(Mismatch::NotAdvice {
                request: tail.request,
                contract,
            }),
        }
    }

    /// The requests of the tail in order, each with what became of it.
    pub(super) fn along<'s>(
        &'s self,
        frontier: &'s Frontier<'_>,
    ) -> impl Iterator<Item = (&'s Tail, (&'s Fate, Length))> {
        let mut parts = self.parts.iter();
        frontier.tail().iter().map(move |tail| {
            if tail.standing == Standing::Durable {
                return (tail, (&Fate::Whole, Length::Kept));
            }
            let part = parts.next();
            let part = part.expect("survivors name each volatile request, in order");
            (tail, (&part.content, part.length))
        })
    }

    /// What became of each request, by name, one line each.
    pub fn describe(&self, recording: &Recording) -> String {
        let line = |part: &Part| {
            let name = recording
                .entry(part.request)
                .map_or_else(String::new, |entry| entry.name().to_string());
            format!("{name}: {part}\n")
        };
        self.parts.iter().map(line).collect()
    }
}

impl Part {
    /// A request that is lost.
    pub fn lost(tail: &Tail) -> Self {
        Self {
            request: tail.request,
            content: Fate::Lost,
            length: if tail.has_length {
                Length::Lost
            } else {
                Length::Untouched
            },
        }
    }

    /// A request that survives whole.
    pub fn whole(tail: &Tail) -> Self {
        Self {
            request: tail.request,
            content: Fate::Whole,
            length: if tail.has_length {
                Length::Kept
            } else {
                Length::Untouched
            },
        }
    }

    /// Whether nothing of the request is left.
    pub fn is_lost(&self) -> bool {
        self.content == Fate::Lost && self.length != Length::Kept
    }

    /// Whether all of the request is left.
    pub fn is_whole(&self) -> bool {
        self.content == Fate::Whole && self.length != Length::Lost
    }

    fn fit(&self, tail: &Tail) -> Result<Self, Mismatch> {
        let found = tail.sector_count();
        let fits = |mask: &SectorMask| {
            if mask.sector_count() == found {
                Ok(())
            } else {
                Err(Mismatch::WrongMask {
                    request: self.request,
                    found,
                    masked: mask.sector_count(),
                })
            }
        };
        match &self.content {
            Fate::Lost | Fate::Whole => {}
            Fate::Torn(mask) => fits(mask)?,
            Fate::Scattered { asked, garbage } => {
                fits(asked)?;
                fits(garbage)?;
            }
        }
        let length = match (tail.has_length, self.length) {
            (false, _) => Length::Untouched,
            (true, Length::Kept) => Length::Kept,
            (true, Length::Lost | Length::Untouched) => Length::Lost,
        };
        Ok(Self {
            request: self.request,
            content: self.content.clone(),
            length,
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Fate::Lost => f.write_str("lost")?,
            Fate::Whole => f.write_str("survived")?,
            Fate::Torn(mask) => write!(
                f,
                "torn, {} of {} sectors survived",
                mask.iter().count(),
                mask.sector_count()
            )?,
            Fate::Scattered { asked, garbage } => write!(
                f,
                "scattered, of {} sectors {} read as asked and {} garbage",
                asked.sector_count(),
                asked.iter().count(),
                garbage.iter().count()
            )?,
        }
        match self.length {
            Length::Untouched => Ok(()),
            Length::Lost => f.write_str(", its length lost"),
            Length::Kept => f.write_str(", its length kept"),
        }
    }
}

/// What of a sector that a request addresses comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Old,
    Asked,
    Garbage,
}

impl Fate {
    /// What becomes of sector number `index` of `entry`, by this fate and by what really happens.
    pub(super) fn outcome(&self, entry: &Entry, index: usize) -> Outcome {
        let asked = match self {
            Self::Lost => false,
            Self::Whole => true,
            Self::Torn(mask) => mask.contains(index),
            Self::Scattered { asked, garbage } => {
                if !asked.contains(index) && garbage.contains(index) && entry.happens(index) {
                    return Outcome::Garbage;
                }
                asked.contains(index)
            }
        };
        if asked && entry.happens(index) {
            Outcome::Asked
        } else {
            Outcome::Old
        }
    }
}

/// The bytes on a medium while requests are laid on it in order: content and length apart, since a
/// sector may be there before the length that covers it.
#[derive(Debug)]
pub(super) struct Medium {
    image: PageImage,
    len: u64,
}

impl Medium {
    pub(super) fn new(image: PageImage) -> Self {
        Self {
            len: image.len(),
            image,
        }
    }

    /// Lays what is left of a request.
    pub(super) fn lay(&mut self, entry: &Entry, content: &Fate, length: Length) {
        if *content != Fate::Lost {
            self.lay_content(entry, content);
        }
        if length == Length::Kept {
            if let RecordedOp::SetLen { len_bytes } = entry.op {
                if entry.effect == Effect::Whole {
                    self.image.set_len(len_bytes);
                    self.len = len_bytes;
                }
            } else if let Some(end) = entry.op.grows_to() {
                self.len = self.len.max(end);
            }
        }
    }

    /// The content within the length.
    pub(super) fn finish(mut self) -> PageImage {
        self.image.set_len(self.len);
        self.image
    }

    fn lay_content(&mut self, entry: &Entry, content: &Fate) {
        if let RecordedOp::Write { run, .. } = &entry.op
            && *content == Fate::Whole
            && entry.effect == Effect::Whole
        {
            self.image.put_run(run);
            return;
        }
        let sectors = entry.op.sectors();
        let zeroes = matches!(
            entry.op,
            RecordedOp::WriteZeroes { .. } | RecordedOp::Discard { .. }
        );
        if zeroes && *content == Fate::Whole && entry.effect == Effect::Whole {
            let len_bytes = (sectors.end - sectors.start) * SECTOR_BYTES;
            self.image.write_zeroes(entry.op.offset(), len_bytes);
            return;
        }
        for (index, sector) in sectors.enumerate() {
            match content.outcome(entry, index) {
                Outcome::Old => {}
                Outcome::Garbage => {
                    let bytes = garbage(entry.id, sector);
                    self.image
                        .put_sector(sector, &bytes, sector_hash(sector, &bytes));
                }
                Outcome::Asked => match entry.op.content(index) {
                    SectorContent::Zero => self.image.put_sector(sector, &[0; SECTOR], 0),
                    SectorContent::Bytes(bytes, hash) => self.image.put_sector(sector, bytes, hash),
                },
            }
        }
    }
}

/// Bytes that nobody wrote: a function of the request that left them and of the sector.
pub(super) fn garbage(request: RequestId, sector: u64) -> [u8; SECTOR] {
    let request = u64::try_from(request.0).expect("a request's number fits 64 bits");
    let mut seed = request.rotate_left(32) ^ sector ^ 0x6A09_E667_F3BC_C908;
    let mut bytes = [0; SECTOR];
    for word in bytes.as_chunks_mut::<8>().0 {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        *word = (mixed ^ mixed >> 31).to_le_bytes();
    }
    bytes
}
