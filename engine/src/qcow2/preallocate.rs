//! Preallocation: clusters that are mapped before the guest writes to them.
//!
//! A cluster is mapped only when the file durably reaches its end and, where its content shows, durably
//! has zeroes there (rules 1 and 10). Its content shows in a plain L2 table; not in an extended one, whose
//! subclusters stay unallocated, and not under a cipher, where zeroes in the file are no zeroes of the
//! guest's: such clusters are mapped as zeroes that keep a place.

use super::alloc::{Content, Run};
use super::discards::Source;
use super::entry::{Copied, L1Entry, L2Entry, Mapping};
use super::geometry::Geometry;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::subcluster::Subclusters;
use super::unit::{GuestCluster, HostCluster, HostOffset, byte_count, mem_len};
use crate::defect::Defect;
use crate::device::{Event, Port};
use crate::error::{Error, Refused};
use crate::image::Unmap;
use crate::preallocation::Preallocation;

/// Tables are written in pieces of about this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// What a cluster is mapped as that has a place and that nobody has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// As data: zeroes stand in its place.
    Data,
    /// As zeroes, whatever stands in its place.
    Zero,
}

impl Unwritten {
    /// How an image says it, or why it cannot.
    pub(super) fn of(version: u32, is_encrypted: bool) -> Result<Self, Error> {
        match (is_encrypted, version) {
            (false, _) => Ok(Self::Data),
            (true, 3..) => Ok(Self::Zero),
            (true, _) => Err(Refused::Option(
                "an encrypted image of version 2 cannot say that a preallocated cluster reads as zeroes: use version 3".into(),
            )
            .into()),
        }
    }

    /// The mapping of such a cluster at `offset`, of which `parts` say what its subclusters show.
    fn mapping(self, geometry: Geometry, offset: HostOffset, parts: Subclusters) -> Mapping {
        let cluster = (offset, Copied::Yes);
        if geometry.has_subclusters() {
            return Mapping::of_parts(Some(cluster), parts);
        }
        match self {
            Self::Data => {
                let (offset, copied) = cluster;
                Mapping::Data { offset, copied }
            }
            Self::Zero => Mapping::Zero {
                reserve: Some(cluster),
            },
        }
    }
}

/// The L1 and L2 tables of a new disk whose every cluster has its place, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTables {
    pub(super) geometry: Geometry,
    pub(super) unwritten: Unwritten,
    /// How many clusters the disk has.
    pub(super) clusters: u64,
    /// Where the L1 table goes.
    pub(super) l1: HostOffset,
    /// Where the first L2 table goes; the others follow.
    pub(super) l2: HostOffset,
    /// Where the guest's first cluster has its place; the others follow. It may be 0 only in a data file.
    pub(super) data: HostOffset,
}

impl NewTables {
    /// How many L2 tables there are.
    pub(super) fn count(&self) -> u64 {
        self.clusters.div_ceil(self.geometry.l2_entries())
    }

    /// Writes the tables.
    pub(super) async fn write(&self, file: &Port) -> Result<(), Error> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let at_once = (PIECE_BYTES / cluster_bytes).max(1);
        let mut first = 0;
        while first < self.count() {
            let count = at_once.min(self.count() - first);
            let at = self.l2.0 + first * cluster_bytes;
            let bytes = self.l2_tables(first, count);
            file.at(Event::L2AllocWrite).write(at, bytes).await?;
            first += count;
        }
        let mut l1: Vec<u8> = (0..self.count())
            .map(|table| HostOffset(self.l2.0 + table * cluster_bytes))
            .flat_map(|offset| {
                let copied = Copied::Yes;
                let entry = L1Entry::Table { offset, copied };
                entry.encode().0.to_be_bytes()
            })
            .collect();
        l1.resize(l1.len().next_multiple_of(self.geometry.cluster_len()), 0);
        if !l1.is_empty() {
            file.at(Event::L1Update).write(self.l1.0, l1).await?;
        }
        Ok(())
    }

    /// The bytes of `count` L2 tables from number `first` on.
    fn l2_tables(&self, first: u64, count: u64) -> Vec<u8> {
        let geometry = self.geometry;
        let entries = geometry.l2_entries();
        let start = first * entries;
        let end = self.clusters.min((first + count) * entries);
        let mut bytes = vec![0; mem_len(count * geometry.cluster_bytes())];
        for cluster in start..end {
            let offset = HostOffset(self.data.0 + cluster * geometry.cluster_bytes());
            let none = Subclusters::default();
            let entry: L2Entry = self
                .unwritten
                .mapping(geometry, offset, none)
                .encode(geometry);
            entry.write(&mut bytes, mem_len(cluster - start), geometry);
        }
        bytes
    }
}

impl Qcow2 {
    /// Refuses to preallocate where a preallocated cluster could not read as zeroes.
    pub(super) fn may_preallocate(&self, mode: Preallocation) -> Result<Unwritten, Error> {
        if mode == Preallocation::Off || self.geometry.has_external_data() {
            return Ok(Unwritten::Data);
        }
        Unwritten::of(self.version.get(), self.crypto.is_some())
    }

    /// Gives what a larger disk adds its place, so far as it has none and shows nothing of another.
    /// The caller has claimed the whole disk and made the new part read as zeroes.
    pub(super) async fn preallocate(
        &self,
        old_bytes: u64,
        virtual_bytes: u64,
        mode: Preallocation,
    ) -> Result<(), Error> {
        let unwritten = self.may_preallocate(mode)?;
        if mode == Preallocation::Off {
            return Ok(());
        }
        if self.geometry.has_external_data() {
            return self
                .preallocate_data_file(old_bytes, virtual_bytes, mode)
                .await;
        }
        let mut cluster = GuestCluster(old_bytes >> self.geometry.cluster_bits());
        let end = self.geometry.clusters_for(virtual_bytes);
        while cluster.0 < end {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let old = metadata.mappings(cluster, end - cluster.0).await?;
            let takes = |mapping: &&Mapping| self.takes_place(**mapping);
            let kept = old.iter().take_while(|mapping| !takes(mapping)).count();
            if kept > 0 {
                cluster.0 += byte_count(kept);
                continue;
            }
            let wanted = old.iter().take_while(takes).count();
            metadata.before_link().await?;
            let run = metadata.allocate(byte_count(wanted)).await?;
            if let Err(error) = self
                .map_unwritten(&mut metadata, cluster, &old, run, (unwritten, mode))
                .await
            {
                // Nothing is linked; if even this fails, a leak is all that remains.
                let _ = metadata.free_now(Source::Other, run.first, run.count).await;
                return Err(error);
            }
            cluster.0 += run.count;
        }
        Ok(())
    }

    /// The same in a data file, where every cluster has its place already.
    async fn preallocate_data_file(
        &self,
        old_bytes: u64,
        virtual_bytes: u64,
        mode: Preallocation,
    ) -> Result<(), Error> {
        let unmap = if mode.takes_space() {
            Unmap::Keep
        } else {
            Unmap::Allow
        };
        let (host, len_bytes) = (HostOffset(old_bytes), virtual_bytes - old_bytes);
        if len_bytes == 0 {
            return Ok(());
        }
        let event = Event::PwritevZero;
        let zeroed = self.order.zero_data(event, host, len_bytes, unmap).await?;
        if self.crypto.is_some() {
            // These are no zeroes of the guest's: they stay hidden.
            return Ok(());
        }
        self.map_data_file(old_bytes..virtual_bytes, zeroed).await
    }

    /// Whether a cluster may be given a place: it has none, and nothing of it stands elsewhere.
    fn takes_place(&self, mapping: Mapping) -> bool {
        match mapping {
            Mapping::Compressed(_) | Mapping::Data { .. } => false,
            Mapping::Unallocated | Mapping::Zero { .. } | Mapping::Split(_) => {
                let hides = !self.geometry.has_subclusters() && !self.reads_zero(mapping);
                let may_hide = self.planted.has(Defect::PreallocatedHides);
                mapping.parts().0.is_none() && (!hides || may_hide)
            }
        }
    }

    async fn map_unwritten(
        &self,
        metadata: &mut Metadata,
        first: GuestCluster,
        old: &[Mapping],
        run: Run,
        (unwritten, mode): (Unwritten, Preallocation),
    ) -> Result<(), Error> {
        let shows = unwritten == Unwritten::Data && !self.geometry.has_subclusters();
        let ready = self.make_ready(run, mode, shows).await?;
        let new: Vec<Mapping> = (run.first.0..run.first.0 + run.count)
            .zip(old)
            .map(|(cluster, old)| {
                let offset = self.geometry.offset_of(HostCluster(cluster));
                unwritten.mapping(self.geometry, offset, old.parts().1)
            })
            .collect();
        let needs = if self.planted.has(Defect::PreallocatedLate) {
            Stamp::default()
        } else {
            ready
        };
        metadata.link(first, &new, needs).await
    }

    /// Makes the file long enough for new clusters, and zero there where that shows.
    async fn make_ready(&self, run: Run, mode: Preallocation, shows: bool) -> Result<Stamp, Error> {
        let offset = self.geometry.offset_of(run.first);
        let len_bytes = run.count * self.geometry.cluster_bytes();
        let end = offset.0 + len_bytes;
        if self.order.file().len() < end {
            self.order.set_len(end).await?;
        }
        if mode.takes_space() {
            return self.order.occupy(offset, len_bytes, mode).await;
        }
        if shows && run.content == Content::Stale {
            let event = Event::PwritevZero;
            return self
                .order
                .zero_data(event, offset, len_bytes, Unmap::Keep)
                .await;
        }
        Ok(self.order.latest())
    }
}
