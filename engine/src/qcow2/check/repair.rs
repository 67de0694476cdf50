//! Making the refcounts, the COPIED flags and the file's length agree with what the image refers to.
//!
//! No byte that a guest can see changes. Power may fail at any request: every step leaves an image
//! that the next repair can start from, because
//! 1. what was read is made durable before anything that follows from it is written, and cleared autoclear
//!    bits of unknown features with it;
//! 2. a file too short for its mappings grows first, while the dirty bit still explains it;
//! 3. refcounts change in place only where nothing else lives in the block. Each of them is then as it was
//!    or right, whatever survives: none is too low that was not, and none is lowered that has a reference, so
//!    that they need no order among themselves;
//! 4. a rebuild writes into clusters that neither the image nor its old refcount structures use, and
//!    the header switches to it in one sector, after a flush;
//! 5. COPIED follows once the refcounts are durable, and in no table whose cluster is something else as well;
//! 6. a snapshot table whose entries say too little or too much gives way to another by a switch, as it
//!    does when a snapshot is taken, once refcounts and COPIED are right;
//! 7. the dirty and corrupt bits go last, after a flush, and only when nothing is left to say.

use super::report::{CheckReport, Tally};
use super::survey::Survey;
use super::walk::is_unaligned_reserve;
use crate::barrier::Barrier;
use crate::defect::{Defect, Planted};
use crate::device::{DeviceError, Event, Port, SECTOR_BYTES};
use crate::error::Error;
use crate::probe::Probe;
use crate::qcow2::entry::{Copied, L1Entry, L1Word, L2Entry, Mapping};
use crate::qcow2::header::{self, Header, HeaderSector, autoclear, be_u64, incompatible};
use crate::qcow2::refblock::{GROUP, group_bytes, read_group, set_refcount};
use crate::qcow2::snapshot::rewrite_table;
use crate::qcow2::unit::{HostOffset, mem_len};

const SECTOR: usize = 512;
const COPIED: u64 = 1 << 63;
const MARKS: u64 = incompatible::DIRTY | incompatible::CORRUPT;

/// A refcount block to be written in place.
struct Change {
    offset: HostOffset,
    old: Vec<u8>,
    new: Vec<u8>,
}

/// Rounds of repair before an image is given up that has something new to repair after each.
const MAX_ROUNDS: u32 = 8;

/// Repairs everything that can be repaired, in an image whose header and its sector were read just now.
///
/// One round is enough, but for two cases, in which there is a look at what came of it: where something
/// stays that cannot be repaired, a file that grows may reach what was beyond its end; and tables that
/// overlap may have no content that is right for both.
pub(in crate::qcow2) async fn repair_all(
    file: &Port,
    loaded: (Header, HeaderSector),
    planted: Planted,
) -> Result<CheckReport, Error> {
    let mut loaded = Some(loaded);
    let mut rounds: Vec<CheckReport> = Vec::new();
    let mut remaining = Tally::default();
    for _ in 0..MAX_ROUNDS {
        let (header, mut sector) = match loaded.take() {
            Some(loaded) => loaded,
            None => header::load(file).await?,
        };
        let mut survey = Survey::take(file, &header, planted).await;
        let work = survey.work();
        remaining = survey.report.found;
        if work == Work::Counts {
            survey.note_work();
        }
        // Structures that overlap undo each other's repair for ever.
        let in_vain = rounds.last().is_some_and(|before| {
            before.findings == survey.report.findings && before.found == remaining
        });
        if work != Work::Nothing {
            forget_unknown(file, &header, &mut sector).await?;
        }
        let ends = match work {
            Work::Nothing => true,
            Work::Entries | Work::Counts | Work::Snapshots if in_vain => true,
            Work::Entries => {
                survey.drop_unaligned_reserves().await?;
                false
            }
            Work::Snapshots => {
                match Box::pin(rewrite_table(file, &header, sector, planted)).await {
                    Ok(()) => {
                        file.note(Probe::RepairSnapshots);
                        false
                    }
                    // Nothing was written on an image that is not to be written on.
                    Err(Error::BadImage(_) | Error::Unsupported(_) | Error::Refused(_)) => true,
                    Err(Error::Device(error)) => return Err(error.into()),
                }
            }
            Work::Counts => {
                survey.repair(&mut sector).await?;
                let may_overlap = survey.copied_in_doubt && survey.most_references > 1
                    || !survey.shared_tables.is_empty();
                let ends = survey.stuck == 0 && survey.ill_said == 0 && !may_overlap;
                if ends {
                    remaining = Tally::default();
                }
                ends
            }
        };
        rounds.push(survey.report);
        if ends {
            break;
        }
    }
    let latest = rounds.last();
    let check_errors = latest.map_or(0, |report| report.check_errors);
    let unreadable = latest.and_then(|report| report.unreadable.clone());
    let first = rounds.into_iter().next();
    let mut report = first.unwrap_or_default().repaired_to(remaining);
    report.check_errors = check_errors;
    report.unreadable = unreadable;
    Ok(report)
}

/// What a repair has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// There is nothing to repair, or nothing that can be.
    Nothing,
    /// L2 entries go first: they decide what is referenced.
    Entries,
    /// Refcounts, COPIED, the length of the file, and the bits in the header.
    Counts,
    /// The snapshot table, which needs room, and so refcounts that are right.
    Snapshots,
}

/// Frees what nothing refers to, and leaves everything else as it is. Refcount structures that need a
/// rebuild may share clusters with data, and are not written.
pub(super) async fn repair_leaks(
    file: &Port,
    (header, mut sector): (Header, HeaderSector),
    planted: Planted,
) -> Result<CheckReport, Error> {
    let mut survey = Survey::take(file, &header, planted).await;
    let found = survey.report.found;
    if !survey.complete || survey.rebuild || found.leaks == 0 {
        return Ok(survey.report);
    }
    forget_unknown(file, &header, &mut sector).await?;
    survey.flush(Barrier::RepairRead).await?;
    for index in std::mem::take(&mut survey.wrong_blocks) {
        if let Some(mut change) = survey.change(index) {
            change.new = survey.lowered(&change);
            survey.apply(&change).await?;
        }
    }
    if found.corruptions == 0 && survey.copied_in_doubt {
        survey.flush(Barrier::RepairCopied).await?;
        survey.correct_copied().await?;
    }
    survey.flush(Barrier::RepairDone).await?;
    let mut remaining = Tally { leaks: 0, ..found };
    if !survey.shared_tables.is_empty() {
        // COPIED of what is no longer leaked may have to stay wrong there.
        remaining = Survey::take(file, &header, planted).await.report.found;
    }
    Ok(survey.report.repaired_to(remaining))
}

/// Clears the autoclear bits of what is not known here. Whatever changes that they may be about waits for the next
/// flush, which every repair begins with.
async fn forget_unknown(
    file: &Port,
    header: &Header,
    sector: &mut HeaderSector,
) -> Result<(), DeviceError> {
    if header.autoclear & !autoclear::KNOWN == 0 {
        return Ok(());
    }
    file.note(Probe::RepairForgot);
    sector.set_autoclear(header.autoclear & autoclear::KNOWN);
    file.at(Event::None).write(0, sector.bytes()).await
}

impl Survey<'_> {
    fn work(&self) -> Work {
        let wrong = self.is_wrong();
        let marked = self.is_marked() && self.is_curable();
        if !self.unaligned_reserves.is_empty() {
            // What they refer to may even be what keeps the rest from being counted.
            Work::Entries
        } else if self.complete && (wrong || marked) {
            Work::Counts
        } else if self.ill_said > 0
            && self.complete
            && self.stuck == 0
            && self.report.check_errors == 0
        {
            Work::Snapshots
        } else {
            Work::Nothing
        }
    }

    async fn repair(&mut self, sector: &mut HeaderSector) -> Result<(), Error> {
        self.flush(Barrier::RepairRead).await?;
        let clears = self.is_marked() && self.is_curable();
        let too_early = self.planted.has(Defect::RepairCleansEarly);
        if clears && too_early {
            self.clear_marks(sector).await?;
        }
        self.lengthen().await?;
        if self.rebuild {
            self.rebuild_refcounts(sector).await?;
        } else {
            self.correct_refcounts().await?;
        }
        if self.copied_in_doubt || self.planted.has(Defect::RepairDropsUncounted) {
            self.flush(Barrier::RepairCopied).await?;
            self.correct_copied().await?;
        }
        if clears && !too_early {
            self.flush(Barrier::RepairMarks).await?;
            self.clear_marks(sector).await?;
        }
        Ok(self.flush(Barrier::RepairDone).await?)
    }

    /// Tells of what is rare in what there is to repair.
    fn note_work(&self) {
        let found = self.report.found;
        if self.rebuild {
            self.file.note(Probe::RepairRebuilt);
        } else if found.leaks > 0 && found.corruptions == 0 {
            self.file.note(Probe::RepairLeaksOnly);
        }
        if self.copied_in_doubt {
            self.file.note(Probe::RepairCopied);
        }
    }

    /// Whether a refcount, a COPIED flag or the length of the file can be set right.
    fn is_wrong(&self) -> bool {
        self.fixable() > self.ill_said || self.report.found.leaks > 0
    }

    fn is_marked(&self) -> bool {
        self.header.incompatible & MARKS != 0
    }

    /// Whether nothing is left once everything that can be repaired is.
    fn is_curable(&self) -> bool {
        // What counts that change mean for COPIED in a table that is not written, the next look tells.
        let settled = self.shared_tables.is_empty() || !self.is_wrong();
        let lasting = self.stuck + self.ill_said + self.report.check_errors;
        self.complete && settled && lasting == 0
    }

    pub(super) async fn flush(&self, barrier: Barrier) -> Result<(), DeviceError> {
        if self.planted.lacks(barrier) {
            return Ok(());
        }
        self.file.at(Event::FlushToDisk).flush().await
    }

    async fn clear_marks(&self, sector: &mut HeaderSector) -> Result<(), DeviceError> {
        sector.set_incompatible(self.header.incompatible & !MARKS);
        self.file.at(Event::None).write(0, sector.bytes()).await
    }

    /// Makes the file long enough for every mapping whose extension was lost.
    async fn lengthen(&mut self) -> Result<(), DeviceError> {
        if self.lost_end == 0 || self.planted.has(Defect::RepairKeepsShortFile) {
            return Ok(());
        }
        self.file.note(Probe::RepairLengthened);
        let len_bytes = self.header.geometry.round_up(self.lost_end);
        self.file.at(Event::None).set_len(len_bytes).await
    }

    /// Writes the counts into the blocks that are there.
    async fn correct_refcounts(&mut self) -> Result<(), DeviceError> {
        let mut indexes = std::mem::take(&mut self.wrong_blocks);
        if self.planted.has(Defect::RepairSkipsLast) {
            indexes.pop();
        }
        for index in indexes {
            if let Some(change) = self.change(index) {
                self.apply(&change).await?;
            }
        }
        Ok(())
    }

    /// What has to become of the block at `index`.
    fn change(&self, index: u64) -> Option<Change> {
        let block = self.stored.block(index);
        Some(Change {
            offset: block.offset()?,
            old: block.bytes().map_or_else(
                || vec![0; self.header.geometry.cluster_len()],
                <[u8]>::to_vec,
            ),
            new: self.expected_block(index),
        })
    }

    /// The block between old and new in which no count rises.
    fn lowered(&self, change: &Change) -> Vec<u8> {
        let order = self.header.geometry.refcount_order();
        let mut lowered = change.new.clone();
        let (mut old, mut new) = ([0; GROUP], [0; GROUP]);
        for first in (0..(lowered.len() * 8) >> order).step_by(GROUP) {
            if group_bytes(&change.old, first, order) == group_bytes(&change.new, first, order) {
                continue;
            }
            read_group(&change.old, first, order, &mut old);
            read_group(&change.new, first, order, &mut new);
            for ((old, new), index) in old.iter().zip(&new).zip(first..) {
                if old < new {
                    set_refcount(&mut lowered, index, order, *old);
                }
            }
        }
        lowered
    }

    async fn apply(&self, change: &Change) -> Result<(), DeviceError> {
        let Change { offset, old, new } = change;
        write_changed(self.file, Event::RefblockUpdatePart, offset.0, old, new).await
    }

    /// The bytes of a block that says how often each cluster is referenced.
    pub(super) fn expected_block(&self, index: u64) -> Vec<u8> {
        let geometry = self.header.geometry;
        let order = geometry.refcount_order();
        let per_block = geometry.refcounts_per_block();
        let start = index * per_block;
        let mut bytes = vec![0; geometry.cluster_len()];
        for (cluster, count) in self.counts.referenced(start..start + per_block) {
            let within = usize::try_from(cluster - start).expect("a block fits memory");
            set_refcount(&mut bytes, within, order, count.into());
        }
        bytes
    }

    /// Sets COPIED in the guest's tables exactly where there is one reference. A table whose cluster is something
    /// else as well stays as it is: its errors remain.
    async fn correct_copied(&self) -> Result<(), DeviceError> {
        let header = self.header;
        // What the end of the file leaves of its last entry counts, as it did when the table was walked.
        let within = self.file_bytes.saturating_sub(header.l1_offset.0);
        let len_bytes = (header.l1_entries * 8).min(within.next_multiple_of(8));
        let l1_is_shared = self.shared_tables.contains(&header.l1_offset.0);
        let mut tables = Vec::new();
        let change = |table: &mut [u8]| {
            for bytes in table.chunks_exact_mut(8) {
                let word = be_u64(bytes, 0);
                if let Ok(L1Entry::Table { offset, .. }) = L1Word(word).decode(header.geometry) {
                    if offset.0 < self.file_bytes {
                        tables.push(offset);
                    }
                    if !l1_is_shared {
                        bytes.copy_from_slice(&self.with_copied(word, offset).to_be_bytes());
                    }
                }
            }
        };
        self.rewrite(Event::L1Update, header.l1_offset.0, len_bytes, change)
            .await?;
        tables.sort_unstable();
        tables.dedup();
        tables.retain(|table| !self.shared_tables.contains(&table.0));
        for table in tables {
            self.rewrite_l2(table, |entry| {
                match entry.decode(header.geometry, header.version) {
                    Ok(mapping) => match mapping.parts() {
                        (Some((offset, _)), _) if self.is_dropped(offset) => L2Entry::default(),
                        (Some((offset, _)), _) => L2Entry {
                            word: self.with_data_copied(entry.word, offset),
                            ..entry
                        },
                        (None, _) => entry,
                    },
                    Err(_) => entry,
                }
            })
            .await?;
        }
        self.withdraw_compressed_claims().await
    }

    /// Whether a mapping to this cluster is lost to a planted defect.
    fn is_dropped(&self, offset: HostOffset) -> bool {
        let geometry = self.header.geometry;
        self.planted.has(Defect::RepairDropsUncounted)
            && !self.header.is_dirty()
            && !geometry.has_external_data()
            && self.stored.get(geometry.cluster_of(offset).0) == 0
    }

    /// Clears COPIED on compressed clusters, where it has no meaning, in the tables of snapshots too.
    async fn withdraw_compressed_claims(&self) -> Result<(), DeviceError> {
        let (geometry, version) = (self.header.geometry, self.header.version);
        for table in &self.compressed_claims {
            self.rewrite_l2(*table, |entry| match entry.decode(geometry, version) {
                Ok(Mapping::Compressed(_)) => L2Entry {
                    word: entry.word & !COPIED,
                    ..entry
                },
                Ok(_) | Err(_) => entry,
            })
            .await?;
        }
        Ok(())
    }

    /// As [`Self::with_copied`], for guest data. In an external data file each cluster has one user.
    fn with_data_copied(&self, word: u64, offset: HostOffset) -> u64 {
        if self.header.geometry.has_external_data() {
            word | COPIED
        } else {
            self.with_copied(word, offset)
        }
    }

    fn with_copied(&self, word: u64, offset: HostOffset) -> u64 {
        let cluster = self.header.geometry.cluster_of(offset);
        let copied = if self.counts.get(cluster.0) == 1 {
            Copied::Yes
        } else {
            Copied::No
        };
        match copied {
            Copied::Yes => word | COPIED,
            Copied::No => word & !COPIED,
        }
    }

    /// Turns entries that keep an unaligned cluster in reserve for zeroes into plain zeroes.
    async fn drop_unaligned_reserves(&mut self) -> Result<(), DeviceError> {
        let (geometry, version) = (self.header.geometry, self.header.version);
        self.flush(Barrier::RepairRead).await?;
        self.unaligned_reserves.dedup();
        for table in std::mem::take(&mut self.unaligned_reserves) {
            self.rewrite_l2(table, |entry| {
                if is_unaligned_reserve(entry, geometry, version) {
                    entry.without_reserve(geometry)
                } else {
                    entry
                }
            })
            .await?;
        }
        self.flush(Barrier::RepairDone).await
    }

    /// Passes every entry of an L2 table through `change`, and writes the sectors that differ.
    async fn rewrite_l2(
        &self,
        table: HostOffset,
        mut change: impl FnMut(L2Entry) -> L2Entry,
    ) -> Result<(), DeviceError> {
        let geometry = self.header.geometry;
        let entries = mem_len(geometry.l2_entries());
        let len_bytes = geometry.cluster_bytes();
        self.rewrite(Event::L2Update, table.0, len_bytes, |table| {
            for index in 0..entries {
                let before = L2Entry::read(table, index, geometry);
                if before != L2Entry::default() {
                    change(before).write(table, index, geometry);
                }
            }
        })
        .await
    }

    /// Has `change` change a table, and writes the sectors that differ.
    async fn rewrite(
        &self,
        event: Event,
        offset: u64,
        len_bytes: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), DeviceError> {
        let len = mem_len(len_bytes);
        let old = self
            .file
            .at(event)
            .read(offset, len.next_multiple_of(SECTOR))
            .await?;
        let mut new = old.clone();
        change(&mut new[..len]);
        write_changed(self.file, event, offset, &old, &new).await
    }
}

/// Writes every run of sectors in which `new` differs from `old`.
async fn write_changed(
    file: &Port,
    event: Event,
    offset: u64,
    old: &[u8],
    new: &[u8],
) -> Result<(), DeviceError> {
    let mut run = Vec::new();
    let mut run_offset = offset;
    let mut here = offset;
    for (old, new) in old.chunks(SECTOR).zip(new.chunks(SECTOR)) {
        if old == new {
            if !run.is_empty() {
                file.at(event)
                    .write(run_offset, std::mem::take(&mut run))
                    .await?;
            }
        } else {
            if run.is_empty() {
                run_offset = here;
            }
            run.extend_from_slice(new);
        }
        here += SECTOR_BYTES;
    }
    if !run.is_empty() {
        file.at(event).write(run_offset, run).await?;
    }
    Ok(())
}
