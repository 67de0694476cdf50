//! The super block and the head of an entry, and how they stand in the log.

use std::fmt;

/// What a log begins with.
pub(super) const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The one version that there is.
pub(super) const VERSION: u64 = 1;
/// Bytes of the super block that mean something.
pub(super) const SUPER_BYTES: usize = 28;
/// Bytes of an entry's head that mean something; the name of a mark comes behind them.
pub(super) const HEAD_BYTES: usize = 32;

/// Bytes in a sector of a log: a power of two from 32 to 8 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SectorSize(u32);

/// No log has sectors of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log has sectors of a power of two from 32 to 8388608 bytes, not of {0}")]
pub struct BadSize(pub u32);

impl SectorSize {
    /// What QEMU and most disks use.
    pub const SMALL: Self = Self(512);

    /// A sector of so many bytes.
    pub fn new(bytes: u32) -> Result<Self, BadSize> {
        let fits = bytes.is_power_of_two() && (32..1 << 24).contains(&bytes);
        if fits {
            Ok(Self(bytes))
        } else {
            Err(BadSize(bytes))
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The same as a length in memory.
    pub(super) fn len(self) -> usize {
        usize::try_from(self.0).expect("a sector fits memory")
    }
}

/// What an entry is: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flags(u64);

impl Flags {
    /// What was completed before is durable; data in the same entry come after that.
    pub const FLUSH: Self = Self(1);
    /// The data of this entry are durable when it is completed.
    pub const FUA: Self = Self(2);
    /// The sectors were discarded. There are no data in the log.
    pub const DISCARD: Self = Self(4);
    /// A mark that somebody set, with a name.
    pub const MARK: Self = Self(8);
    /// The data are metadata of a file system.
    pub const METADATA: Self = Self(16);
    const KNOWN: u64 = 31;
    const NAMED: [(Self, &str); 5] = [
        (Self::FLUSH, "flush"),
        (Self::FUA, "fua"),
        (Self::DISCARD, "discard"),
        (Self::MARK, "mark"),
        (Self::METADATA, "metadata"),
    ];

    /// These bits; `None` where one of them is not known.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits & !Self::KNOWN == 0).then_some(Self(bits))
    }

    /// The bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.into_iter().filter(|(flag, _)| self.has(*flag));
        let names: Vec<&str> = named.map(|(_, name)| name).collect();
        f.write_str(&if names.is_empty() {
            "write".into()
        } else {
            names.join(",")
        })
    }
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    /// Entries that there are. Who was killed may have written more.
    pub entry_count: u64,
    /// The unit of everything.
    pub sector: SectorSize,
    /// What stands behind that in the first sector, without the zeroes at its end; mostly nothing.
    pub rest: Vec<u8>,
}

impl SuperBlock {
    /// That of a log with so many entries.
    pub fn new(entry_count: u64, sector: SectorSize) -> Self {
        Self {
            entry_count,
            sector,
            rest: Vec::new(),
        }
    }

    /// The first sector.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.sector.len());
        for word in [MAGIC, VERSION, self.entry_count] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.sector.0.to_le_bytes());
        bytes.extend_from_slice(&self.rest);
        bytes.resize(self.sector.len(), 0);
        bytes
    }
}

/// The head of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logged {
    /// The first sector of the disk that it is about.
    pub sector: u64,
    /// How many.
    pub sector_count: u64,
    /// What it is.
    pub flags: Flags,
    /// Bytes of a mark's name. Linux also tells how many bytes a write to persistent memory had.
    pub data_len: u64,
    /// What stands behind that in the entry's sector, without the zeroes at its end: a mark's name, or nothing.
    pub rest: Vec<u8>,
}

impl Logged {
    /// A write of so many sectors.
    pub fn write(sector: u64, sector_count: u64) -> Self {
        Self {
            sector,
            sector_count,
            ..Self::default()
        }
    }

    /// A flush as QEMU logs it.
    pub fn flush() -> Self {
        Self {
            flags: Flags::FLUSH,
            ..Self::default()
        }
    }

    /// A discard of so many sectors.
    pub fn discard(sector: u64, sector_count: u64) -> Self {
        Self {
            flags: Flags::DISCARD,
            ..Self::write(sector, sector_count)
        }
    }

    /// A mark of this name, which must be at least 33 bytes shorter than the log's sector.
    pub fn mark(name: &str) -> Self {
        Self {
            flags: Flags::MARK,
            data_len: u64::try_from(name.len()).expect("a length fits 64 bits"),
            rest: name.as_bytes().to_vec(),
            ..Self::default()
        }
    }

    /// The same with these flags as well.
    #[must_use]
    pub fn flagged(self, flags: Flags) -> Self {
        Self {
            flags: self.flags.with(flags),
            ..self
        }
    }

    /// Sectors of data that follow in the log.
    pub fn data_sectors(&self) -> u64 {
        if self.flags.has(Flags::DISCARD) {
            0
        } else {
            self.sector_count
        }
    }

    /// The name of a mark, with whatever is no text replaced; of anything else, nothing.
    pub fn name(&self) -> String {
        let len = usize::try_from(self.data_len)
            .unwrap_or(usize::MAX)
            .min(self.rest.len());
        if self.flags.has(Flags::MARK) {
            String::from_utf8_lossy(&self.rest[..len])
                .trim_end_matches('\0')
                .to_owned()
        } else {
            String::new()
        }
    }

    /// The entry's sector.
    pub(super) fn encode(&self, sector: SectorSize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(sector.len());
        for word in [self.sector, self.sector_count, self.flags.0, self.data_len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.rest);
        bytes.resize(sector.len(), 0);
        bytes
    }

    /// The entry that this sector is the head of, or the flags that are not known.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, u64> {
        let flags = word(bytes, 16);
        Ok(Self {
            sector: word(bytes, 0),
            sector_count: word(bytes, 8),
            flags: Flags::from_bits(flags).ok_or(flags)?,
            data_len: word(bytes, 24),
            rest: without_zeroes(&bytes[HEAD_BYTES..]),
        })
    }
}

/// The number at `at`.
///
/// # Panics
/// Where there are no eight bytes.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What there is up to the last byte that is not zero.
pub(super) fn without_zeroes(bytes: &[u8]) -> Vec<u8> {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes[..end].to_vec()
}
