//! Judges what a disk left that destroys what had been durable: detect or be right.
//!
//! No format that changes its tables in place can rebuild a sector that reads as garbage, or that reads as it did before
//! a flush which the disk acknowledged and ignored. What is promised then, and held here against the subject:
//!
//! - It neither panics nor hangs: not at opening, reading, closing, checking or repairing, and not in work after that.
//! - It may refuse with an error, whatever it was asked.
//! - What it reads nevertheless is legal, unless a sector on the way to it was destroyed. On the way are the header, the
//!   entry of the L1 table, that of the L2 table, and the sectors that it names. Nobody can know by a sector of data that
//!   it is garbage or stale, nor by a table that it is an older one; but garbage in a table must not pass for a table.
//! - A repair that claims success leaves all of that so.
//! - Where nothing is left that the walk objects to, what follows is held to everything that is always promised.

use std::collections::BTreeMap;
use std::ops::Range;

use blkdebug::class::Class;
use blkdebug::record::Recording;
use engine::device::PageImage;

use super::explain;
use super::judge::{Ended, Judge, Judgement, Witness, interest, reads};
use super::service::{Service, work};
use super::structure::{Layout, Mapping, StoredBitmap, StructureReport};
use super::sweep::shows_the_same;
use super::verdict::{Oracle, Verdict};
use crate::crash::destroyed::{Destroyed, Ruin};
use crate::guest::{Expectation, SectorViolation};
use crate::pace::Stage;
use crate::sectors::merge;
use crate::subject::{Attempt, Failure, Repair};
use crate::workload::stamp::identify;

/// What a disk destroyed, as far as it concerns one image.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// Of the image's own file.
    pub image: Destroyed,
    /// Of the file that its guest data stand in, where that is another.
    pub data: Destroyed,
    /// Whether anything of the files beneath it was.
    pub beneath: bool,
}

/// What a state that a judge let pass came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Everything was read, and is right.
    #[default]
    Right,
    /// Something was refused; what was read is right.
    Refused,
    /// Something was read that is wrong, and cannot be known to be.
    Undetectable,
}

/// What came of the guest sectors that were read of damaged images, each counted as often as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// They are right.
    pub right: u64,
    /// The read was refused.
    pub refused: u64,
    /// They are wrong, and nobody can know it: because of what was destroyed on the way to them.
    pub undetectable: BTreeMap<Class, u64>,
}

impl Readings {
    /// Adds what came of others.
    pub fn add(&mut self, other: &Self) {
        self.right += other.right;
        self.refused += other.refused;
        for (reason, count) in &other.undetectable {
            *self.undetectable.entry(*reason).or_default() += count;
        }
    }
}

impl Judge<'_> {
    /// Judges an image of which a disk destroyed something.
    pub fn judge_damaged(
        &self,
        image: PageImage,
        expectation: &Expectation<'_>,
        damage: &Damage,
    ) -> Judgement {
        self.observer.begin(Stage::StructureBefore);
        let mut case = Case {
            judge: self,
            state: Witness::new(image),
            recovered: None,
            repairs: Vec::new(),
            read: Vec::new(),
            damage,
            standing: Standing::Right,
            readings: Readings::default(),
        };
        let verdict = match case.run(expectation) {
            Ok(()) => Verdict::Survived,
            Err(verdict) => *verdict,
        };
        Judgement {
            standing: case.standing,
            readings: case.readings,
            recovered: case.recovered,
            repairs: case.repairs,
            read: case.read,
            ..Judgement::of(case.state, verdict)
        }
    }

    /// Lets the subject work on an image of which something is destroyed. As long as the walk objects to something, that
    /// need not go well; but it ends.
    pub fn serve_damaged(
        &self,
        image: &Witness,
        expectation: &Expectation<'_>,
        damage: &Damage,
    ) -> Service {
        let view = image.view(self.backing, self.data);
        // A header can be garbage that is in order, and of an image that nobody here can read.
        if image.report.is_perfect() && view.is_some() {
            let service = self.judge_service(image, expectation);
            let verdict = if self.may_refuse(image, damage, &service.verdict) {
                Verdict::Survived
            } else {
                service.verdict
            };
            return Service {
                verdict,
                ledger: None,
                ..service
            };
        }
        self.observer.begin(Stage::Serve);
        let operations = view.map_or_else(Vec::new, |view| work(&view, image, expectation));
        let attempt = self.subject.serve(&image.image, &operations);
        let mut standing = Standing::Right;
        let verdict = match ended(attempt.result, "work on a damaged image", &mut standing) {
            Ok(_) => Verdict::Survived,
            Err(verdict) => *verdict,
        };
        Service {
            verdict,
            recording: attempt.recording,
            ledger: None,
        }
    }

    /// Whether a verdict is that the subject would not work on an image that the walk finds no fault with, and says of it
    /// what is true.
    fn may_refuse(&self, image: &Witness, damage: &Damage, verdict: &Verdict) -> bool {
        let Verdict::Violated(violation) = verdict else {
            return false;
        };
        if violation.class.kind != explain::FAILED {
            return false;
        }
        let Some(layout) = image.report.layout else {
            return false;
        };
        let is_hit = |bytes: Range<u64>| {
            let sectors = bytes.start / 512..bytes.end.div_ceil(512);
            damage.image.within(sectors).is_some()
        };
        // Key material is garbage or not, and nobody can tell but by a secret that opens nothing.
        let (offset, len_bytes) = layout.encryption_header;
        if is_hit(offset..offset.saturating_add(len_bytes)) {
            return true;
        }
        let of_header = is_hit(0..layout.cluster_bytes());
        let says = |kind| violation.class.site.starts_with(kind);
        if says(BAD_IMAGE) {
            // Compressed bytes can be garbage that the walk does not look at, and so can the files beneath; the header's
            // extensions can be garbage, or go with another of its sectors.
            let mut mapped = image.report.mapped.iter();
            let is_packed = mapped.any(|it| matches!(it.mapping, Mapping::Compressed { .. }));
            return is_packed || damage.beneath || of_header;
        }
        if says(UNSUPPORTED) {
            // The header can name what nobody knows, and so can the record of a bitmap that writing would outdate.
            let mut bitmaps = image.report.bitmaps.iter();
            let is_foreign =
                |it: &StoredBitmap| it.enabled && !it.in_use && !it.known && is_hit(it.record());
            return of_header || bitmaps.any(is_foreign);
        }
        // The header can say that the data stand in another file, which was never there.
        says(REFUSED) && of_header && layout.external_data && self.data.is_none()
    }
}

struct Case<'a> {
    judge: &'a Judge<'a>,
    state: Witness,
    recovered: Option<Witness>,
    repairs: Vec<Recording>,
    read: Vec<Range<u64>>,
    damage: &'a Damage,
    standing: Standing,
    readings: Readings,
}

impl Case<'_> {
    fn run(&mut self, expectation: &Expectation<'_>) -> Result<(), Ended> {
        if let Some(what) = self.state.report.not_measured
            && self.damage.image.is_none()
        {
            return Err(Box::new(Verdict::NotMeasured(what.into())));
        }
        let plan = self.read_plan(expectation);
        self.judge.observer.begin(Stage::Recover);
        let image = self.state.image.clone();
        let opened = self.read(&image, &plan, expectation, "opening the image for writing")?;
        self.judge.observer.begin(Stage::Check);
        let attempt = self.judge.subject.check(&opened, Repair::All);
        let repaired = attempt.image;
        self.note(attempt.recording);
        let tally = ended(attempt.result, "check with repair", &mut self.standing)?;
        self.judge.observer.begin(Stage::Again);
        if tally.is_some() && repaired.content_hash() != opened.content_hash() {
            self.read(&repaired, &plan, expectation, "opening the repaired image")?;
        }
        self.recovered = Some(Witness::new(repaired));
        Ok(())
    }

    /// Notes what an attempt read, and what it wrote.
    fn note(&mut self, recording: Recording) {
        self.read.extend(reads(&recording));
        self.repairs
            .extend(Some(recording).filter(Recording::changes));
    }

    /// Opens an image for writing, reads it, closes it, and holds what was read against what is legal. Yields the image
    /// as that left it.
    fn read(
        &mut self,
        image: &PageImage,
        plan: &[Range<u64>],
        expectation: &Expectation<'_>,
        doing: &str,
    ) -> Result<PageImage, Ended> {
        let attempt: Attempt<_> = self.judge.subject.read_each(image, plan);
        let after = attempt.image;
        self.note(attempt.recording);
        let sectors = |range: &Range<u64>| (range.end - range.start) / 512;
        let Some(answers) = ended(attempt.result, doing, &mut self.standing)? else {
            self.readings.refused += plan.iter().map(sectors).sum::<u64>();
            return Ok(after);
        };
        self.judge.observer.begin(Stage::GuestAfter);
        let mut checker = expectation.checker();
        let mut wrong: Vec<SectorViolation> = Vec::new();
        for (range, answer) in plan.iter().zip(answers) {
            let reading = format!("after {doing}, reading at {:#x}", range.start);
            let Some(data) = ended(answer, &reading, &mut self.standing)? else {
                self.readings.refused += sectors(range);
                continue;
            };
            self.readings.right += sectors(range);
            if u64::try_from(data.len()) != Ok(range.end - range.start) {
                return Err(explain::short_read().into());
            }
            for (sector, bytes) in (range.start / 512..).zip(data.as_chunks::<512>().0) {
                wrong.extend(checker.check(sector, identify(bytes)));
            }
        }
        for miss in wrong {
            let Some(reason) = self.reason(miss.sector) else {
                return Err(explain::silently_wrong(&miss, doing).into());
            };
            self.standing = Standing::Undetectable;
            self.readings.right -= 1;
            *self.readings.undetectable.entry(reason).or_default() += 1;
        }
        Ok(after)
    }

    /// Why nobody can know that what this guest sector shows is wrong: the class of what was destroyed on the way to it.
    fn reason(&self, sector: u64) -> Option<Class> {
        let layout = self.state.report.layout?;
        let way = Way::to(sector, &self.state, &layout);
        let destroyed = &self.damage.image;
        let of_data = if layout.external_data && !way.packed {
            &self.damage.data
        } else {
            destroyed
        };
        let data = way.data.is_some_and(|data| of_data.within(data).is_some());
        if data || way.beneath && self.damage.beneath {
            return Some(Class::Data);
        }
        let mut tables = way.tables.into_iter().rev();
        let stale = tables.find(|(_, table)| destroyed.within(table.clone()) == Some(Ruin::Stale));
        stale.map(|(class, _)| class)
    }

    /// The guest sectors that are read, a cluster at a time: all that is not zero, and both ends of what is.
    fn read_plan(&self, expectation: &Expectation<'_>) -> Vec<Range<u64>> {
        let known: Vec<Range<u64>> = expectation.touched().chain(expectation.given()).collect();
        let Some(view) = self.state.view(self.judge.backing, self.judge.data) else {
            let first = known.iter().map(|range| range.start * 512);
            return first.map(|start| start..start + 512).collect();
        };
        let base = self.judge.base;
        let base = base.and_then(|base| base.view(self.judge.backing, self.judge.data));
        let checker = &mut expectation.checker();
        let at_once = view.cluster_sectors();
        let mut packed_left = MOST_PACKED_BYTES;
        let mut plan = Vec::new();
        for sectors in pieces(interest(&view, expectation), at_once) {
            let ends = [
                sectors.start..sectors.start + 1,
                sectors.end - 1..sectors.end,
            ];
            match mapping(&self.state.report, sectors.start / at_once) {
                Some(Mapping::Zero) => plan.extend(ends),
                // A table of garbage names many, each as long as two clusters.
                Some(Mapping::Compressed { len_bytes, .. }) => {
                    let is_known = known
                        .iter()
                        .any(|range| range.start < sectors.end && sectors.start < range.end);
                    packed_left = packed_left.saturating_sub(len_bytes);
                    if is_known || packed_left > 0 {
                        plan.push(sectors);
                    }
                }
                Some(Mapping::Bad) => plan.push(sectors),
                Some(Mapping::Data(_) | Mapping::Split { .. }) | None => {
                    for run in view.runs(sectors) {
                        if run.is_zeroes() {
                            let Range { start, end } = run.sectors;
                            plan.extend([start..start + 1, end - 1..end]);
                        } else if !(checker.is_untouched(&run.sectors)
                            && base.is_some_and(|base| shows_the_same(&view, &base, &run.sectors)))
                        {
                            plan.push(run.sectors);
                        }
                    }
                }
            }
        }
        let plan = pieces(merge(plan, view.virtual_bytes() / 512), at_once);
        plan.map(|range| range.start * 512..range.end * 512)
            .collect()
    }
}

/// How the kind of an error begins that says that the image is wrong.
const BAD_IMAGE: &str = "bad-image";
/// The same of one that says that the image needs what nobody here knows.
const UNSUPPORTED: &str = "unsupported";
/// What it says of an image that it could open with more than it was given.
const REFUSED: &str = "refused";

/// Of compressed bytes that no operation is known to have written so many are read at most, in one state.
const MOST_PACKED_BYTES: u64 = 4 << 20;

/// Ranges of sectors, cut where clusters of so many end.
fn pieces(ranges: Vec<Range<u64>>, at_once: u64) -> impl Iterator<Item = Range<u64>> {
    ranges.into_iter().flat_map(move |range| {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = at;
            at = (start / at_once + 1).saturating_mul(at_once).min(range.end);
            (start < at).then_some(start..at)
        })
    })
}

/// What stands between a guest and one of its sectors.
#[derive(Debug)]
struct Way {
    /// Sectors of the header and of the tables, the nearest to the data last.
    tables: Vec<(Class, Range<u64>)>,
    /// The sectors that hold the data.
    data: Option<Range<u64>>,
    /// Whether these are compressed, and so in the image's own file.
    packed: bool,
    /// Whether a file beneath is looked at.
    beneath: bool,
}

impl Way {
    /// As the tables of an image have it.
    fn to(sector: u64, state: &Witness, layout: &Layout) -> Self {
        let entry_bytes = if layout.extended_l2 { 16 } else { 8 };
        let cluster_bytes = layout.cluster_sectors() * 512;
        let cluster = sector / layout.cluster_sectors();
        let per_table = cluster_bytes / entry_bytes;
        let l1_at = layout.l1_offset + cluster / per_table * 8;
        let one = |at: u64| at / 512..at / 512 + 1;
        // Which sectors of the header matter, the header says.
        let header =
            (0..layout.cluster_sectors()).map(|sector| (Class::Header, sector..sector + 1));
        let mut tables: Vec<_> = header.chain([(Class::L1, one(l1_at))]).collect();
        let l1_entry = state.image.read_vec(l1_at, 8);
        let l1_entry = u64::from_be_bytes(l1_entry.try_into().unwrap_or_default());
        let l2_table = l1_entry & 0x00ff_ffff_ffff_fe00;
        if l2_table != 0 {
            let at = l2_table + cluster % per_table * entry_bytes;
            tables.push((Class::L2, one(at)));
        }
        let within = sector % layout.cluster_sectors();
        let mapping = mapping(&state.report, cluster);
        let data = match mapping {
            Some(Mapping::Data(offset) | Mapping::Split { offset, .. }) => {
                Some(offset / 512 + within..offset / 512 + within + 1)
            }
            Some(Mapping::Compressed { offset, len_bytes }) => {
                Some(offset / 512..offset.saturating_add(len_bytes).div_ceil(512))
            }
            Some(Mapping::Zero | Mapping::Bad) | None => None,
        };
        Self {
            tables,
            data,
            packed: matches!(mapping, Some(Mapping::Compressed { .. })),
            beneath: matches!(mapping, None | Some(Mapping::Split { .. })),
        }
    }
}

fn mapping(report: &StructureReport, cluster: u64) -> Option<Mapping> {
    let mapped = &report.mapped;
    let index = mapped
        .binary_search_by_key(&cluster, |mapped| mapped.guest_cluster)
        .ok()?;
    Some(mapped[index].mapping)
}

/// What was answered; `None` where it was refused. Only an answer is an answer: a panic is a violation, and so is waiting
/// for ever.
fn ended<T>(
    result: Result<T, Failure>,
    doing: &str,
    standing: &mut Standing,
) -> Result<Option<T>, Ended> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Error { .. }) => {
            *standing = (*standing).max(Standing::Refused);
            Ok(None)
        }
        Err(failure @ (Failure::Panic(_) | Failure::Hang { .. } | Failure::NotMeasured(_))) => {
            Err(Box::new(explain::failure(&failure, doing, Oracle::Repair)))
        }
    }
}

#[cfg(test)]
mod tests;
