//! Zeroing and discarding: changes of mappings where whole clusters are concerned.

use super::data::Place;
use super::entry::{Copied, Mapping};
use super::image::Qcow2;
use super::order::Stamp;
use super::unit::{GuestCluster, HostOffset, byte_count, mem_len};
use crate::error::Error;
use crate::image::Unmap;
use crate::sync::Mode;

/// What becomes of whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Zero(Unmap),
    Discard,
}

impl Qcow2 {
    /// Makes a range of the guest's disk read as zeroes.
    pub(super) async fn zero_range(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
    ) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, len_bytes)?;
        let _claim = self.claim(offset, len_bytes, Mode::Exclusive).await;
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
        let end = offset + len_bytes;
        let whole = self.whole_clusters(offset, end, disk_bytes);
        let by_flag = self.version.get() >= 3 || self.backing.is_none();
        if whole.is_empty() || !by_flag {
            return self.zero_parts(offset, end).await;
        }
        self.zero_parts(offset, whole.start).await?;
        self.change_clusters(&whole, Change::Zero(unmap)).await?;
        self.zero_parts(whole.end.min(end), end).await
    }

    /// Gives up the whole clusters of a range. Parts of clusters stay as they are.
    pub(super) async fn discard_range(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, len_bytes)?;
        if self.version.get() < 3 && self.backing.is_some() {
            // Nothing says "zeroes here" in version 2, and the backing file must not show again.
            return Ok(());
        }
        let _claim = self.claim(offset, len_bytes, Mode::Exclusive).await;
        let whole = self.whole_clusters(offset, offset + len_bytes, self.virtual_bytes.get());
        self.change_clusters(&whole, Change::Discard).await
    }

    /// The bytes of the clusters that lie wholly in `start..end`. The last cluster of the disk counts
    /// as whole where the range reaches the end of the disk.
    fn whole_clusters(&self, start: u64, end: u64, disk_bytes: u64) -> std::ops::Range<u64> {
        let first = self.geometry.round_up(start);
        let last = if end == disk_bytes {
            self.geometry.round_up(end)
        } else {
            end - self.geometry.within(end)
        };
        first..last.max(first)
    }

    async fn change_clusters(
        &self,
        range: &std::ops::Range<u64>,
        change: Change,
    ) -> Result<(), Error> {
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
                metadata.link(first, &new, Stamp::default()).await?;
            }
            cluster += byte_count(old.len());
        }
        Ok(())
    }

    /// What a mapping becomes.
    fn changed(&self, old: Mapping, change: Change) -> Mapping {
        let gone = if self.version.get() >= 3 {
            Mapping::Zero { reserve: None }
        } else {
            Mapping::Unallocated
        };
        match (old, change) {
            (Mapping::Unallocated, _) if self.backing.is_none() => old,
            (Mapping::Zero { .. }, Change::Zero(Unmap::Keep)) => old,
            (
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                },
                Change::Zero(Unmap::Keep),
            ) if self.version.get() >= 3 => Mapping::Zero {
                reserve: Some((offset, Copied::Yes)),
            },
            (
                Mapping::Unallocated
                | Mapping::Zero { .. }
                | Mapping::Data { .. }
                | Mapping::Compressed(_),
                Change::Zero(_) | Change::Discard,
            ) => gone,
        }
    }

    /// Writes zeroes where no mapping can say them, cluster by cluster.
    async fn zero_parts(&self, start: u64, end: u64) -> Result<(), Error> {
        let mut here = start;
        while here < end {
            let within = self.geometry.within(here);
            let len = (self.geometry.cluster_bytes() - within).min(end - here);
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
            match metadata.mappings(cluster, 1).await?[0] {
                mapping if self.reads_zero(mapping) => return Ok(()),
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                } => {
                    let host = HostOffset(offset.0 + within);
                    metadata.guard(host, len_bytes).await?;
                    Some(host)
                }
                Mapping::Unallocated
                | Mapping::Zero { .. }
                | Mapping::Data { .. }
                | Mapping::Compressed(_) => None,
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
                self.write_claimed(offset, &vec![0; mem_len(len_bytes)])
                    .await
            }
        }
    }
}
