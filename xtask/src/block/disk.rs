//! A guest's disk for requests of any byte: the one place that makes sectors of them.
//!
//! A request that does not start and end at sectors reads the sectors at its edges, changes them, and
//! writes all of it back; nothing else touches those sectors meanwhile. Where the cache mode promises
//! it, or the caller asks for it, what was written is durable when the request ends.

use std::ops::Range;
use std::rc::Rc;

use engine::device::SECTOR_BYTES;
use engine::error::{Error, Refused};
use engine::image::{Image, StatusKind, Unmap};
use engine::qcow2::{GuestDiscards, Qcow2};
use engine::sync::{Mode, RangeLock};
use engine::zeroes::is_zero;

use super::direct::Direct;
use super::runtime::Generic;
use super::{CacheMode, Format, Node};

/// When a write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// As the cache mode promises.
    ByCacheMode,
    /// When it ends (forced unit access).
    AtOnce,
}

/// What a read leaves in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// Nothing.
    Plain,
    /// A copy of what came from beneath.
    CopyOnRead,
}

/// Whether zeroes may be written as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    Allowed,
    Refused,
}

/// A disk whose requests may overlap.
#[derive(Clone)]
pub(crate) struct Disk(Rc<Inner>);

struct Inner {
    image: Rc<dyn Image>,
    /// The image, where its format keeps VM state.
    qcow2: Option<Rc<Qcow2>>,
    format: Format,
    cluster_bytes: u64,
    has_backing: bool,
    cache: CacheMode,
    read_mode: ReadMode,
    generic: Generic,
    sectors: RangeLock,
    direct: Option<Direct>,
}

impl Disk {
    /// The disk of an open node.
    pub(crate) fn new(node: &Node, cache: CacheMode, read_mode: ReadMode) -> Self {
        let header = node.header.as_ref();
        Self(Rc::new(Inner {
            image: Rc::clone(node.image()),
            qcow2: node.qcow2.clone(),
            format: node.format,
            cluster_bytes: header.map_or(SECTOR_BYTES, |header| header.geometry.cluster_bytes()),
            has_backing: node.backing.is_some(),
            cache,
            read_mode,
            generic: node.generic,
            sectors: RangeLock::default(),
            direct: node.direct.clone(),
        }))
    }

    /// Reads bytes.
    pub(crate) async fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Error> {
        let outer = self.outer(offset, to_u64(len_bytes))?;
        if let Some(direct) = &self.0.direct {
            return direct.read(offset, len_bytes).await;
        }
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        if self.0.read_mode == ReadMode::CopyOnRead && self.0.has_backing {
            self.copy_from_beneath(&outer).await?;
        }
        let _guard = self.0.sectors.lock(outer.clone(), Mode::Shared).await;
        let mut data = self
            .0
            .image
            .read(outer.start, to_usize(outer.end - outer.start))
            .await?;
        data.drain(..to_usize(offset - outer.start));
        data.truncate(len_bytes);
        Ok(data)
    }

    /// Writes bytes.
    pub(crate) async fn write(
        &self,
        offset: u64,
        data: Vec<u8>,
        durable: Durable,
    ) -> Result<(), Error> {
        let len_bytes = to_u64(data.len());
        let outer = self.outer(offset, len_bytes)?;
        // Before the sectors at the edges are filled up: what counts is what the caller wrote.
        if let Some(unmap) = self.0.generic.detect_zeroes().instead_of(&data) {
            if let Some(direct) = &self.0.direct {
                let (unmap, durable) = (self.unmaps(unmap), self.promise(durable));
                let fallback = Fallback::Allowed;
                return direct
                    .write_zeroes(offset, len_bytes, unmap, fallback, durable)
                    .await;
            }
            self.zero_parts(offset, len_bytes, &outer, unmap).await?;
        } else if let Some(direct) = &self.0.direct {
            return direct.write(offset, data, self.promise(durable)).await;
        } else if !data.is_empty() {
            self.write_sectors(offset, data, outer).await?;
        }
        self.settle(durable).await
    }

    async fn write_sectors(
        &self,
        offset: u64,
        data: Vec<u8>,
        outer: Range<u64>,
    ) -> Result<(), Error> {
        let end = offset + to_u64(data.len());
        if outer == (offset..end) {
            let _guard = self.0.sectors.lock(outer, Mode::Shared).await;
            return self.0.image.write(offset, data).await;
        }
        let _guard = self.0.sectors.lock(outer.clone(), Mode::Exclusive).await;
        let sector = to_usize(SECTOR_BYTES);
        let head = to_usize(offset - outer.start);
        let mut whole = if head > 0 {
            self.0.image.read(outer.start, sector).await?
        } else {
            Vec::new()
        };
        whole.truncate(head);
        whole.extend_from_slice(&data);
        if end < outer.end {
            let last = outer.end - SECTOR_BYTES;
            let tail = self.0.image.read(last, sector).await?;
            whole.extend_from_slice(&tail[to_usize(end - last)..]);
        }
        self.0.image.write(outer.start, whole).await
    }

    /// Reads VM state.
    pub(crate) async fn read_vm_state(
        &self,
        offset: u64,
        len_bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        self.keeper_of_vm_state()?
            .read_vm_state(offset, len_bytes)
            .await
    }

    /// Writes VM state.
    pub(crate) async fn write_vm_state(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.keeper_of_vm_state()?
            .write_vm_state(offset, data)
            .await?;
        self.settle(Durable::ByCacheMode).await
    }

    fn keeper_of_vm_state(&self) -> Result<&Qcow2, Error> {
        let refused = Refused::NotByFormat("a raw image keeps no VM state");
        self.0.qcow2.as_deref().ok_or_else(|| refused.into())
    }

    /// Writes compressed data.
    pub(crate) async fn write_compressed(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.0.image.write_compressed(offset, data).await?;
        self.settle(Durable::ByCacheMode).await
    }

    /// Makes bytes read as zeroes.
    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
        fallback: Fallback,
        durable: Durable,
    ) -> Result<(), Error> {
        let outer = self.outer(offset, len_bytes)?;
        if let Some(direct) = &self.0.direct {
            let (unmap, durable) = (self.unmaps(unmap), self.promise(durable));
            return direct
                .write_zeroes(offset, len_bytes, unmap, fallback, durable)
                .await;
        }
        if fallback == Fallback::Refused {
            self.must_zero_without_data(offset, offset + len_bytes)
                .await?;
        }
        self.zero_parts(offset, len_bytes, &outer, unmap).await?;
        self.settle(durable).await
    }

    async fn zero_parts(
        &self,
        offset: u64,
        len_bytes: u64,
        outer: &Range<u64>,
        unmap: Unmap,
    ) -> Result<(), Error> {
        let unmap = if self.unmaps(unmap) {
            Unmap::Allow
        } else {
            Unmap::Keep
        };
        let end = offset + len_bytes;
        let start_inner = offset.next_multiple_of(SECTOR_BYTES);
        let end_inner = end - end % SECTOR_BYTES;
        if start_inner > end_inner || (start_inner == end_inner && start_inner != offset) {
            // Less than a sector and its edges.
            return self.zero_edge(offset, end, outer.clone()).await;
        }
        if offset < start_inner {
            self.zero_edge(offset, start_inner, outer.start..start_inner)
                .await?;
        }
        if start_inner < end_inner {
            let inner = start_inner..end_inner;
            let _guard = self.0.sectors.lock(inner, Mode::Shared).await;
            let image = &self.0.image;
            image
                .write_zeroes(start_inner, end_inner - start_inner, unmap)
                .await?;
        }
        if end_inner < end {
            self.zero_edge(end_inner, end, end_inner..outer.end).await?;
        }
        Ok(())
    }

    /// Zeroes bytes of the sectors `outer`, unless they are zero: that would allocate a cluster for
    /// nothing.
    async fn zero_edge(&self, start: u64, end: u64, outer: Range<u64>) -> Result<(), Error> {
        let _guard = self.0.sectors.lock(outer.clone(), Mode::Exclusive).await;
        let len = to_usize(outer.end - outer.start);
        let mut whole = self.0.image.read(outer.start, len).await?;
        let part = &mut whole[to_usize(start - outer.start)..to_usize(end - outer.start)];
        if is_zero(part) {
            return Ok(());
        }
        part.fill(0);
        self.0.image.write(outer.start, whole).await
    }

    /// Refuses zeroes that only bytes could make: in clusters of which a part is to keep its content.
    async fn must_zero_without_data(&self, start: u64, end: u64) -> Result<(), Error> {
        if self.0.format == Format::Raw {
            return Ok(());
        }
        let cluster = self.0.cluster_bytes;
        for edge in [start, end] {
            if edge.is_multiple_of(cluster) || edge == self.0.image.virtual_bytes() {
                continue;
            }
            let from = edge - edge % cluster;
            let to = (from + cluster).min(self.0.image.virtual_bytes());
            let now = self.0.image.read(from, to_usize(to - from)).await?;
            if now.iter().any(|byte| *byte != 0) {
                return Err(
                    Refused::Option("zeroes would have to be written as bytes".into()).into(),
                );
            }
        }
        Ok(())
    }

    /// Gives up what a range holds. Of a raw disk every byte becomes zero; elsewhere sectors of which
    /// only a part is meant stay as they are.
    pub(crate) async fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let outer = self.outer(offset, len_bytes)?;
        if self.0.generic.discards() == GuestDiscards::Ignored {
            return Ok(());
        }
        if let Some(direct) = &self.0.direct {
            return direct.discard(offset, len_bytes).await;
        }
        if self.0.format == Format::Raw {
            self.zero_parts(offset, len_bytes, &outer, Unmap::Allow)
                .await?;
            return self.settle(Durable::ByCacheMode).await;
        }
        let start = offset.next_multiple_of(SECTOR_BYTES);
        let end = offset + len_bytes;
        let end = end - end % SECTOR_BYTES;
        if start < end {
            let _guard = self.0.sectors.lock(start..end, Mode::Shared).await;
            self.0.image.discard(start, end - start).await?;
        }
        self.settle(Durable::ByCacheMode).await
    }

    /// Makes durable what was written.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        self.0.image.flush().await
    }

    /// Whether zeroes may give space back.
    fn unmaps(&self, unmap: Unmap) -> bool {
        match self.0.generic.discards() {
            GuestDiscards::Ignored => false,
            GuestDiscards::Obeyed => unmap == Unmap::Allow,
        }
    }

    /// When a write is durable by all that was said.
    fn promise(&self, durable: Durable) -> Durable {
        match self.0.cache {
            CacheMode::WriteThrough => Durable::AtOnce,
            CacheMode::WriteBack | CacheMode::Unsafe => durable,
        }
    }

    async fn settle(&self, durable: Durable) -> Result<(), Error> {
        match self.promise(durable) {
            Durable::ByCacheMode => Ok(()),
            Durable::AtOnce => self.0.image.flush().await,
        }
    }

    /// Copies into the image what the clusters of a range have from beneath.
    async fn copy_from_beneath(&self, range: &Range<u64>) -> Result<(), Error> {
        let cluster = self.0.cluster_bytes;
        let disk_bytes = self.0.image.virtual_bytes();
        let end = range.end.next_multiple_of(cluster).min(disk_bytes);
        let mut here = range.start - range.start % cluster;
        let _guard = self.0.sectors.lock(here..end, Mode::Exclusive).await;
        while here < end {
            let status = self.0.image.status(here, end - here).await?;
            if status.kind == StatusKind::Unallocated {
                let mut from = here;
                let to = here + status.len_bytes;
                while from < to {
                    let len_bytes = (to - from).min(cluster);
                    let data = self.0.image.read(from, to_usize(len_bytes)).await?;
                    self.0.image.write(from, data).await?;
                    from += len_bytes;
                }
            }
            here += status.len_bytes;
        }
        Ok(())
    }

    /// The sectors that a range touches, within the disk.
    fn outer(&self, offset: u64, len_bytes: u64) -> Result<Range<u64>, Error> {
        let virtual_bytes = match &self.0.direct {
            Some(direct) => direct.virtual_bytes(),
            None => self.0.image.virtual_bytes(),
        };
        match offset.checked_add(len_bytes) {
            Some(end) if end <= virtual_bytes => {
                Ok(offset - offset % SECTOR_BYTES..end.next_multiple_of(SECTOR_BYTES))
            }
            None | Some(_) => Err(Refused::OutOfRange {
                offset,
                len_bytes,
                virtual_bytes,
            }
            .into()),
        }
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a buffer's length fits 64 bits")
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a request fits the memory")
}

#[cfg(test)]
mod tests {
    use engine::device::{Port, RamDevice, drive};
    use engine::image::Access;
    use engine::raw::Raw;
    use proptest::prelude::*;

    use super::*;

    const DISK: usize = 4096;

    fn disk() -> Disk {
        let ram = RamDevice::default();
        let port = Port::new(Rc::new(ram));
        let none = engine::device::Event::None;
        drive(port.at(none).set_len(to_u64(DISK))).unwrap().unwrap();
        Disk(Rc::new(Inner {
            image: Rc::new(Raw::open(port, Access::ReadWrite)),
            qcow2: None,
            format: Format::Raw,
            cluster_bytes: SECTOR_BYTES,
            has_backing: false,
            cache: CacheMode::WriteThrough,
            read_mode: ReadMode::Plain,
            generic: Generic::default(),
            sectors: RangeLock::default(),
            direct: None,
        }))
    }

    #[test]
    fn what_lies_beyond_the_disk_is_refused() {
        let disk = disk();
        assert!(drive(disk.read(4096, 1)).unwrap().is_err());
        assert!(drive(disk.read(u64::MAX, 2)).unwrap().is_err());
        assert!(drive(disk.read(4096, 0)).unwrap().unwrap().is_empty());
        let beyond = disk.write(4090, vec![1; 7], Durable::ByCacheMode);
        assert!(drive(beyond).unwrap().is_err());
    }

    proptest! {
        #[test]
        fn any_byte_can_be_written_and_read(
            steps in prop::collection::vec((0..3_u8, 0..DISK, 0..1500_usize, 1..=255_u8), 1..12),
        ) {
            let disk = disk();
            let mut model = vec![0; DISK];
            for (kind, start, len, byte) in steps {
                let len = len.min(DISK - start);
                let offset = to_u64(start);
                let range = start..start + len;
                match kind {
                    0 => {
                        let written = disk.write(offset, vec![byte; len], Durable::AtOnce);
                        drive(written).unwrap().unwrap();
                        model[range].fill(byte);
                    }
                    1 => {
                        let zeroed = disk.write_zeroes(
                            offset,
                            to_u64(len),
                            Unmap::Keep,
                            Fallback::Allowed,
                            Durable::ByCacheMode,
                        );
                        drive(zeroed).unwrap().unwrap();
                        model[range].fill(0);
                    }
                    _ => {
                        drive(disk.discard(offset, to_u64(len))).unwrap().unwrap();
                        model[range].fill(0);
                    }
                }
            }
            let all = drive(disk.read(0, DISK)).unwrap().unwrap();
            prop_assert!(all == model);
            let part = drive(disk.read(100, 777)).unwrap().unwrap();
            prop_assert!(part == model[100..877]);
        }
    }
}
