//! Copying a disk into an image: zeroes stay zeroes, holes stay holes, memory stays bounded.

use std::ops::Range;
use std::rc::Rc;

use engine::error::Error;
use engine::image::{Image, Unmap};
use engine::zeroes::is_zero;

use super::pace::Pace;
use super::pack::{Packer, Unstored};
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
    /// What is copied.
    pub(super) fill: Fill,
    pub(super) packing: Packing,
    /// How fast it may be written.
    pub(super) pace: Option<Pace>,
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
    /// The disk that lies beneath the top images of the source; only those are copied: so many of them. From
    /// `zero_from` on it shows zeroes, whatever the source's chain has there.
    Beneath { images: u64, zero_from: u64 },
}

/// Which part of a disk is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// What does not read as zeroes.
    Data,
    /// Zeroes and what is not there as well, so that all of the target is allocated.
    Everything,
}

/// How data are stored.
pub(super) enum Packing {
    Plain,
    /// Compressed, cluster by cluster.
    Compressed(Packer),
}

/// What becomes of a range that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Salvage {
    No,
    Yes,
}

impl Packing {
    /// What is copied starts and ends at multiples of so many bytes, but for the end of the disk.
    fn unit(&self) -> u64 {
        match self {
            Self::Plain => SECTOR,
            Self::Compressed(packer) => packer.cluster_bytes(),
        }
    }
}

impl Target<'_> {
    /// Copies the disks of `sources` one behind the other. What is compressed is so in whole clusters, also where
    /// one source ends and the next begins.
    pub(super) fn take_all(&mut self, sources: &[Node]) -> Result<(), Stop> {
        let unit = self.packing.unit();
        let total: u64 = sources.iter().map(Node::virtual_bytes).sum();
        // The start of a cluster that the next source goes on with.
        let mut seam = Vec::new();
        let mut at = 0;
        for source in sources {
            let bytes = source.virtual_bytes();
            let mut range = 0..bytes;
            if !seam.is_empty() {
                range.start = bytes.min(unit - to_u64(seam.len()));
                seam.extend(self.read(source, 0, range.start)?);
                if to_u64(seam.len()) == unit {
                    self.write_pieces(at + range.start - unit, std::mem::take(&mut seam), unit)?;
                }
            }
            if at + bytes < total && seam.is_empty() {
                range.end -= (bytes - range.start) % unit;
            }
            let end = range.end;
            self.take(source, range, at)?;
            if end < bytes {
                seam = self.read(source, end, bytes - end)?;
            }
            at += bytes;
        }
        if !seam.is_empty() {
            self.write_pieces(total - to_u64(seam.len()), seam, unit)?;
        }
        Ok(())
    }

    /// Copies the whole disk of `source`.
    pub(super) fn take_disk(&mut self, source: &Node) -> Result<(), Stop> {
        self.take(source, 0..source.virtual_bytes(), 0)
    }

    /// Copies a range of the disk of `source`, which starts at `at` on the target's disk.
    fn take(&mut self, source: &Node, range: Range<u64>, at: u64) -> Result<(), Stop> {
        let (reach, images) = match self.blank {
            Blank::Yes | Blank::No => (Reach::Chain, 0),
            Blank::Beneath { images, .. } => (Reach::Images(images), images),
        };
        let mut beneath = Some(source);
        for _ in 0..images {
            beneath = beneath.and_then(|node| node.backing.as_deref());
        }
        let beneath = beneath.map_or(0, Node::virtual_bytes);
        let Range {
            start: mut here,
            end,
        } = range;
        while here < end {
            // What the target shows behind its backing file is asked for apart.
            let to_zero = self.zero_from().saturating_sub(at + here);
            let most = if to_zero == 0 { u64::MAX } else { to_zero };
            let stretch = status(source, reach, here, (end - here).min(most)).map_err(|error| {
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
            // Where an image between them ends earlier, it hides what lies beneath.
            let shown = stretch.content == Content::Nothing
                && stretch.depth + 1 == images
                && whole.min(below) > 0;
            let reads_zero = stretch.content.reads_zero() && whole > 0;
            let len = if shown {
                whole.min(below)
            } else if reads_zero && to_zero == 0 {
                whole
            } else if reads_zero && self.fill == Fill::Data {
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

    /// Behind this the target is known to read as zeroes.
    fn zero_from(&self) -> u64 {
        match self.blank {
            Blank::Yes | Blank::No => u64::MAX,
            Blank::Beneath { zero_from, .. } => zero_from
                .checked_next_multiple_of(self.packing.unit())
                .unwrap_or(u64::MAX),
        }
    }

    fn zero(&mut self, at: u64, len_bytes: u64) -> Result<(), Stop> {
        if self.blank == Blank::Yes {
            return Ok(());
        }
        at_once(self.image.write_zeroes(at, len_bytes, Unmap::Allow))
            .map_err(|error| unwritten((at, error)))
    }

    fn copy(&mut self, source: &Node, from: u64, at: u64, len_bytes: u64) -> Result<(), Stop> {
        let data = self.read(source, from, len_bytes)?;
        match &self.packing {
            Packing::Compressed(packer) => {
                let cluster_bytes = packer.cluster_bytes();
                self.write_pieces(at, data, cluster_bytes)
            }
            Packing::Plain if self.sparse_bytes == 0 => self.write(at, data),
            Packing::Plain => {
                let grain = self.sparse_bytes.next_multiple_of(SECTOR);
                self.write_pieces(at, data, grain)
            }
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

    /// Writes runs of pieces of `grain_bytes` that hold anything, and zeroes for the others.
    fn write_pieces(&mut self, at: u64, data: Vec<u8>, grain_bytes: u64) -> Result<(), Stop> {
        if self.fill == Fill::Everything {
            return self.write(at, data);
        }
        let grain = usize::try_from(grain_bytes).unwrap_or(usize::MAX);
        let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
        let mut done = 0;
        for piece in data.chunks(grain) {
            let (zero, end) = (is_zero(piece), done + piece.len());
            match runs.last_mut() {
                Some((kind, run)) if *kind == zero => run.end = end,
                Some(_) | None => runs.push((zero, done..end)),
            }
            done = end;
        }
        if let [(false, _)] = runs.as_slice() {
            return self.write(at, data);
        }
        for (zero, run) in runs {
            let here = at + to_u64(run.start);
            if zero {
                self.zero(here, to_u64(run.len()))?;
            } else {
                self.write(here, data[run].to_vec())?;
            }
        }
        Ok(())
    }

    /// Writes data, durably where the cache mode asks for that; compressed data later.
    pub(super) fn write(&mut self, at: u64, data: Vec<u8>) -> Result<(), Stop> {
        if let Some(pace) = &mut self.pace {
            pace.wait(to_u64(data.len()));
        }
        match &mut self.packing {
            Packing::Compressed(packer) => packer.take(at, data),
            Packing::Plain => at_once(async {
                self.image.write(at, data).await?;
                match self.cache {
                    CacheMode::WriteThrough => self.image.flush().await,
                    CacheMode::WriteBack | CacheMode::Unsafe => Ok(()),
                }
            })
            .map_err(|error| (at, error)),
        }
        .map_err(unwritten)
    }

    /// Stores what is still being compressed.
    pub(super) fn settle(&mut self) -> Result<(), Stop> {
        match &mut self.packing {
            Packing::Compressed(packer) => packer.finish().map_err(unwritten),
            Packing::Plain => Ok(()),
        }
    }

    /// Writes back everything and leaves the image clean.
    pub(super) fn finish(&mut self) -> Result<(), Stop> {
        self.settle()?;
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

fn unwritten((at, error): Unstored) -> Stop {
    Failure(format!(
        "error while writing at byte {at}: {}",
        engine_text(&error)
    ))
    .into()
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory fits 64 bits")
}
