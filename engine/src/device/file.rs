//! A real file, or a block device.
//!
//! Every request is carried out before its completion is handed back. Flush is `fdatasync`; once that
//! has failed, the operating system may have dropped what it could not write, so that every later
//! flush fails as well. Where a file system cannot punch holes or zero ranges, zeroes are written.
//!
//! A file that is opened for writing is claimed for this one writer (see [`Claim`]), unless the caller
//! makes claims of its own.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, fallocate, seek};
use rustix::io::{Errno, pread};

use super::{
    Cause, Claim, ClaimError, Completion, Device, DeviceError, Extent, ExtentKind, FileClaims,
    Limits, Op, OpKind, Outcome, Reply, Request, Unmapped, claim,
};

/// Zeroes are written in pieces of this many bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A file behind the [`Device`] seam.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    mode: Mode,
    len: Cell<u64>,
    /// What the first failed flush said.
    lost: Cell<Option<Cause>>,
    /// Where the data that a search found last start and end: some file systems walk over all that follows
    /// to find that end, which is too much for every small piece of it.
    data: Cell<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    ReadWrite,
}

impl FileDevice {
    /// Opens a file for reading only, and claims nothing.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        require_seekable(path)?;
        Self::new(File::open(path)?, Mode::ReadOnly)
    }

    /// Opens a file for reading and writing, and claims it for one writer.
    pub fn open_read_write(path: &Path) -> io::Result<Self> {
        Self::open_unclaimed(path)?.claimed()
    }

    /// Opens a file for reading and writing, and claims nothing: what is to be claimed may depend on what is
    /// in it.
    pub fn open_unclaimed(path: &Path) -> io::Result<Self> {
        require_seekable(path)?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Self::new(file, Mode::ReadWrite)
    }

    /// Creates a file that must not exist yet, and claims it for one writer.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Self::new(file, Mode::ReadWrite)?.claimed()
    }

    /// What is claimed on a file, to be told anew. Call it once, on a file on which nothing is claimed.
    pub fn claims(&self) -> io::Result<FileClaims> {
        FileClaims::on(&self.file)
    }

    fn claimed(self) -> io::Result<Self> {
        self.claims()?.take(Claim::WRITER).map_err(|error| {
            let kind = match error {
                ClaimError::Refused(_) | ClaimError::Used(_) => ErrorKind::WouldBlock,
                ClaimError::Unlockable { .. } => ErrorKind::Other,
            };
            io::Error::new(kind, error)
        })?;
        Ok(self)
    }

    fn new(mut file: File, mode: Mode) -> io::Result<Self> {
        // The end, where a seek finds it: a block device has no length of its own.
        let len = Cell::new(file.seek(SeekFrom::End(0))?);
        Ok(Self {
            file,
            mode,
            len,
            lost: Cell::new(None),
            data: Cell::new((0, 0)),
        })
    }

    fn perform(&self, op: &Op) -> Result<Reply, Cause> {
        let (offset, len_bytes) = op.range();
        let end = offset.checked_add(len_bytes);
        let Some(end) = end.filter(|end| i64::try_from(*end).is_ok()) else {
            return Err(Cause::BadRequest);
        };
        if let Op::Read { offset, len_bytes } = op {
            return self.read(*offset, *len_bytes).map(Reply::Data);
        }
        if self.mode == Mode::ReadOnly {
            return if op.kind() == OpKind::Flush {
                Ok(Reply::Done)
            } else {
                Err(Cause::ReadOnly)
            };
        }
        self.change(op, end).map(|()| Reply::Done)
    }

    fn change(&self, op: &Op, end: u64) -> Result<(), Cause> {
        match op.kind() {
            OpKind::Read | OpKind::Write | OpKind::Flush => {}
            OpKind::WriteZeroes | OpKind::Discard | OpKind::SetLen => self.data.set((0, 0)),
        }
        match op {
            Op::Read { .. } => Ok(()),
            Op::Write { offset, data, fua } => {
                self.file
                    .write_all_at(data, *offset)
                    .map_err(|error| cause(&error))?;
                self.grown_to(end);
                if *fua { self.flush() } else { Ok(()) }
            }
            Op::WriteZeroes { offset, unmap, .. } => self.write_zeroes(*offset, end, *unmap),
            Op::Discard { offset, .. } => {
                // Giving space back is a favour: not being able to is no error.
                self.punch(*offset, end.min(self.len.get())).map(drop)
            }
            Op::Flush => self.flush(),
            Op::SetLen { len_bytes } => {
                self.file
                    .set_len(*len_bytes)
                    .map_err(|error| cause(&error))?;
                self.len.set(*len_bytes);
                Ok(())
            }
        }
    }

    /// What lies beyond the end is zero.
    fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Cause> {
        let mut data = Vec::with_capacity(len_bytes);
        while data.len() < len_bytes {
            let here = offset + to_u64(data.len());
            match pread(&self.file, spare_capacity(&mut data), here) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Cause::Os(errno.raw_os_error())),
            }
        }
        data.resize(len_bytes, 0);
        Ok(data)
    }

    fn flush(&self) -> Result<(), Cause> {
        if let Some(lost) = self.lost.get() {
            return Err(lost);
        }
        self.file.sync_data().map_err(|error| {
            let lost = cause(&error);
            self.lost.set(Some(lost));
            lost
        })
    }

    fn write_zeroes(&self, offset: u64, end: u64, unmap: bool) -> Result<(), Cause> {
        let within = end.min(self.len.get());
        let done = if unmap {
            self.punch(offset, within)?
        } else {
            self.allocate(FallocateFlags::ZERO_RANGE, offset, end)?
        };
        if done == Done::Unsupported {
            self.write_zero_bytes(offset, within)?;
        }
        if end > self.len.get() {
            if done == Done::Unsupported || unmap {
                self.file.set_len(end).map_err(|error| cause(&error))?;
            }
            self.grown_to(end);
        }
        Ok(())
    }

    fn write_zero_bytes(&self, offset: u64, end: u64) -> Result<(), Cause> {
        let mut here = offset;
        while here < end {
            let piece = usize::try_from(end - here).unwrap_or(usize::MAX);
            let piece = &ZEROES[..piece.min(ZEROES.len())];
            self.file
                .write_all_at(piece, here)
                .map_err(|error| cause(&error))?;
            here += to_u64(piece.len());
        }
        Ok(())
    }

    fn punch(&self, offset: u64, end: u64) -> Result<Done, Cause> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.allocate(flags, offset, end)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, end: u64) -> Result<Done, Cause> {
        if offset >= end {
            return Ok(Done::Yes);
        }
        loop {
            return match fallocate(&self.file, flags, offset, end - offset) {
                Ok(()) => Ok(Done::Yes),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(Done::Unsupported),
                Err(errno) => Err(Cause::Os(errno.raw_os_error())),
            };
        }
    }

    fn grown_to(&self, end: u64) {
        self.len.set(self.len.get().max(end));
    }

    /// After a failure nobody knows how far a request got.
    fn learn_len(&self) {
        if let Ok(len) = (&self.file).seek(SeekFrom::End(0)) {
            self.len.set(len);
        }
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        claim::release(&self.file);
    }
}

/// Whether the file system did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Yes,
    Unsupported,
}

impl Device for FileDevice {
    fn submit(&self, request: Request) -> Completion {
        let outcome: Outcome = self.perform(&request.op).map_err(|cause| {
            self.learn_len();
            DeviceError::new(request.event, &request.op, cause)
        });
        Completion::ready(outcome)
    }

    fn extent(&self, offset: u64) -> Extent {
        let unknown = Extent::in_device_of(self.len.get(), offset);
        if unknown.kind == ExtentKind::Hole {
            return unknown;
        }
        let found = |kind, end: u64| Extent {
            kind,
            len_bytes: end - offset,
        };
        let (start, end) = self.data.get();
        if (start..end).contains(&offset) {
            return found(ExtentKind::Data, end);
        }
        match seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) if data > offset => found(ExtentKind::Hole, data.min(self.len.get())),
            Ok(_) => match seek(&self.file, rustix::fs::SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => {
                    let end = hole.min(self.len.get());
                    self.data.set((offset, end));
                    found(ExtentKind::Data, end)
                }
                Ok(_) | Err(_) => unknown,
            },
            Err(Errno::NXIO) => found(ExtentKind::Hole, self.len.get()),
            Err(_) => unknown,
        }
    }

    fn len(&self) -> u64 {
        self.len.get()
    }

    fn limits(&self) -> Limits {
        Limits {
            unmapped: Unmapped::Zeroes,
            ..Limits::default()
        }
    }
}

/// Refuses what cannot be read at a position; opening a pipe would wait for its other end.
fn require_seekable(path: &Path) -> io::Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        "neither a regular file nor a block device",
    ))
}

fn cause(error: &io::Error) -> Cause {
    error.raw_os_error().map_or(Cause::IO, Cause::Os)
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Event, drive};

    fn submit(device: &FileDevice, op: Op) -> Result<Reply, Cause> {
        let event = Event::None;
        drive(device.submit(Request { event, op }))
            .unwrap()
            .map_err(|error| error.cause)
    }

    #[test]
    fn a_failed_flush_is_never_forgotten() {
        // The null device takes writes and cannot be synchronised.
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let device = FileDevice::new(null, Mode::ReadWrite).unwrap();
        let failed = submit(&device, Op::Flush).unwrap_err();
        assert_eq!(failed, Cause::Os(22));

        // A flush that could succeed now still must not.
        let folder = tempfile::tempdir().unwrap();
        let mut device = FileDevice::create_new(&folder.path().join("file")).unwrap();
        assert_eq!(submit(&device, Op::Flush), Ok(Reply::Done));
        device.lost = Cell::new(Some(failed));
        assert_eq!(submit(&device, Op::Flush), Err(failed));
        let fua = Op::Write {
            offset: 0,
            data: vec![1; 512],
            fua: true,
        };
        assert_eq!(submit(&device, fua), Err(failed));
    }
}
