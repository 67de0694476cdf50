//! What happened on a device, or on several: every request, when it was handed in, when it was answered and how.
//!
//! Both ends of a request are recorded, because durability hangs on both: a flush covers the requests
//! that had *completed* when it was *submitted*. A list in completion order alone cannot tell.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use engine::device::{Cause, Event, Op, OpKind, PageImage, SECTOR_BYTES, SectorHash, SectorRun};

use crate::disks::{Disk, Disks};
use crate::mask::SectorMask;

const SECTOR: usize = 512;

/// A moment of a run. No two events of a run share one; the first is 1, and 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

/// The counter that orders the events of a run. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Rc<Cell<u64>>);

impl Clock {
    /// The moment of the event that happens now; every call is a new moment.
    pub fn next(&self) -> Tick {
        self.0.set(self.0.get() + 1);
        self.now()
    }

    /// The moment of the last event.
    pub fn now(&self) -> Tick {
        Tick(self.0.get())
    }
}

/// The number of a request in its recording, from 0; also its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub usize);

/// Everything that happened on a device, or on several.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The content of each at the start, all of it durable.
    pub bases: Disks<PageImage>,
    /// The requests in submission order.
    pub entries: Vec<Entry>,
}

/// One request as it happened.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number.
    pub id: RequestId,
    /// Of which device.
    pub disk: Disk,
    /// On whose behalf it was made.
    pub event: Event,
    /// How many requests of the same event and kind came before it on this device.
    pub ordinal: u64,
    /// What was asked.
    pub op: RecordedOp,
    /// When it was handed in.
    pub submitted: Tick,
    /// When it was answered and how, or `None` if it never was.
    pub completed: Option<(Tick, Result<(), Cause>)>,
    /// What of it really happens.
    pub effect: Effect,
    /// The request that the device carries out once more here, which nobody asked for.
    pub repeats: Option<RequestId>,
}

/// An operation as it is kept: data shared, sectors hashed once.
#[derive(Clone, Debug)]
pub enum RecordedOp {
    /// A read; its data are not kept.
    Read {
        /// Where it started, in bytes.
        offset: u64,
        /// How much it asked for.
        len_bytes: u64,
    },
    /// A write.
    Write {
        /// The sectors and their hashes.
        run: Rc<SectorRun>,
        /// Whether it is durable at its own completion.
        fua: bool,
    },
    /// A write of zeroes.
    WriteZeroes {
        /// The sectors.
        sectors: Range<u64>,
        /// Whether the device may release the space.
        unmap: bool,
    },
    /// A discard, clipped to the length of the device when it was submitted.
    Discard {
        /// The sectors.
        sectors: Range<u64>,
    },
    /// A flush.
    Flush,
    /// A change of length.
    SetLen {
        /// The new length.
        len_bytes: u64,
    },
}

/// What of a request really happens, whatever is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    /// All of it.
    #[default]
    Whole,
    /// Nothing.
    Dropped,
    /// Only these sectors; of a request without sectors, nothing.
    Torn(SectorMask),
}

/// What a request puts into a sector.
#[derive(Clone, Copy, Debug)]
pub enum SectorContent<'a> {
    /// Zeroes.
    Zero,
    /// These bytes, of this hash.
    Bytes(&'a [u8; SECTOR], SectorHash),
}

/// How messages and traces name a request: by cause, kind and ordinal, and where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestName {
    /// Of which device.
    pub disk: Disk,
    /// On whose behalf it was made.
    pub event: Event,
    /// What was asked.
    pub kind: OpKind,
    /// How many of the same event and kind came before.
    pub ordinal: u64,
    /// Where, in bytes; the new length for a change of length.
    pub offset: u64,
}

impl Recording {
    /// The entry of a request, or `None` where there is no such request.
    pub fn entry(&self, id: RequestId) -> Option<&Entry> {
        self.entries.get(id.0)
    }

    /// The same devices' recordings as one, with their requests numbered anew.
    pub fn join(parts: &Disks<Self>) -> Self {
        let of_one = |(disk, part): (Disk, &Self)| -> Vec<Entry> {
            let entries = part.entries.iter().cloned();
            entries.map(|entry| Entry { disk, ..entry }).collect()
        };
        let mut entries: Vec<Entry> = parts.iter().flat_map(of_one).collect();
        entries.sort_by_key(|entry| entry.submitted);
        let mut numbers = BTreeMap::new();
        for (index, entry) in entries.iter_mut().enumerate() {
            numbers.insert((entry.disk, entry.id), RequestId(index));
            entry.id = RequestId(index);
            // It was handed in before, and so it has its number.
            entry.repeats = entry
                .repeats
                .and_then(|id| numbers.get(&(entry.disk, id)).copied());
        }
        Self {
            bases: parts.map(|_, part| part.bases.image().clone()),
            entries,
        }
    }

    /// The request with this device, event, kind and ordinal.
    pub fn find(&self, disk: Disk, event: Event, kind: OpKind, ordinal: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            entry.disk == disk
                && entry.event == event
                && entry.op.kind() == kind
                && entry.ordinal == ordinal
        })
    }

    /// Whether anything could change on this device.
    pub fn changes(&self) -> bool {
        self.entries.iter().any(Entry::changes_content)
    }

    /// The last moment that these devices know of.
    pub fn end(&self) -> Tick {
        self.entries
            .iter()
            .map(|entry| {
                entry
                    .completed
                    .map_or(entry.submitted, |(completed, _)| completed)
            })
            .max()
            .unwrap_or_default()
    }
}

impl Entry {
    /// How messages and traces name this request.
    pub fn name(&self) -> RequestName {
        RequestName {
            disk: self.disk,
            event: self.event,
            kind: self.op.kind(),
            ordinal: self.ordinal,
            offset: self.op.offset(),
        }
    }

    /// Whether anything of sector number `index` of this request, from 0, really happens.
    pub fn happens(&self, index: usize) -> bool {
        match &self.effect {
            Effect::Whole => true,
            Effect::Dropped => false,
            Effect::Torn(mask) => mask.contains(index),
        }
    }

    /// Whether the request can change content or length: a read, a flush and what was dropped do not.
    pub fn changes_content(&self) -> bool {
        let changes = match &self.op {
            RecordedOp::Read { .. } | RecordedOp::Flush => false,
            RecordedOp::Write { .. }
            | RecordedOp::WriteZeroes { .. }
            | RecordedOp::Discard { .. } => self.op.sector_count() > 0,
            RecordedOp::SetLen { .. } => true,
        };
        changes && self.effect != Effect::Dropped
    }

    /// When it was answered with success, or `None`.
    pub fn succeeded(&self) -> Option<Tick> {
        match self.completed {
            Some((tick, Ok(()))) => Some(tick),
            Some((_, Err(_))) | None => None,
        }
    }

    /// When it was answered, however, or `None`.
    pub fn answered(&self) -> Option<Tick> {
        self.completed.map(|(tick, _)| tick)
    }
}

impl RecordedOp {
    /// Keeps an operation. `device_bytes` is the length of the device, to which a discard is clipped.
    pub(crate) fn keep(op: Op, device_bytes: u64) -> Self {
        match op {
            Op::Read { offset, len_bytes } => Self::Read {
                offset,
                len_bytes: to_u64(len_bytes),
            },
            Op::Write { offset, data, fua } => Self::Write {
                run: Rc::new(SectorRun::new(offset / SECTOR_BYTES, data)),
                fua,
            },
            Op::WriteZeroes {
                offset,
                len_bytes,
                unmap,
            } => Self::WriteZeroes {
                sectors: offset / SECTOR_BYTES..(offset + len_bytes) / SECTOR_BYTES,
                unmap,
            },
            Op::Discard { offset, len_bytes } => {
                let end = (offset + len_bytes) / SECTOR_BYTES;
                let start = offset / SECTOR_BYTES;
                Self::Discard {
                    sectors: start..end.min(device_bytes.div_ceil(SECTOR_BYTES)).max(start),
                }
            }
            Op::Flush => Self::Flush,
            Op::SetLen { len_bytes } => Self::SetLen { len_bytes },
        }
    }

    /// The kind of this operation.
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
            Self::Discard { .. } => OpKind::Discard,
            Self::Flush => OpKind::Flush,
            Self::SetLen { .. } => OpKind::SetLen,
        }
    }

    /// Where it goes, in bytes; the new length for a change of length, 0 for a flush.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Read { offset, .. } => *offset,
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard { .. } => {
                self.sectors().start * SECTOR_BYTES
            }
            Self::Flush => 0,
            Self::SetLen { len_bytes } => *len_bytes,
        }
    }

    /// The sectors whose content it changes.
    pub fn sectors(&self) -> Range<u64> {
        match self {
            Self::Write { run, .. } => run.sectors(),
            Self::WriteZeroes { sectors, .. } | Self::Discard { sectors } => sectors.clone(),
            Self::Read { .. } | Self::Flush | Self::SetLen { .. } => 0..0,
        }
    }

    /// How many sectors it changes.
    pub fn sector_count(&self) -> usize {
        let sectors = self.sectors();
        usize::try_from(sectors.end - sectors.start).expect("a request's sectors can be counted")
    }

    /// The length that the device has at least when this has happened, in bytes, for an operation
    /// that grows what it reaches beyond.
    pub fn grows_to(&self) -> Option<u64> {
        match self {
            Self::Write { .. } | Self::WriteZeroes { .. } if self.sector_count() > 0 => {
                Some(self.sectors().end * SECTOR_BYTES)
            }
            Self::Write { .. }
            | Self::WriteZeroes { .. }
            | Self::Read { .. }
            | Self::Discard { .. }
            | Self::Flush
            | Self::SetLen { .. } => None,
        }
    }

    /// What it puts into its sector number `index`, from 0.
    ///
    /// # Panics
    /// Where it has no such sector.
    pub fn content(&self, index: usize) -> SectorContent<'_> {
        match self {
            Self::Write { run, .. } => {
                let (bytes, hash) = run.at(index);
                SectorContent::Bytes(bytes, hash)
            }
            Self::WriteZeroes { .. } | Self::Discard { .. } => {
                assert!(
                    index < self.sector_count(),
                    "the sector belongs to the request"
                );
                SectorContent::Zero
            }
            Self::Read { .. } | Self::Flush | Self::SetLen { .. } => {
                unreachable!("it puts nothing into any sector")
            }
        }
    }

    /// Whether it is a write that is durable at its own completion.
    pub fn is_fua(&self) -> bool {
        matches!(self, Self::Write { fua: true, .. })
    }

    /// Whether it is advice: until a flush makes it durable, each sector reads old, zero or garbage.
    pub fn is_advisory(&self) -> bool {
        match self {
            Self::Discard { .. } | Self::WriteZeroes { unmap: true, .. } => true,
            Self::WriteZeroes { unmap: false, .. }
            | Self::Write { .. }
            | Self::Read { .. }
            | Self::Flush
            | Self::SetLen { .. } => false,
        }
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} #{}", self.event, self.kind.name(), self.ordinal)?;
        if self.disk != Disk::Image {
            write!(f, " on {}", self.disk.name())?;
        }
        match self.kind {
            OpKind::Flush => Ok(()),
            OpKind::SetLen => write!(f, " (to {:#x} bytes)", self.offset),
            OpKind::Read | OpKind::Write | OpKind::WriteZeroes | OpKind::Discard => {
                write!(f, " (host offset {:#x})", self.offset)
            }
        }
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_clock_share_their_count() {
        let clock = Clock::default();
        let other = clock.clone();
        assert_eq!(clock.next(), Tick(1));
        assert_eq!(other.next(), Tick(2));
        assert_eq!(clock.now(), Tick(2));
    }

    #[test]
    fn a_name_says_cause_kind_ordinal_and_place() {
        let mut name = RequestName {
            disk: Disk::Image,
            event: Event::L2Update,
            kind: OpKind::Write,
            ordinal: 3,
            offset: 0x5000,
        };
        assert_eq!(name.to_string(), "l2_update write #3 (host offset 0x5000)");
        name.kind = OpKind::SetLen;
        assert_eq!(name.to_string(), "l2_update set-len #3 (to 0x5000 bytes)");
        name.kind = OpKind::Flush;
        assert_eq!(name.to_string(), "l2_update flush #3");
        name.disk = Disk::Backing;
        assert_eq!(name.to_string(), "l2_update flush #3 on backing");
    }

    #[test]
    fn a_discard_is_clipped_to_the_device() {
        let kept = |len| {
            let op = Op::Discard {
                offset: 1024,
                len_bytes: 2048,
            };
            RecordedOp::keep(op, len).sectors()
        };
        assert_eq!(kept(1 << 20), 2..6);
        assert_eq!(kept(1537), 2..4);
        assert_eq!(kept(512), 2..2);
    }
}
