//! A bitmap's table and data in the file.
//!
//! Specification: "Bitmap table", "Bitmap data". An entry names a cluster of bits, or says that all of
//! its bits are clear, or set.

use super::bits::{Bits, Stretch};
use super::directory::Record;
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::qcow2::bounds::MAX_BITMAP_BYTES;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::be_u64;
use crate::qcow2::unit::{HostCluster, HostOffset, mem_len};

/// Where an entry says that a cluster of bits stands.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry without offset: every bit is set.
const ALL_ONES: u64 = 1;
/// As much of a table is read at once.
const PIECE_BYTES: u64 = 64 << 10;

/// Entries in the table of a bitmap.
pub(super) fn entries_for(
    geometry: Geometry,
    granularity_bits: u32,
    disk_bytes: u64,
) -> Result<u32, Error> {
    let stored = Bits::count_for(granularity_bits, disk_bytes).div_ceil(8);
    if stored > MAX_BITMAP_BYTES {
        return Err(Refused::Option(format!(
            "a bitmap of {stored} bytes is larger than {MAX_BITMAP_BYTES}: use a larger granularity"
        ))
        .into());
    }
    let entries = geometry.clusters_for(stored);
    Ok(u32::try_from(entries).expect("a bounded bitmap has a bounded table"))
}

/// A bitmap as it stands in the file: its bits, and the clusters that its data take.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) bits: Bits,
    pub(super) clusters: Vec<HostCluster>,
}

fn bad(record: &Record, index: Option<u64>, text: &str) -> Error {
    BadImage {
        structure: Structure::BitmapTable,
        offset: record.table_offset.0,
        index,
        problem: Problem::Field(text.into()),
    }
    .into()
}

/// Reads a bitmap whose content is up to date.
pub(super) async fn load(
    file: &Port,
    geometry: Geometry,
    record: &Record,
    disk_bytes: u64,
) -> Result<Loaded, Error> {
    let mut loaded = Loaded {
        bits: Bits::clean(record.granularity_bits(), disk_bytes),
        clusters: Vec::new(),
    };
    let expected = entries_for(geometry, record.granularity_bits(), disk_bytes)?;
    if record.table_entries != expected {
        let text = "the table is not as long as the disk demands";
        return Err(bad(record, None, text));
    }
    let cluster_bytes = geometry.cluster_bytes();
    for (word, index) in words(file, record).await?.into_iter().zip(0..) {
        let at = index * cluster_bytes;
        match entry(geometry, word) {
            None => return Err(bad(record, Some(index), "the entry is not valid")),
            Some(Entry::Clean) => {}
            Some(Entry::Dirty) => loaded.bits.fill(at, cluster_bytes),
            Some(Entry::Data(offset)) => {
                if offset.0 >= file.len()
                    || loaded.clusters.len() > mem_len(file.len() / cluster_bytes)
                {
                    return Err(bad(record, Some(index), "its data are not in the file"));
                }
                let len = geometry.cluster_len();
                let bytes = file.at(Event::None).read(offset.0, len).await?;
                loaded.bits.load(at, &bytes);
                loaded.clusters.push(geometry.cluster_of(offset));
            }
        }
    }
    Ok(loaded)
}

/// The clusters of a bitmap's data, of whatever content; `None` where the table cannot be right.
pub(super) async fn clusters(
    file: &Port,
    geometry: Geometry,
    record: &Record,
) -> Result<Option<Vec<HostCluster>>, Error> {
    let end = record.table_offset.0 + u64::from(record.table_entries) * 8;
    if end > file.len().next_multiple_of(geometry.cluster_bytes()) {
        return Ok(None);
    }
    let mut clusters = Vec::new();
    for word in words(file, record).await? {
        match entry(geometry, word) {
            None => return Ok(None),
            Some(Entry::Clean | Entry::Dirty) => {}
            Some(Entry::Data(offset)) => clusters.push(geometry.cluster_of(offset)),
        }
    }
    Ok(Some(clusters))
}

/// The words of a table, which lies within the file.
async fn words(file: &Port, record: &Record) -> Result<Vec<u64>, Error> {
    let len_bytes = u64::from(record.table_entries) * 8;
    let start = record.table_offset.0;
    if start.saturating_add(len_bytes) > file.len() {
        let file_bytes = file.len();
        return Err(BadImage {
            structure: Structure::BitmapTable,
            offset: start,
            index: None,
            problem: Problem::BeyondEnd { file_bytes },
        }
        .into());
    }
    let mut words = Vec::with_capacity(mem_len(len_bytes / 8));
    let mut done = 0;
    while done < len_bytes {
        let len = PIECE_BYTES.min(len_bytes - done);
        let bytes = file
            .at(Event::None)
            .read(start + done, mem_len(len))
            .await?;
        words.extend(bytes.chunks_exact(8).map(|word| be_u64(word, 0)));
        done += len;
    }
    Ok(words)
}

enum Entry {
    Clean,
    Dirty,
    Data(HostOffset),
}

fn entry(geometry: Geometry, word: u64) -> Option<Entry> {
    let offset = HostOffset(word & OFFSET);
    match word {
        0 => Some(Entry::Clean),
        ALL_ONES => Some(Entry::Dirty),
        _ if word == offset.0 && geometry.is_aligned(offset) => Some(Entry::Data(offset)),
        _ => None,
    }
}

/// What a bitmap's table will say: the stretches that need a cluster, by index.
pub(super) struct Plan {
    /// Entries without a cluster, and zero where one is needed.
    pub(super) words: Vec<u64>,
    /// The indices of those.
    pub(super) mixed: Vec<u64>,
}

impl Plan {
    pub(super) fn of(bits: &Bits, entries: u32, cluster_bytes: u64) -> Self {
        let mut plan = Self {
            words: Vec::with_capacity(mem_len(entries.into())),
            mixed: Vec::new(),
        };
        for index in 0..u64::from(entries) {
            let stretch = bits.stretch(index * cluster_bytes, cluster_bytes);
            if stretch == Stretch::Mixed {
                plan.mixed.push(index);
            }
            plan.words.push(match stretch {
                Stretch::Dirty => ALL_ONES,
                Stretch::Clean | Stretch::Mixed => 0,
            });
        }
        plan
    }

    /// The bytes of the table.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }
}
