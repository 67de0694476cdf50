//! Reading what the guest sees.

use std::rc::Rc;

use super::compress::decompress;
use super::data::Place;
use super::entry::{Compressed, Mapping};
use super::image::Qcow2;
use super::unit::{GuestCluster, HostOffset, byte_count, mem_len};
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Structure};
use crate::sync::Mode;

/// Where a stretch of the guest's disk gets its content from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Zero,
    Backing,
    File(HostOffset),
    Compressed(Compressed),
}

impl Source {
    /// Whether `next` carries on where `len` bytes of this end.
    fn continues(self, len: u64, next: Self) -> bool {
        match self {
            Self::Zero | Self::Backing => self == next,
            Self::File(from) => next == Self::File(HostOffset(from.0 + len)),
            Self::Compressed(_) => false,
        }
    }
}

impl Qcow2 {
    /// Reads a range of the guest's disk, as [`Image::read`](crate::image::Image::read) does: a future that is in no box,
    /// for who reads a great many times.
    pub async fn read_range(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Error> {
        self.must_contain(offset, byte_count(len_bytes))?;
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        let _claim = self
            .claim(offset, byte_count(len_bytes), Mode::Shared)
            .await;
        let mut data = Vec::new();
        while data.len() < len_bytes {
            let here = offset + byte_count(data.len());
            let rest = byte_count(len_bytes - data.len());
            for (source, len) in self.sources(here, rest).await? {
                let here = offset + byte_count(data.len());
                if source == Source::Zero && !data.is_empty() {
                    data.resize(data.len() + mem_len(len), 0);
                    continue;
                }
                let part = self
                    .content(source, here, Event::ReadAio, mem_len(len))
                    .await?;
                if part.len() == len_bytes {
                    // What has one source needs no second buffer.
                    return Ok(part);
                }
                data.reserve(len_bytes - data.len());
                data.extend_from_slice(&part);
            }
        }
        Ok(data)
    }

    /// Reads a range that the caller has claimed.
    pub(super) async fn read_claimed(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < into.len() {
            let here = offset + byte_count(done);
            let rest = byte_count(into.len() - done);
            for (source, len) in self.sources(here, rest).await? {
                let here = offset + byte_count(done);
                let part = &mut into[done..done + mem_len(len)];
                self.fill(source, here, Event::ReadAio, part).await?;
                done += part.len();
            }
        }
        Ok(())
    }

    /// The content that a guest cluster had under an old mapping, from `within` bytes on: what
    /// copy-on-write copies. Beyond the end of the disk that is zeroes, whatever lies beneath.
    pub(super) async fn old_content(
        &self,
        cluster: GuestCluster,
        mapping: Mapping,
        within: u64,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let start = cluster.0 << self.geometry.cluster_bits();
        let here = start + within;
        let end = if here >= self.vm_state_start() {
            u64::MAX
        } else {
            self.virtual_bytes.get()
        };
        let visible = end.saturating_sub(here).min(byte_count(into.len()));
        let (visible, hidden) = into.split_at_mut(mem_len(visible));
        hidden.fill(0);
        let mut done = 0;
        while done < visible.len() {
            let within = within + byte_count(done);
            let (source, len) = self.source_of(mapping, within);
            let end = visible.len().min(done + mem_len(len));
            self.fill(
                source,
                start + within,
                Event::CowRead,
                &mut visible[done..end],
            )
            .await?;
            done = end;
        }
        Ok(())
    }

    /// The sources of the guest's disk from `offset` on, each with how far it reaches: at least one, and together at most
    /// `max_bytes`.
    async fn sources(&self, offset: u64, max_bytes: u64) -> Result<Vec<(Source, u64)>, Error> {
        /// Few stretches have more.
        const ROOM: usize = 8;
        let geometry = self.geometry;
        let within = geometry.within(offset);
        let clusters = geometry.clusters_for(within + max_bytes);
        let first = GuestCluster(offset >> geometry.cluster_bits());
        let mut sources: Vec<(Source, u64)> = Vec::with_capacity(ROOM);
        let (mut within, mut left) = (within, max_bytes);
        let add = |mapping| {
            // A cluster of subclusters has several.
            while within < geometry.cluster_bytes() && left > 0 {
                let (next, len) = self.source_of(mapping, within);
                let len = len.min(left);
                match sources.last_mut() {
                    Some((last, before)) if last.continues(*before, next) => *before += len,
                    Some(_) | None => sources.push((next, len)),
                }
                within += len;
                left -= len;
            }
            within = 0;
        };
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_usable(self.access)?;
        metadata.each_mapping(first, clusters, add).await?;
        Ok(sources)
    }

    /// The source of a mapping's content from `within` bytes on, and how far it reaches.
    fn source_of(&self, mapping: Mapping, within: u64) -> (Source, u64) {
        let (mapping, len) = mapping.at(self.geometry, within);
        let source = match mapping {
            Mapping::Unallocated if self.backing.is_some() => Source::Backing,
            Mapping::Unallocated | Mapping::Zero { .. } => Source::Zero,
            Mapping::Data { offset, .. } => Source::File(HostOffset(offset.0 + within)),
            Mapping::Compressed(compressed) => Source::Compressed(compressed),
            Mapping::Split(_) => unreachable!("a subcluster is not split"),
        };
        (source, len)
    }

    /// Fills a buffer with the content of the guest's disk at `offset`, from its source.
    async fn fill(
        &self,
        source: Source,
        offset: u64,
        event: Event,
        into: &mut [u8],
    ) -> Result<(), Error> {
        if source == Source::Zero {
            into.fill(0);
        } else {
            let len_bytes = into.len();
            into.copy_from_slice(&self.content(source, offset, event, len_bytes).await?);
        }
        Ok(())
    }

    /// Reads the content of the guest's disk at `offset` from its source.
    async fn content(
        &self,
        source: Source,
        offset: u64,
        event: Event,
        len_bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        match source {
            // Nothing lies beneath VM state.
            Source::Backing if offset >= self.vm_state_start() => Ok(vec![0; len_bytes]),
            Source::Zero => Ok(vec![0; len_bytes]),
            Source::File(host) => {
                let guest = offset;
                self.read_data(event, Place { host, guest }, len_bytes)
                    .await
            }
            Source::Backing => self.read_backing(offset, len_bytes).await,
            Source::Compressed(compressed) => {
                let cluster = self.decompress(compressed).await?;
                let within = mem_len(self.geometry.within(offset));
                Ok(cluster[within..within + len_bytes].to_vec())
            }
        }
    }

    /// Reads the backing file, which shows zeroes behind its end.
    async fn read_backing(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Error> {
        let backing = self
            .backing
            .as_ref()
            .expect("a source is backing only where there is one");
        let there = backing.virtual_bytes().saturating_sub(offset);
        let there = mem_len(there.min(byte_count(len_bytes)));
        if there == 0 {
            return Ok(vec![0; len_bytes]);
        }
        self.order.file().at(Event::ReadBackingAio).reach().await?;
        let mut data = backing.read(offset, there).await?;
        data.resize(len_bytes, 0);
        Ok(data)
    }

    async fn decompress(&self, compressed: Compressed) -> Result<Rc<Vec<u8>>, Error> {
        let Compressed { offset, len_bytes } = compressed;
        let at = self.order.file().at(Event::ReadCompressed);
        let packed = at.read(offset.0, mem_len(len_bytes)).await?;
        let cluster = decompress(self.compression, packed, self.geometry.cluster_len());
        cluster.ok_or_else(|| {
            let structure = Structure::Data;
            let problem = Problem::Decompress;
            BadImage {
                structure,
                offset: offset.0,
                index: None,
                problem,
            }
            .into()
        })
    }
}
