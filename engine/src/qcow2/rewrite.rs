//! Rewriting the header: version, extensions, names. Rule 13.
//!
//! Header, extensions and backing file name may span several sectors, and only sector 0 changes as one.
//! But all else is found from sector 0: the extensions follow the header, and the header says where the
//! name stands. So what lies behind sector 0 is written first, to bytes that the old header does not
//! refer to (or that it refers to with the same content), and made durable; then sector 0 switches.
//! Whatever survives, the old sector 0 sees the old bytes and the new one the new bytes.
//!
//! With clusters of 512 bytes sector 0 is all there is. Otherwise the name has the whole of cluster 0 to
//! move in. Extensions cannot move by themselves; where they reach behind sector 0 and change, they
//! are first switched to a place behind everything else, which a filler record leads to, and from there
//! back to where they belong, without the filler. Where cluster 0 has no room for both, the change is
//! refused before anything is written.
//!
//! Extensions that nobody here knows and unknown fields of the header stay as they are, byte for byte.

use std::ops::Range;

use super::extension;
use super::header::{Extension, Header, HeaderSector, MAX_BACKING_NAME};
use super::metadata::Metadata;
use super::unit::{HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{Error, Refused};
use crate::probe::Probe;

const SECTOR: usize = 512;
const RECORD: usize = 8;

impl Metadata {
    /// The header as it stands, to be changed and handed to [`Metadata::rewrite_header`].
    pub(super) async fn load_header(&self) -> Result<Header, Error> {
        let bytes = self.load_cluster0().await?;
        Header::decode(&bytes, self.order.file().len())
    }

    /// Makes the header say `header`: one that [`Metadata::load_header`] yielded, with other fields,
    /// extensions or names. Before or after, and durable on return.
    ///
    /// What the new header points to is for the caller to make durable first.
    pub(super) async fn rewrite_header(&mut self, header: &Header) -> Result<(), Error> {
        let mut header = header.clone();
        header
            .extensions
            .retain(|extension| extension.kind != extension::FILLER);
        let mut present = self.load_cluster0().await?;
        let mut is_there = false;
        loop {
            let step = self.rewrite_once(&present, &header).await;
            if step.is_err() && is_there {
                // The file has the new header by now: whoever asked must not take back what it names.
                self.order.distrust();
            }
            let plan = step?;
            if !plan.filled {
                break;
            }
            // The old place is free now, so that this second switch needs no filler.
            is_there = true;
            present = plan.bytes;
        }
        self.version = header.version;
        self.incompatible = header.incompatible;
        Ok(())
    }

    /// Makes the header say it, in the old place or with a filler there.
    async fn rewrite_once(&mut self, present: &[u8], header: &Header) -> Result<Plan, Error> {
        let old = Header::decode(present, self.order.file().len())?;
        let used = UsedBytes::of(&old);
        let plan = plan(present, &used, old.header_bytes, header)?;
        self.apply(present, &plan.bytes).await?;
        Ok(plan)
    }

    /// Cluster 0 as it stands, of which sector 0 is in memory.
    async fn load_cluster0(&self) -> Result<Vec<u8>, Error> {
        let len = self.geometry.cluster_len();
        let mut bytes = self.order.file().at(Event::None).read(0, len).await?;
        bytes[..SECTOR].copy_from_slice(&self.sector0.bytes());
        Ok(bytes)
    }

    async fn apply(&mut self, old: &[u8], new: &[u8]) -> Result<(), Error> {
        // What stands there already may be what an earlier attempt wrote that failed.
        let mut content = self.order.doubtful();
        if let Some(changed) = changed_sectors(old, new) {
            self.order.note(Probe::LongHeader);
            let offset = HostOffset(byte_count(changed.start));
            let bytes = new[changed].to_vec();
            content = content.max(self.order.write(Event::None, offset, bytes).await?);
        }
        let change = |sector0: &mut HeaderSector| *sector0 = HeaderSector::new(new);
        let switched = self
            .switch(Barrier::BeforeHeaderSwitch, Event::None, content, change)
            .await?;
        self.order
            .barrier(Barrier::AfterHeaderSwitch, switched)
            .await
    }
}

/// The sectors behind sector 0 from the first to the last that changes, in bytes.
fn changed_sectors(old: &[u8], new: &[u8]) -> Option<Range<usize>> {
    let changed = |at: &usize| old[*at] != new[*at];
    let first = (SECTOR..new.len()).find(changed)?;
    let last = (first..new.len()).rfind(changed)?;
    Some(first / SECTOR * SECTOR..(last + 1).next_multiple_of(SECTOR))
}

/// The bytes of cluster 0 that a header refers to.
struct UsedBytes {
    /// Records, the end marker, and the name. What a filler record covers means nothing.
    ranges: Vec<Range<usize>>,
    name_at: Option<usize>,
}

impl UsedBytes {
    fn of(header: &Header) -> Self {
        let mut ranges = Vec::new();
        let mut at = mem_len(header.header_bytes);
        for Extension { kind, data } in &header.extensions {
            let next = at + RECORD + data.len().next_multiple_of(8);
            let filler = *kind == extension::FILLER;
            ranges.push(at..if filler { at + RECORD } else { next });
            at = next;
        }
        ranges.push(at..at + RECORD);
        let name_at = header.backing_name.as_ref().map(|name| {
            let at = mem_len(header.backing_at);
            ranges.push(at..at + name.len());
            at
        });
        Self { ranges, name_at }
    }

    fn end(&self) -> usize {
        let ends = self.ranges.iter().map(|range| range.end);
        ends.max().unwrap_or(0)
    }

    fn contains(&self, at: usize) -> bool {
        self.ranges.iter().any(|range| range.contains(&at))
    }
}

/// What cluster 0 is to hold, and whether a filler record is in it.
struct Plan {
    bytes: Vec<u8>,
    filled: bool,
}

/// Finds a place for the new header beside what the old one uses.
fn plan(
    present: &[u8],
    used: &UsedBytes,
    old_header_bytes: u64,
    header: &Header,
) -> Result<Plan, Error> {
    let mut base = vec![0; SECTOR];
    let kept = mem_len(header.header_bytes.min(old_header_bytes));
    let header_len = mem_len(header.header_bytes);
    if header_len.max(kept) + 2 * RECORD > SECTOR {
        return refuse("the header itself takes more than a sector".into());
    }
    base[..kept].copy_from_slice(&present[..kept]);
    header.put_fields(&mut base);
    let mut chain = Vec::new();
    extension::encode(&header.extensions, &mut chain);
    let name = header.backing_name.as_deref().unwrap_or(&[]);
    let len = present.len();
    let canonical_end = header_len + chain.len() + name.len();
    if name.len() > MAX_BACKING_NAME || canonical_end > len {
        return refuse(format!(
            "header, extensions and a backing file name of {} bytes do not fit the first cluster ({len} bytes): use a shorter name",
            name.len()
        ));
    }
    let draft = Draft {
        present,
        used,
        base,
        header_len,
        chain,
        name,
    };
    draft
        .settle(canonical_end)
        .ok_or_else(|| {
            Refused::Option(format!(
                "the first cluster ({len} bytes) has no room for the new header beside the old one: use a shorter backing file name"
            ))
            .into()
        })
}

fn refuse<T>(text: String) -> Result<T, Error> {
    Err(Refused::Option(text).into())
}

/// A header whose parts have no place yet.
struct Draft<'a> {
    present: &'a [u8],
    used: &'a UsedBytes,
    base: Vec<u8>,
    header_len: usize,
    chain: Vec<u8>,
    name: &'a [u8],
}

impl Draft<'_> {
    /// Tries the places for the name with the extensions where they belong, then behind everything.
    fn settle(&self, canonical_end: usize) -> Option<Plan> {
        let chain_end = self.header_len + self.chain.len();
        let old_name = self.used.name_at.unwrap_or(chain_end);
        let behind = self.used.end().max(chain_end);
        let places = [old_name, chain_end, behind];
        let plain = places
            .into_iter()
            .find_map(|name_at| self.place(None, name_at));
        plain.or_else(|| {
            let clear = self.used.end().max(canonical_end).next_multiple_of(8);
            let chain_at = clear.max(SECTOR);
            self.place(Some(chain_at), chain_at + self.chain.len())
        })
    }

    /// Cluster 0 with the parts in these places, unless that destroys what the old header refers to.
    fn place(&self, chain_at: Option<usize>, name_at: usize) -> Option<Plan> {
        let mut bytes = self.present.to_vec();
        bytes[..SECTOR].copy_from_slice(&self.base);
        if let Some(chain_at) = chain_at {
            let filler = u32::try_from(chain_at - self.header_len - RECORD).ok()?;
            self.put(
                &mut bytes,
                self.header_len,
                &extension::FILLER.to_be_bytes(),
            )?;
            self.put(&mut bytes, self.header_len + 4, &filler.to_be_bytes())?;
        }
        let chain_at_or_home = chain_at.unwrap_or(self.header_len);
        self.put(&mut bytes, chain_at_or_home, &self.chain)?;
        if !self.name.is_empty() {
            if name_at < chain_at_or_home + self.chain.len() {
                return None;
            }
            self.put(&mut bytes, name_at, self.name)?;
            Header::put_backing(&mut bytes, name_at, self.name.len());
        }
        Some(Plan {
            bytes,
            filled: chain_at.is_some(),
        })
    }

    fn put(&self, bytes: &mut [u8], at: usize, part: &[u8]) -> Option<()> {
        let into = bytes.get_mut(at..at + part.len())?;
        let harmed = |index: &usize| {
            *index >= SECTOR
                && self.used.contains(*index)
                && self.present[*index] != part[*index - at]
        };
        if (at..at + part.len()).any(|index| harmed(&index)) {
            return None;
        }
        into.copy_from_slice(part);
        Some(())
    }
}
