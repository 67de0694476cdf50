//! Writing guest data: in place where the mapping allows, into new clusters otherwise.

use super::alloc::{Content, Run};
use super::data::Place;
use super::entry::{Copied, Mapping};
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{GuestCluster, HostOffset, byte_count, mem_len};
use crate::defect::Defect;
use crate::error::Error;
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

/// Whose clusters a step writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Allocated for it.
    New,
    /// Kept in reserve by the mapping that it replaces.
    Reserve,
}

impl Qcow2 {
    /// Writes a range of the guest's disk.
    pub(super) async fn write_range(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_contain(offset, byte_count(data.len()))?;
        let mut done = 0;
        {
            let _claim = self
                .claim(offset, byte_count(data.len()), Mode::Shared)
                .await;
            while done < data.len() {
                match self
                    .overwrite(offset + byte_count(done), &data[done..])
                    .await?
                {
                    0 => break,
                    written => done += written,
                }
            }
        }
        if done == data.len() {
            return Ok(());
        }
        let offset = offset + byte_count(done);
        let _claim = self
            .claim(offset, byte_count(data.len() - done), Mode::Exclusive)
            .await;
        self.write_claimed(offset, &data[done..]).await
    }

    /// Writes a range that the caller has claimed for itself.
    pub(super) async fn write_claimed(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < data.len() {
            let here = offset + byte_count(done);
            done += match self.overwrite(here, &data[done..]).await? {
                0 => self.write_new(here, &data[done..]).await?,
                written => written,
            };
        }
        Ok(())
    }

    /// Overwrites in place as much as the mapping allows, and says how much that was.
    async fn overwrite(&self, offset: u64, data: &[u8]) -> Result<usize, Error> {
        let within = self.geometry.within(offset);
        let clusters = self.geometry.clusters_for(within + byte_count(data.len()));
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        let host = {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let mappings = metadata.mappings(first, clusters).await?;
            let Some((host, count)) = self.in_place(&mappings) else {
                return Ok(0);
            };
            let host = HostOffset(host.0 + within);
            let len = (count * self.geometry.cluster_bytes() - within).min(byte_count(data.len()));
            metadata.guard(host, len).await?;
            (host, mem_len(len))
        };
        let (host, len) = host;
        let guest = offset;
        self.write_data(Place { host, guest }, data[..len].to_vec())
            .await?;
        Ok(len)
    }

    /// The adjacent host clusters that may be overwritten, from the first mapping on.
    fn in_place(&self, mappings: &[Mapping]) -> Option<(HostOffset, u64)> {
        let mut start = None;
        let mut count = 0;
        for mapping in mappings {
            let Mapping::Data {
                offset,
                copied: Copied::Yes,
            } = mapping
            else {
                break;
            };
            let start = *start.get_or_insert(*offset);
            if offset.0 != start.0 + count * self.geometry.cluster_bytes() {
                break;
            }
            count += 1;
        }
        start.map(|start| (start, count))
    }

    /// Writes into clusters that nothing links yet, then links them. Says how much was written.
    async fn write_new(&self, offset: u64, data: &[u8]) -> Result<usize, Error> {
        let within = self.geometry.within(offset);
        let wanted =
            within + byte_count(data.len()).min(STEP_BYTES.max(self.geometry.cluster_bytes()));
        let first = GuestCluster(offset >> self.geometry.cluster_bits());
        let target = {
            let mut metadata = self.metadata.lock().await;
            self.target(&mut metadata, first, self.geometry.clusters_for(wanted))
                .await?
        };
        let room = target.run.count * self.geometry.cluster_bytes() - within;
        let len = mem_len(room.min(byte_count(data.len())));
        let written = match self.write_target(&target, within, &data[..len]).await {
            Ok(written) => written,
            Err(error) => {
                self.abandon(&target).await;
                return Err(error);
            }
        };
        if let Err(error) = self.link_target(&target, written).await {
            self.abandon(&target).await;
            return Err(error);
        }
        Ok(len)
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
        if let Mapping::Zero {
            reserve: Some((offset, Copied::Yes)),
        } = old[0]
        {
            metadata
                .guard(offset, self.geometry.cluster_bytes())
                .await?;
            let host = self.geometry.cluster_of(offset);
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
        let run = metadata.allocate(byte_count(new)).await?;
        old.truncate(mem_len(run.count));
        Ok(Target {
            run,
            origin: Origin::New,
            first,
            old,
        })
    }

    /// Writes the data, and around them what the clusters must show besides.
    async fn write_target(
        &self,
        target: &Target,
        within: u64,
        data: &[u8],
    ) -> Result<Stamp, Error> {
        let start = Place {
            host: self.geometry.offset_of(target.run.first),
            guest: target.first.0 << self.geometry.cluster_bits(),
        };
        let recycled =
            target.run.content == Content::Stale && !self.planted.has(Defect::RecycledNotZeroed);
        let bare = !recycled
            && self.unwritten_reads_zero()
            && target.old.iter().all(|old| self.reads_zero(*old));
        if bare {
            return self.write_data(start.plus(within), data.to_vec()).await;
        }
        let mut bytes = vec![0; mem_len(target.run.count * self.geometry.cluster_bytes())];
        let (head, rest) = bytes.split_at_mut(mem_len(within));
        let (body, tail) = rest.split_at_mut(data.len());
        body.copy_from_slice(data);
        if !head.is_empty() {
            self.old_content(target.first, target.old[0], 0, head)
                .await?;
        }
        if !tail.is_empty() && !self.planted.has(Defect::CowTailLost) {
            let last = target.old.len() - 1;
            let tail_within = self.geometry.cluster_bytes() - byte_count(tail.len());
            let cluster = GuestCluster(target.first.0 + byte_count(last));
            self.old_content(cluster, target.old[last], tail_within, tail)
                .await?;
        }
        let start = if self.planted.has(Defect::CopyUnderOldVector) {
            let guest = start.guest + self.geometry.cluster_bytes();
            Place { guest, ..start }
        } else {
            start
        };
        self.write_data(start, bytes).await
    }

    /// Links clusters whose data were written, under rules 1 and 8.
    async fn link_target(&self, target: &Target, written: Stamp) -> Result<(), Error> {
        let mut metadata = self.metadata.lock().await;
        metadata.before_link().await?;
        let new: Vec<Mapping> = (0..target.run.count)
            .map(|index| {
                let offset = self.geometry.offset_of(target.run.first).0;
                let offset = HostOffset(offset + index * self.geometry.cluster_bytes());
                Mapping::Data {
                    offset,
                    copied: Copied::Yes,
                }
            })
            .collect();
        let only_zero_shows = target.run.content == Content::Zero
            && self.unwritten_reads_zero()
            && target.old.iter().all(|old| self.reads_zero(*old));
        let needs = if metadata.dirty && only_zero_shows {
            Stamp::default()
        } else {
            written
        };
        metadata.link(target.first, &new, needs).await
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
                .free_now(run.first, run.count)
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
        }
    }
}

/// Whether a write to this mapping takes a new cluster.
fn needs_cluster(mapping: Mapping) -> bool {
    match mapping {
        Mapping::Data { copied, .. }
        | Mapping::Zero {
            reserve: Some((_, copied)),
        } => copied == Copied::No,
        Mapping::Unallocated | Mapping::Zero { reserve: None } | Mapping::Compressed(_) => true,
    }
}
