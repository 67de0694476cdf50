//! The external data file: where guest data stand when they are not in the image file.
//!
//! Specification: "External data file", "raw external data". Each guest cluster has its place there, at
//! its guest offset, so that nothing is allocated and no refcount counts it. An L2 entry only says
//! whether the cluster's content is to be found there.
//!
//! That place is the same before and after: what is written there while the entry says something else
//! shows only once the entry is linked (rule 23), and what is written there while an older entry still
//! shows it is data that the guest wrote to that very sector.
//!
//! A raw data file reads as the disk by itself, at every moment (rule 24). Therefore its clusters are
//! mapped from the start, before the disk has them: an entry that says "zeroes" would have to agree with
//! the file after every power loss, and the file alone decides what the guest sees.

use std::ops::Range;

use super::data::Place;
use super::discards::Pass;
use super::entry::{Copied, Mapping};
use super::extension;
use super::geometry::Geometry;
use super::header::{Extension, autoclear};
use super::image::Qcow2;
use super::order::Stamp;
use super::unit::{GuestCluster, HostOffset, byte_count};
use crate::barrier::Barrier;
use crate::device::{Event, Port, Unmapped};
use crate::error::{Error, Refused};
use crate::image::Unmap;
use crate::manage::{DataFileChange, RawPromise};
use crate::sync::Mode;

/// The most that is exposed at once; at least a cluster.
const STEP_BYTES: u64 = 2 << 20;

/// Why a mapping cannot be that of a guest cluster, where that is so.
pub(super) fn misplaced(
    geometry: Geometry,
    mapping: Mapping,
    cluster: GuestCluster,
) -> Option<&'static str> {
    if !geometry.has_external_data() {
        return None;
    }
    if matches!(mapping, Mapping::Compressed(_)) {
        return Some("a compressed cluster in an image with an external data file");
    }
    match mapping.parts().0 {
        Some((offset, _)) if offset.0 != cluster.0 << geometry.cluster_bits() => {
            Some("the cluster is not at its guest offset in the external data file")
        }
        Some(_) | None => None,
    }
}

impl Qcow2 {
    /// Refuses what cannot be had where guest data stand in another file.
    pub(super) fn must_hold_its_data(&self) -> Result<(), Error> {
        if self.geometry.has_external_data() {
            let text = "an image with an external data file has no internal snapshots or VM state";
            return Err(Refused::NotByFormat(text).into());
        }
        Ok(())
    }

    /// Where a guest cluster stands in the data file, all of it shown.
    fn shown(&self, cluster: GuestCluster) -> Mapping {
        Mapping::Data {
            offset: HostOffset(cluster.0 << self.geometry.cluster_bits()),
            copied: Copied::Yes,
        }
    }

    /// Makes a range of the disk read as zeroes in a raw data file. No mapping changes: what shows the file
    /// goes on showing it, and what says "zeroes" is right.
    pub(super) async fn zero_raw(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: Unmap,
    ) -> Result<(), Error> {
        if len_bytes == 0 {
            return Ok(());
        }
        self.metadata.lock().await.must_be_sound()?;
        let host = HostOffset(offset);
        self.order
            .zero_data(Event::PwritevZero, host, len_bytes, unmap)
            .await
            .map(drop)
    }

    /// Makes the first clusters of a range, which the caller has claimed for itself, show the raw data
    /// file, which is zeroed where they do not: what they show does not change. Durable on return, so that
    /// the file may change (rule 24).
    pub(super) async fn expose(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let most = len_bytes.min(STEP_BYTES.max(cluster_bytes));
        let clusters = self
            .geometry
            .clusters_for(self.geometry.within(offset) + most);
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        let mut old = {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            metadata.mappings(first, clusters).await?
        };
        let new: Vec<Mapping> = (first.0..)
            .take(old.len())
            .map(|cluster| self.shown(GuestCluster(cluster)))
            .collect();
        let differing = old.iter().zip(&new).take_while(|(old, new)| old != new);
        let count = differing.count();
        old.truncate(count);
        let zeroed = self.zero_hidden(first, &old).await?;
        let mut metadata = self.metadata.lock().await;
        metadata.link(first, &new[..count], zeroed).await?;
        let mut written = metadata.write_back_all().await;
        if written.is_ok() {
            let latest = self.order.latest();
            written = self.order.barrier(Barrier::BeforeRawData, latest).await;
        }
        if written.is_err() {
            // The file may say either; nothing may take the new mappings for durable.
            let _ = metadata.link(first, &old, Stamp::default()).await;
        }
        written
    }

    /// Zeroes what these clusters do not show of the data file.
    async fn zero_hidden(&self, first: GuestCluster, mappings: &[Mapping]) -> Result<Stamp, Error> {
        let mut zeroed = Stamp::default();
        for (cluster, mapping) in (first.0..).zip(mappings) {
            let start = cluster << self.geometry.cluster_bits();
            let mut within = 0;
            while within < self.geometry.cluster_bytes() {
                let (part, len) = mapping.at(self.geometry, within);
                if !matches!(part, Mapping::Data { .. }) {
                    let guest = start + within;
                    let host = HostOffset(guest);
                    let stamp = self.zero_data(Place { host, guest }, len).await?;
                    zeroed = zeroed.max(stamp);
                }
                within += len;
            }
        }
        Ok(zeroed)
    }

    /// Makes the whole clusters that start in a range of the disk show the data file, which reads as
    /// zeroes there once `needs` is durable.
    pub(super) async fn map_data_file(&self, range: Range<u64>, needs: Stamp) -> Result<(), Error> {
        let mut cluster = self.geometry.clusters_for(range.start);
        let end = self.geometry.clusters_for(range.end);
        while cluster < end {
            let first = GuestCluster(cluster);
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let old = metadata.mappings(first, end - cluster).await?;
            let new: Vec<Mapping> = (cluster..)
                .take(old.len())
                .map(|cluster| self.shown(GuestCluster(cluster)))
                .collect();
            if new != old {
                metadata.link(first, &new, needs).await?;
            }
            cluster += byte_count(new.len());
        }
        Ok(())
    }

    /// Makes the data file as long as the grown disk. A raw one reads as zeroes in the new part, and is
    /// mapped there.
    pub(super) async fn grow_data_file(
        &self,
        old_bytes: u64,
        virtual_bytes: u64,
    ) -> Result<(), Error> {
        let raw = self.raw_data.get();
        let mut needs = Stamp::default();
        let stale_end = self.order.data_file().len().min(virtual_bytes);
        if raw && old_bytes < stale_end {
            // The file may have been longer than the disk.
            let (event, host) = (Event::PwritevZero, HostOffset(old_bytes));
            let len_bytes = stale_end - old_bytes;
            needs = self
                .order
                .zero_data(event, host, len_bytes, Unmap::Keep)
                .await?;
        }
        needs = needs.max(self.order.lengthen_data(virtual_bytes).await?);
        if raw {
            self.map_data_file(old_bytes..virtual_bytes, needs).await?;
        }
        Ok(())
    }

    /// Gives back the space of clusters that are shown no more, where that leaves zeroes or what was there:
    /// until the change of mappings is durable, the guest may see it. Advice.
    pub(super) async fn unmap_data(&self, first: GuestCluster, old: &[Mapping], new: &[Mapping]) {
        let gives_zeroes = self.order.data_file().limits().unmapped == Unmapped::Zeroes;
        let passed = self.discards.request == Pass::Yes;
        if !self.geometry.has_external_data() || self.raw_data.get() || !gives_zeroes || !passed {
            return;
        }
        let place = |mapping: &Mapping| mapping.parts().0.is_some();
        let gone: Vec<bool> = old
            .iter()
            .zip(new)
            .map(|(old, new)| place(old) && !place(new))
            .collect();
        let mut at = first.0;
        for run in gone.chunk_by(|one, other| one == other) {
            let end = at + byte_count(run.len());
            if run[0] {
                let bits = self.geometry.cluster_bits();
                let bytes = at << bits..(end << bits).min(self.virtual_bytes.get());
                let len_bytes = bytes.end.saturating_sub(bytes.start);
                let (event, host) = (Event::ClusterFree, HostOffset(bytes.start));
                let _ = self
                    .order
                    .zero_data(event, host, len_bytes, Unmap::Allow)
                    .await;
            }
            at = end;
        }
    }

    /// Changes what the header says of the data file. Before or after, and durable on return.
    pub(super) async fn set_data_file(&self, change: DataFileChange) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let DataFileChange { name, raw } = change;
        if !self.geometry.has_external_data() {
            let text = "a data file can only be set for images that use an external data file";
            return Err(Refused::Option(text.into()).into());
        }
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let mut header = metadata.load_header().await?;
        if let Some(name) = name {
            let (kind, data) = (extension::DATA_FILE, name.into_bytes());
            let named = |one: &Extension| one.kind == kind;
            match header.extensions.iter().position(named) {
                _ if data.is_empty() => header.extensions.retain(|one| !named(one)),
                Some(at) => header.extensions[at].data = data,
                None => header.extensions.push(Extension { kind, data }),
            }
        }
        if raw == RawPromise::Withdraw {
            header.autoclear &= !autoclear::RAW_DATA_FILE;
        }
        metadata.rewrite_header(&header).await?;
        if raw == RawPromise::Withdraw {
            self.raw_data.set(false);
        }
        Ok(())
    }

    /// Maps all of a new data file, whose every byte is zero.
    pub(super) async fn map_new_data_file(&self) -> Result<(), Error> {
        self.map_data_file(0..self.virtual_bytes.get(), Stamp::default())
            .await
    }
}

/// Makes a data file as long as a new disk, and all zeroes.
pub(super) async fn create(file: &Port, virtual_bytes: u64) -> Result<(), Error> {
    let at = file.at(Event::None);
    at.set_len(0).await?;
    at.set_len(virtual_bytes).await?;
    Ok(at.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_stands_at_its_guest_offset_or_nowhere() {
        let geometry = Geometry::new(16, 4).unwrap();
        let here = |cluster: u64| Mapping::Data {
            offset: HostOffset(cluster << 16),
            copied: Copied::Yes,
        };
        let external = geometry.with_external_data();
        assert_eq!(misplaced(geometry, here(3), GuestCluster(2)), None);
        assert_eq!(misplaced(external, here(2), GuestCluster(2)), None);
        assert!(misplaced(external, here(3), GuestCluster(2)).is_some());
        assert_eq!(
            misplaced(external, Mapping::Unallocated, GuestCluster(2)),
            None
        );
    }
}
