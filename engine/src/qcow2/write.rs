//! Writing guest data: in place where the mapping allows, into new clusters otherwise.

use std::ops::Range;

use super::alloc::{Content, Run};
use super::data::Place;
use super::discards::Source;
use super::entry::{Copied, Mapping};
use super::geometry::Geometry;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::subcluster::{Split, Subclusters};
use super::unit::{GuestCluster, HostCluster, HostOffset, byte_count, mem_len};
use crate::defect::Defect;
use crate::error::Error;
use crate::probe::Probe;
use crate::sync::Mode;

/// The most that one allocating step writes, so that copies stay bounded; at least a cluster.
const STEP_BYTES: u64 = 2 << 20;

/// Where a step writes, and what it replaces.
struct Target {
    run: Run,
    origin: Origin,
    first: GuestCluster,
    old: Vec<Mapping>,
}

/// Data on their way. Who writes all of them in one request takes the buffer itself: data may be much, and
/// every copy takes about as long as a disk in memory takes to write them.
struct Rest {
    data: Vec<u8>,
    /// Bytes that were taken.
    done: usize,
    left: usize,
}

/// The bytes that a step fills, from the start of its first cluster on: whole subclusters.
type Fill = Range<u64>;

/// Whose clusters a step writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Allocated for it.
    New,
    /// Kept in reserve by the mapping that it replaces.
    Reserve,
    /// In the external data file, where each guest cluster has its place and nothing is allocated.
    DataFile,
}

impl Qcow2 {
    /// Writes a range of the guest's disk.
    pub(super) async fn write_range(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        match self.detect_zeroes.instead_of(&data) {
            Some(unmap) => {
                self.zero_detected(offset, byte_count(data.len()), unmap)
                    .await
            }
            None => self.write_held_range(offset, data).await,
        }
    }

    /// Writes a range of the guest's disk byte by byte, zeroes too.
    pub(super) async fn write_held_range(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, byte_count(data.len()))?;
        let mut rest = Rest::from(data);
        {
            let _claim = self
                .claim(offset, byte_count(rest.left), Mode::Shared)
                .await;
            self.record_change(offset, byte_count(rest.left)).await?;
            while rest.left > 0 {
                let here = offset + byte_count(rest.done);
                if self.overwrite(here, &mut rest).await? == Overwritten::Nothing {
                    break;
                }
            }
        }
        if rest.left == 0 {
            return Ok(());
        }
        let here = offset + byte_count(rest.done);
        let _claim = self
            .claim(here, byte_count(rest.left), Mode::Exclusive)
            .await;
        // Bitmaps may have been cleared between the two claims.
        self.record_change(here, byte_count(rest.left)).await?;
        self.write_rest(offset, rest).await
    }

    /// Writes a range that the caller has claimed for itself.
    pub(super) async fn write_claimed(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.write_rest(offset, Rest::from(data)).await
    }

    /// Writes what is left of the data that start at `offset`.
    async fn write_rest(&self, offset: u64, mut rest: Rest) -> Result<(), Error> {
        while rest.left > 0 {
            let here = offset + byte_count(rest.done);
            match self.overwrite(here, &mut rest).await? {
                Overwritten::Some => {}
                Overwritten::Nothing if self.raw_data.get() => {
                    self.expose(here, byte_count(rest.left)).await?;
                }
                Overwritten::Nothing => self.write_new(here, &mut rest).await?,
            }
        }
        Ok(())
    }

    /// Overwrites in place as much as the mapping allows.
    async fn overwrite(&self, offset: u64, rest: &mut Rest) -> Result<Overwritten, Error> {
        let within = self.geometry.within(offset);
        let clusters = self.geometry.clusters_for(within + byte_count(rest.left));
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        let host = {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let mappings = metadata.mappings(first, clusters).await?;
            let Some((host, len)) = self.in_place(&mappings, within) else {
                return Ok(Overwritten::Nothing);
            };
            let len = len.min(byte_count(rest.left));
            metadata.guard_data(host, len).await?;
            (host, mem_len(len))
        };
        let (host, len) = host;
        let guest = offset;
        self.write_data(Place { host, guest }, rest.take(len))
            .await?;
        Ok(Overwritten::Some)
    }

    /// The adjacent bytes of the file that may be overwritten, from `within` the first mapping on.
    fn in_place(&self, mappings: &[Mapping], mut within: u64) -> Option<(HostOffset, u64)> {
        let mut run: Option<(HostOffset, u64)> = None;
        for mapping in mappings {
            let (
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                },
                more,
            ) = mapping.at(self.geometry, within)
            else {
                break;
            };
            let here = HostOffset(offset.0 + within);
            let (start, len) = run.unwrap_or((here, 0));
            if here.0 != start.0 + len {
                break;
            }
            run = Some((start, len + more));
            if within + more < self.geometry.cluster_bytes() {
                break;
            }
            within = 0;
        }
        run
    }

    /// Writes into clusters that nothing links yet, then links them.
    async fn write_new(&self, offset: u64, rest: &mut Rest) -> Result<(), Error> {
        if rest.done > 0 {
            self.order.note(Probe::WrittenInPart);
        }
        let within = self.geometry.within(offset);
        let wanted =
            within + byte_count(rest.left).min(STEP_BYTES.max(self.geometry.cluster_bytes()));
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        let target = {
            let mut metadata = self.metadata.lock().await;
            self.target(&mut metadata, first, self.geometry.clusters_for(wanted))
                .await?
        };
        let room = target.run.count * self.geometry.cluster_bytes() - within;
        let len = mem_len(room.min(byte_count(rest.left)));
        let fill = self.fill_of(&target, within..within + byte_count(len));
        let data = rest.take(len);
        let written = match self.write_target(&target, &fill, within, data).await {
            Ok(written) => written,
            Err(error) if self.planted.has(Defect::LinkedAfterFailure) => {
                self.link_target(&target, &fill, Stamp::default()).await?;
                return Err(error);
            }
            Err(error) => {
                self.abandon(&target).await;
                return Err(error);
            }
        };
        if let Err(error) = self.link_target(&target, &fill, written).await {
            self.abandon(&target).await;
            return Err(error);
        }
        Ok(())
    }

    /// Chooses the clusters that the data go to, for as many guest clusters as stand together.
    async fn target(
        &self,
        metadata: &mut Metadata,
        first: GuestCluster,
        clusters: u64,
    ) -> Result<Target, Error> {
        metadata.must_be_sound()?;
        let mut old = metadata.mappings(first, clusters).await?;
        if let Some(offset) = reserve_of(old[0]) {
            metadata
                .guard_data(offset, self.geometry.cluster_bytes())
                .await?;
            let host = self.geometry.cluster_of(offset);
            metadata.keep_space(host);
            self.order.note(match old[0] {
                Mapping::Split(_) => Probe::SubclusterAdded,
                Mapping::Unallocated
                | Mapping::Zero { .. }
                | Mapping::Data { .. }
                | Mapping::Compressed(_) => Probe::ReserveTaken,
            });
            let run = Run {
                first: host,
                count: 1,
                content: Content::Stale,
            };
            old.truncate(1);
            return Ok(Target {
                run,
                origin: Origin::Reserve,
                first,
                old,
            });
        }
        let new = old
            .iter()
            .take_while(|mapping| needs_cluster(**mapping))
            .count();
        let (run, origin) = if self.geometry.has_external_data() {
            let run = Run {
                first: HostCluster(first.0),
                count: byte_count(new),
                content: Content::Stale,
            };
            (run, Origin::DataFile)
        } else {
            (metadata.allocate(byte_count(new)).await?, Origin::New)
        };
        old.truncate(mem_len(run.count));
        Ok(Target {
            run,
            origin,
            first,
            old,
        })
    }

    /// What a step fills: the subclusters that the data touch, and those whose content would be lost
    /// with the old cluster.
    fn fill_of(&self, target: &Target, data: Range<u64>) -> Fill {
        let subcluster = self.geometry.subcluster_bytes();
        let start = data.start - data.start % subcluster;
        let end = data.end.next_multiple_of(subcluster);
        if target.origin == Origin::Reserve {
            return start..end;
        }
        let last = target.old.len() - 1;
        let last_start = byte_count(last) * self.geometry.cluster_bytes();
        let head = target.old[0].carried(self.geometry);
        let tail = target.old[last].carried(self.geometry);
        Fill {
            start: head.map_or(start, |head| start.min(head.start)),
            end: tail.map_or(end, |tail| end.max(last_start + tail.end)),
        }
    }

    /// Writes the data, and around them what the subclusters must show besides.
    async fn write_target(
        &self,
        target: &Target,
        fill: &Fill,
        within: u64,
        data: Vec<u8>,
    ) -> Result<Stamp, Error> {
        let start = Place {
            host: self.geometry.offset_of(target.run.first),
            guest: target.first.0 << self.geometry.cluster_bits(),
        };
        let recycled =
            target.run.content == Content::Stale && !self.planted.has(Defect::RecycledNotZeroed);
        let unfilled = target.reuses_subclusters(self.geometry)
            && self.planted.has(Defect::SubclusterNotFilled);
        let bare = unfilled
            || !recycled
                && self.unwritten_reads_zero()
                && target.old.iter().all(|old| self.reads_zero(*old));
        if bare {
            return self.write_data(start.plus(within), data).await;
        }
        let mut bytes = vec![0; mem_len(fill.end - fill.start)];
        let (head, rest) = bytes.split_at_mut(mem_len(within - fill.start));
        let (body, tail) = rest.split_at_mut(data.len());
        body.copy_from_slice(&data);
        if !head.is_empty() && !tail.is_empty() {
            self.order.note(if target.old.len() == 1 {
                Probe::CopiedBothSides
            } else {
                Probe::CopiedBothEnds
            });
        }
        if !head.is_empty() {
            self.old_content(target.first, target.old[0], fill.start, head)
                .await?;
        }
        if !tail.is_empty() && !self.planted.has(Defect::CowTailLost) {
            let last = target.old.len() - 1;
            let tail_start = fill.end - byte_count(tail.len());
            let tail_within = tail_start - byte_count(last) * self.geometry.cluster_bytes();
            let cluster = GuestCluster(target.first.0 + byte_count(last));
            self.old_content(cluster, target.old[last], tail_within, tail)
                .await?;
        }
        let start = start.plus(fill.start);
        let start = if self.planted.has(Defect::CopyUnderOldVector) {
            let guest = start.guest + self.geometry.cluster_bytes();
            Place { guest, ..start }
        } else {
            start
        };
        self.write_data(start, bytes).await
    }

    /// Links clusters and subclusters whose data were written, under rules 1 and 8.
    async fn link_target(&self, target: &Target, fill: &Fill, written: Stamp) -> Result<(), Error> {
        let mut metadata = self.metadata.lock().await;
        metadata.before_link().await?;
        let new: Vec<Mapping> = (0..target.run.count)
            .zip(&target.old)
            .map(|(index, old)| self.linked(target, fill, index, *old))
            .collect();
        let is_packed = |old: &Mapping| matches!(old, Mapping::Compressed(_));
        if target.old.iter().any(is_packed) {
            self.order.note(Probe::CompressedReplaced);
        }
        let only_zero_shows = target.run.content == Content::Zero
            && self.unwritten_reads_zero()
            && target.old.iter().all(|old| self.reads_zero(*old));
        let untimely =
            target.reuses_subclusters(self.geometry) && self.planted.has(Defect::BitmapBeforeData);
        let needs = if metadata.dirty && only_zero_shows || untimely {
            Stamp::default()
        } else {
            written
        };
        metadata.link(target.first, &new, needs).await
    }

    /// The mapping of a step's cluster number `index`, filled, that was mapped as `old` before.
    fn linked(&self, target: &Target, fill: &Fill, index: u64, old: Mapping) -> Mapping {
        let cluster_bytes = self.geometry.cluster_bytes();
        let start = index * cluster_bytes;
        let offset = HostOffset(self.geometry.offset_of(target.run.first).0 + start);
        let within = fill.start.max(start) - start..fill.end.min(start + cluster_bytes) - start;
        let (_, mut parts) = old.parts();
        if self.planted.has(Defect::ZeroBitsLost) {
            parts.zero = 0;
        }
        let parts = parts.with_allocated(self.geometry.subclusters_of(&within));
        Mapping::of_parts(Some((offset, Copied::Yes)), parts)
    }

    /// Gives clusters back that were never linked.
    async fn abandon(&self, target: &Target) {
        if target.origin == Origin::New {
            // If even this fails, a leak is all that remains.
            let run = target.run;
            let _ = self
                .metadata
                .lock()
                .await
                .free_now(Source::Replaced, run.first, run.count)
                .await;
        }
    }

    /// Whether zeroes in the file are zeroes of the guest's: under a cipher they are not, and a cluster
    /// is written whole before it is linked.
    fn unwritten_reads_zero(&self) -> bool {
        self.crypto.is_none() || self.planted.has(Defect::FreshClusterUnencrypted)
    }

    /// Whether a mapping shows nothing but zeroes.
    pub(super) fn reads_zero(&self, mapping: Mapping) -> bool {
        match mapping {
            Mapping::Zero { .. } => true,
            Mapping::Unallocated => self.backing.is_none(),
            Mapping::Data { .. } | Mapping::Compressed(_) => false,
            Mapping::Split(Split { parts, .. }) => {
                parts.allocated == 0 && (parts.zero == Subclusters::ALL || self.backing.is_none())
            }
        }
    }
}

/// Whether a mapping allowed to overwrite anything in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overwritten {
    Nothing,
    Some,
}

impl From<Vec<u8>> for Rest {
    fn from(data: Vec<u8>) -> Self {
        Self {
            left: data.len(),
            data,
            done: 0,
        }
    }
}

impl Rest {
    /// Takes the next `len` bytes.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let part = if len == self.data.len() {
            std::mem::take(&mut self.data)
        } else {
            self.data[self.done..self.done + len].to_vec()
        };
        self.done += len;
        self.left -= len;
        part
    }
}

impl Target {
    /// Whether subclusters of a cluster in use are to be allocated.
    fn reuses_subclusters(&self, geometry: Geometry) -> bool {
        self.origin == Origin::Reserve && geometry.has_subclusters()
    }
}

/// The host cluster that a write to this mapping can use without taking a new one, and which holds
/// nothing yet where it is written: what it holds already is written in place.
fn reserve_of(mapping: Mapping) -> Option<HostOffset> {
    match mapping {
        Mapping::Zero {
            reserve: Some((offset, Copied::Yes)),
        }
        | Mapping::Split(Split {
            cluster: Some((offset, Copied::Yes)),
            ..
        }) => Some(offset),
        Mapping::Unallocated
        | Mapping::Zero { .. }
        | Mapping::Data { .. }
        | Mapping::Compressed(_)
        | Mapping::Split(_) => None,
    }
}

/// Whether a write to this mapping takes a new cluster.
fn needs_cluster(mapping: Mapping) -> bool {
    match mapping {
        Mapping::Data { copied, .. } => copied == Copied::No,
        Mapping::Unallocated
        | Mapping::Zero { .. }
        | Mapping::Compressed(_)
        | Mapping::Split(_) => reserve_of(mapping).is_none(),
    }
}
