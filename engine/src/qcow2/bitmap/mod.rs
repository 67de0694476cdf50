//! Persistent dirty bitmaps: which pieces of the guest's disk changed since somebody asked.
//!
//! Specification: "Bitmaps extension", "Bitmap directory", "Bitmap table", "Bitmap data".
//!
//! A bitmap whose flag `in_use` is clear is *clean*: it covers every change of the guest's disk since it
//! was enabled or cleared, whatever power loss came between. That rests on rules 20 and 21 of
//! [`crate::qcow2`]: the flag is set durably before the first change, and a stored bitmap replaces the old
//! one by a switch. What a clean close or an operation on bitmaps finds changed is stored and clean
//! again; after a power loss the flag stays, and such an *inconsistent* bitmap can only be removed.
//!
//! What changes the disk at once changes all of it: after a snapshot was applied, the image emptied, or
//! another backing file named, every enabled bitmap calls the whole disk dirty, and what a larger disk adds
//! is dirty too. QEMU 10.0.2 does less here. It applies no snapshot to an image with any bitmap, enabled
//! or not; it leaves what growing adds clean, and bitmaps alone when another backing file is named. Who
//! copies the dirty pieces to a disk that once was larger, or stood on the other file, misses something
//! then; whoever copies too much loses time only.
//!
//! A record that is not understood is *foreign*: it is kept as it is, and where guest writes would make it
//! wrong the image is not opened for writing.

mod bits;
mod directory;
mod manage;
mod pointer;
mod store;
mod table;

pub(super) use self::manage::Change;

use std::ops::Range;
use std::rc::Rc;

use self::bits::Bits;
use self::directory::{Pointer, Record};
use super::geometry::Geometry;
use super::header::Header;
use super::image::Qcow2;
use super::unit::{HostCluster, mem_len};
use super::{extension, header};
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Refused, Structure, Unsupported};
use crate::probe::Probe;

/// The bitmaps of an open image.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    pointer: Option<Pointer>,
    list: Vec<Bitmap>,
    /// Whether the file says `in_use` of every bitmap that a change concerns.
    taken: Taken,
    /// A write of the flags failed: the file may call bitmaps in use that are not.
    flags_in_doubt: bool,
    /// A switch to another list failed: the file may have either.
    list_in_doubt: bool,
}

/// Of which bitmaps the file durably says `in_use`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Taken {
    /// Of none that is clean.
    #[default]
    None,
    /// Of those that guest writes change.
    Enabled,
    /// Of all, since the disk's size is about to change.
    All,
}

#[derive(Clone, Debug)]
struct Bitmap {
    record: Record,
    standing: Standing,
    /// Its bits, once they are needed.
    content: Option<Rc<Content>>,
    /// Whether the bits differ from those in the file.
    changed: bool,
}

#[derive(Clone, Debug)]
struct Content {
    bits: Bits,
    /// Where the file has them.
    clusters: Vec<HostCluster>,
}

/// What a bitmap is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It covers every change since it was enabled or cleared.
    Clean,
    /// Whoever had the image open lost power: it can only be removed.
    Inconsistent,
    /// It says of itself something that is not understood here.
    Foreign,
}

/// What is known of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name; bytes that are no text are replaced.
    pub name: String,
    /// How many bytes of the disk a bit stands for.
    pub granularity_bytes: u64,
    /// What it is good for.
    pub standing: Standing,
    /// Whether the file says `in_use` at present.
    pub in_use: bool,
    /// Whether guest writes set bits: the flag `auto`.
    pub enabled: bool,
    /// How many bytes of the disk are dirty, where that is known.
    pub dirty_bytes: Option<u64>,
}

impl Bitmap {
    fn of(record: Record) -> Self {
        let standing = if !record.is_known() {
            Standing::Foreign
        } else if record.is_in_use() {
            Standing::Inconsistent
        } else {
            Standing::Clean
        };
        Self {
            record,
            standing,
            content: None,
            changed: false,
        }
    }

    fn is_tracked(&self) -> bool {
        self.standing == Standing::Clean && self.record.is_auto()
    }

    fn bits_mut(&mut self) -> Option<&mut Bits> {
        self.content
            .as_mut()
            .map(|content| &mut Rc::make_mut(content).bits)
    }

    /// Makes sure that the bits of a clean bitmap are in memory.
    async fn load(
        &mut self,
        file: &Port,
        geometry: Geometry,
        disk_bytes: u64,
    ) -> Result<(), Error> {
        if self.content.is_none() {
            let loaded = table::load(file, geometry, &self.record, disk_bytes).await?;
            self.content = Some(Rc::new(Content {
                bits: loaded.bits,
                clusters: loaded.clusters,
            }));
        }
        Ok(())
    }

    fn info(&self) -> BitmapInfo {
        let bits = self.content.as_ref().map(|content| &content.bits);
        BitmapInfo {
            name: String::from_utf8_lossy(&self.record.name).into_owned(),
            granularity_bytes: 1u64
                .checked_shl(self.record.granularity_bits())
                .unwrap_or(0),
            standing: self.standing,
            in_use: self.record.is_in_use(),
            enabled: self.record.is_auto(),
            dirty_bytes: bits
                .filter(|_| self.standing == Standing::Clean)
                .map(Bits::dirty_bytes),
        }
    }
}

impl Bitmaps {
    /// Reads the directory of an image, if it has one that counts.
    pub(super) async fn load(file: &Port, header: &Header) -> Result<Self, Error> {
        if !header.has_bitmaps() {
            return Ok(Self::default());
        }
        let data = header.extension(extension::BITMAPS).unwrap_or(&[]);
        let bad = |structure, offset, text: &str| BadImage {
            structure,
            offset,
            index: None,
            problem: Problem::Field(text.into()),
        };
        let pointer = Pointer::decode(data, header.geometry)
            .map_err(|text| bad(Structure::HeaderExtension, 0, &text))?;
        let at = pointer.offset.0;
        if at.saturating_add(pointer.len_bytes) > file.len() {
            let text = "the directory does not lie within the file";
            return Err(bad(Structure::BitmapDirectory, at, text).into());
        }
        let bytes = file
            .at(Event::None)
            .read(at, mem_len(pointer.len_bytes))
            .await?;
        let records = directory::decode(&bytes, pointer.count, header.geometry)
            .map_err(|text| bad(Structure::BitmapDirectory, at, &text))?;
        if records.iter().any(Record::is_in_use) {
            file.note(Probe::BitmapInUse);
        }
        Ok(Self {
            pointer: Some(pointer),
            list: records.into_iter().map(Bitmap::of).collect(),
            taken: Taken::None,
            flags_in_doubt: false,
            list_in_doubt: false,
        })
    }

    /// Refuses to write an image that has a bitmap which the writing would make wrong, or whose table lies
    /// where the writing would put something else. `file_end` is the end of the file's last cluster.
    pub(super) fn require_writable(&self, file_end: u64) -> Result<(), Error> {
        for (structure, offset, len_bytes) in self.metadata() {
            if offset.0 + len_bytes > file_end {
                let file_bytes = file_end;
                return Err(BadImage {
                    structure,
                    offset: offset.0,
                    index: None,
                    problem: Problem::BeyondEnd { file_bytes },
                }
                .into());
            }
        }
        let wronged = |bitmap: &Bitmap| {
            let record = &bitmap.record;
            bitmap.standing == Standing::Foreign && record.is_auto() && !record.is_in_use()
        };
        if self.list.iter().any(wronged) {
            return Err(Unsupported::ReadOnlyFeature(
                "an image with an active bitmap of unknown kind",
            )
            .into());
        }
        Ok(())
    }

    /// The clusters of directory and tables: offset and length in bytes.
    pub(super) fn metadata(
        &self,
    ) -> impl Iterator<Item = (Structure, super::unit::HostOffset, u64)> {
        let directory = self.pointer.map(|pointer| {
            (
                Structure::BitmapDirectory,
                pointer.offset,
                pointer.len_bytes,
            )
        });
        let tables = self.list.iter().map(|bitmap| {
            let len_bytes = u64::from(bitmap.record.table_entries) * 8;
            (
                Structure::BitmapTable,
                bitmap.record.table_offset,
                len_bytes,
            )
        });
        directory.into_iter().chain(tables)
    }

    /// Whether there are bitmaps.
    pub(super) fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// Whether a guest's write sets a bit anywhere.
    ///
    /// Behind a failed switch of the list that is not known.
    pub(super) fn tracks(&self) -> bool {
        self.list_in_doubt || self.list.iter().any(Bitmap::is_tracked)
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        self.list
            .iter()
            .position(|bitmap| bitmap.record.name == name.as_bytes())
            .ok_or_else(|| Refused::Bitmap(format!("no bitmap is named `{name}`")).into())
    }

    fn find_clean(&self, name: &str) -> Result<usize, Error> {
        let index = self.find(name)?;
        match self.list[index].standing {
            Standing::Clean => Ok(index),
            Standing::Inconsistent => Err(Refused::Bitmap(format!(
                "bitmap `{name}` is inconsistent after a crash: it can only be removed"
            ))
            .into()),
            Standing::Foreign => Err(Refused::Bitmap(format!(
                "bitmap `{name}` is of a kind that is not known here"
            ))
            .into()),
        }
    }
}

/// The bitmaps of an image that is not open, in the order of its directory. How much each calls dirty is not
/// looked at.
pub async fn list_bitmaps(file: &Port, header: &Header) -> Result<Vec<BitmapInfo>, Error> {
    let bitmaps = Bitmaps::load(file, header).await?;
    Ok(bitmaps.list.iter().map(Bitmap::info).collect())
}

impl Qcow2 {
    /// The bitmaps of the image.
    pub async fn bitmaps(&self) -> Result<Vec<BitmapInfo>, Error> {
        let mut metadata = self.metadata.lock().await;
        metadata.load_bitmaps().await?;
        let bitmaps = &metadata.bitmaps.list;
        Ok(bitmaps.iter().map(Bitmap::info).collect())
    }

    /// The dirty ranges of a clean bitmap: bytes of the guest's disk, ascending and apart.
    pub async fn dirty_ranges(&self, name: &str) -> Result<Vec<Range<u64>>, Error> {
        let mut metadata = self.metadata.lock().await;
        metadata.load_bitmaps().await?;
        let index = metadata.bitmaps.find_clean(name)?;
        metadata.load_bits(index).await?;
        let content = metadata.bitmaps.list[index].content.as_ref();
        Ok(content.map_or_else(Vec::new, |content| content.bits.ranges()))
    }

    /// Notes that a range of the guest's disk is about to change, under rule 20. The caller holds a claim
    /// on it.
    pub(super) async fn record_change(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        if !self.tracks.get() || len_bytes == 0 {
            return Ok(());
        }
        self.metadata
            .lock()
            .await
            .record_change(offset, len_bytes)
            .await
    }
}

impl super::metadata::Metadata {
    /// Reads the directory where opening left it alone, and the bits of every clean bitmap that can be
    /// read.
    async fn load_bitmaps(&mut self) -> Result<(), Error> {
        if self.bitmaps.pointer.is_none() {
            let (header, _) = header::load(self.order.file()).await?;
            self.bitmaps = Bitmaps::load(self.order.file(), &header).await?;
        }
        for index in 0..self.bitmaps.list.len() {
            match self.load_bits(index).await {
                Ok(()) | Err(Error::BadImage(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes sure that the bits of a bitmap are in memory, if it is clean.
    async fn load_bits(&mut self, index: usize) -> Result<(), Error> {
        let (geometry, disk_bytes) = (self.geometry, self.virtual_bytes);
        let bitmap = &mut self.bitmaps.list[index];
        if bitmap.standing != Standing::Clean {
            return Ok(());
        }
        bitmap.load(self.order.file(), geometry, disk_bytes).await
    }
}
