//! The snapshot table: what an entry says, and how the table is read and written.
//!
//! Specification: "Snapshots". What an entry says beyond the fields that are known here is kept byte
//! for byte.

use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Structure};
use crate::qcow2::bounds::MAX_SNAPSHOT_TABLE_BYTES;
use crate::qcow2::header::{Header, be_u32, be_u64};
use crate::qcow2::order::Order;
use crate::qcow2::unit::{HostOffset, byte_count};

/// Bytes of an entry before what has no fixed length.
pub(in crate::qcow2) const ENTRY_LEN: usize = 40;
/// The most that an entry may say beyond the fields of version 2, in bytes.
pub(in crate::qcow2) const MAX_EXTRA_LEN: usize = 1024;
/// What version 3 says beyond them at least: the full size of VM state, and the size of the disk.
pub(in crate::qcow2) const V3_EXTRA_LEN: usize = 16;
/// All that is known of the extra data: the instruction count besides.
const KNOWN_EXTRA_LEN: usize = 24;

/// What becomes of extra data that are longer than the format allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Surplus {
    /// The table is refused.
    Refused,
    /// The end is left out.
    Dropped,
}

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qcow2) struct Record {
    pub(in crate::qcow2) l1_offset: HostOffset,
    pub(in crate::qcow2) l1_entries: u32,
    pub(in crate::qcow2) id: Vec<u8>,
    pub(in crate::qcow2) name: Vec<u8>,
    pub(in crate::qcow2) date_seconds: u32,
    pub(in crate::qcow2) date_nanoseconds: u32,
    pub(in crate::qcow2) vm_clock_nanoseconds: u64,
    pub(in crate::qcow2) vm_state_short: u32,
    /// The extra data: known fields first, then what is not known.
    pub(in crate::qcow2) extra: Vec<u8>,
}

/// The fixed fields of an entry, and how long the entry is.
#[derive(Clone, Copy, Debug)]
pub(in crate::qcow2) struct Head {
    pub(in crate::qcow2) l1_offset: HostOffset,
    pub(in crate::qcow2) l1_entries: u32,
    pub(in crate::qcow2) extra_len: usize,
    id_len: usize,
    name_len: usize,
}

impl Head {
    /// What the first [`ENTRY_LEN`] bytes of an entry say.
    pub(in crate::qcow2) fn decode(entry: &[u8]) -> Self {
        let lengths = be_u32(entry, 12);
        let len = |value: u32| usize::try_from(value).expect("32 bits fit a length");
        Self {
            l1_offset: HostOffset(be_u64(entry, 0)),
            l1_entries: be_u32(entry, 8),
            extra_len: len(be_u32(entry, 36)),
            id_len: len(lengths >> 16),
            name_len: len(lengths & 0xffff),
        }
    }

    /// Bytes from the start of this entry to the start of the next.
    pub(in crate::qcow2) fn entry_len(self) -> usize {
        (ENTRY_LEN + self.extra_len + self.id_len + self.name_len).next_multiple_of(8)
    }
}

impl Record {
    /// The entry that stands at the start of `bytes`, which hold all of it.
    fn decode(head: Head, bytes: &[u8]) -> Self {
        let (extra, rest) = bytes[ENTRY_LEN..].split_at(head.extra_len);
        let (id, rest) = rest.split_at(head.id_len);
        Self {
            l1_offset: head.l1_offset,
            l1_entries: head.l1_entries,
            id: id.to_vec(),
            name: rest[..head.name_len].to_vec(),
            date_seconds: be_u32(bytes, 16),
            date_nanoseconds: be_u32(bytes, 20),
            vm_clock_nanoseconds: be_u64(bytes, 24),
            vm_state_short: be_u32(bytes, 32),
            extra: extra.to_vec(),
        }
    }

    fn encode(&self, into: &mut Vec<u8>) {
        let start = into.len();
        let short = |len: usize| u16::try_from(len).expect("ids and names are bounded");
        into.extend_from_slice(&self.l1_offset.0.to_be_bytes());
        into.extend_from_slice(&self.l1_entries.to_be_bytes());
        into.extend_from_slice(&short(self.id.len()).to_be_bytes());
        into.extend_from_slice(&short(self.name.len()).to_be_bytes());
        into.extend_from_slice(&self.date_seconds.to_be_bytes());
        into.extend_from_slice(&self.date_nanoseconds.to_be_bytes());
        into.extend_from_slice(&self.vm_clock_nanoseconds.to_be_bytes());
        into.extend_from_slice(&self.vm_state_short.to_be_bytes());
        let extra_len = u32::try_from(self.extra.len()).expect("extra data are bounded");
        into.extend_from_slice(&extra_len.to_be_bytes());
        into.extend_from_slice(&self.extra);
        into.extend_from_slice(&self.id);
        into.extend_from_slice(&self.name);
        into.resize(start + (into.len() - start).next_multiple_of(8), 0);
    }

    /// The size of the VM state, in bytes.
    pub(in crate::qcow2) fn vm_state_bytes(&self) -> u64 {
        match self.extra.get(..8) {
            Some(long) => be_u64(long, 0),
            None => self.vm_state_short.into(),
        }
    }

    /// The size of the disk, where the entry says it.
    pub(in crate::qcow2) fn disk_bytes(&self) -> Option<u64> {
        self.extra.get(8..16).map(|bytes| be_u64(bytes, 0))
    }

    /// The instruction count of record and replay, where the entry says one.
    pub(in crate::qcow2) fn icount(&self) -> Option<u64> {
        let icount = be_u64(self.extra.get(16..24)?, 0);
        (icount != u64::MAX).then_some(icount)
    }

    /// Says everything that is known, in the extra data of an entry that left something out.
    /// `virtual_bytes` is the size of a disk that was never resized since.
    pub(in crate::qcow2) fn complete(&mut self, virtual_bytes: u64) {
        if self.extra.len() >= KNOWN_EXTRA_LEN {
            return;
        }
        let known = KnownExtra {
            vm_state_bytes: self.vm_state_bytes(),
            virtual_bytes: self.disk_bytes().unwrap_or(virtual_bytes),
            icount: None,
        };
        self.extra = known.encode();
    }
}

/// The extra data that are known.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownExtra {
    pub(super) vm_state_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) icount: Option<u64>,
}

impl KnownExtra {
    pub(super) fn encode(self) -> Vec<u8> {
        let icount = self.icount.unwrap_or(u64::MAX);
        [self.vm_state_bytes, self.virtual_bytes, icount]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }
}

/// The bytes of a table of these entries.
pub(in crate::qcow2) fn encode(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        record.encode(&mut bytes);
    }
    bytes
}

/// The snapshot table of an image, and how many bytes it takes.
pub(in crate::qcow2) async fn read(
    order: &Order,
    header: &Header,
    surplus: Surplus,
) -> Result<(Vec<Record>, u64), Error> {
    let mut records = Vec::new();
    let mut pages = Pages {
        order,
        offset: header.snapshots_offset.0,
        step: header.geometry.cluster_bytes().max(4096),
        bytes: Vec::new(),
    };
    let mut at = 0;
    for index in 0..u64::from(header.snapshot_count) {
        let head = Head::decode(pages.load(index, at, ENTRY_LEN).await?);
        if head.extra_len > MAX_EXTRA_LEN && surplus == Surplus::Refused {
            let text = "the entry has too much extra data: repair everything to cut it off";
            return Err(pages.bad(index, text));
        }
        let entry = pages.load(index, at, head.entry_len()).await?;
        let mut record = Record::decode(head, entry);
        record.extra.truncate(MAX_EXTRA_LEN);
        records.push(record);
        at += head.entry_len();
    }
    Ok((records, byte_count(at)))
}

/// A table without a fixed length, read piece by piece.
struct Pages<'a> {
    order: &'a Order,
    offset: u64,
    step: u64,
    bytes: Vec<u8>,
}

impl Pages<'_> {
    async fn load(&mut self, index: u64, at: usize, len: usize) -> Result<&[u8], Error> {
        let end = at + len;
        while self.bytes.len() < end {
            let have = byte_count(self.bytes.len());
            let here = self.offset + have;
            let file = self.order.file();
            if have >= MAX_SNAPSHOT_TABLE_BYTES {
                return Err(self.bad(index, "the table is longer than 64 MiB"));
            }
            if here >= file.len() {
                return Err(self.bad(index, "the table reaches beyond the end of the file"));
            }
            let step = usize::try_from(self.step).expect("a cluster fits memory");
            let more = file.at(Event::None).read(here, step).await?;
            self.bytes.extend_from_slice(&more);
        }
        Ok(&self.bytes[at..end])
    }

    fn bad(&self, index: u64, problem: &str) -> Error {
        BadImage {
            structure: Structure::SnapshotTable,
            offset: self.offset,
            index: Some(index),
            problem: Problem::Field(problem.into()),
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_is_read_as_it_was_written(
            fixed in any::<(u64, u32, u32, u32, u64, u32)>(),
            extra in prop::collection::vec(any::<u8>(), 0..80),
            id in prop::collection::vec(any::<u8>(), 0..20),
            name in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (l1_offset, l1_entries, date_seconds, date_nanoseconds, clock, short) = fixed;
            let record = Record {
                l1_offset: HostOffset(l1_offset),
                l1_entries,
                id,
                name,
                date_seconds,
                date_nanoseconds,
                vm_clock_nanoseconds: clock,
                vm_state_short: short,
                extra,
            };
            let bytes = encode(&[record.clone(), record.clone()]);
            let head = Head::decode(&bytes);
            prop_assert_eq!(bytes.len(), 2 * head.entry_len());
            prop_assert_eq!(&Record::decode(head, &bytes), &record);
            prop_assert_eq!(&Record::decode(head, &bytes[head.entry_len()..]), &record);
            let mut complete = record.clone();
            complete.complete(77);
            prop_assert_eq!(complete.vm_state_bytes(), record.vm_state_bytes());
            prop_assert_eq!(complete.disk_bytes(), Some(record.disk_bytes().unwrap_or(77)));
            prop_assert_eq!(complete.icount(), record.icount());
        }
    }
}
