//! Looking mappings up, and changing them.

use super::alloc::Content;
use super::data_file;
use super::discards::Source;
use super::entry::{Copied, L1Entry, L1Word, L2Entry, Mapping};
use super::free::{Unlink, clusters_of};
use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{GuestCluster, HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::probe::Probe;

const NOWHERE: &str = "the cluster is neither within the file nor where anything is counted";

/// Where the mapping of a guest cluster stands.
struct Spot {
    l1_index: usize,
    /// Offset of the slice within the table.
    slice: u64,
    /// Index of the entry within the slice.
    index: usize,
    /// Entries from there to the end of the slice.
    left: u64,
}

impl Metadata {
    /// The mappings of guest clusters from `first` on: at least one, at most `max`, none beyond the
    /// slice that holds the first.
    pub(super) async fn mappings(
        &mut self,
        first: GuestCluster,
        max: u64,
    ) -> Result<Vec<Mapping>, Error> {
        let mut mappings = Vec::new();
        self.each_mapping(first, max, |mapping| mappings.push(mapping))
            .await?;
        Ok(mappings)
    }

    /// Shows the same, one after the other.
    pub(super) async fn each_mapping(
        &mut self,
        first: GuestCluster,
        max: u64,
        mut show: impl FnMut(Mapping),
    ) -> Result<(), Error> {
        let spot = self.spot(first);
        let count = mem_len(spot.left.min(max));
        let L1Entry::Table { offset, .. } = self.l1_entry(spot.l1_index)? else {
            (0..count).for_each(|_| show(Mapping::Unallocated));
            return Ok(());
        };
        let slice = HostOffset(offset.0 + spot.slice);
        self.load_l2(slice).await?;
        // To find the slice costs more than to decode one of its entries.
        let bytes = self.l2.bytes(slice);
        for (index, cluster) in (spot.index..spot.index + count).zip(first.0..) {
            let entry = L2Entry::read(bytes, index, self.geometry);
            show(self.mapping(entry, (slice, index), GuestCluster(cluster))?);
        }
        Ok(())
    }

    /// The first guest cluster from `from` on and before `end` whose content stands in the file.
    pub(super) async fn next_content(
        &mut self,
        mut from: GuestCluster,
        end: GuestCluster,
    ) -> Result<Option<GuestCluster>, Error> {
        let per_table = self.geometry.l2_entries();
        while from < end {
            let l1_index = from.0 / per_table;
            if mem_len(l1_index) >= self.l1.len() {
                return Ok(None);
            }
            if self.l1_entry(mem_len(l1_index))? == L1Entry::Empty {
                from = GuestCluster((l1_index + 1) * per_table);
                continue;
            }
            for mapping in self.mappings(from, end.0 - from.0).await? {
                if mapping.has_content() {
                    return Ok(Some(from));
                }
                from.0 += 1;
            }
        }
        Ok(None)
    }

    /// Maps guest clusters from `first` on anew, all within one slice, and frees what they were
    /// mapped to once that is durable. The slice may be written when `needs` is durable.
    ///
    /// Nothing changes where this fails.
    pub(super) async fn link(
        &mut self,
        first: GuestCluster,
        new: &[Mapping],
        needs: Stamp,
    ) -> Result<(), Error> {
        let spot = self.spot(first);
        let table = self.own_table(spot.l1_index).await?;
        let slice = HostOffset(table.0 + spot.slice);
        self.load_l2(slice).await?;
        let guest = |at: usize| GuestCluster(first.0 + byte_count(at));
        for at in 0..new.len() {
            self.mapping_at(slice, spot.index + at, guest(at))?;
        }
        for (at, mapping) in new.iter().enumerate() {
            let index = spot.index + at;
            let old = self.mapping_at(slice, index, guest(at))?;
            if old == *mapping {
                continue;
            }
            let entry = self.encode(*mapping);
            self.l2.slice(slice).set_entry(index, entry, self.geometry);
            self.free_unlinked(slice, old, *mapping);
        }
        let slice = self.l2.slice(slice);
        slice.needs = slice.needs.max(needs);
        Ok(())
    }

    fn encode(&self, mapping: Mapping) -> L2Entry {
        if let Mapping::Data { offset, .. } = mapping
            && self.planted.has(Defect::CopiedForgotten)
        {
            let copied = Copied::No;
            return Mapping::Data { offset, copied }.encode(self.geometry);
        }
        mapping.encode(self.geometry)
    }

    fn free_unlinked(&mut self, slice: HostOffset, old: Mapping, new: Mapping) {
        let keeps = host_clusters(self, new);
        let Some((first, count)) = host_clusters(self, old) else {
            return;
        };
        if keeps == Some((first, count)) || self.planted.has(Defect::OldClusterLeaked) {
            return;
        }
        let source = if new.has_content() {
            Source::Replaced
        } else {
            Source::Request
        };
        self.free_after(Unlink::BySlice(slice), source, first, count);
    }

    /// The slice that holds the mapping of a guest cluster, where there is one.
    pub(super) fn slice_of(&self, cluster: GuestCluster) -> Result<Option<HostOffset>, Error> {
        let spot = self.spot(cluster);
        Ok(match self.l1_entry(spot.l1_index)? {
            L1Entry::Table { offset, .. } => Some(HostOffset(offset.0 + spot.slice)),
            L1Entry::Empty => None,
        })
    }

    fn spot(&self, cluster: GuestCluster) -> Spot {
        let entries = self.geometry.l2_entries();
        let per_slice = self.l2.slice_bytes() / self.geometry.l2_entry_bytes();
        let within = cluster.0 % entries;
        Spot {
            l1_index: mem_len(cluster.0 / entries),
            slice: within / per_slice * self.l2.slice_bytes(),
            index: mem_len(within % per_slice),
            left: per_slice - within % per_slice,
        }
    }

    pub(super) fn l1_entry(&self, index: usize) -> Result<L1Entry, Error> {
        let word = self.l1.get(index).copied().unwrap_or(L1Word(0));
        let bad = |problem| {
            Error::from(BadImage {
                structure: Structure::L1Table,
                offset: self.l1_offset.0,
                index: Some(byte_count(index)),
                problem,
            })
        };
        let entry = word.decode(self.geometry);
        let entry = entry.map_err(|entry| bad(Problem::Entry(entry)))?;
        match entry {
            L1Entry::Table { offset, .. }
                if !self.is_somewhere(self.geometry.cluster_of(offset)) =>
            {
                Err(bad(Problem::Field(NOWHERE.into())))
            }
            L1Entry::Table { .. } | L1Entry::Empty => Ok(entry),
        }
    }

    /// The mapping of a guest cluster, which stands at `index` in a slice.
    fn mapping_at(
        &mut self,
        slice: HostOffset,
        index: usize,
        cluster: GuestCluster,
    ) -> Result<Mapping, Error> {
        let entry = self.l2.slice(slice).entry(index, self.geometry);
        self.mapping(entry, (slice, index), cluster)
    }

    /// The mapping that an entry says a guest cluster has, where the entry stands in a slice at an index.
    fn mapping(
        &self,
        entry: L2Entry,
        (slice, index): (HostOffset, usize),
        cluster: GuestCluster,
    ) -> Result<Mapping, Error> {
        let bad = |problem| {
            Error::from(BadImage {
                structure: Structure::L2Table,
                offset: slice.0,
                index: Some(byte_count(index)),
                problem,
            })
        };
        let mapping = match entry.decode(self.geometry, self.version) {
            Err(_) if self.planted.has(Defect::BadEntryUnallocated) => Mapping::Unallocated,
            mapping => mapping.map_err(|entry| bad(Problem::Entry(entry)))?,
        };
        let misplaced = data_file::misplaced(self.geometry, mapping, cluster);
        match misplaced.or_else(|| self.nowhere(mapping)) {
            None => Ok(mapping),
            Some(problem) => Err(bad(Problem::Field(problem.into()))),
        }
    }

    /// Why a mapping points to where nothing can be, where it does. A cluster may lie behind the end of the file: what
    /// made the file longer was lost, or is not there yet. But its refcount has its place before it is mapped, so that
    /// an entry which names any other cluster is none that was ever written.
    fn nowhere(&self, mapping: Mapping) -> Option<&'static str> {
        match mapping {
            // Whoever inflates what is not there fails.
            Mapping::Compressed(_) => None,
            Mapping::Unallocated
            | Mapping::Zero { .. }
            | Mapping::Data { .. }
            | Mapping::Split(_) => {
                let (cluster, _) = host_clusters(self, mapping)?;
                (!self.is_somewhere(cluster)).then_some(NOWHERE)
            }
        }
    }

    /// Whether a cluster lies within the file, or where something is counted.
    fn is_somewhere(&self, cluster: HostCluster) -> bool {
        let block = usize::try_from(cluster.0 / self.geometry.refcounts_per_block());
        let word = block.ok().and_then(|block| self.reftable.get(block));
        let end = self.geometry.offset_of(HostCluster(cluster.0 + 1));
        word.is_some_and(|word| word.0 != 0) || end.0 <= self.order.file().len()
    }

    /// The L2 table of an L1 entry, made if there is none and copied if it is shared.
    async fn own_table(&mut self, l1_index: usize) -> Result<HostOffset, Error> {
        self.must_be_sound()?;
        if l1_index >= self.l1.len() {
            return Err(Refused::TableFull(Structure::L1Table).into());
        }
        let old = match self.l1_entry(l1_index)? {
            L1Entry::Table {
                offset,
                copied: Copied::Yes,
            } => {
                self.guard_shared(offset).await?;
                return Ok(offset);
            }
            L1Entry::Table {
                offset,
                copied: Copied::No,
            } => Some(offset),
            L1Entry::Empty => None,
        };
        self.before_link().await?;
        let run = self.allocate_exactly(1).await?;
        if old.is_some() {
            self.order.note(Probe::TableCopied);
        }
        if run.content == Content::Stale {
            self.order.note(Probe::TableInUsedCluster);
        }
        let offset = self.geometry.offset_of(run.first);
        let content = match self.write_table(offset, old).await {
            Ok(content) => content,
            Err(error) => {
                // The table is linked nowhere; if even this fails, a leak is all that remains.
                let _ = self.free_now(Source::Other, run.first, 1).await;
                return Err(error);
            }
        };
        self.order.barrier(Barrier::BeforeL1, content).await?;
        let before = self.l1[l1_index];
        let table = L1Entry::Table {
            offset,
            copied: Copied::Yes,
        };
        self.l1[l1_index] = table.encode();
        self.active_tables = None;
        let hooked = match self.write_l1_sector(l1_index).await {
            Ok(hooked) => hooked,
            Err(error) => {
                // The file may point to the new table or not: it stays allocated for both.
                self.l1[l1_index] = before;
                self.active_tables = None;
                if self.planted.has(Defect::HalfLinkedFreed) {
                    let _ = self.free_now(Source::Other, run.first, 1).await;
                }
                return Err(error);
            }
        };
        self.own(offset, 1, Structure::L2Table);
        if let Some(old) = old {
            let old = self.geometry.cluster_of(old);
            self.free_after(Unlink::Written(hooked), Source::Other, old, 1);
        }
        Ok(offset)
    }

    /// Fills a new table, and makes sure that its refcount is written where it must be.
    async fn write_table(
        &mut self,
        offset: HostOffset,
        old: Option<HostOffset>,
    ) -> Result<Stamp, Error> {
        let len = self.geometry.cluster_len();
        let bytes = match old {
            // A shared table is never changed in place, so the file has all of it.
            Some(old) => {
                self.order
                    .file()
                    .at(Event::L2AllocCowRead)
                    .read(old.0, len)
                    .await?
            }
            None => vec![0; len],
        };
        self.l2.forget(offset, self.geometry.cluster_bytes());
        let content = self.order.write(Event::L2AllocWrite, offset, bytes).await?;
        if self.dirty {
            return Ok(content);
        }
        self.write_refcounts().await?;
        Ok(content.max(self.refcounts_written))
    }
}

/// The host clusters that a mapping refers to: of the image file, where refcounts count them.
pub(super) fn host_clusters(metadata: &Metadata, mapping: Mapping) -> Option<(HostCluster, u64)> {
    let geometry = metadata.geometry;
    if geometry.has_external_data() {
        return None;
    }
    match mapping {
        Mapping::Unallocated | Mapping::Zero { reserve: None } => None,
        Mapping::Zero {
            reserve: Some((offset, _)),
        }
        | Mapping::Data { offset, .. } => Some((geometry.cluster_of(offset), 1)),
        Mapping::Compressed(compressed) => Some(clusters_of(geometry, compressed)),
        Mapping::Split(split) => {
            let (offset, _) = split.cluster?;
            Some((geometry.cluster_of(offset), 1))
        }
    }
}
