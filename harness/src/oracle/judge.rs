//! Judges one crash state, from the bytes that the power loss left to the image after repair.
//!
//! The stages, each with its oracle: the structures before anything touches them; the guest's sectors
//! against what the history allows; recovery by a read-write open, which must succeed; the structures
//! afterwards; what the subject reads and what it left, against the sectors before; and a second
//! recovery, which must write nothing. The state itself is never written.
//!
//! What a repair wrote is handed back as a recording, so that the caller can lose power inside it: each
//! of those states is judged by the same judge, with the [`Witness`] of the first state beside it, whose
//! guest bytes it must still have. That is also what holds "the dirty bit goes last" to account: a state
//! without the dirty bit and with refcounts too low is a finding.

use std::ops::Range;
use std::rc::Rc;

use blkdebug::disks::Disk;
use blkdebug::record::{RecordedOp, Recording};
use engine::device::PageImage;

use super::damage::{Readings, Standing};
use super::explain;
use super::snapshots::{check_alternatives, check_snapshots, compare_snapshots};
use super::structure::StructureReport;
use super::sweep::{Seen, check_guest};
use super::verdict::{Oracle, Verdict, Violation};
use super::view::{self, Backing, GuestView};
use super::walked::walked;
use crate::crash::durability::volatile_at_end;
use crate::crash::footprint::Footprint;
use crate::guest::{BitmapViolation, Expectation, Level};
use crate::pace::{Observer, Stage};
use crate::sectors::union;
use crate::subject::{Attempt, Repair, Subject};
use crate::workload::stamp::SectorValue;

/// What judges the crash states of one image under test.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Who recovers the image.
    pub subject: &'a dyn Subject,
    /// What lies below the image.
    pub backing: Option<&'a Backing>,
    /// The file that the image's guest data stand in, where that is another. Recovery never writes to it.
    pub data: Option<&'a PageImage>,
    /// The image before the workload: the ledger starts with what it shows. Where the workload touched
    /// nothing, and a state shows what this image shows, nothing else is looked at; so a large image
    /// costs little. `None` looks at everything.
    pub base: Option<&'a Witness>,
    /// The mildest levels that are let pass, up to this one; `None` is strict.
    pub accept: Option<Level>,
    /// Told of each stage.
    pub observer: &'a dyn Observer,
}

/// An image and the walk over it.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The bytes.
    pub image: PageImage,
    /// The walk.
    pub report: Rc<StructureReport>,
}

/// What came of judging a state.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The state as it was judged.
    pub state: Witness,
    /// What recovery left, if it succeeded.
    pub recovered: Option<Witness>,
    /// The recordings of what wrote to the image in order to repair it.
    pub repairs: Vec<Recording>,
    /// What the state came to, where the disk destroyed something and more than right or wrong is asked.
    pub standing: Standing,
    /// What came of the guest sectors that were read then.
    pub readings: Readings,
    /// The sectors of the image that the subject read, in no order, and those that were looked at of what it left.
    pub(crate) read: Vec<Range<u64>>,
}

impl Witness {
    /// Walks `image`.
    pub fn new(image: PageImage) -> Self {
        Self {
            report: walked(&image),
            image,
        }
    }

    pub(super) fn view<'a>(
        &'a self,
        backing: Option<&'a Backing>,
        data: Option<&'a PageImage>,
    ) -> Option<GuestView<'a>> {
        let view = GuestView::new(&self.image, &self.report, backing)?;
        Some(view.with_data(data))
    }
}

impl Judge<'_> {
    /// Judges the crash state `image`. `before` is the state whose repair was interrupted, if this one
    /// comes from a repair.
    pub fn judge(
        &self,
        image: PageImage,
        expectation: &Expectation<'_>,
        before: Option<&Witness>,
    ) -> Judgement {
        self.observer.begin(Stage::StructureBefore);
        let mut case = Case {
            judge: self,
            state: Witness::new(image),
            recovered: None,
            repairs: Vec::new(),
            read: Vec::new(),
        };
        let verdict = match case.run(expectation, before) {
            Ok(()) => Verdict::Survived,
            Err(verdict) => *verdict,
        };
        Judgement {
            recovered: case.recovered,
            repairs: case.repairs,
            read: case.read,
            ..Judgement::of(case.state, verdict)
        }
    }

    /// Judges an image that was closed in good order: as [`Self::judge`] does, and nothing may be left
    /// that a repair could improve, but for what could have been improved `before` already, where that is given.
    pub fn judge_closed(
        &self,
        image: PageImage,
        expectation: &Expectation<'_>,
        before: Option<&Witness>,
    ) -> Judgement {
        let judgement = self.judge(image, expectation, None);
        let report = &judgement.state.report;
        let is_good = match before {
            None => report.is_perfect(),
            Some(before) => report.is_no_worse_than(&before.report),
        };
        if judgement.verdict.survived() && !is_good {
            let verdict = explain::imperfect(Oracle::Structure, "after a clean close", report);
            return Judgement {
                verdict: verdict.into(),
                ..judgement
            };
        }
        judgement
    }

    /// The same where operations on the image had failed before it was closed: they may have left leaks.
    pub fn judge_closed_behind_faults(
        &self,
        image: PageImage,
        expectation: &Expectation<'_>,
    ) -> Judgement {
        let judgement = self.judge(image, expectation, None);
        let report = &judgement.state.report;
        if judgement.verdict.survived() && !report.is_sound_but_for_leaks() {
            let when = "after a clean close behind operations that failed";
            let verdict = explain::imperfect(Oracle::Structure, when, report);
            return Judgement {
                verdict: verdict.into(),
                ..judgement
            };
        }
        judgement
    }
}

impl Judgement {
    /// Of this state, with nothing else to tell.
    pub(super) fn of(state: Witness, verdict: Verdict) -> Self {
        Self {
            verdict,
            state,
            recovered: None,
            repairs: Vec::new(),
            standing: Standing::Right,
            readings: Readings::default(),
            read: Vec::new(),
        }
    }

    /// Every sector of the image that this verdict hangs on. It is known of states that survived: a judgement that
    /// ends early has not looked at everything that it names.
    pub fn footprint(&self) -> Option<Footprint> {
        let looked_at = self.state.report.referred.iter().chain(&self.read);
        // Whether anything at all has changed decides where unknown features vouch for the image.
        let layout = self.state.report.layout;
        let vouched = layout.is_some_and(|layout| layout.keeps_unknown());
        let known = self.verdict.survived() && !vouched;
        known.then(|| Footprint::of(looked_at.cloned().collect()))
    }

    /// The same, and nothing may differ from the image as it was before anybody opened it while the header has
    /// autoclear bits of unknown features: they would vouch for what their owner never saw.
    #[must_use]
    pub fn with_autoclear_of(self, start: &PageImage) -> Self {
        let kept = self
            .state
            .report
            .layout
            .is_some_and(|layout| layout.keeps_unknown());
        if !self.verdict.survived()
            || !kept
            || self.state.image.content_hash() == start.content_hash()
        {
            return self;
        }
        let line = "the image was changed, and autoclear bits of unknown features are still set";
        let lines = vec![line.to_owned()];
        let verdict = Violation::new(Oracle::Structure, "autoclear-kept", "header", lines).into();
        Self { verdict, ..self }
    }

    /// How much work the judgement was: sectors that were read, and a few more for each request. It goes along with the
    /// time that it took, and is the same on every machine.
    pub fn work(&self) -> u64 {
        const A_REQUEST: u64 = 8;
        let requests = self.read.iter();
        requests.fold(0, |work, sectors| {
            work.saturating_add(sectors.end - sectors.start + A_REQUEST)
        })
    }
}

/// What the image says of itself is what it said before a change or what it says after it.
fn check_facts(state: &Witness, expectation: &Expectation<'_>) -> Result<(), Ended> {
    let legal = expectation.facts();
    let Some(layout) = state.report.layout.filter(|_| !legal.is_empty()) else {
        return Ok(());
    };
    let found = layout.facts(&state.image);
    if legal.contains(&found) {
        return Ok(());
    }
    let mut lines = vec![format!("the header says: {found}")];
    lines.extend(legal.iter().map(|legal| format!("it may say: {legal}")));
    let keys = legal.iter().all(|it| it.key_slots != found.key_slots);
    let (kind, site) = if keys {
        ("key-slots-neither-old-nor-new", "encryption-header")
    } else {
        ("header-neither-old-nor-new", "header")
    };
    Err(Violation::new(Oracle::Structure, kind, site, lines).into())
}

/// A verdict that ends the judgement.
pub(super) type Ended = Box<Verdict>;

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::new(violation.into())
    }
}

struct Case<'a> {
    judge: &'a Judge<'a>,
    state: Witness,
    recovered: Option<Witness>,
    repairs: Vec<Recording>,
    read: Vec<Range<u64>>,
}

impl Case<'_> {
    fn run(
        &mut self,
        expectation: &Expectation<'_>,
        before: Option<&Witness>,
    ) -> Result<(), Ended> {
        let layout = self.state.report.layout;
        if self.judge.data.is_none() && layout.is_some_and(|layout| layout.external_data) {
            let what = "an external data file that is not there";
            return Err(Box::new(Verdict::NotMeasured(what.into())));
        }
        check_structure(&self.state.report, "in the crash state")?;
        self.check_backing(&self.state.report, Oracle::Structure)?;
        check_facts(&self.state, expectation)?;
        let view = self.view_of(&self.state)?;
        self.judge.observer.begin(Stage::GuestBefore);
        let interest = interest(&view, expectation);
        let base = self
            .judge
            .base
            .and_then(|base| base.view(self.judge.backing, self.judge.data));
        let accept = self.judge.accept;
        let seen = check_guest(&view, base.as_ref(), expectation, &interest, accept)?;
        check_alternatives(&view, expectation)?;
        check_raw_data(&view, self.judge.data)?;
        check_snapshots(&self.state, self.judge.backing, expectation)?;
        check_bitmaps(&self.state, &view, expectation)?;
        if let Some(before) = before {
            let earlier = self.view_of(before)?;
            let doing = "an interrupted repair";
            compare_views(&earlier, &view, doing)?;
            compare_snapshots(before, &self.state, self.judge.backing, doing)?;
        }
        self.judge.observer.begin(Stage::Recover);
        let reads = read_plan(&view, seen);
        let attempt = self.judge.subject.recover(&self.state.image, &reads);
        let data = self.succeed(attempt, "opening the image for writing")?;
        self.judge.observer.begin(Stage::GuestAfter);
        self.compare_reads(&reads, &data)?;
        if self.state.report.dirty() {
            self.expect_perfect("after recovery")?;
        }
        self.judge.observer.begin(Stage::Check);
        self.check_all()?;
        self.judge.observer.begin(Stage::Again);
        self.again()
    }

    /// Without the name of its backing file an image has lost all that lies there, whatever is put
    /// below it here.
    fn check_backing(&self, report: &StructureReport, oracle: Oracle) -> Result<(), Ended> {
        let named = report
            .layout
            .is_some_and(|layout| layout.backing_name_bytes > 0);
        if self.judge.backing.is_some() && !named {
            let line = "the header no longer names the backing file".into();
            return Err(Violation::new(oracle, "backing-lost", "header", vec![line]).into());
        }
        Ok(())
    }

    fn view_of<'a>(&'a self, witness: &'a Witness) -> Result<GuestView<'a>, Ended> {
        witness
            .view(self.judge.backing, self.judge.data)
            .ok_or_else(|| {
                Box::new(Verdict::HarnessBroken(
                    "an image that passed the structure oracle has no guest view".into(),
                ))
            })
    }

    /// The latest image: recovered, or as the power loss left it.
    fn latest(&self) -> &Witness {
        self.recovered.as_ref().unwrap_or(&self.state)
    }

    /// Notes what an attempt to repair left, walks it, and holds it against the guest bytes before.
    fn succeed<T>(&mut self, attempt: Attempt<T>, doing: &str) -> Result<T, Ended> {
        let wrote = writes(&attempt.recording) > 0;
        self.read.reserve(attempt.recording.entries.len());
        self.read.extend(reads(&attempt.recording));
        if wrote {
            self.repairs.push(attempt.recording);
        }
        let value = attempt
            .result
            .map_err(|failure| explain::failure(&failure, doing, Oracle::Repair))?;
        if attempt.data.as_ref() != self.judge.data {
            let line = format!("{doing} wrote to the data file");
            return Err(Violation::new(Oracle::Repair, "data-written", "data", vec![line]).into());
        }
        if !wrote {
            return Ok(value);
        }
        self.judge.observer.begin(Stage::StructureAfter);
        let recovered = Witness::new(attempt.image);
        self.read.extend_from_slice(&recovered.report.referred);
        check_structure_after(&recovered.report, doing)?;
        self.check_backing(&recovered.report, Oracle::Repair)?;
        self.judge.observer.begin(Stage::GuestAfter);
        let (before, after) = (self.view_of(&self.state)?, self.view_of(&recovered)?);
        compare_views(&before, &after, doing)?;
        compare_snapshots(&self.state, &recovered, self.judge.backing, doing)?;
        if self.state.report.bitmaps != recovered.report.bitmaps {
            return Err(explain::bitmaps_changed(doing).into());
        }
        self.recovered = Some(recovered);
        let made = self.repairs.last().expect("it was put there just now");
        expect_durable(made, doing)?;
        Ok(value)
    }

    fn compare_reads(&self, reads: &[Range<u64>], data: &[Vec<u8>]) -> Result<(), Ended> {
        let view = self.view_of(&self.state)?;
        let lengths = data.iter().map(|data| u64::try_from(data.len()));
        if !lengths.eq(reads.iter().map(|range| Ok(range.end - range.start))) {
            return Err(explain::short_read().into());
        }
        for (range, data) in reads.iter().zip(data) {
            if let Some(difference) = view.difference_to_data(range.start / 512, data) {
                return Err(explain::misread(&view, difference, range, data).into());
            }
        }
        Ok(())
    }

    fn expect_perfect(&self, when: &str) -> Result<(), Ended> {
        let report = &self.latest().report;
        if report.is_perfect() {
            return Ok(());
        }
        Err(explain::imperfect(Oracle::Repair, when, report).into())
    }

    /// Repairs what a read-write open leaves alone, which are leaks and missing claims of COPIED.
    fn check_all(&mut self) -> Result<(), Ended> {
        if self.latest().report.is_perfect() {
            return Ok(());
        }
        let attempt = self.judge.subject.check(&self.latest().image, Repair::All);
        let tally = self.succeed(attempt, "check with repair")?;
        if tally.errors > 0 || tally.leaks > 0 {
            return Err(explain::unfinished(tally).into());
        }
        self.expect_perfect("after check with repair")
    }

    /// Recovers and checks once more what was repaired: nothing may be left to write.
    fn again(&mut self) -> Result<(), Ended> {
        let Some(recovered) = &self.recovered else {
            return Ok(());
        };
        // Many crash states recover to images with the same tables, which need not prove themselves each time.
        if let Some(read) = self.judge.subject.is_settled(&recovered.image) {
            self.read.extend(read.ranges().cloned());
            return Ok(());
        }
        let opened = self.judge.subject.recover(&recovered.image, &[]);
        let mut read: Vec<Range<u64>> = reads(&opened.recording).collect();
        expect_idle(opened, "opening the repaired image again")?;
        let checked = self.judge.subject.check(&recovered.image, Repair::All);
        read.extend(reads(&checked.recording));
        let tally = expect_idle(checked, "a second check with repair")?;
        if tally.errors > 0 || tally.leaks > 0 {
            return Err(explain::unfinished(tally).into());
        }
        self.read.extend_from_slice(&read);
        let read = Footprint::of(read);
        self.judge.subject.settle(&recovered.image, read);
        Ok(())
    }
}

fn expect_idle<T>(attempt: Attempt<T>, doing: &str) -> Result<T, Ended> {
    let value = attempt
        .result
        .map_err(|failure| explain::failure(&failure, doing, Oracle::Repair))?;
    if writes(&attempt.recording) > 0 {
        return Err(explain::not_idle(&attempt.recording, doing).into());
    }
    Ok(value)
}

/// What a repair or a close has returned is there for good: whoever called it may lose power at once.
pub(super) fn expect_durable(recording: &Recording, doing: &str) -> Result<(), Ended> {
    match volatile_at_end(recording) {
        None => Ok(()),
        Some(entry) => Err(explain::volatile(entry, doing).into()),
    }
}

/// The sectors of the image that were read.
pub(crate) fn reads(recording: &Recording) -> impl Iterator<Item = Range<u64>> {
    let image = recording
        .entries
        .iter()
        .filter(|entry| entry.disk == Disk::Image);
    image.filter_map(|entry| match entry.op {
        RecordedOp::Read { offset, len_bytes } => {
            Some(offset / 512..(offset + len_bytes).div_ceil(512))
        }
        RecordedOp::Write { .. }
        | RecordedOp::WriteZeroes { .. }
        | RecordedOp::Discard { .. }
        | RecordedOp::Flush
        | RecordedOp::SetLen { .. } => None,
    })
}

/// How many requests there are that change content or length.
fn writes(recording: &Recording) -> usize {
    recording
        .entries
        .iter()
        .filter(|entry| entry.changes_content())
        .count()
}

pub(super) fn check_structure(report: &StructureReport, when: &str) -> Result<(), Ended> {
    structure(report, || when.into(), Oracle::Structure)
}

fn check_structure_after(report: &StructureReport, doing: &str) -> Result<(), Ended> {
    let when = || format!("after {doing}");
    structure(report, when, Oracle::Repair)?;
    if report.dirty() {
        let line = format!("{} the image is still marked dirty", when());
        return Err(Violation::new(Oracle::Repair, "still-dirty", "header", vec![line]).into());
    }
    Ok(())
}

fn structure(
    report: &StructureReport,
    when: impl Fn() -> String,
    oracle: Oracle,
) -> Result<(), Ended> {
    if let Some(what) = report.not_measured {
        return Err(Box::new(Verdict::NotMeasured(what.into())));
    }
    if report.finding_count > 0 {
        return Err(explain::findings(report, &when(), oracle).into());
    }
    if report.corrupt() {
        let line = format!("{} the image is marked corrupt", when());
        return Err(Violation::new(oracle, "marked-corrupt", "header", vec![line]).into());
    }
    Ok(())
}

/// The guest sectors that a judgement looks at: those that are mapped, those that the workload touched,
/// those that held something at the start, and those that growth added.
pub(super) fn interest(view: &GuestView<'_>, expectation: &Expectation<'_>) -> Vec<Range<u64>> {
    let end = view.virtual_bytes() / 512;
    let ledger = expectation.ledger();
    let known = expectation.sectors().iter().cloned();
    let sectors = union(view.mapped_sectors(), known, end);
    let grown = ledger.initial_bytes() / 512..end;
    if grown.is_empty() {
        return sectors;
    }
    union(sectors, std::iter::once(grown), end)
}

/// Holds the bitmaps against the history.
pub(super) fn check_bitmaps(
    witness: &Witness,
    view: &GuestView<'_>,
    expectation: &Expectation<'_>,
) -> Result<(), Ended> {
    let value = |sector: u64| match view.runs(sector..sector + 1).next() {
        Some(run) if !run.is_zeroes() => run.content(sector).value(),
        Some(_) | None => view::Content::Zeroes.value(),
    };
    let found = &witness.report.bitmaps;
    match expectation.check_bitmaps(found, view.virtual_bytes() / 512, &value) {
        None => Ok(()),
        Some(BitmapViolation { kind, line }) => {
            Err(Violation::new(Oracle::Guest, kind, "bitmaps", vec![line]).into())
        }
    }
}

/// A raw data file shows by itself what the image shows.
fn check_raw_data(view: &GuestView<'_>, data: Option<&PageImage>) -> Result<(), Ended> {
    let Some(data) = data.filter(|_| view.has_raw_data()) else {
        return Ok(());
    };
    for run in view.runs(0..view.virtual_bytes() / 512) {
        for sector in run.sectors.clone() {
            let (shown, stored) = (run.content(sector).value(), data.sector(sector));
            if shown != SectorValue::of(stored) {
                let line = format!(
                    "guest sector {sector} shows {shown}, and the raw data file holds {}",
                    SectorValue::of(stored)
                );
                let kind = "raw-differs";
                return Err(Violation::new(Oracle::Guest, kind, "data", vec![line]).into());
            }
        }
    }
    Ok(())
}

/// Two views of what should be the same disk, over every sector that either maps.
pub(super) fn compare_views(
    before: &GuestView<'_>,
    after: &GuestView<'_>,
    doing: &str,
) -> Result<(), Ended> {
    if before.virtual_bytes() != after.virtual_bytes() {
        let line = format!(
            "{doing} changed the size of the guest's disk from {} to {} bytes",
            before.virtual_bytes(),
            after.virtual_bytes()
        );
        return Err(Violation::new(Oracle::Repair, "size-changed", "header", vec![line]).into());
    }
    let end = before.virtual_bytes() / 512;
    for range in union(before.mapped_sectors(), after.mapped_sectors(), end) {
        if let Some(difference) = before.difference(after, range) {
            return Err(explain::changed(before, after, difference, doing).into());
        }
    }
    Ok(())
}

/// The byte ranges that the subject is asked to read: all that is not zero, with a sector on either
/// side, and both ends of every run in between.
fn read_plan(view: &GuestView<'_>, seen: Seen) -> Vec<Range<u64>> {
    const AT_ONCE: u64 = 2048;
    let written = seen.written.into_iter();
    let written = written.map(|range| range.start.saturating_sub(1)..range.end + 1);
    union(written, seen.ends, view.virtual_bytes() / 512)
        .into_iter()
        .flat_map(|range| {
            let end = range.end;
            range
                .step_by(usize::try_from(AT_ONCE).expect("a small constant"))
                .map(move |start| start * 512..(start + AT_ONCE).min(end) * 512)
        })
        .collect()
}

#[cfg(test)]
mod tests;
