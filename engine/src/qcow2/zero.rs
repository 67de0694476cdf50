//! Zeroing and discarding: changes of mappings where whole clusters or subclusters are concerned.

use std::ops::Range;

use super::data::Place;
use super::discards::GuestDiscards;
use super::entry::{Copied, Mapping};
use super::image::Qcow2;
use super::order::Stamp;
use super::subcluster::Split;
use super::unit::{GuestCluster, HostOffset, byte_count, mem_len};
use crate::defect::Defect;
use crate::error::Error;
use crate::image::Unmap;
use crate::probe::Probe;
use crate::sync::Mode;

/// What becomes of whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Zero(Unmap),
    Discard,
}

impl Qcow2 {
    /// Zeroes a range instead of writing zeroes to it.
    pub(super) async fn zero_detected(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
    ) -> Result<(), Error> {
        if self.planted.has(Defect::DetectedRoundedOut) {
            let start = offset - self.geometry.within(offset);
            let end = self.geometry.round_up(offset + len_bytes);
            let end = end.min(self.virtual_bytes.get());
            return self.zero_range(start, end - start, unmap).await;
        }
        if self.planted.has(Defect::DetectedSkipsUnallocated) {
            let first = GuestCluster(offset >> self.geometry.cluster_bits());
            let mapping = self.metadata.lock().await.mappings(first, 1).await?[0];
            let in_one = self.geometry.within(offset) + len_bytes <= self.geometry.cluster_bytes();
            if in_one && mapping == Mapping::Unallocated {
                return Ok(());
            }
        }
        self.zero_range(offset, len_bytes, unmap).await
    }

    /// Makes a range of the guest's disk read as zeroes.
    pub(super) async fn zero_range(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
    ) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, len_bytes)?;
        let unmap = self.discards.unmap(unmap);
        let _claim = self.claim(offset, len_bytes, Mode::Exclusive).await;
        if !self.planted.has(Defect::BitmapForgetsZeroes) {
            self.record_change(offset, len_bytes).await?;
        }
        self.zero_claimed(offset, len_bytes, unmap, self.virtual_bytes.get())
            .await
    }

    /// Zeroes a range that the caller has claimed, on a disk that ends at `disk_bytes`.
    pub(super) async fn zero_claimed(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
        disk_bytes: u64,
    ) -> Result<(), Error> {
        if self.raw_data.get() && !self.planted.has(Defect::RawZeroesByFlag) {
            return self.zero_raw(offset, len_bytes, unmap).await;
        }
        let end = offset + len_bytes;
        let whole = self.whole(self.geometry.subcluster_bytes(), offset..end, disk_bytes);
        let by_flag = self.version.get() >= 3 || self.backing.is_none();
        if whole.is_empty() || !by_flag {
            return self.zero_parts(offset, end).await;
        }
        self.zero_parts(offset, whole.start).await?;
        self.change(&whole, Change::Zero(unmap)).await?;
        self.zero_parts(whole.end.min(end), end).await
    }

    /// Gives up the whole clusters of a range. Parts of clusters stay as they are.
    pub(super) async fn discard_range(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, len_bytes)?;
        if self.discards.guest == GuestDiscards::Ignored {
            return Ok(());
        }
        let _claim = self.claim(offset, len_bytes, Mode::Exclusive).await;
        // Only now, since an amendment that changes the version claims the whole disk.
        if self.version.get() < 3 && self.backing.is_some() {
            // Nothing says "zeroes here" in version 2, and the backing file must not show again.
            return Ok(());
        }
        self.record_change(offset, len_bytes).await?;
        let range = offset..offset + len_bytes;
        let cluster_bytes = self.geometry.cluster_bytes();
        let whole = self.whole(cluster_bytes, range, self.virtual_bytes.get());
        if self.raw_data.get() {
            let len_bytes = whole.end.min(self.virtual_bytes.get()) - whole.start;
            return self.zero_raw(whole.start, len_bytes, Unmap::Allow).await;
        }
        self.change(&whole, Change::Discard).await
    }

    /// What of a range can be changed by mappings that say something of `unit` bytes. The last cluster
    /// of the disk is changed as a whole where the range reaches the end of the disk.
    fn whole(&self, unit: u64, range: Range<u64>, disk_bytes: u64) -> Range<u64> {
        let first = range.start.next_multiple_of(unit);
        if first >= range.end {
            return range.end..range.end;
        }
        let last = if range.end == disk_bytes {
            self.geometry.round_up(range.end)
        } else {
            range.end - range.end % unit
        };
        first..last.max(first)
    }

    /// Changes the mappings of a range of whole subclusters.
    async fn change(&self, range: &Range<u64>, change: Change) -> Result<(), Error> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let head = range.start..range.end.min(self.geometry.round_up(range.start));
        let tail = head.end.max(range.end - range.end % cluster_bytes)..range.end;
        self.zero_subclusters(&head).await?;
        self.change_clusters(&(head.end..tail.start), change)
            .await?;
        self.zero_subclusters(&tail).await
    }

    /// Makes subclusters of one cluster read as zeroes. Its host cluster is kept, as QEMU does.
    async fn zero_subclusters(&self, range: &Range<u64>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        let cluster = GuestCluster(range.start >> self.geometry.cluster_bits());
        let within = self.geometry.within(range.start);
        let mask = self
            .geometry
            .subclusters_of(&(within..within + (range.end - range.start)));
        {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let old = metadata.mappings(cluster, 1).await?[0];
            if !matches!(old, Mapping::Compressed(_)) {
                let (host, parts) = old.parts();
                let new = Mapping::of_parts(host, parts.with_zero(mask));
                if new != old && !self.reads_zero(old) {
                    metadata.link(cluster, &[new], Stamp::default()).await?;
                }
                return Ok(());
            }
        }
        // A compressed cluster has no subclusters.
        self.zero_parts(range.start, range.end).await
    }

    async fn change_clusters(&self, range: &Range<u64>, change: Change) -> Result<(), Error> {
        let bits = self.geometry.cluster_bits();
        let mut cluster = range.start >> bits;
        let end = range.end >> bits;
        while cluster < end {
            let first = GuestCluster(cluster);
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let old = metadata.mappings(first, end - cluster).await?;
            let new: Vec<Mapping> = old.iter().map(|old| self.changed(*old, change)).collect();
            if new != old {
                self.note_change(&old, &new);
                drop(metadata);
                self.unmap_data(first, &old, &new).await;
                metadata = self.metadata.lock().await;
                metadata.must_be_sound()?;
                metadata.link(first, &new, Stamp::default()).await?;
            }
            if change != Change::Zero(Unmap::Keep) {
                metadata.punch_kept(first, &old, &new)?;
            }
            cluster += byte_count(old.len());
        }
        Ok(())
    }

    /// Tells of what is rare in a change of mappings.
    fn note_change(&self, old: &[Mapping], new: &[Mapping]) {
        for (old, new) in old.iter().zip(new) {
            if matches!(old, Mapping::Compressed(_)) {
                self.order.note(Probe::CompressedDropped);
            }
            let keeps = matches!(new, Mapping::Zero { reserve: Some(_) });
            if keeps && old.has_content() {
                self.order.note(Probe::ZeroKept);
            }
        }
    }

    /// What a mapping becomes.
    fn changed(&self, old: Mapping, change: Change) -> Mapping {
        let gone = if self.version.get() >= 3 {
            Mapping::Zero { reserve: None }
        } else {
            Mapping::Unallocated
        };
        if change != Change::Zero(Unmap::Keep)
            && let Some(kept) = self.with_cluster_kept(old)
        {
            return kept;
        }
        match (old, change) {
            (Mapping::Unallocated, _) if self.backing.is_none() => old,
            (Mapping::Zero { .. }, Change::Zero(Unmap::Keep)) => old,
            (
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                }
                | Mapping::Split(Split {
                    cluster: Some((offset, Copied::Yes)),
                    ..
                }),
                Change::Zero(Unmap::Keep),
            ) if self.version.get() >= 3 => Mapping::Zero {
                reserve: Some((offset, Copied::Yes)),
            },
            (
                Mapping::Unallocated
                | Mapping::Zero { .. }
                | Mapping::Data { .. }
                | Mapping::Compressed(_)
                | Mapping::Split(_),
                Change::Zero(_) | Change::Discard,
            ) => gone,
        }
    }

    /// Writes zeroes where no mapping can say them, cluster by subcluster.
    async fn zero_parts(&self, start: u64, end: u64) -> Result<(), Error> {
        let mut here = start;
        while here < end {
            let within = self.geometry.within(here);
            let unit = self.geometry.subcluster_bytes();
            let len = (unit - within % unit).min(end - here);
            self.zero_part(here, within, len).await?;
            here += len;
        }
        Ok(())
    }

    async fn zero_part(&self, offset: u64, within: u64, len_bytes: u64) -> Result<(), Error> {
        let cluster = GuestCluster(offset >> self.geometry.cluster_bits());
        let in_place = {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let mapping = metadata.mappings(cluster, 1).await?[0];
            match mapping.at(self.geometry, within).0 {
                mapping if self.reads_zero(mapping) => return Ok(()),
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                } => {
                    let host = HostOffset(offset.0 + within);
                    metadata.guard_data(host, len_bytes).await?;
                    Some(host)
                }
                Mapping::Unallocated
                | Mapping::Zero { .. }
                | Mapping::Data { .. }
                | Mapping::Compressed(_)
                | Mapping::Split(_) => None,
            }
        };
        match in_place {
            Some(host) => {
                let guest = offset;
                self.zero_data(Place { host, guest }, len_bytes)
                    .await
                    .map(drop)
            }
            None => {
                self.write_claimed(offset, vec![0; mem_len(len_bytes)])
                    .await
            }
        }
    }
}
