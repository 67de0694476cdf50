//! The refcounts as they stand in the file.

use std::collections::BTreeSet;
use std::ops::Range;

use super::report::Kind;
use super::survey::Survey;
use crate::device::Event;
use crate::error::Structure;
use crate::qcow2::entry::{BadEntry, ReftableWord};
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::be_u64;
use crate::qcow2::refblock::{GROUP, read_group, refcount};
use crate::qcow2::unit::{HostOffset, byte_count, mem_len};
use crate::zeroes::{is_zero, trailing_zeroes};

/// A refcount block, as the refcount table names it.
#[derive(Debug)]
pub(super) enum Block {
    /// None, and its counts are zero.
    Absent,
    /// An entry that names no block that could be used; its counts are taken for zero.
    Bad,
    /// A block of zeroes.
    Zero(HostOffset),
    /// A block.
    Full(HostOffset, Vec<u8>),
}

/// All refcount blocks, in the order of the refcount table.
#[derive(Debug)]
pub(super) struct Stored {
    geometry: Geometry,
    blocks: Vec<Block>,
    /// Host offsets that the table names once more.
    duplicates: Vec<HostOffset>,
    /// Whether the table itself lies within the file.
    table_within_file: bool,
}

impl Block {
    /// Where the block stands, if there is one.
    pub(super) fn offset(&self) -> Option<HostOffset> {
        match self {
            Self::Absent | Self::Bad => None,
            Self::Zero(offset) | Self::Full(offset, _) => Some(*offset),
        }
    }

    /// The block's bytes, where they are not all zero.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Absent | Self::Bad | Self::Zero(_) => None,
            Self::Full(_, bytes) => Some(bytes),
        }
    }
}

impl Stored {
    /// No block at all.
    pub(super) fn none(geometry: Geometry) -> Self {
        Self {
            geometry,
            blocks: Vec::new(),
            duplicates: Vec::new(),
            table_within_file: true,
        }
    }

    /// The number of blocks up to the last that the table names.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.blocks.len()).expect("a table's length fits 64 bits")
    }

    /// The block at `index`.
    pub(super) fn block(&self, index: u64) -> &Block {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.blocks.get(index))
            .unwrap_or(&Block::Absent)
    }

    /// The refcount of a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let per_block = self.geometry.refcounts_per_block();
        self.block(cluster / per_block).bytes().map_or(0, |bytes| {
            let within = usize::try_from(cluster % per_block).expect("a block fits memory");
            refcount(bytes, within, self.geometry.refcount_order())
        })
    }

    /// Whether each of these clusters has a refcount of one.
    pub(super) fn all_one(&self, clusters: Range<u64>) -> bool {
        let per_block = self.geometry.refcounts_per_block();
        let mut from = clusters.start;
        let mut found = [0; GROUP];
        while from < clusters.end {
            let Some(bytes) = self.block(from / per_block).bytes() else {
                return false;
            };
            let within = mem_len(from % per_block);
            let in_group = within % GROUP;
            let len = (GROUP - in_group).min(mem_len(clusters.end - from));
            read_group(
                bytes,
                within - in_group,
                self.geometry.refcount_order(),
                &mut found,
            );
            if found[in_group..][..len].iter().any(|count| *count != 1) {
                return false;
            }
            from += byte_count(len);
        }
        true
    }

    /// Whether there is a block to hold the refcount of a cluster.
    pub(super) fn covers(&self, cluster: u64) -> bool {
        self.block(cluster / self.geometry.refcounts_per_block())
            .offset()
            .is_some()
    }

    /// Offset and length of every piece of the refcount structures that lies within the file, once
    /// for every time that it is named.
    pub(super) fn pieces(&self, table: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let table = self.table_within_file.then_some(table);
        let blocks = self.blocks.iter().filter_map(Block::offset);
        table.into_iter().chain(
            blocks
                .chain(self.duplicates.iter().copied())
                .map(move |offset| (offset.0, cluster_bytes)),
        )
    }
}

impl Survey<'_> {
    /// Reads the refcount table and its blocks, and notes what is wrong with them; every such fault
    /// asks for a rebuild.
    pub(super) async fn load_stored(&mut self) {
        let (offset, len_bytes) = self.reftable();
        self.stored.table_within_file = !self.ends_beyond(offset, len_bytes);
        if !self.stored.table_within_file {
            let kind = Kind::BeyondEnd { offset, len_bytes };
            self.note_for_rebuild(kind, Structure::Header, 0, 48);
            self.note_named(offset, len_bytes);
        }
        let event = Event::ReftableLoad;
        let Some(table) = self
            .read(event, Structure::RefcountTable, offset, len_bytes)
            .await
        else {
            return;
        };
        let used = (table.len() - trailing_zeroes(&table)).div_ceil(8);
        let mut named = BTreeSet::new();
        for index in 0..used {
            let word = be_u64(&table, index * 8);
            let index = u64::try_from(index).expect("a table's length fits 64 bits");
            let block = self.load_block(index, word, &mut named).await;
            self.stored.blocks.push(block);
        }
    }

    async fn load_block(&mut self, index: u64, word: u64, named: &mut BTreeSet<u64>) -> Block {
        let table = self.reftable().0;
        let geometry = self.header.geometry;
        let mut decoded = ReftableWord(word).decode(geometry);
        if let Err(BadEntry::Reserved(bits)) = decoded {
            let kind = Kind::Entry(BadEntry::Reserved(bits));
            self.note_for_rebuild(kind, Structure::RefcountTable, table, index);
            decoded = ReftableWord(word & !bits).decode(geometry);
        }
        let offset = match decoded {
            Ok(Some(offset)) => offset,
            Ok(None) => return Block::Absent,
            Err(bad) => {
                if let BadEntry::Unaligned(offset) = bad {
                    self.note_named(offset, geometry.cluster_bytes());
                }
                let kind = Kind::Entry(bad);
                self.note_for_rebuild(kind, Structure::RefcountTable, table, index);
                return Block::Bad;
            }
        };
        if offset.0 >= self.file_bytes {
            let kind = Kind::BeyondEnd {
                offset: offset.0,
                len_bytes: geometry.cluster_bytes(),
            };
            self.note_for_rebuild(kind, Structure::RefcountTable, table, index);
            self.note_named(offset.0, geometry.cluster_bytes());
            return Block::Bad;
        }
        if !named.insert(offset.0) {
            // That it is named twice shows when its references are counted.
            self.stored.duplicates.push(offset);
            return Block::Bad;
        }
        let event = Event::RefblockLoad;
        let structure = Structure::RefcountBlock;
        let bytes = self
            .read(event, structure, offset.0, geometry.cluster_bytes())
            .await;
        match bytes {
            None => Block::Bad,
            Some(bytes) if is_zero(&bytes) => Block::Zero(offset),
            Some(mut bytes) => {
                // The last cluster of a file need not be whole.
                bytes.resize(geometry.cluster_len(), 0);
                Block::Full(offset, bytes)
            }
        }
    }

    /// Keeps a rebuild off a range that the old refcount structures name and that has no count: it would
    /// be one of them until the header switches.
    fn note_named(&mut self, offset: u64, len_bytes: u64) {
        self.wild.push((offset, offset.saturating_add(len_bytes)));
    }

    /// Counts the references to the refcount structures. Comes last: a piece that is referenced more
    /// than once cannot be written without destroying something else.
    pub(super) fn count_stored(&mut self) {
        self.most_references = self.counts.most();
        let table = self.reftable();
        for (offset, len_bytes) in self.stored.pieces(table) {
            self.counts.add_range(offset, len_bytes, 1);
        }
        let blocks: Vec<u64> = (0..self.stored.len())
            .filter_map(|index| self.stored.block(index).offset())
            .map(|offset| offset.0)
            .collect();
        let cluster_bits = self.header.geometry.cluster_bits();
        for offset in blocks {
            let references = self.counts.get(offset >> cluster_bits);
            if references != 1 {
                self.note_shared(Structure::RefcountBlock, offset, references);
            }
        }
        if self.stored.table_within_file {
            for cluster in self.counts.clusters(table.0, table.1) {
                let references = self.counts.get(cluster);
                if references != 1 {
                    self.note_shared(
                        Structure::RefcountTable,
                        cluster << cluster_bits,
                        references,
                    );
                }
            }
        }
    }

    fn note_shared(&mut self, structure: Structure, offset: u64, references: u32) {
        let kind = Kind::SharedRefcounts {
            references: references.into(),
        };
        self.note_for_rebuild(kind, structure, offset, 0);
    }
}
