//! The bitmap directory: one record for each bitmap.
//!
//! Specification: "Bitmaps extension", "Bitmap directory". Records that nobody here understands are
//! kept as they are.

use crate::qcow2::bounds::{Bounded, Extent, MAX_BITMAPS};
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::{be_u32, be_u64};
use crate::qcow2::unit::HostOffset;

/// Bytes of a record before its extra data and its name.
const RECORD_LEN: usize = 24;
/// Bytes of the header extension.
pub(super) const EXTENSION_LEN: usize = 24;
/// The longest name, in bytes.
pub(super) const MAX_NAME: usize = 1023;
/// Granularities that are served, as binary logarithms.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
const DIRTY_TRACKING: u8 = 1;

/// Where the directory stands, and how much there is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) count: u32,
    pub(super) offset: HostOffset,
    pub(super) len_bytes: u64,
}

/// A bitmap's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) table_offset: HostOffset,
    pub(super) table_entries: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    extra: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// What is wrong with a directory.
pub(super) type Problem = String;

impl Pointer {
    /// What the header extension says.
    pub(super) fn decode(data: &[u8], geometry: Geometry) -> Result<Self, Problem> {
        if data.len() != EXTENSION_LEN {
            return Err("the bitmaps extension is not 24 bytes long".into());
        }
        if be_u32(data, 4) != 0 {
            return Err("the reserved field of the bitmaps extension is not zero".into());
        }
        let count = be_u32(data, 0);
        if !(1..=MAX_BITMAPS).contains(&count) {
            return Err(format!("{count} bitmaps are not within 1..={MAX_BITMAPS}"));
        }
        let place = (HostOffset(be_u64(data, 16)), be_u64(data, 8));
        let extent = Extent::new(Bounded::BitmapDirectory, place, geometry)
            .map_err(|excess| format!("the bitmap directory {excess}"))?;
        Ok(Self {
            count,
            offset: extent.offset,
            len_bytes: extent.len_bytes,
        })
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut data = Vec::with_capacity(EXTENSION_LEN);
        data.extend_from_slice(&self.count.to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&self.len_bytes.to_be_bytes());
        data.extend_from_slice(&self.offset.0.to_be_bytes());
        data
    }
}

impl Record {
    /// The record of a new bitmap, without a table.
    pub(super) fn new(name: &str, granularity_bits: u32, auto: bool) -> Self {
        Self {
            table_offset: HostOffset(0),
            table_entries: 0,
            flags: if auto { AUTO } else { 0 },
            kind: DIRTY_TRACKING,
            granularity_bits: u8::try_from(granularity_bits).expect("a binary logarithm is small"),
            extra: Vec::new(),
            name: name.as_bytes().to_vec(),
        }
    }

    /// Whether what the bits say is out of date: whoever had the image open last did not close it.
    pub(super) fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// Whether guest writes set bits.
    pub(super) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    /// Whether everything about the bitmap is understood here, or may be ignored.
    pub(super) fn is_known(&self) -> bool {
        self.kind == DIRTY_TRACKING
            && self.flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) == 0
            && GRANULARITY_BITS.contains(&self.granularity_bits())
            && (self.extra.is_empty() || self.flags & EXTRA_COMPATIBLE != 0)
    }

    pub(super) fn granularity_bits(&self) -> u32 {
        self.granularity_bits.into()
    }

    pub(super) fn set_in_use(&mut self, in_use: bool) {
        self.flags = if in_use {
            self.flags | IN_USE
        } else {
            self.flags & !IN_USE
        };
    }

    pub(super) fn set_auto(&mut self, auto: bool) {
        self.flags = if auto {
            self.flags | AUTO
        } else {
            self.flags & !AUTO
        };
    }

    fn len(&self) -> usize {
        (RECORD_LEN + self.extra.len() + self.name.len()).next_multiple_of(8)
    }

    fn encode(&self, into: &mut Vec<u8>) {
        let end = into.len() + self.len();
        into.extend_from_slice(&self.table_offset.0.to_be_bytes());
        into.extend_from_slice(&self.table_entries.to_be_bytes());
        into.extend_from_slice(&self.flags.to_be_bytes());
        into.extend_from_slice(&[self.kind, self.granularity_bits]);
        let name = u16::try_from(self.name.len()).expect("a name is short");
        into.extend_from_slice(&name.to_be_bytes());
        let extra = u32::try_from(self.extra.len()).expect("extra data is as long as before");
        into.extend_from_slice(&extra.to_be_bytes());
        into.extend_from_slice(&self.extra);
        into.extend_from_slice(&self.name);
        into.resize(end, 0);
    }
}

/// The records of a directory of `count` bitmaps.
pub(super) fn decode(bytes: &[u8], count: u32, geometry: Geometry) -> Result<Vec<Record>, Problem> {
    let mut records: Vec<Record> = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    let mut rest = bytes;
    for _ in 0..count {
        let (head, body) = rest
            .split_at_checked(RECORD_LEN)
            .ok_or_else(|| "the directory ends before its last record".to_owned())?;
        let name_len = usize::from(head[18]) << 8 | usize::from(head[19]);
        let extra_len = usize::try_from(be_u32(head, 20)).expect("32 bits fit a length");
        let extra = body.get(..extra_len);
        let name = extra_len
            .checked_add(name_len)
            .and_then(|end| body.get(extra_len..end));
        let (Some(extra), Some(name)) = (extra, name) else {
            return Err("a record reaches beyond the end of the directory".into());
        };
        let record = Record {
            table_offset: HostOffset(be_u64(head, 0)),
            table_entries: be_u32(head, 8),
            flags: be_u32(head, 12),
            kind: head[16],
            granularity_bits: head[17],
            extra: extra.to_vec(),
            name: name.to_vec(),
        };
        if record.table_entries == 0 || name.is_empty() || name.len() > MAX_NAME {
            return Err("a record has no table, or a name that cannot be right".into());
        }
        let place = (record.table_offset, u64::from(record.table_entries) * 8);
        Extent::new(Bounded::BitmapTable, place, geometry)
            .map_err(|excess| format!("the table of a bitmap {excess}"))?;
        if !names.insert(name) {
            return Err("two bitmaps have one name".into());
        }
        rest = rest.get(record.len()..).unwrap_or(&[]);
        records.push(record);
    }
    if !rest.is_empty() {
        return Err("the directory holds more than its bitmaps".into());
    }
    Ok(records)
}

/// The bytes of a directory.
pub(super) fn encode(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        record.encode(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(12, 4).unwrap()
    }

    fn record(name: &str, extra: usize) -> Record {
        Record {
            table_offset: HostOffset(0x3000),
            table_entries: 7,
            extra: vec![9; extra],
            flags: EXTRA_COMPATIBLE,
            ..Record::new(name, 16, true)
        }
    }

    #[test]
    fn records_come_back_with_extra_data_and_all() {
        let records = vec![record("a", 0), record("bc", 3), record("12345678", 8)];
        let bytes = encode(&records);
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(decode(&bytes, 3, geometry()), Ok(records));
    }

    #[test]
    fn a_directory_that_lies_about_its_length_is_refused() {
        let bytes = encode(&[record("abc", 0)]);
        assert!(decode(&bytes, 2, geometry()).is_err());
        assert!(decode(&bytes[..25], 1, geometry()).is_err());
        let twice = encode(&[record("abc", 0), record("abc", 0)]);
        assert!(decode(&twice, 2, geometry()).is_err());
    }

    #[test]
    fn what_is_not_understood_is_told_apart() {
        let mut foreign = record("a", 1);
        assert!(foreign.is_known());
        foreign.flags = 0;
        assert!(!foreign.is_known(), "extra data that must be understood");
        let mut foreign = record("a", 0);
        foreign.kind = 2;
        assert!(!foreign.is_known());
        let mut foreign = record("a", 0);
        foreign.flags = 1 << 3;
        assert!(!foreign.is_known());
    }
}
