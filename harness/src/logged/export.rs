//! A log of a recording, as QEMU's blklogwrites would have written it.
//!
//! Requests stand in the order of their completion, and a flush where it was *submitted*: it covers what was completed by
//! then, and whoever reads the log takes it to cover all that stands before it. Zeroes are logged as data. What a log has no
//! words for: a request that was never answered or came to nothing is left out, and a change of length becomes a mark, which
//! other programs pass over and [`super::import()`] understands.

use std::io::{self, Write};
use std::ops::Range;

use blkdebug::disks::Disk;
use blkdebug::log_writes::{Flags, Logged, SectorSize, SuperBlock, write_entry, write_super};
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, SectorContent, Tick};

/// What was logged, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Entries of the log.
    pub entries: u64,
    /// Requests that were never answered.
    pub unanswered: u64,
    /// Requests that came to nothing, or flushes that were not done.
    pub undone: u64,
    /// Changes of length, which became marks.
    pub lengths: u64,
}

/// What the mark of a change of length begins with.
const LENGTH: &str = "qrash-set-len=";

/// The length that a mark of this name stands for.
pub(super) fn length_of(name: &str) -> Option<u64> {
    name.strip_prefix(LENGTH)?.parse().ok()
}

/// Writes what happened on one disk of a recording as a log.
pub fn export(recording: &Recording, disk: Disk, out: &mut impl Write) -> io::Result<Exported> {
    let mut exported = Exported::default();
    let mut steps: Vec<(Tick, Logged, &Entry, Range<usize>)> = Vec::new();
    for entry in recording.entries.iter().filter(|entry| entry.disk == disk) {
        if let RecordedOp::Read { .. } = entry.op {
            continue;
        }
        let Some(answered) = entry.answered() else {
            exported.unanswered += 1;
            continue;
        };
        let before = steps.len();
        match &entry.op {
            RecordedOp::Flush if entry.succeeded().is_some() && entry.effect == Effect::Whole => {
                steps.push((entry.submitted, Logged::flush(), entry, 0..0));
            }
            RecordedOp::SetLen { len_bytes } if entry.effect == Effect::Whole => {
                exported.lengths += 1;
                steps.push((
                    answered,
                    Logged::mark(&format!("{LENGTH}{len_bytes}")),
                    entry,
                    0..0,
                ));
            }
            op @ (RecordedOp::Write { .. }
            | RecordedOp::WriteZeroes { .. }
            | RecordedOp::Discard { .. }) => {
                let runs = happened(entry)
                    .into_iter()
                    .map(|run| (answered, logged(op, entry, &run), entry, run));
                steps.extend(runs);
            }
            RecordedOp::Read { .. } | RecordedOp::Flush | RecordedOp::SetLen { .. } => {}
        }
        exported.undone += u64::from(steps.len() == before);
    }
    steps.sort_by_key(|(at, ..)| *at);
    exported.entries = u64::try_from(steps.len()).expect("a count fits 64 bits");
    write_super(out, &SuperBlock::new(exported.entries, SectorSize::SMALL))?;
    for (_, logged, entry, run) in &steps {
        write_entry(out, SectorSize::SMALL, logged, &data(logged, entry, run))?;
    }
    Ok(exported)
}

/// The entry of a part of a request.
fn logged(op: &RecordedOp, entry: &Entry, run: &Range<usize>) -> Logged {
    let count = |len: usize| u64::try_from(len).expect("a count fits 64 bits");
    let (sector, count) = (op.sectors().start + count(run.start), count(run.len()));
    if let RecordedOp::Discard { .. } = op {
        return Logged::discard(sector, count);
    }
    let write = Logged::write(sector, count);
    if op.is_fua() && entry.succeeded().is_some() {
        write.flagged(Flags::FUA)
    } else {
        write
    }
}

/// The sectors of a request that really happened, in runs, counted from its first.
fn happened(entry: &Entry) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in (0..entry.op.sector_count()).filter(|index| entry.happens(*index)) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

fn data(logged: &Logged, entry: &Entry, run: &Range<usize>) -> Vec<u8> {
    if logged.data_sectors() == 0 {
        return Vec::new();
    }
    let sectors = run.clone().map(|index| match entry.op.content(index) {
        SectorContent::Zero => [0; 512],
        SectorContent::Bytes(bytes, _) => *bytes,
    });
    sectors.collect::<Vec<[u8; 512]>>().concat()
}
