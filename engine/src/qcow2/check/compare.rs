//! Refcounts against references, block by block.

use std::ops::Range;

use super::counts::Counts;
use super::report::{CheckReport, Kind, Tally};
use super::stored::Block;
use super::survey::Survey;
use crate::error::Structure;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::refblock::{GROUP, counts_end, read_group};
use crate::qcow2::unit::{byte_count, mem_len};

impl Survey<'_> {
    /// Notes every cluster whose refcount is not the number of its references, and learns what has to
    /// be done about it: which blocks are wrong, and whether references are left without a block.
    pub(super) fn compare(&mut self) {
        let per_block = self.header.geometry.refcounts_per_block();
        let dense_blocks = self.counts.dense_end().div_ceil(per_block);
        let blocks = self.stored.len().max(dense_blocks);
        let mut end = 0;
        for index in 0..blocks {
            end = end.max(self.compare_block(index));
        }
        // References beyond both the file and the refcount table.
        let mut beyond: Vec<u64> = self
            .counts
            .sparse(blocks * per_block..u64::MAX)
            .map(|(cluster, _)| cluster / per_block)
            .collect();
        beyond.dedup();
        for index in beyond {
            end = end.max(self.compare_block(index));
        }
        self.report.totals.image_end_offset = end << self.header.geometry.cluster_bits();
    }

    /// The end of the last cluster within the file that has a refcount or a reference, or 0.
    fn compare_block(&mut self, index: u64) -> u64 {
        let per_block = self.header.geometry.refcounts_per_block();
        let range = index * per_block..(index + 1) * per_block;
        let dense_end = self.counts.dense_end().clamp(range.start, range.end);
        let found_before = self.report.found;
        let end = self.compare_slots(index, range.start..dense_end);
        self.compare_rest(index, dense_end..range.end);
        if self.report.found != found_before {
            self.wrong_blocks.push(index);
            let lacks_counts = self.report.found.corruptions > found_before.corruptions;
            if lacks_counts && self.stored.block(index).offset().is_none() {
                self.rebuild = true;
            }
        }
        end
    }

    /// Compares clusters that lie within the file.
    fn compare_slots(&mut self, index: u64, clusters: Range<u64>) -> u64 {
        let order = self.header.geometry.refcount_order();
        let mut end = 0;
        let mut most = 0;
        let (counts, block, mut ledger) = self.parts(index);
        let bytes = block.bytes();
        let mut found = [0; GROUP];
        for (start, first) in clusters.clone().zip(0..).step_by(GROUP) {
            let slots = counts.group(start);
            let counted = bytes.is_some_and(|bytes| read_group(bytes, first, order, &mut found));
            if !counted && slots.is_none() {
                continue;
            }
            let len = GROUP.min(mem_len(clusters.end - start));
            let expected = &slots.unwrap_or(&[0; GROUP])[..len];
            let found = &found[..len];
            most = expected.iter().copied().fold(most, u32::max);
            let mut both = found.iter().zip(expected);
            if let Some(last) = both.rposition(|(found, expected)| *found != 0 || *expected != 0) {
                end = start + byte_count(last) + 1;
            }
            ledger.compare(start, found, expected);
        }
        self.copied_in_doubt |= most > 1;
        end
    }

    /// Compares clusters that have no slot; mostly there is nothing on either side.
    fn compare_rest(&mut self, index: u64, clusters: Range<u64>) {
        if clusters.is_empty() {
            return;
        }
        self.copied_in_doubt |= self.lost_end > 0;
        let geometry = self.header.geometry;
        let order = geometry.refcount_order();
        let per_block = geometry.refcounts_per_block();
        let (counts, block, mut ledger) = self.parts(index);
        let Some(bytes) = block.bytes() else {
            for (cluster, expected) in counts.sparse(clusters) {
                ledger.note(cluster, 0, u64::from(expected));
            }
            return;
        };
        // A block may count millions of clusters, few of which are referred to: one walk through these goes
        // along instead of a search for each.
        let counted = counts.sparse(clusters.clone());
        let counted_end = counted.clone().next_back().map_or(0, |(last, _)| last + 1);
        let mut counted = counted.peekable();
        let block_end = index * per_block + byte_count(counts_end(bytes, order));
        let end = clusters.end.min(block_end.max(counted_end));
        let mut from = clusters.start;
        let mut found = [0; GROUP];
        while from < end {
            let within = mem_len(from % per_block);
            let in_group = within % GROUP;
            let len = (GROUP - in_group).min(mem_len(end - from));
            let any = read_group(bytes, within - in_group, order, &mut found);
            let to = from + byte_count(len);
            if any || counted.peek().is_some_and(|(cluster, _)| *cluster < to) {
                let mut expected = [0; GROUP];
                while let Some((cluster, count)) = counted.next_if(|(cluster, _)| *cluster < to) {
                    expected[mem_len(cluster - from)] = count;
                }
                ledger.compare(from, &found[in_group..][..len], &expected[..len]);
            }
            from = to;
        }
    }

    /// What is compared, and where the result goes.
    fn parts(&mut self, index: u64) -> (&Counts, &Block, Ledger<'_>) {
        let ledger = Ledger {
            geometry: self.header.geometry,
            report: &mut self.report,
            crowded: !can_say(self.header.geometry, self.most_references.into()),
            complete: &mut self.complete,
            stuck: &mut self.stuck,
        };
        (&self.counts, self.stored.block(index), ledger)
    }
}

/// Takes down wrong counts.
struct Ledger<'a> {
    geometry: Geometry,
    report: &'a mut CheckReport,
    /// Whether some cluster has more references than a refcount can say, even after a rebuild.
    crowded: bool,
    complete: &'a mut bool,
    stuck: &'a mut u64,
}

impl Ledger<'_> {
    /// Compares the counts of adjacent clusters, which are almost always the same.
    fn compare(&mut self, first: u64, found: &[u64], expected: &[u32]) {
        let both = || found.iter().zip(expected).map(|(f, e)| (*f, u64::from(*e)));
        if both().fold(0, |all, (found, expected)| all | found ^ expected) == 0 {
            return;
        }
        // One block of noise may be eight million leaks.
        if self.report.is_full() && both().all(|(_, expected)| can_say(self.geometry, expected)) {
            self.report.count(Tally {
                corruptions: both().map(|(f, e)| u64::from(f < e)).sum(),
                leaks: both().map(|(f, e)| u64::from(f > e)).sum(),
            });
            return;
        }
        for ((found, expected), cluster) in both().zip(first..) {
            if found != expected {
                self.note(cluster, found, expected);
            }
        }
    }

    fn note(&mut self, cluster: u64, found: u64, expected: u64) {
        let references = expected;
        let kind = if !can_say(self.geometry, references) {
            if self.crowded {
                *self.complete = false;
                *self.stuck += 1;
            }
            Kind::TooManyReferences { references }
        } else if found < expected {
            Kind::TooLow { found, expected }
        } else {
            Kind::Leak { found, expected }
        };
        let offset = cluster << self.geometry.cluster_bits();
        self.report
            .note(kind, Structure::RefcountBlock, offset, cluster);
    }
}

/// Whether a refcount can say that many references, and they were counted to the end.
fn can_say(geometry: Geometry, references: u64) -> bool {
    references <= geometry.max_refcount() && references < u64::from(u32::MAX)
}
