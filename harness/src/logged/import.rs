//! A recording from a log.
//!
//! A log tells the order in which requests were completed, and not when they were submitted. Each becomes a request that
//! was submitted when the one before it had been answered, so that a flush covers all that stands before it. What had been
//! submitted earlier than it seems may survive earlier than it does here: such states are missed, and none is made up.

use std::ops::Range;
use std::rc::Rc;

use blkdebug::disks::{Disk, Disks};
use blkdebug::log_writes::{BadLog, Flags, Log, Logged, Place, Source};
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, RequestId, Tick};
use engine::device::{Event, PageImage, SECTOR_BYTES, SectorRun};

use super::export::length_of;

/// A disk of more than this is not gone into: a check of it would take more memory than there is.
const MOST_DISK_BYTES: u64 = 16 << 30;
/// Data of more than this are not held in memory.
const MOST_DATA_BYTES: u64 = 1 << 30;

/// What a discarded sector may read until a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discards {
    /// What it read before, zeroes or garbage: the disk may do with it as it likes.
    #[default]
    Advice,
    /// What it read before or zeroes, as when a file system punches a hole.
    Zeroes,
}

/// How a log is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// So many entries at most; `None` for all.
    pub entries: Option<u64>,
    /// Whether entries behind those that the log counts are taken too.
    pub beyond: bool,
    /// What becomes of discarded sectors.
    pub discards: Discards,
}

/// A mark that whoever recorded a log has set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub at: Tick,
    /// Its name.
    pub name: String,
}

/// What was made of a log.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What happened. A request's ordinal is the number of its entry in the log.
    pub recording: Recording,
    /// The marks, in order.
    pub marks: Vec<Mark>,
    /// Entries that were taken.
    pub entries: u64,
}

/// Why a log cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is damaged.
    #[error(transparent)]
    Log(#[from] BadLog),
    /// It holds more than fits memory.
    #[error(
        "the {0} entries before entry {0} are as much data as is held in memory (take those alone with --entries {0})"
    )]
    TooMuch(u64),
    /// It is about a disk that is too large.
    #[error(
        "entry {index} ends at byte {end} of the disk, and disks of more than 16 GiB are not gone into (take the entries \
         before it alone with --entries {index})"
    )]
    TooLarge {
        /// Which entry.
        index: u64,
        /// Where it ends.
        end: u64,
    },
}

/// Makes a recording of a log, on a disk that held `base` before.
pub fn import<S: Source>(
    log: &Log<S>,
    base: PageImage,
    how: &How,
) -> Result<Imported, ImportError> {
    let mut import = Import {
        log,
        discards: how.discards,
        now: base.clone(),
        data_bytes: 0,
        ticks: 0,
        imported: Imported {
            recording: Recording {
                bases: Disks::one(base),
                entries: Vec::new(),
            },
            marks: Vec::new(),
            entries: 0,
        },
    };
    let entries = log.entries();
    let entries = if how.beyond {
        entries.and_beyond()
    } else {
        entries
    };
    for read in entries.at_most(how.entries.unwrap_or(u64::MAX)) {
        let (place, entry) = read?;
        import.take(&place, &entry)?;
        import.imported.entries += 1;
    }
    Ok(import.imported)
}

struct Import<'a, S> {
    log: &'a Log<S>,
    discards: Discards,
    /// What the disk holds with all entries so far.
    now: PageImage,
    data_bytes: u64,
    ticks: u64,
    imported: Imported,
}

impl<S: Source> Import<'_, S> {
    fn take(&mut self, place: &Place, entry: &Logged) -> Result<(), ImportError> {
        if entry.flags.has(Flags::MARK) {
            let name = entry.name();
            match length_of(&name) {
                Some(len_bytes) if len_bytes <= MOST_DISK_BYTES => {
                    self.push(place, RecordedOp::SetLen { len_bytes });
                }
                Some(_) | None => {
                    let at = self.tick();
                    self.imported.marks.push(Mark { at, name });
                }
            }
        }
        if entry.flags.has(Flags::FLUSH) {
            self.push(place, RecordedOp::Flush);
        }
        if entry.sector_count == 0 {
            return Ok(());
        }
        let unit = self.log.head().sector.bytes();
        let bytes = entry.sector * unit..(entry.sector + entry.sector_count) * unit;
        if entry.flags.has(Flags::DISCARD) {
            self.discard(place, &bytes);
            return Ok(());
        }
        if bytes.end > MOST_DISK_BYTES {
            return Err(ImportError::TooLarge {
                index: place.index,
                end: bytes.end,
            });
        }
        self.data_bytes += place.data_bytes;
        if self.data_bytes > MOST_DATA_BYTES {
            return Err(ImportError::TooMuch(place.index));
        }
        let run = self.run(place, &bytes)?;
        let fua = entry.flags.has(Flags::FUA);
        self.push(
            place,
            RecordedOp::Write {
                run: Rc::new(run),
                fua,
            },
        );
        Ok(())
    }

    /// The sectors of a write. Where it begins or ends within one, the rest is what stands there: a disk writes no less.
    fn run(&self, place: &Place, bytes: &Range<u64>) -> Result<SectorRun, BadLog> {
        let first = bytes.start / SECTOR_BYTES;
        let end = bytes.end.div_ceil(SECTOR_BYTES) * SECTOR_BYTES;
        let len = usize::try_from(end - first * SECTOR_BYTES)
            .expect("what is held in memory has a length there");
        let mut sectors = if bytes.start.is_multiple_of(SECTOR_BYTES) && end == bytes.end {
            vec![0; len]
        } else {
            self.now.read_vec(first * SECTOR_BYTES, len)
        };
        let skipped = usize::try_from(bytes.start % SECTOR_BYTES).expect("less than a sector");
        let count = usize::try_from(place.data_bytes).expect("the data fit memory");
        self.log
            .read_data(place, 0, &mut sectors[skipped..skipped + count])?;
        Ok(SectorRun::new(first, sectors))
    }

    /// A discard makes no disk longer, and only whole sectors are given up.
    fn discard(&mut self, place: &Place, bytes: &Range<u64>) {
        let end = self
            .now
            .len()
            .div_ceil(SECTOR_BYTES)
            .min(bytes.end / SECTOR_BYTES);
        let start = bytes.start.div_ceil(SECTOR_BYTES);
        let sectors = start.min(end)..end;
        match self.discards {
            Discards::Advice => self.push(place, RecordedOp::Discard { sectors }),
            Discards::Zeroes => self.push(
                place,
                RecordedOp::WriteZeroes {
                    sectors,
                    unmap: false,
                },
            ),
        }
    }

    fn tick(&mut self) -> Tick {
        self.ticks += 1;
        Tick(self.ticks)
    }

    fn push(&mut self, place: &Place, op: RecordedOp) {
        apply(&mut self.now, &op);
        let (submitted, completed) = (self.tick(), self.tick());
        let entries = &mut self.imported.recording.entries;
        entries.push(Entry {
            id: RequestId(entries.len()),
            disk: Disk::Image,
            event: Event::None,
            ordinal: place.index,
            op,
            submitted,
            completed: Some((completed, Ok(()))),
            effect: Effect::Whole,
            repeats: None,
        });
    }
}

/// Does to an image what was asked, all of it.
pub(super) fn apply(image: &mut PageImage, op: &RecordedOp) {
    let sectors = op.sectors();
    match op {
        RecordedOp::Write { run, .. } => image.put_run(run),
        RecordedOp::WriteZeroes { .. } | RecordedOp::Discard { .. } => {
            // The last sector of a file may be less than one.
            let end = (sectors.end * SECTOR_BYTES).min(image.len().next_multiple_of(SECTOR_BYTES));
            let len = image.len().max(op.grows_to().unwrap_or(0));
            image.write_zeroes(
                sectors.start * SECTOR_BYTES,
                end.saturating_sub(sectors.start * SECTOR_BYTES),
            );
            image.set_len(len);
        }
        RecordedOp::SetLen { len_bytes } => image.set_len(*len_bytes),
        RecordedOp::Read { .. } | RecordedOp::Flush => {}
    }
}

impl Imported {
    /// The same from request number `first` on, on a disk that holds `base` by then.
    pub(super) fn beginning_at(&self, first: usize, base: PageImage) -> Self {
        let entries = self.recording.entries[first..].iter().cloned().enumerate();
        let entries: Vec<Entry> = entries
            .map(|(index, entry)| Entry {
                id: RequestId(index),
                ..entry
            })
            .collect();
        let since = entries
            .first()
            .map_or(Tick(u64::MAX), |entry| entry.submitted);
        let marks = self.marks.iter().filter(|mark| mark.at >= since).cloned();
        Self {
            marks: marks.collect(),
            recording: Recording {
                bases: Disks::one(base),
                entries,
            },
            ..*self
        }
    }

    /// The disk behind the last entry.
    pub fn finished(&self) -> PageImage {
        let mut image = self.recording.bases.image().clone();
        for entry in &self.recording.entries {
            apply(&mut image, &entry.op);
        }
        image
    }

    /// How many flushes there are.
    pub fn flushes(&self) -> usize {
        let entries = self.recording.entries.iter();
        entries
            .filter(|entry| matches!(entry.op, RecordedOp::Flush))
            .count()
    }
}
