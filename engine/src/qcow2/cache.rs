//! Write-back caches of table slices: L2 entries in one, refcounts in another.
//!
//! A slice is a piece of a table, a cluster or less, kept under its host offset. The cache
//! knows no I/O and no order: who evicts or writes back does that under the rules of
//! [`crate::qcow2`].

use std::cell::Cell;
use std::collections::BTreeMap;

use super::entry::L2Entry;
use super::geometry::Geometry;
use super::order::Stamp;
use super::unit::{HostOffset, byte_count};
use crate::device::SECTOR_BYTES;

/// A piece of a table in memory.
#[derive(Debug)]
pub(super) struct Slice {
    /// The table's bytes, as they should stand in the file.
    pub(super) bytes: Vec<u8>,
    /// Whether they differ from the file's.
    pub(super) dirty: bool,
    /// The youngest write that must be durable before these bytes may be written.
    pub(super) needs: Stamp,
    used: Cell<u64>,
}

impl Slice {
    /// The L2 entry at `index`.
    pub(super) fn entry(&self, index: usize, geometry: Geometry) -> L2Entry {
        L2Entry::read(&self.bytes, index, geometry)
    }

    /// Changes the L2 entry at `index`.
    pub(super) fn set_entry(&mut self, index: usize, entry: L2Entry, geometry: Geometry) {
        entry.write(&mut self.bytes, index, geometry);
        self.dirty = true;
    }
}

/// Slices under their host offsets, at most `capacity` of them.
#[derive(Debug)]
pub(super) struct Cache {
    slice_bytes: u64,
    capacity: usize,
    slices: BTreeMap<HostOffset, Slice>,
    clock: Cell<u64>,
    /// What the clock said when idle slices were last dropped.
    dropped: u64,
}

impl Cache {
    /// An empty cache for tables of this geometry, of at least one slice of `slice_bytes`: a power
    /// of two from a sector to a cluster, and brought into that range where it is not.
    pub(super) fn new(geometry: Geometry, capacity: usize, slice_bytes: u64) -> Self {
        let slice_bytes = slice_bytes
            .next_power_of_two()
            .clamp(SECTOR_BYTES, geometry.cluster_bytes());
        Self {
            slice_bytes,
            capacity: capacity.max(1),
            slices: BTreeMap::new(),
            clock: Cell::new(0),
            dropped: 0,
        }
    }

    /// Bytes in each slice.
    pub(super) fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    /// Whether the slice at `offset` is here.
    pub(super) fn contains(&self, offset: HostOffset) -> bool {
        self.slices.contains_key(&offset)
    }

    /// The slice at `offset`, which the caller has loaded.
    pub(super) fn slice(&mut self, offset: HostOffset) -> &mut Slice {
        let now = self.tick();
        let slice = self.slices.get_mut(&offset);
        let slice = slice.expect("a slice is loaded before it is used");
        slice.used.set(now);
        slice
    }

    /// The bytes of the slice at `offset`, which the caller has loaded and means to look at only.
    pub(super) fn bytes(&self, offset: HostOffset) -> &[u8] {
        let slice = self.slices.get(&offset);
        let slice = slice.expect("a slice is loaded before it is looked at");
        slice.used.set(self.tick());
        &slice.bytes
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// Puts the file's bytes in.
    pub(super) fn insert(&mut self, offset: HostOffset, bytes: Vec<u8>) {
        assert_eq!(byte_count(bytes.len()), self.slice_bytes);
        let slice = Slice {
            bytes,
            dirty: false,
            needs: Stamp::default(),
            used: Cell::new(self.tick()),
        };
        self.slices.insert(offset, slice);
    }

    /// The slice that must go before another can come, if the cache is full: the one longest unused.
    pub(super) fn victim(&self) -> Option<HostOffset> {
        if self.slices.len() < self.capacity {
            return None;
        }
        self.slices
            .iter()
            .min_by_key(|(_, slice)| slice.used.get())
            .map(|(offset, _)| *offset)
    }

    /// Drops the slices that were not used since the last call and need not be written.
    pub(super) fn drop_idle(&mut self) {
        let since = std::mem::replace(&mut self.dropped, self.clock.get());
        self.slices
            .retain(|_, slice| slice.used.get() > since || slice.dirty);
    }

    /// Whether the slice at `offset` must be written before it may go.
    pub(super) fn is_dirty(&self, offset: HostOffset) -> bool {
        self.slices.get(&offset).is_some_and(|slice| slice.dirty)
    }

    /// The offsets of all slices that differ from the file, in order.
    pub(super) fn dirty(&self) -> Vec<HostOffset> {
        self.slices
            .iter()
            .filter(|(_, slice)| slice.dirty)
            .map(|(offset, _)| *offset)
            .collect()
    }

    /// Forgets the slices of a cluster, written or not.
    pub(super) fn forget(&mut self, offset: HostOffset, len_bytes: u64) {
        let range = offset..HostOffset(offset.0 + len_bytes);
        let gone: Vec<HostOffset> = self
            .slices
            .range(range)
            .map(|(offset, _)| *offset)
            .collect();
        for offset in gone {
            self.slices.remove(&offset);
        }
    }
}
