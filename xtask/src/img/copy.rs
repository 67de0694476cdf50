//! Copying a disk into an image: zeroes stay zeroes, holes stay holes, memory stays bounded.

use std::rc::Rc;

use engine::error::Error;
use engine::image::{Image, Unmap};

use super::progress::Progress;
use super::{Stop, tell};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::status::{Content, Reach, status};
use crate::block::{CacheMode, Failure, Node};

/// The most that is read and written at a time; a multiple of every cluster size.
pub(super) const STEP: u64 = 2 << 20;
const SECTOR: u64 = 512;

/// Where a disk is copied to.
pub(super) struct Target<'a> {
    pub(super) image: Rc<dyn Image>,
    pub(super) cache: CacheMode,
    /// Whether all of it is known to read as zeroes where nothing was written.
    pub(super) blank: Blank,
    /// Runs of zeroes of so many bytes are not written; 0 writes all that is read.
    pub(super) sparse_bytes: u64,
    pub(super) packing: Packing,
    /// Whether what cannot be read is passed over as zeroes.
    pub(super) salvage: Salvage,
    pub(super) progress: &'a mut Progress,
}

/// What a target shows before anything is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blank {
    /// Zeroes.
    Yes,
    /// Nobody knows.
    No,
    /// The disk that lies beneath the top image of the source; only that image is copied.
    Beneath,
}

/// How data are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    /// Compressed, cluster by cluster of so many bytes.
    Compressed {
        cluster_bytes: u64,
    },
}

/// What becomes of a range that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Salvage {
    No,
    Yes,
}

impl Packing {
    /// What is copied starts and ends at multiples of so many bytes, but for the end of the disk.
    fn unit(self) -> u64 {
        match self {
            Self::Plain => SECTOR,
            Self::Compressed { cluster_bytes } => cluster_bytes,
        }
    }
}

impl Target<'_> {
    /// Copies the whole disk of `source` to `at` on the target's disk.
    pub(super) fn take(&mut self, source: &Node, at: u64) -> Result<(), Stop> {
        let reach = match self.blank {
            Blank::Yes | Blank::No => Reach::Chain,
            Blank::Beneath => Reach::Top,
        };
        let beneath = source.backing.as_deref().map_or(0, Node::virtual_bytes);
        let end = source.virtual_bytes();
        let mut here = 0;
        while here < end {
            let stretch = status(source, reach, here, end - here).map_err(|error| {
                Failure(format!(
                    "error while reading block status at offset {here}: {}",
                    engine_text(&error)
                ))
            })?;
            let unit = self.packing.unit();
            let whole = if here + stretch.len_bytes == end {
                stretch.len_bytes
            } else {
                stretch.len_bytes / unit * unit
            };
            let below = beneath.saturating_sub(here) / unit * unit;
            let shown = self.blank == Blank::Beneath
                && stretch.content == Content::Nothing
                && whole.min(below) > 0;
            let len = if shown {
                whole.min(below)
            } else if stretch.content.reads_zero() && whole > 0 {
                self.zero(at + here, whole)?;
                whole
            } else {
                // Asked for once: to look for the end of a long stretch at every step takes most of the time.
                let len = stretch.len_bytes.next_multiple_of(unit).min(end - here);
                let mut done = 0;
                while done < len {
                    let from = here + done;
                    let step = (len - done).min(STEP - (at + from) % STEP);
                    self.copy(source, from, at + from, step)?;
                    done += step;
                    self.progress.at(at + from + step);
                }
                len
            };
            here += len;
            self.progress.at(at + here);
        }
        Ok(())
    }

    fn zero(&mut self, at: u64, len_bytes: u64) -> Result<(), Stop> {
        if self.blank == Blank::Yes {
            return Ok(());
        }
        at_once(self.image.write_zeroes(at, len_bytes, Unmap::Allow))
            .map_err(|error| write_failure(at, &error))
    }

    fn copy(&mut self, source: &Node, from: u64, at: u64, len_bytes: u64) -> Result<(), Stop> {
        let data = self.read(source, from, len_bytes)?;
        match self.packing {
            Packing::Compressed { cluster_bytes } => self.pack(at, &data, cluster_bytes),
            Packing::Plain => self.write_sparse(at, &data),
        }
    }

    fn read(&self, source: &Node, from: u64, len_bytes: u64) -> Result<Vec<u8>, Stop> {
        let failed = |at: u64, error: &Error| {
            Failure(format!(
                "error while reading at byte {at}: {}",
                engine_text(error)
            ))
        };
        match (read(source, from, len_bytes), self.salvage) {
            (Ok(data), _) => Ok(data),
            (Err(error), Salvage::No) => Err(failed(from, &error).into()),
            (Err(_), Salvage::Yes) => {
                let mut data = Vec::new();
                for at in (from..from + len_bytes).step_by(512) {
                    data.extend(read(source, at, SECTOR).unwrap_or_else(|error| {
                        tell(&format!("warning: {}", failed(at, &error).0));
                        vec![0; 512]
                    }));
                }
                Ok(data)
            }
        }
    }

    /// Writes `data` but for runs of zeroes that the target shows anyway.
    fn write_sparse(&mut self, at: u64, data: &[u8]) -> Result<(), Stop> {
        if self.sparse_bytes == 0 {
            return self.write(at, data);
        }
        let grain = usize::try_from(self.sparse_bytes.next_multiple_of(SECTOR)).unwrap_or(512);
        let mut done = 0;
        while done < data.len() {
            let grain_at = |from: usize| &data[from..data.len().min(from + grain)];
            let zero = is_zero(grain_at(done));
            let mut end = done;
            while end < data.len() && is_zero(grain_at(end)) == zero {
                end += grain_at(end).len();
            }
            let here = at + to_u64(done);
            if zero {
                self.zero(here, to_u64(end - done))?;
            } else {
                self.write(here, &data[done..end])?;
            }
            done = end;
        }
        Ok(())
    }

    /// Writes whole clusters compressed.
    fn pack(&mut self, at: u64, data: &[u8], cluster_bytes: u64) -> Result<(), Stop> {
        let cluster = usize::try_from(cluster_bytes).expect("a cluster fits memory");
        let mut here = at;
        for piece in data.chunks(cluster) {
            if is_zero(piece) {
                self.zero(here, to_u64(piece.len()))?;
            } else {
                at_once(self.image.write_compressed(here, piece.to_vec()))
                    .map_err(|error| write_failure(here, &error))?;
            }
            here += to_u64(piece.len());
        }
        Ok(())
    }

    /// Writes data, durably where the cache mode asks for that.
    pub(super) fn write(&self, at: u64, data: &[u8]) -> Result<(), Stop> {
        at_once(async {
            self.image.write(at, data.to_vec()).await?;
            match self.cache {
                CacheMode::WriteThrough => self.image.flush().await,
                CacheMode::WriteBack | CacheMode::Unsafe => Ok(()),
            }
        })
        .map_err(|error| write_failure(at, &error))
    }

    /// Writes back everything and leaves the image clean.
    pub(super) fn finish(&self) -> Result<(), Stop> {
        at_once(self.image.close()).map_err(|error| {
            Failure(format!("error while flushing: {}", engine_text(&error))).into()
        })
    }
}

/// Reads a range of a disk.
pub(super) fn read(source: &Node, at: u64, len_bytes: u64) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(len_bytes).expect("a step fits memory");
    at_once(source.image().read(at, len))
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn write_failure(at: u64, error: &Error) -> Stop {
    Failure(format!(
        "error while writing at byte {at}: {}",
        engine_text(error)
    ))
    .into()
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory fits 64 bits")
}
