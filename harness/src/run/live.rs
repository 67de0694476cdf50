//! The life of a case up to the end of its workload, and what is wrong with that alone.

use std::rc::Rc;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Clock, Entry, Recording};
use blkdebug::rule::{Rule, Rules};
use blkdebug::volatile::{Answering, Injected, VolatileDisk};
use engine::defect::Planted;
use engine::device::{PageImage, Port};
use engine::error::{Error, Refused, Structure};
use engine::qcow2::OverlapChecks;
use engine::qcow2::geometry::Geometry;

use super::process::{self, Process};
use super::{Case, Schedule};
use crate::guest::{Expectation, File, Forgotten, Ledger, SectorViolation};
use crate::guide::rare::Hits;
use crate::oracle::structure::{Layout, walk};
use crate::oracle::{Oracle, Violation};
use crate::prng::Prng;
use crate::sim::Failure;
use crate::sim::chooser::{Chooser, Pct, Random, Replay};
use crate::sim::stage::{Stage, StageError, open_options};
use crate::sim::world::{Ending, Lived, World};
use crate::trace::operation_text;
use crate::workload::ops::{
    Answer, ChainOperation, Happening, Moment, Operation, SnapshotChange, SnapshotOperation,
};
use crate::workload::shape::Scenario;

/// A case that has lived.
#[derive(Debug)]
pub struct Life {
    /// What it started from.
    pub stage: Stage,
    /// What happened.
    pub lived: Lived,
    /// The history of the guest's disk until the first kill.
    pub ledger: Ledger,
    /// The processes that came after one that was killed.
    pub later: Vec<Process>,
    /// What happened on the disks that were written to; the image's is always among them.
    pub recording: Recording,
    /// These disks as they stand at the end.
    pub last: Disks<PageImage>,
    /// How many requests went wrong by rule.
    pub faults: u64,
    /// Which those were, disk by disk.
    pub injected: Vec<(Disk, Injected)>,
    /// What the engine told of rare situations.
    pub hits: Rc<Hits>,
    /// What the engine checks its writes against.
    pub overlap_checks: OverlapChecks,
}

/// Lets a case live to the end of its workload.
pub fn live(case: &Case) -> Result<Life, StageError> {
    let stage = Stage::prepare(&case.scenario.image)?;
    let clock = Clock::default();
    let disk = |which: Disk, image: &PageImage| {
        let disk = VolatileDisk::new(image.clone(), clock.clone(), Answering::OnCommand);
        let rules = case.scenario.faults.iter();
        let rules: Vec<Rule> = rules.filter(|rule| rule.disk == which).cloned().collect();
        Rc::new(disk.with_rules(Rules::new(rules, case.scenario.transitions.clone())))
    };
    let file = disk(Disk::Image, &stage.image);
    let data = stage.data.as_ref().map(|data| disk(Disk::Data, data));
    let files = stage.beneath.iter();
    let beneath: Vec<Rc<VolatileDisk>> = files.map(|file| disk(file.disk, &file.bytes)).collect();
    let hits = Rc::new(Hits::default());
    let port = |disk: &Rc<VolatileDisk>| hits.counting(&Port::new(Rc::<VolatileDisk>::clone(disk)));
    let opener = stage.files(
        port(&file),
        data.as_ref().map(port),
        beneath.iter().map(port).collect(),
        open_options(&case.scenario, planted(&case.scenario)),
    );
    let mut disks_there = vec![Rc::clone(&file)];
    disks_there.extend(beneath.iter().chain(&data).map(Rc::clone));
    let mut chooser: Box<dyn Chooser> = match &case.schedule {
        Schedule::Drawn(prng) => drawn(prng),
        Schedule::Given(choices) => Box::new(Replay::new(choices.clone())),
    };
    let lived = World {
        clock: clock.clone(),
        disks: disks_there.clone(),
        opener: Box::new(opener),
        operations: &case.scenario.operations,
        concurrency: case.scenario.concurrency,
        management: case.scenario.management,
        budget_steps: budget_steps(&case.scenario),
    }
    .live(&mut *chooser);
    let mut recordings = Disks::one(lived.recordings[0].clone());
    let mut last = Disks::one(file.current());
    let others = stage.beneath.iter().map(|file| file.disk);
    let others = others.chain(data.as_ref().map(|_| Disk::Data));
    for ((disk, recording), device) in others.zip(&lived.recordings[1..]).zip(&disks_there[1..]) {
        if recording.changes() {
            recordings.put(disk, recording.clone());
            last.put(disk, device.current());
        }
    }
    let others = stage.beneath.iter().map(|file| file.disk);
    let names = std::iter::once(Disk::Image)
        .chain(others)
        .chain(data.as_ref().map(|_| Disk::Data));
    let injected: Vec<(Disk, Injected)> = names
        .zip(&disks_there)
        .flat_map(|(name, disk)| disk.injected().into_iter().map(move |one| (name, one)))
        .collect();
    let ledger = ledger(&stage, &process::first_share(&lived));
    let recording = Recording::join(&recordings);
    Ok(Life {
        later: process::later(&stage, &ledger, &recording, &lived),
        ledger,
        recording,
        last,
        faults: u64::try_from(injected.len()).expect("a count fits 64 bits"),
        injected,
        hits,
        overlap_checks: case.scenario.options.overlap_checks,
        stage,
        lived,
    })
}

/// A chooser of a kind that is drawn too.
fn drawn(prng: &Prng) -> Box<dyn Chooser> {
    let mut kind = prng.fork("chooser");
    if kind.chance(1, 4) {
        let depth = *kind.pick(&[1, 2, 3, 4]);
        Box::new(Pct::new(prng.clone(), depth))
    } else {
        Box::new(Random::new(prng.clone()))
    }
}

/// The history of the guest's disk, and of what the image says of itself.
fn ledger(stage: &Stage, history: &[Happening]) -> Ledger {
    let walked = walk(&stage.image);
    let ledger = if stage.is_chain() {
        let files = stage.beneath.iter().map(|file| File {
            disk: file.disk,
            content: file.content.clone(),
            virtual_bytes: file.virtual_bytes,
            over: file.over,
        });
        let content = stage.content.clone();
        let layout = walked.layout.as_ref();
        // Of an image without a header nothing is known but that its clusters are not larger.
        let cluster_bytes = layout.map_or(1 << Geometry::CLUSTER_BITS.end(), Layout::cluster_bytes);
        let virtual_bytes = stage.virtual_bytes;
        Ledger::over_files(
            content,
            virtual_bytes,
            cluster_bytes,
            files.collect(),
            history,
        )
    } else {
        Ledger::from_start(
            stage.content.clone(),
            stage.shown_beneath.clone(),
            stage.virtual_bytes,
            stage.past.clone(),
            history,
        )
    };
    let ledger = ledger.with_bitmaps(&walked.bitmaps);
    match walked.layout {
        Some(layout) => ledger.starting(layout.facts(&stage.image), history),
        None => ledger,
    }
}

/// Whether an operation may fail so on a disk that never does: it depends on what came before it.
fn may_be_refused(operation: Operation, error: &Error) -> bool {
    let refused = match error {
        Error::Refused(refused) => refused,
        Error::Unsupported(_) | Error::Device(_) | Error::BadImage(_) => return false,
    };
    match refused {
        Refused::OutOfRange { .. } | Refused::NoSuchSnapshot(_) | Refused::ResizeWithSnapshots => {
            true
        }
        // Whether there was room depends on what the schedule let come before.
        Refused::NotVacant { .. } | Refused::NotWholeClusters { .. } => {
            matches!(operation, Operation::WriteCompressed { .. })
        }
        // A header without room, features that version 2 lacks, counts that do not fit; and what a workload
        // that was made smaller asks of a chain that was not changed before;
        // and a size that a snapshot has left behind on the other side.
        Refused::Option(_) => matches!(
            operation,
            Operation::Amend(_)
                | Operation::Rename { .. }
                | Operation::DataFile(_)
                | Operation::Bitmap(_)
                | Operation::Chain(_)
                | Operation::Grow { .. }
                | Operation::Shrink { .. }
        ),
        // Which slots are active depends on what was refused before.
        Refused::KeySlot(_) => matches!(operation, Operation::KeySlot(_)),
        // Version 2 has none; one that could not be made cannot be worked on; an inconsistent one stands
        // in the way of another size.
        Refused::Bitmap(_) => matches!(
            operation,
            Operation::Bitmap(_)
                | Operation::Grow { .. }
                | Operation::Shrink { .. }
                | Operation::Snapshot(SnapshotOperation {
                    change: SnapshotChange::Apply,
                    ..
                })
        ),
        Refused::RefcountOverflow => matches!(
            operation,
            Operation::Amend(_)
                | Operation::Snapshot(SnapshotOperation {
                    change: SnapshotChange::Create | SnapshotChange::Apply,
                    ..
                })
        ),
        // An image beneath may have clusters too small for a disk as large as the one that is committed.
        Refused::TableFull(Structure::L1Table) => is_commit(operation),
        // A data file whose promise to be raw could not be withdrawn before.
        Refused::NotByFormat(_) => operation == Operation::Empty,
        Refused::Unaligned { .. }
        | Refused::ReadOnly
        | Refused::NoCompression
        | Refused::NoDataFile
        | Refused::NoSecret
        | Refused::WrongSecret
        | Refused::Distrusted
        | Refused::FoundCorrupt
        | Refused::TableFull(_) => false,
    }
}

fn is_commit(operation: Operation) -> bool {
    matches!(operation, Operation::Chain(ChainOperation::Commit { .. }))
}

/// The flaw of a scenario: none in a build that cannot plant any, which whoever runs a case with one
/// finds out beforehand.
pub(super) fn planted(scenario: &Scenario) -> Planted {
    #[cfg(feature = "defects")]
    if let Some(flaw) = scenario.flaw {
        return Planted::one(flaw);
    }
    let _ = scenario;
    Planted::NONE
}

/// More steps than any workload needs: a request for each sector that it names, many times over.
fn budget_steps(scenario: &Scenario) -> u64 {
    const FIXED: u64 = 100_000;
    const PER_SECTOR: u64 = 200;
    let sectors: u64 = scenario
        .operations
        .iter()
        .filter_map(|operation| operation.range())
        .map(|range| range.len_bytes / 512)
        .sum();
    FIXED + PER_SECTOR * sectors
}

impl Life {
    /// What happened on the disks that were written to.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The history of the process that had the image open at a moment, or was about to.
    fn ledger_at(&self, moment: Moment) -> &Ledger {
        let process = self.process_at(moment);
        process.map_or(&self.ledger, |process| &process.ledger)
    }

    /// The process that had the image open at a moment, if that is not the first.
    pub(super) fn process_at(&self, moment: Moment) -> Option<&Process> {
        let mut later = self.later.iter().rev();
        later.find(|process| process.since <= moment)
    }

    /// What is legal after a power loss at `cut`.
    pub fn expect(&self, cut: Moment) -> Expectation<'_> {
        self.ledger_at(cut).expect(cut)
    }

    /// The moments at which the guest was promised that something is durable.
    pub fn promises(&self) -> Vec<Moment> {
        let later = self.later.iter();
        let found = later
            .flat_map(|process| std::iter::once(process.since).chain(process.ledger.promises()));
        self.ledger.promises().chain(found).collect()
    }

    /// What is wrong with the run itself, whatever a power loss would have left.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations: Vec<Violation> = self.ending().into_iter().collect();
        if self.faults == 0 {
            violations.extend(self.failures());
            violations.extend(self.kept_space());
        } else if self.fails_honestly() {
            let refusable = |operation, error: &Error| may_be_refused(operation, error);
            violations.extend(crate::fault::oracle::violations(self, &refusable));
        }
        if self.was_lied_to() {
            let told = crate::fault::silent::live::judge(self);
            violations.extend(
                told.unexplained
                    .into_iter()
                    .chain(told.trespasses.violation),
            );
        } else {
            violations.extend(self.misreads());
        }
        violations.extend(self.backing_writes());
        violations
    }

    /// Whether requests went wrong, and whoever made them was told of each.
    pub fn fails_honestly(&self) -> bool {
        let mut injected = self.injected.iter();
        self.faults > 0 && injected.all(|(_, one)| one.fault.is_honest())
    }

    /// Whether requests went wrong, and whoever made them was not told of each.
    pub fn was_lied_to(&self) -> bool {
        self.faults > 0 && !self.fails_honestly()
    }

    /// Whether the workload ended with everything answered, and the image closed at the very end.
    pub fn ends_closed(&self, operations: &[Operation]) -> bool {
        self.lived.ending == Ending::Finished
            && self.lived.failures.is_empty()
            && operations.last() == Some(&Operation::Reopen)
    }

    /// Whether the workload ended with the image closed at the very end, and opened again, whatever had failed before.
    pub fn ends_closed_behind_faults(&self) -> bool {
        let last = self.lived.history.last();
        self.lived.ending == Ending::Finished
            && self.fails_honestly()
            && last.is_some_and(|it| {
                let done = matches!(it.completed, Some((_, Answer::Done)));
                it.operation == Operation::Reopen && done && !self.lived.revived.contains(&it.id)
            })
    }

    fn ending(&self) -> Option<Violation> {
        let (kind, site, line) = match &self.lived.ending {
            Ending::Finished | Ending::PowerLost => return None,
            Ending::Stuck { unfinished } => (
                "hang",
                String::new(),
                format!("{unfinished} operations wait for something that never happens"),
            ),
            Ending::Endless => (
                "endless",
                String::new(),
                format!(
                    "the workload has not ended after {} steps",
                    self.lived.steps
                ),
            ),
            Ending::Panicked(panic) => (
                "panic",
                panic.place.clone(),
                format!("while the workload ran, the engine {panic}"),
            ),
        };
        let mut lines = vec![line];
        let waiting = self.lived.history.iter().filter(|h| h.completed.is_none());
        lines.extend(waiting.map(|happening| {
            let text = operation_text(happening.operation);
            format!("operation {} is not answered: {text}", happening.id.0)
        }));
        Some(Violation::new(Oracle::Progress, kind, site, lines))
    }

    /// Operations that failed on a disk that never did.
    fn failures(&self) -> Option<Violation> {
        let unfounded = |failure: &&Failure| {
            let mut history = self.lived.history.iter();
            let happening = history.find(|happening| Some(happening.id) == failure.id);
            !happening.is_some_and(|it| {
                let full = matches!(failure.error, Error::Refused(Refused::RefcountOverflow));
                may_be_refused(it.operation, &failure.error) && !(full && self.had_room(it))
            })
        };
        let failure = self.lived.failures.iter().find(unfounded)?;
        let what = match failure.id {
            None => "opening the image".to_owned(),
            Some(id) => {
                let operation = self.lived.history.iter().find(|h| h.id == id)?.operation;
                format!("operation {} ({})", id.0, operation_text(operation))
            }
        };
        let line = format!("{what} failed although the disk did not: {}", failure.error);
        let site = match &failure.error {
            Error::Device(_) => "device",
            Error::BadImage(_) => "bad-image",
            Error::Unsupported(_) => "unsupported",
            Error::Refused(_) => "refused",
        };
        Some(Violation::new(Oracle::Progress, "failed", site, vec![line]))
    }

    /// The first read that yielded what it cannot have seen.
    fn misreads(&self) -> Option<Violation> {
        self.lived.reads.iter().find_map(|read| {
            let happening = self.lived.history.iter().find(|h| h.id == read.id)?;
            let wrong = self.misread(happening, &read.data);
            let worst = wrong.iter().max_by_key(|violation| violation.level)?;
            let line = format!(
                "operation {} ({}) read {} from guest sector {}",
                read.id.0,
                operation_text(happening.operation),
                worst.found,
                worst.sector
            );
            let legal = worst.legal.iter().map(|value| format!("legal: {value}"));
            let lines = std::iter::once(line).chain(legal).collect();
            let kind = worst.level.name();
            Some(Violation::new(Oracle::Guest, kind, "live-read", lines))
        })
    }

    /// What of the data that a read yielded is wrong.
    pub(crate) fn misread(&self, read: &Happening, data: &[u8]) -> Vec<SectorViolation> {
        let ledger = self.ledger_at(read.submitted);
        ledger.check_read(read, data, self.forgotten_before(read))
    }

    /// When a device last lost what a flush that failed was to make durable, before a read was answered.
    fn forgotten_before(&self, read: &Happening) -> Option<Forgotten> {
        let (answered, _) = read.completed?;
        let forgetting = self
            .injected
            .iter()
            .filter(|(_, one)| one.fault.forgets() && one.at < answered);
        let at = forgetting.map(|(_, one)| one.at).max()?;
        let opened = self.lived.history.iter().filter_map(|it| {
            let opens = matches!(it.operation, Operation::Reopen | Operation::Kill);
            (opens && it.submitted < read.submitted).then_some(it.completed?.0)
        });
        let layout = walk(&self.stage.image).layout;
        let cluster_bytes = layout.as_ref().map_or(512, Layout::cluster_bytes);
        Some(Forgotten {
            at,
            cluster_sectors: cluster_bytes / 512,
            in_place: opened.max().is_none_or(|opened| opened < at),
        })
    }

    /// A write to a file beneath the image that no commit accounts for.
    fn backing_writes(&self) -> Option<Violation> {
        let lower = self.stage.beneath.iter().zip(&self.lived.recordings[1..]);
        lower.into_iter().find_map(|(file, recording)| {
            let unaccounted = |entry: &&Entry| entry.changes_content() && !self.may_write(entry);
            let entry = recording.entries.iter().find(unaccounted)?;
            let file = file.disk.name();
            let line = format!("the file `{file}` was written to: {}", entry.name());
            let kind = "backing-written";
            Some(Violation::new(Oracle::Guest, kind, "", vec![line]))
        })
    }

    /// Whether a file beneath may be written to at that moment: in a commit, or as it is closed after one.
    fn may_write(&self, entry: &Entry) -> bool {
        let mut history = self.lived.history.iter();
        let committed = history.any(|it| is_commit(it.operation) && it.submitted < entry.submitted);
        let mut history = self.lived.history.iter();
        let during = history.find(|it| {
            let over = it.completed.is_some_and(|(at, _)| at < entry.submitted);
            it.submitted < entry.submitted && !over
        });
        let closes = |operation| is_commit(operation) || operation == Operation::Reopen;
        committed && during.is_none_or(|during| closes(during.operation))
    }
}
