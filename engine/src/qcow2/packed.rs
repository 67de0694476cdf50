//! Storing compressed clusters: where their bytes go, and how host clusters are shared.
//!
//! Rule 22. Compressed bytes start at any byte, and the bytes of several clusters share host clusters
//! and even sectors. A disk writes whole sectors, so whoever adds to a sector that is in use writes its
//! durable bytes anew: a write that fails half-way, or a request beside it that knows less of the
//! sector, would take them along. So no sector of compressed bytes is written twice. What one call
//! stores is packed without gaps and written once; the next call starts at the next whole sector of
//! the same host cluster. What may tear is then nobody's yet.

use super::compress::{Compression, compress};
use super::discards::Source;
use super::entry::{Compressed, Mapping};
use super::free::clusters_of;
use super::geometry::Geometry;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::subcluster::Split;
use super::unit::{GuestCluster, HostCluster, HostOffset, byte_count, mem_len};
use crate::defect::Defect;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{Error, Refused, Structure};
use crate::probe::Probe;
use crate::sync::Mode;

/// Of so many compressed bytes a step writes, so that buffers stay bounded.
const STEP_BYTES: usize = 2 << 20;

/// A cluster that is ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    /// What [`compress`] made of it.
    Compressed(Vec<u8>),
    /// Its bytes: they would not shrink. The last cluster of the disk ends with the disk.
    Plain(Vec<u8>),
}

/// Makes a cluster of the guest's disk ready to be stored, wherever there is a processor to do it. The
/// last cluster of a disk may be shorter, and is filled up with zeroes.
pub fn pack(kind: Compression, geometry: Geometry, cluster: &[u8]) -> Packed {
    let packed = if cluster.len() == geometry.cluster_len() {
        compress(kind, cluster)
    } else {
        let mut whole = cluster.to_vec();
        whole.resize(geometry.cluster_len(), 0);
        compress(kind, &whole)
    };
    packed.map_or_else(|| Packed::Plain(cluster.to_vec()), Packed::Compressed)
}

impl Packed {
    fn compressed(&self) -> Option<&[u8]> {
        match self {
            Self::Compressed(bytes) => Some(bytes),
            Self::Plain(_) => None,
        }
    }
}

impl Qcow2 {
    /// How compressed clusters of this image are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Compresses and stores a range of the guest's disk.
    pub(super) async fn write_compressed_range(
        &self,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        if let Some(unmap) = self.detect_zeroes.instead_of(data) {
            let len_bytes = byte_count(data.len());
            return self.zero_detected(offset, len_bytes, unmap).await;
        }
        self.require_whole_clusters(offset, byte_count(data.len()))?;
        let clusters = data
            .chunks(self.geometry.cluster_len())
            .map(|cluster| pack(self.compression, self.geometry, cluster))
            .collect();
        self.store(offset, clusters).await
    }

    /// Stores clusters that are packed already, one after the other from guest offset `offset` on.
    ///
    /// They must be clusters of which nothing is stored so far: unallocated, or zeroes that keep no
    /// cluster. Nothing changes where one of them is not.
    pub async fn store(&self, offset: u64, clusters: Vec<Packed>) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        if self.crypto.is_some() || self.geometry.has_external_data() {
            return Err(Refused::NoCompression.into());
        }
        let len_bytes = self.stored_len(offset, &clusters)?;
        self.require_whole_clusters(offset, len_bytes)?;
        let _claim = self.claim(offset, len_bytes, Mode::Exclusive).await;
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        self.must_be_vacant(first, byte_count(clusters.len()))
            .await?;
        self.record_change(offset, len_bytes).await?;
        let mut done = 0;
        while let Some(next) = clusters.get(done) {
            let at = GuestCluster(first.0 + byte_count(done));
            done += match next {
                Packed::Compressed(_) => self.store_compressed(at, &clusters[done..]).await?,
                Packed::Plain(data) => {
                    self.write_claimed(at.0 << self.geometry.cluster_bits(), data.clone())
                        .await?;
                    1
                }
            };
        }
        Ok(())
    }

    /// How much of the guest's disk these clusters are.
    fn stored_len(&self, offset: u64, clusters: &[Packed]) -> Result<u64, Error> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let mut end = offset;
        for cluster in clusters {
            let room = self.virtual_bytes.get().saturating_sub(end);
            let len = match cluster {
                Packed::Compressed(bytes)
                    if (1..cluster_bytes).contains(&byte_count(bytes.len())) =>
                {
                    room.min(cluster_bytes)
                }
                Packed::Plain(data) if byte_count(data.len()) == room.min(cluster_bytes) => {
                    byte_count(data.len())
                }
                Packed::Compressed(_) | Packed::Plain(_) => 0,
            };
            if len == 0 {
                let len_bytes = cluster_bytes * byte_count(clusters.len());
                return Err(Refused::NotWholeClusters { offset, len_bytes }.into());
            }
            end += len;
        }
        Ok(end - offset)
    }

    fn require_whole_clusters(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.must_contain(offset, len_bytes)?;
        let end = offset + len_bytes;
        let whole = self.geometry.within(offset) == 0
            && (self.geometry.within(end) == 0 || end == self.virtual_bytes.get());
        if whole {
            Ok(())
        } else {
            Err(Refused::NotWholeClusters { offset, len_bytes }.into())
        }
    }

    async fn must_be_vacant(&self, first: GuestCluster, count: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < count {
            let at = GuestCluster(first.0 + done);
            let mappings = {
                let mut metadata = self.metadata.lock().await;
                metadata.must_be_sound()?;
                metadata.mappings(at, count - done).await?
            };
            for mapping in mappings {
                match mapping {
                    Mapping::Unallocated
                    | Mapping::Zero { reserve: None }
                    | Mapping::Split(Split { cluster: None, .. }) => done += 1,
                    Mapping::Zero { reserve: Some(_) }
                    | Mapping::Data { .. }
                    | Mapping::Split(_)
                    | Mapping::Compressed(_) => {
                        let offset = (first.0 + done) << self.geometry.cluster_bits();
                        return Err(Refused::NotVacant { offset }.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores compressed clusters as far as they stand together, and says how many that were.
    async fn store_compressed(
        &self,
        first: GuestCluster,
        clusters: &[Packed],
    ) -> Result<usize, Error> {
        let mut total = 0;
        let parts: Vec<&[u8]> = clusters
            .iter()
            .map_while(Packed::compressed)
            .take_while(|bytes| {
                total += bytes.len();
                total <= STEP_BYTES.max(self.geometry.cluster_len())
            })
            .collect();
        let (parts, placed) = {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let together = metadata.mappings(first, byte_count(parts.len())).await?;
            let parts = &parts[..together.len()];
            (parts, metadata.place(parts).await?)
        };
        let stored = match self.write_parts(parts, &placed).await {
            Ok(written) => self.link_packed(first, &placed, written).await,
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // If even this fails, leaks are all that remains.
            self.metadata.lock().await.release_parts(&placed).await;
        }
        stored.map(|()| parts.len())
    }

    /// Writes the parts, those that adjoin in one request.
    async fn write_parts(&self, parts: &[&[u8]], placed: &[Compressed]) -> Result<Stamp, Error> {
        let mut written = Stamp::default();
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (bytes, at) in parts.iter().zip(placed) {
            match &mut run {
                Some((start, data)) if *start + byte_count(data.len()) == at.offset.0 => {
                    data.extend_from_slice(bytes);
                }
                Some(_) | None => {
                    if let Some((start, data)) = run.replace((at.offset.0, bytes.to_vec())) {
                        written = written.max(self.write_run(start, data).await?);
                    }
                }
            }
        }
        if let Some((start, data)) = run {
            written = written.max(self.write_run(start, data).await?);
        }
        Ok(written)
    }

    /// Writes bytes that start a sector, up to the end of their last sector.
    async fn write_run(&self, start: u64, mut data: Vec<u8>) -> Result<Stamp, Error> {
        // Nothing but the planted defect starts within a sector.
        let head = start % SECTOR_BYTES;
        if head > 0 {
            data.splice(..0, vec![0; mem_len(head)]);
        }
        data.resize(data.len().next_multiple_of(mem_len(SECTOR_BYTES)), 0);
        let offset = HostOffset(start - head);
        self.order.write(Event::WriteCompressed, offset, data).await
    }

    /// Links compressed clusters whose bytes were written, under rules 1, 8 and 13.
    async fn link_packed(
        &self,
        first: GuestCluster,
        placed: &[Compressed],
        written: Stamp,
    ) -> Result<(), Error> {
        let new: Vec<Mapping> = placed.iter().copied().map(Mapping::Compressed).collect();
        let needs = if self.planted.has(Defect::CompressedLinkedEarly) {
            Stamp::default()
        } else {
            written
        };
        let mut metadata = self.metadata.lock().await;
        metadata.before_link().await?;
        metadata.link(first, &new, needs).await
    }
}

impl Metadata {
    /// Finds a place for each part, and counts it on the host clusters that it touches.
    async fn place(&mut self, parts: &[&[u8]]) -> Result<Vec<Compressed>, Error> {
        let mut placed = Vec::with_capacity(parts.len());
        let mut failed = None;
        for bytes in parts {
            match self.place_part(byte_count(bytes.len())).await {
                Ok(at) => placed.push(at),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // Rule 22: the next call starts at a sector of its own.
        if !self.planted.has(Defect::CompressedTailRewritten) {
            self.packing = self
                .packing
                .and_then(|at| self.still_packing(HostOffset(at.0.next_multiple_of(SECTOR_BYTES))));
        }
        match failed {
            None => Ok(placed),
            Some(error) => {
                self.release_parts(&placed).await;
                Err(error)
            }
        }
    }

    async fn place_part(&mut self, len_bytes: u64) -> Result<Compressed, Error> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let shared = self.shareable().await?;
        let at = match shared {
            Some(at) if len_bytes <= cluster_bytes - self.geometry.within(at.0) => {
                self.share(at).await?;
                at
            }
            Some(_) | None => self.place_in_new(shared.is_some()).await?,
        };
        self.packing = self.still_packing(HostOffset(at.0 + len_bytes));
        Ok(Compressed {
            offset: at,
            len_bytes,
        })
    }

    /// A new cluster, and the place in it or, where it follows the one in use, in both.
    async fn place_in_new(&mut self, may_straddle: bool) -> Result<HostOffset, Error> {
        let run = self.allocate_exactly(1).await?;
        let start = self.geometry.offset_of(run.first);
        let placed = match self.packing {
            // The allocation may have freed the cluster in use, which is then not in use any more.
            Some(at) if may_straddle && self.geometry.cluster_of(at).0 + 1 == run.first.0 => {
                self.order.note(Probe::CompressedStraddles);
                self.share(at).await.map(|()| at)
            }
            Some(_) | None => Ok(start),
        };
        let placed = placed.and_then(|at| {
            if start.0 >> Compressed::offset_bits(self.geometry) == 0 {
                Ok(at)
            } else {
                Err(Refused::TableFull(Structure::L2Table).into())
            }
        });
        if placed.is_err() {
            let _ = self.free_now(Source::Other, run.first, 1).await;
        }
        placed
    }

    /// The place to go on at, where one more reference can be counted there.
    async fn shareable(&mut self) -> Result<Option<HostOffset>, Error> {
        let Some(at) = self.packing else {
            return Ok(None);
        };
        let cluster = self.geometry.cluster_of(at);
        let most = self.geometry.max_refcount();
        let found = self.find_refcount(cluster).await?;
        if !found.is_some_and(|found| (1..most).contains(&found.value)) {
            self.order.note(Probe::SharersFull);
            self.packing = None;
        }
        Ok(self.packing)
    }

    /// Counts one more reference to the cluster in use.
    async fn share(&mut self, at: HostOffset) -> Result<(), Error> {
        self.guard(at, 1).await?;
        if self.planted.has(Defect::SharersUncounted) {
            return Ok(());
        }
        let cluster = self.geometry.cluster_of(at);
        match self.find_refcount(cluster).await? {
            Some(found) if found.value < self.geometry.max_refcount() => {
                self.put_refcount(found, found.value + 1);
                Ok(())
            }
            Some(_) | None => Err(Refused::RefcountOverflow.into()),
        }
    }

    /// Takes back what was counted for parts that nothing links.
    async fn release_parts(&mut self, placed: &[Compressed]) {
        for part in placed {
            let (first, count) = clusters_of(self.geometry, *part);
            let _ = self.free_now(Source::Other, first, count).await;
        }
    }

    /// A place within a cluster. At its end there is nothing left to go on with.
    fn still_packing(&self, at: HostOffset) -> Option<HostOffset> {
        (!self.geometry.is_aligned(at)).then_some(at)
    }

    /// Forgets the cluster in use where this is it: it is free.
    pub(super) fn stop_packing(&mut self, cluster: HostCluster) {
        if self
            .packing
            .is_some_and(|at| self.geometry.cluster_of(at) == cluster)
        {
            self.packing = None;
        }
    }
}
