//! Writing a log, from front to back.

use std::io::{self, Write};

use super::entry::{Logged, SectorSize, SuperBlock};
use super::read::{BadLog, Log, Source};

/// So much is held in memory at once.
const STEP: u64 = 1 << 20;

/// Writes what a log begins with.
pub fn write_super(out: &mut impl Write, head: &SuperBlock) -> io::Result<()> {
    out.write_all(&head.encode())
}

/// Writes an entry with its data.
///
/// # Panics
/// Where the data are not as long as the entry says, or the name of a mark does not fit a sector.
pub fn write_entry(
    out: &mut impl Write,
    sector: SectorSize,
    entry: &Logged,
    data: &[u8],
) -> io::Result<()> {
    let expected = entry.data_sectors() * sector.bytes();
    assert_eq!(
        u64::try_from(data.len()),
        Ok(expected),
        "an entry says how much data it has"
    );
    let head = entry.encode(sector);
    assert_eq!(
        head.len(),
        sector.len(),
        "a mark's name fits the entry's sector"
    );
    out.write_all(&head)?;
    out.write_all(data)
}

/// Why a log was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The log is damaged.
    #[error(transparent)]
    Log(#[from] BadLog),
    /// The copy cannot be written.
    #[error("the copy cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Writes a log again, as it was read: the super block and the entries by what was understood of them, and then, byte by
/// byte, what lies behind the last entry that is counted.
pub fn copy<S: Source>(log: &Log<S>, out: &mut impl Write) -> Result<(), CopyError> {
    out.write_all(&log.head().encode())?;
    let mut entries = log.entries();
    for read in entries.by_ref() {
        let (place, entry) = read?;
        out.write_all(&entry.encode(log.head().sector))?;
        transfer(log, place.data, place.data + place.data_bytes, out)?;
    }
    transfer(log, entries.offset(), log.len_bytes(), out)
}

/// Hands on the bytes of a log from `at` to `end`.
fn transfer<S: Source>(
    log: &Log<S>,
    mut at: u64,
    end: u64,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let most = STEP.min(end.saturating_sub(at));
    let mut buffer = vec![0; usize::try_from(most).expect("a step fits memory")];
    while at < end {
        let len = STEP.min(end - at);
        let piece = &mut buffer[..usize::try_from(len).expect("a step fits memory")];
        log.read_raw(at, piece)?;
        out.write_all(piece)?;
        at += len;
    }
    Ok(())
}
