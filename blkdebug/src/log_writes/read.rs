//! Reading a log, entry by entry, from a file that may be anything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::entry::{
    BadSize, Flags, HEAD_BYTES, Logged, MAGIC, SUPER_BYTES, SectorSize, SuperBlock, VERSION,
    without_zeroes, word,
};

/// Bytes that are read where they are needed: a log may be longer than memory.
pub trait Source {
    /// How many there are.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Reads from `offset` on until `into` is full.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn len_bytes(&self) -> io::Result<u64> {
        // A block device has a length of its own, which its metadata do not tell.
        let mut file = self;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

impl Source for &[u8] {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.len()).expect("a length fits 64 bits"))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(into.len())?));
        let bytes = range.and_then(|range| self.get(range));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What is wrong with a log, and where.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset} of the log: {problem}")]
pub struct BadLog {
    /// Where, in bytes from the start of the log.
    pub offset: u64,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read there.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is too short to be a log.
    #[error("the file ends after {0} bytes, and a log begins with a super block of 28")]
    NoSuper(u64),
    /// It begins with zeroes.
    #[error(
        "there are zeroes in the place of the super block: whoever wrote the log ended before its first flush, and how many \
         entries there are is not known; record it again"
    )]
    Unfinished,
    /// It begins with something else.
    #[error("this is no log of writes: it begins with {0:#018x} and not with 0x006a736677736872")]
    NoLog(u64),
    /// It is of a version that nobody has seen.
    #[error("the log is of version {0}; there is only version 1")]
    Version(u64),
    /// Its sectors have a size that no log has.
    #[error(transparent)]
    Sector(#[from] BadSize),
    /// The file ends before the super block's sector does, or before an entry does that is counted.
    #[error(
        "the log is cut off: {what} should end at byte {end}, and the file has {len_bytes}; {whole} entries before it are \
         whole (`explore` and `import` take those alone with --entries {whole})"
    )]
    CutOff {
        /// What is not whole.
        what: &'static str,
        /// Where it should end.
        end: u128,
        /// How long the file is.
        len_bytes: u64,
        /// How many entries come before it.
        whole: u64,
    },
    /// An entry has flags of which it is not known what follows it.
    #[error(
        "entry {index} has the flags {flags:#x}, of which only the lowest five bits are known; `explore` and \
         `import` take the {index} entries before it alone with --entries {index}"
    )]
    Flags {
        /// Which entry.
        index: u64,
        /// Its flags.
        flags: u64,
    },
    /// The name of a mark does not fit where it should stand.
    #[error(
        "entry {index} is a mark with a name of {name_bytes} bytes, and a sector of this log has room for {room}; \
         `explore` and `import` take the {index} entries before it alone with --entries {index}"
    )]
    Mark {
        /// Which entry.
        index: u64,
        /// How long its name claims to be.
        name_bytes: u64,
        /// How long it may be.
        room: u64,
    },
    /// An entry is about sectors that no disk has.
    #[error(
        "entry {index} is about {count} sectors from sector {sector} on, which no disk has; `explore` and \
         `import` take the {index} entries before it alone with --entries {index}"
    )]
    Place {
        /// Which entry.
        index: u64,
        /// The first sector.
        sector: u64,
        /// How many.
        count: u64,
    },
}

impl BadLog {
    pub(super) fn new(offset: u64, problem: impl Into<Problem>) -> Self {
        Self {
            offset,
            problem: problem.into(),
        }
    }
}

/// A log that can be read.
#[derive(Clone, Debug)]
pub struct Log<S> {
    source: S,
    len_bytes: u64,
    head: SuperBlock,
}

impl<S: Source> Log<S> {
    /// Reads the super block.
    pub fn open(source: S) -> Result<Self, BadLog> {
        let at_start = |error: io::Error| BadLog::new(0, error);
        let len_bytes = source.len_bytes().map_err(at_start)?;
        if len_bytes < 28 {
            return Err(BadLog::new(0, Problem::NoSuper(len_bytes)));
        }
        let mut bytes = [0; SUPER_BYTES];
        source.read_at(0, &mut bytes).map_err(at_start)?;
        match word(&bytes, 0) {
            MAGIC => {}
            0 => return Err(BadLog::new(0, Problem::Unfinished)),
            other => return Err(BadLog::new(0, Problem::NoLog(other))),
        }
        let version = word(&bytes, 8);
        if version != VERSION {
            return Err(BadLog::new(8, Problem::Version(version)));
        }
        let sector = u32::from_le_bytes(bytes[24..].try_into().expect("four bytes"));
        let sector = SectorSize::new(sector).map_err(|bad| BadLog::new(24, bad))?;
        let entry_count = word(&bytes, 16);
        if sector.bytes() > len_bytes {
            let cut = Problem::CutOff {
                what: "the super block's sector",
                end: sector.bytes().into(),
                len_bytes,
                whole: 0,
            };
            return Err(BadLog::new(0, cut));
        }
        let mut first = vec![0; sector.len()];
        source.read_at(0, &mut first).map_err(at_start)?;
        let head = SuperBlock {
            entry_count,
            sector,
            rest: without_zeroes(&first[SUPER_BYTES..]),
        };
        Ok(Self {
            source,
            len_bytes,
            head,
        })
    }

    /// What the log says of itself.
    pub fn head(&self) -> &SuperBlock {
        &self.head
    }

    /// How long the log is, with what lies behind its last entry.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The entries that the log counts, in order. After an error there are no more.
    pub fn entries(&self) -> Entries<'_, S> {
        Entries {
            log: self,
            at: self.head.sector.bytes(),
            index: 0,
            until: Some(self.head.entry_count),
        }
    }

    /// Reads a part of the data of an entry, `from` bytes behind their start.
    ///
    /// # Panics
    /// Where the entry does not have so many bytes of data.
    pub fn read_data(&self, place: &Place, from: u64, into: &mut [u8]) -> Result<(), BadLog> {
        let len = u64::try_from(into.len()).expect("a length fits 64 bits");
        assert!(
            from + len <= place.data_bytes,
            "the data belong to the entry"
        );
        self.read_raw(place.data + from, into)
    }

    /// Reads bytes as they stand in the log.
    pub(super) fn read_raw(&self, offset: u64, into: &mut [u8]) -> Result<(), BadLog> {
        self.source
            .read_at(offset, into)
            .map_err(|error| BadLog::new(offset, error))
    }
}

/// Where an entry stands in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which it is, from 0.
    pub index: u64,
    /// Its first byte.
    pub offset: u64,
    /// The first byte of its data.
    pub data: u64,
    /// How many bytes of data it has.
    pub data_bytes: u64,
}

/// The entries of a log, one after the other.
#[derive(Debug)]
pub struct Entries<'a, S> {
    log: &'a Log<S>,
    at: u64,
    index: u64,
    /// How many are asked for; `None` for all that make sense.
    until: Option<u64>,
}

impl<S: Source> Entries<'_, S> {
    /// The same with what follows the entries that the log counts, as far as it makes sense as entries. Of a disk that
    /// held another log before that may be more than was ever meant.
    #[must_use]
    pub fn and_beyond(self) -> Self {
        Self {
            until: None,
            ..self
        }
    }

    /// The same, but no more than so many.
    #[must_use]
    pub fn at_most(self, count: u64) -> Self {
        Self {
            until: Some(self.until.map_or(count, |until| until.min(count))),
            ..self
        }
    }

    /// Where the next entry would begin.
    pub fn offset(&self) -> u64 {
        self.at
    }

    fn is_counted(&self) -> bool {
        self.index < self.log.head.entry_count
    }

    fn read(&self) -> Result<(Place, Logged), BadLog> {
        let (index, offset, sector) = (self.index, self.at, self.log.head.sector);
        let here = |problem: Problem| BadLog::new(offset, problem);
        self.expect_room("the head of an entry", offset.into(), sector.bytes().into())?;
        let mut bytes = vec![0; sector.len()];
        self.log.read_raw(offset, &mut bytes)?;
        let entry =
            Logged::decode(&bytes).map_err(|flags| here(Problem::Flags { index, flags }))?;
        let room = sector.bytes() - u64::try_from(HEAD_BYTES).expect("a small constant");
        if entry.flags.has(Flags::MARK) && entry.data_len > room {
            return Err(here(Problem::Mark {
                index,
                name_bytes: entry.data_len,
                room,
            }));
        }
        let end = u128::from(entry.sector) + u128::from(entry.sector_count);
        // Linux numbers the bytes of a disk with 63 bits.
        if end * u128::from(sector.bytes()) > i64::MAX.unsigned_abs().into() {
            let place = Problem::Place {
                index,
                sector: entry.sector,
                count: entry.sector_count,
            };
            return Err(here(place));
        }
        let data = offset + sector.bytes();
        let data_bytes = entry.data_sectors() * sector.bytes();
        self.expect_room("the data of an entry", data.into(), data_bytes.into())?;
        Ok((
            Place {
                index,
                offset,
                data,
                data_bytes,
            },
            entry,
        ))
    }

    fn expect_room(&self, what: &'static str, start: u128, len: u128) -> Result<(), BadLog> {
        let (end, len_bytes) = (start + len, self.log.len_bytes);
        if end <= u128::from(len_bytes) {
            return Ok(());
        }
        Err(BadLog::new(
            self.at,
            Problem::CutOff {
                what,
                end,
                len_bytes,
                whole: self.index,
            },
        ))
    }
}

impl<S: Source> Iterator for Entries<'_, S> {
    type Item = Result<(Place, Logged), BadLog>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.until.is_some_and(|until| self.index >= until) {
            return None;
        }
        let read = self.read();
        match &read {
            Ok((place, entry)) => {
                // Nobody logs that nothing was written: these are the zeroes behind the end.
                if !self.is_counted() && *entry == Logged::default() {
                    return None;
                }
                self.at = place.data + place.data_bytes;
                self.index += 1;
            }
            Err(_) if !self.is_counted() => return None,
            Err(_) => self.until = Some(self.index),
        }
        Some(read)
    }
}
