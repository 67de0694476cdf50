//! The log of writes that Linux's dm-log-writes and QEMU's blklogwrites keep: what reached a disk, in order.
//!
//! Sources: `Documentation/admin-guide/device-mapper/log-writes.rst` and `drivers/md/dm-log-writes.c` of Linux say what
//! the fields mean; QEMU's blklogwrites writes the same format. All numbers are little-endian, and the unit of everything
//! is the log's own sector, a power of two of bytes:
//!
//! - sector 0: the super block: magic, version 1, how many entries there are, bytes in a sector;
//! - then entry after entry: a sector that begins with the first sector that is written, how many, the flags and the
//!   length of what else is told, and behind that sector the data, but of a discard. The name of a mark stands in the
//!   entry's own sector, behind these four numbers.
//!
//! What is guaranteed: reading a log and writing it again yields the same bytes, what lies behind the last entry that is
//! counted included; no bytes whatsoever make the reader panic, and it holds one entry's sector at a time and no data.
//! What is left to others: what the entries mean for durability. `docs/LOG_WRITES.md` tells that.

mod entry;
mod read;
mod write;

pub use entry::{BadSize, Flags, Logged, SectorSize, SuperBlock};
pub use read::{BadLog, Entries, Log, Place, Problem, Source};
pub use write::{CopyError, copy, write_entry, write_super};

#[cfg(test)]
mod tests;
