//! Who refers to which cluster of the file.

use std::collections::BTreeSet;
use std::ops::Range;

use super::bounds::Bounded;
use super::{Finding, Layout, Mapped, Mapping, Owner, Scan, Snapshot, Table, Word, Words};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFTABLE_OFFSET: u64 = !0x1ff;
/// One table at thousands of indices maps no more clusters than this.
const MAX_MAPPED_AGAIN: usize = 1 << 20;

/// What an entry says of COPIED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The reference has no such flag, or nobody relies on it.
    Mute,
    /// COPIED is clear.
    Shared,
    /// COPIED is set.
    Sole,
}

/// References to one cluster by one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) cluster: u64,
    pub(super) owner: Owner,
    /// How many L1 tables reach it this way.
    pub(super) count: u64,
    pub(super) claim: Claim,
}

/// An L1 table's use of an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    l2_offset: u64,
    l1_index: u64,
    tree: Tree,
    copied: bool,
}

/// Whose L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Active,
    Snapshot,
}

/// Every reference of the image, ascending by cluster. Fills in the report's mappings and the scan's
/// refcount blocks.
pub(super) fn collect(scan: &mut Scan<'_>) -> Vec<Reference> {
    let mut collector = Collector {
        references: Vec::with_capacity(256),
        uses: Vec::with_capacity(16),
    };
    let layout = scan.layout;
    collector.refer(scan, Owner::Header, 0, 1);
    let (encryption, len_bytes) = layout.encryption_header;
    let clusters = len_bytes.div_ceil(layout.cluster_bytes());
    collector.refer(scan, Owner::EncryptionHeader, encryption, clusters);
    collector.refcount_table(scan);
    collector.l1_table(scan, Tree::Active, layout.l1_offset, layout.l1_entries);
    collector.snapshots(scan);
    collector.l2_tables(scan);
    super::bitmaps::collect(&mut collector, scan);
    // Both are nearly in order already, which a stable sort is quick with.
    let by_guest_cluster = |mapped: &Mapped| mapped.guest_cluster;
    scan.report.mapped.sort_by_key(by_guest_cluster);
    let by_cluster = |reference: &Reference| reference.cluster;
    collector.references.sort_by_key(by_cluster);
    collector.references
}

/// What an L1 table leads to: the L2 tables that it names, and the clusters that those name.
pub(super) fn of_table(scan: &mut Scan<'_>, offset: u64, entries: u64) -> Vec<Reference> {
    let mut collector = Collector {
        references: Vec::new(),
        uses: Vec::new(),
    };
    collector.l1_entries(scan, Tree::Active, offset, entries);
    collector.l2_tables(scan);
    collector.references
}

/// The sectors of the clusters that are referred to, as ascending disjoint ranges. `references` ascend by cluster.
pub(super) fn sectors<'a>(
    references: impl IntoIterator<Item = &'a Reference>,
    cluster_sectors: u64,
) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for reference in references {
        let start = reference.cluster.saturating_mul(cluster_sectors);
        let end = start.saturating_add(cluster_sectors);
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            Some(_) | None => ranges.push(start..end),
        }
    }
    ranges
}

pub(super) struct Collector {
    references: Vec<Reference>,
    uses: Vec<Use>,
}

impl Collector {
    /// Notes that `owner` holds `clusters` clusters from `offset` on; of those beyond the end of the file one
    /// says enough.
    pub(super) fn refer(&mut self, scan: &mut Scan<'_>, owner: Owner, offset: u64, clusters: u64) {
        let first = offset >> scan.layout.cluster_bits;
        let end = scan.image.len().div_ceil(scan.layout.cluster_bytes());
        let reach = first + scan.spend(clusters);
        for cluster in first..reach.min(end.max(first) + 1) {
            self.refer_once(scan, owner, cluster, 1, Claim::Mute);
        }
    }

    fn refer_once(
        &mut self,
        scan: &mut Scan<'_>,
        owner: Owner,
        cluster: u64,
        count: u64,
        claim: Claim,
    ) {
        let offset = cluster << scan.layout.cluster_bits;
        if offset >= scan.image.len() && !may_lie_beyond_end(scan, owner, cluster) {
            scan.report.find(Finding::BeyondEnd {
                owner,
                offset,
                file_bytes: scan.image.len(),
            });
        }
        self.references.push(Reference {
            cluster,
            owner,
            count,
            claim,
        });
    }

    fn refcount_table(&mut self, scan: &mut Scan<'_>) {
        let (offset, clusters) = (scan.layout.reftable_offset, scan.layout.reftable_clusters);
        self.refer(scan, Owner::RefcountTable, offset, clusters);
        let words = scan.words(offset, clusters * (scan.layout.cluster_bytes() / 8));
        for word in words {
            let target = word.value & REFTABLE_OFFSET;
            if is_sound(scan, Table::Refcount, word, !REFTABLE_OFFSET, target) {
                scan.blocks.push((word.index, target));
            }
        }
        for (index, target) in scan.blocks.clone() {
            self.refer(scan, Owner::RefcountBlock(index), target, 1);
        }
    }

    fn snapshots(&mut self, scan: &mut Scan<'_>) {
        let start = scan.layout.snapshots_offset;
        let max_bytes = Bounded::SnapshotTable.max_bytes(scan.layout.cluster_bytes());
        let mut at = start;
        let mut walked = BTreeSet::from([scan.layout.l1_offset]);
        for index in 0..scan.layout.snapshot_count {
            let problem = match self.snapshot(scan, index, at, &mut walked) {
                Ok(end) if end - start <= max_bytes => {
                    at = end;
                    continue;
                }
                Ok(_) => "the snapshot table is longer than the format allows",
                Err(problem) => problem,
            };
            scan.report.find(Finding::Snapshot { index, problem });
            break;
        }
        let clusters = (at - start).div_ceil(scan.layout.cluster_bytes());
        self.refer(scan, Owner::SnapshotTable, start, clusters);
    }

    /// Notes a snapshot's L1 table and yields where the next snapshot's entry starts.
    fn snapshot(
        &mut self,
        scan: &mut Scan<'_>,
        index: u32,
        at: u64,
        walked: &mut BTreeSet<u64>,
    ) -> Result<u64, &'static str> {
        if at >= scan.image.len() {
            return Err("its entry lies beyond the end of the file");
        }
        let mut head = [0; 40];
        scan.image.read(at, &mut head);
        let field = |from: usize, len: usize| u64_of(&head[from..from + len]);
        let (l1_offset, l1_entries) = (field(0, 8), field(8, 4));
        let (id_bytes, name_bytes, extra_bytes) = (field(12, 2), field(14, 2), field(36, 4));
        let cluster_bytes = scan.layout.cluster_bytes();
        if !Bounded::L1Table.admits(l1_offset, l1_entries * 8, cluster_bytes) {
            return Err("its L1 table is out of range");
        }
        // Nothing keeps every snapshot of a damaged image from naming one table.
        if l1_entries > 0 && !walked.insert(l1_offset) {
            return Err("its L1 table is that of another snapshot, or of the disk");
        }
        scan.report
            .snapshots
            .push(Snapshot::read(scan.image, &scan.layout, &head, at));
        if scan.layout.version >= 3 && extra_bytes < 16 {
            scan.report.terse_snapshots += 1;
        }
        let clusters = (l1_entries * 8).div_ceil(cluster_bytes);
        self.refer(scan, Owner::SnapshotL1Table(index), l1_offset, clusters);
        self.l1_entries(scan, Tree::Snapshot, l1_offset, l1_entries);
        Ok(at + (40 + extra_bytes + id_bytes + name_bytes).next_multiple_of(8))
    }

    fn l1_table(&mut self, scan: &mut Scan<'_>, tree: Tree, offset: u64, entries: u64) {
        let clusters = (entries * 8).div_ceil(scan.layout.cluster_bytes());
        self.refer(scan, Owner::L1Table, offset, clusters);
        self.l1_entries(scan, tree, offset, entries);
    }

    fn l1_entries(&mut self, scan: &mut Scan<'_>, tree: Tree, offset: u64, entries: u64) {
        for word in scan.words(offset, entries) {
            let target = word.value & OFFSET;
            if !is_sound(scan, Table::L1, word, !(COPIED | OFFSET), target) {
                continue;
            }
            let copied = word.value & COPIED != 0;
            if target == 0 {
                if copied {
                    let (table, at) = (Table::L1, word.at);
                    scan.report.find(Finding::IdleCopied { table, at });
                }
                continue;
            }
            self.uses.push(Use {
                l2_offset: target,
                l1_index: word.index,
                tree,
                copied,
            });
        }
    }

    /// Visits each L2 table once, however many trees share it, so that the work is bounded by the bytes
    /// of the file. A table that is used at two L1 indices has two owners; only one is followed.
    fn l2_tables(&mut self, scan: &mut Scan<'_>) {
        let mut uses = std::mem::take(&mut self.uses);
        uses.sort_unstable();
        for of_table in uses.chunk_by(|one, other| one.l2_offset == other.l2_offset) {
            for of_index in of_table.chunk_by(|one, other| one.l1_index == other.l1_index) {
                let cluster = of_index[0].l2_offset >> scan.layout.cluster_bits;
                let owner = Owner::L2Table(of_index[0].l1_index);
                self.refer_once(scan, owner, cluster, count_of(of_index), claim_of(of_index));
            }
            let active = of_table.iter().find(|one| one.tree == Tree::Active);
            let index = active.unwrap_or(&of_table[0]).l1_index;
            let start = of_table.partition_point(|one| one.l1_index < index);
            let end = of_table.partition_point(|one| one.l1_index <= index);
            let before = scan.report.mapped.len();
            self.l2_table(scan, &of_table[start..end]);
            map_again(scan, before, index, &of_table[end..]);
        }
    }

    /// Follows the entries of the L2 table that `uses` use at one L1 index.
    fn l2_table(&mut self, scan: &mut Scan<'_>, uses: &[Use]) {
        let Use {
            l2_offset,
            l1_index,
            ..
        } = uses[0];
        let active = claim_of(uses) != Claim::Mute;
        let first_guest_cluster = l1_index * scan.layout.l2_entries();
        let words_per_entry = if scan.layout.extended_l2 { 2 } else { 1 };
        let words = scan.words(l2_offset, scan.layout.l2_entries() * words_per_entry);
        for (word, bitmap) in entries(words, words_per_entry) {
            let guest_cluster = first_guest_cluster + word.index;
            let count = count_of(uses);
            let mapping = match self.l2_entry(scan, word, guest_cluster, count, active) {
                None | Some(Mapping::Data(_)) if scan.layout.extended_l2 => {
                    split(scan, word, bitmap)
                }
                mapping => mapping,
            };
            let on_disk = guest_cluster << scan.layout.cluster_bits < scan.layout.virtual_bytes;
            if let (Some(mapping), true, true) = (mapping, active, on_disk) {
                scan.report.mapped.push(Mapped {
                    guest_cluster,
                    mapping,
                });
            }
        }
    }

    fn l2_entry(
        &mut self,
        scan: &mut Scan<'_>,
        word: Word,
        guest_cluster: u64,
        count: u64,
        active: bool,
    ) -> Option<Mapping> {
        let copied = word.value & COPIED != 0;
        if word.value & COMPRESSED != 0 && scan.layout.external_data {
            let at = word.at;
            scan.report.find(Finding::Misplaced { at, guest_cluster });
            return Some(Mapping::Bad);
        }
        if word.value & COMPRESSED != 0 {
            return Some(self.compressed(scan, word, count));
        }
        let zero_bit = if scan.layout.version >= 3 { ZERO } else { 0 };
        let target = word.value & OFFSET;
        if !is_sound(scan, Table::L2, word, !(COPIED | OFFSET | zero_bit), target) {
            return Some(Mapping::Bad);
        }
        // Extended entries say by their bitmap what reads as zeroes.
        let zero = word.value & zero_bit != 0 && !scan.layout.extended_l2;
        if scan.layout.external_data {
            return external(scan, word, guest_cluster, zero);
        }
        if target == 0 {
            if copied && active {
                let (table, at) = (Table::L2, word.at);
                scan.report.find(Finding::IdleCopied { table, at });
            }
            return zero.then_some(Mapping::Zero);
        }
        let claim = match (active, copied) {
            (false, _) => Claim::Mute,
            (true, false) => Claim::Shared,
            (true, true) => Claim::Sole,
        };
        let cluster = target >> scan.layout.cluster_bits;
        self.refer_once(scan, Owner::Data(guest_cluster), cluster, count, claim);
        Some(if zero {
            Mapping::Zero
        } else {
            Mapping::Data(target)
        })
    }

    fn compressed(&mut self, scan: &mut Scan<'_>, word: Word, count: u64) -> Mapping {
        if word.value & COPIED != 0 {
            let (table, at) = (Table::L2, word.at);
            scan.report.find(Finding::IdleCopied { table, at });
        }
        let (offset, end) = compressed_range(&scan.layout, word.value);
        let bits = scan.layout.cluster_bits;
        for cluster in offset >> bits..=(end - 1) >> bits {
            let claim = Claim::Mute;
            self.refer_once(scan, Owner::Compressed, cluster, count, claim);
        }
        Mapping::Compressed {
            offset,
            len_bytes: end - offset,
        }
    }
}

/// What an entry means where guest data stand in another file. There each cluster has its place, at its
/// guest offset, and one user, so that COPIED is always set; offset 0 with COPIED is the first place.
fn external(scan: &mut Scan<'_>, word: Word, guest_cluster: u64, zero: bool) -> Option<Mapping> {
    let (copied, target) = (word.value & COPIED != 0, word.value & OFFSET);
    let zeroes = || zero.then_some(Mapping::Zero);
    if target == 0 && !copied {
        return zeroes();
    }
    if target != guest_cluster << scan.layout.cluster_bits || !copied {
        let at = word.at;
        scan.report.find(Finding::Misplaced { at, guest_cluster });
    }
    zeroes().or(Some(Mapping::Data(target)))
}

/// Maps at further L1 indices what the table just followed, for `index`, has mapped since the
/// list was `before` long. That a table is used there is a finding; a guest reads it all the same.
fn map_again(scan: &mut Scan<'_>, before: usize, index: u64, uses: &[Use]) {
    let entries = scan.layout.l2_entries();
    let mapped = scan.report.mapped[before..].to_vec();
    for one in uses.iter().filter(|one| one.tree == Tree::Active) {
        for Mapped {
            guest_cluster,
            mapping,
        } in &mapped
        {
            let guest_cluster = guest_cluster + (one.l1_index - index) * entries;
            let on_disk = guest_cluster << scan.layout.cluster_bits < scan.layout.virtual_bytes;
            if on_disk && scan.report.mapped.len() < MAX_MAPPED_AGAIN {
                let mapping = *mapping;
                scan.report.mapped.push(Mapped {
                    guest_cluster,
                    mapping,
                });
            }
        }
    }
}

/// What an L2 entry and its bitmap map a guest cluster to, whoever else says so.
pub(super) fn mapping_of(layout: &Layout, value: u64, bitmap: u64) -> Option<Mapping> {
    if value & COMPRESSED != 0 {
        let (offset, end) = compressed_range(layout, value);
        return Some(Mapping::Compressed {
            offset,
            len_bytes: end - offset,
        });
    }
    let zero_bit = if layout.version >= 3 { ZERO } else { 0 };
    let target = value & OFFSET;
    if value & !(COPIED | OFFSET | zero_bit) != 0 || !target.is_multiple_of(layout.cluster_bytes())
    {
        return Some(Mapping::Bad);
    }
    if layout.extended_l2 {
        return parts_of(target, target != 0, bitmap);
    }
    match (value & zero_bit != 0, target) {
        (true, _) => Some(Mapping::Zero),
        (false, 0) => None,
        (false, _) => Some(Mapping::Data(target)),
    }
}

/// Where a compressed cluster's bytes start, and where they end at most.
fn compressed_range(layout: &Layout, value: u64) -> (u64, u64) {
    let offset_bits = 62 - (layout.cluster_bits - 8);
    let offset = value & ((1 << offset_bits) - 1);
    let sectors = ((value & !(COPIED | COMPRESSED)) >> offset_bits) + 1;
    (offset, offset / 512 * 512 + sectors * 512)
}

/// The entries of an L2 table that are not zero, each with its bitmap, from the words that are not zero.
pub(super) fn entries(words: Words<'_>, words_per_entry: u64) -> impl Iterator<Item = (Word, u64)> {
    let mut words = words.peekable();
    std::iter::from_fn(move || {
        let word = words.next()?;
        if words_per_entry == 1 {
            return Some((word, 0));
        }
        let index = word.index / 2;
        if word.index % 2 == 1 {
            let (at, value) = (word.at - 8, 0);
            return Some((Word { index, at, value }, word.value));
        }
        let bitmap = words.next_if(|next| next.index == word.index + 1);
        Some((Word { index, ..word }, bitmap.map_or(0, |next| next.value)))
    })
}

/// What an extended entry of an active table that is not compressed is mapped to.
fn split(scan: &mut Scan<'_>, word: Word, bitmap: u64) -> Option<Mapping> {
    let placed = word.value & OFFSET != 0 || scan.layout.external_data && word.value & COPIED != 0;
    let mapping = parts_of(word.value & OFFSET, placed, bitmap);
    if mapping == Some(Mapping::Bad) {
        let at = word.at;
        scan.report.find(Finding::Subclusters { at, bitmap });
    }
    mapping
}

/// What the subclusters of a cluster at `offset` are. Specification: "Extended L2 Entries".
fn parts_of(offset: u64, placed: bool, bitmap: u64) -> Option<Mapping> {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).expect("32 bits are left");
    let (allocated, zero) = (half(bitmap), half(bitmap >> 32));
    if allocated & zero != 0 || (!placed && allocated != 0) {
        return Some(Mapping::Bad);
    }
    match (allocated, zero) {
        (u32::MAX, _) => Some(Mapping::Data(offset)),
        (_, u32::MAX) => Some(Mapping::Zero),
        (0, 0) => None,
        _ => Some(Mapping::Split {
            offset,
            allocated,
            zero,
        }),
    }
}

fn count_of(uses: &[Use]) -> u64 {
    u64::try_from(uses.len()).expect("a count of entries fits 64 bits")
}

/// What the active L1 table's entry says, if it is among `uses`.
fn claim_of(uses: &[Use]) -> Claim {
    match uses.iter().find(|one| one.tree == Tree::Active) {
        Some(Use { copied: true, .. }) => Claim::Sole,
        Some(Use { copied: false, .. }) => Claim::Shared,
        None => Claim::Mute,
    }
}

/// With the dirty bit, the extension of the file may be lost that would hold a mapped cluster. The
/// refcount table must name a block for it, so that repair finds room to count it.
fn may_lie_beyond_end(scan: &Scan<'_>, owner: Owner, cluster: u64) -> bool {
    let block = cluster / scan.layout.counts_per_block();
    scan.layout.dirty
        && matches!(owner, Owner::Data(_))
        && scan
            .blocks
            .binary_search_by_key(&block, |(index, _)| *index)
            .is_ok()
}

fn is_sound(scan: &mut Scan<'_>, table: Table, word: Word, reserved: u64, target: u64) -> bool {
    let Word { at, value, .. } = word;
    let aligned = target.is_multiple_of(scan.layout.cluster_bytes());
    if value & reserved != 0 {
        let word = value;
        scan.report.find(Finding::Reserved { table, at, word });
    } else if !aligned {
        let word = value;
        scan.report.find(Finding::Unaligned { table, at, word });
    }
    value & reserved == 0 && aligned
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
