//! Work after recovery: the recovered image must serve a guest as if nothing had happened.
//!
//! A short fixed workload writes over old and fresh places, discards, zeroes and flushes. Then the image
//! is closed and the same oracles look at it. The recording and the ledger of that work are handed back,
//! so that the caller can lose power in it again.

use std::ops::Range;

use blkdebug::record::Recording;
use engine::device::PageImage;
use engine::image::Unmap;

use super::explain;
use super::judge::{
    Ended, Judge, Judgement, Witness, check_bitmaps, check_structure, expect_durable, interest,
};
use super::snapshots::check_snapshots;
use super::succession::Succession;
use super::sweep::check_guest;
use super::verdict::{Oracle, Verdict, Violation};
use super::view::GuestView;
use crate::guest::{Content, Expectation, Ledger};
use crate::pace::Stage;
use crate::workload::ops::{Operation, OperationId, SnapshotChange, SnapshotOperation};

/// What came of work after recovery.
#[derive(Clone, Debug)]
pub struct Service {
    /// The verdict.
    pub verdict: Verdict,
    /// What the subject wrote; its base is the recovered image.
    pub recording: Recording,
    /// The guest's history on the recovered disk, in moments of the recording; `None` if there is none
    /// because the work did not come to its end.
    pub ledger: Option<Ledger>,
}

impl Judge<'_> {
    /// Lets the subject work on what recovery left, and judges what it made of it. `expectation` is that
    /// of the state that was recovered; it tells where the guest's content lies.
    pub fn judge_service(&self, recovered: &Witness, expectation: &Expectation<'_>) -> Service {
        self.observer.begin(Stage::Serve);
        let Some(view) = recovered.view(self.backing, self.data) else {
            let why = "a recovered image has no guest view";
            return Service {
                verdict: Verdict::HarnessBroken(why.into()),
                recording: Recording::default(),
                ledger: None,
            };
        };
        let operations = work(&view, recovered, expectation);
        let attempt = self.subject.serve(&recovered.image, &operations);
        let recording = attempt.recording;
        let history = match attempt.result {
            Ok(history) => history,
            Err(failure) => {
                let verdict = explain::failure(&failure, "work after recovery", Oracle::Service);
                return Service {
                    verdict,
                    recording,
                    ledger: None,
                };
            }
        };
        let succession = Succession {
            witness: recovered,
            backing: self.backing,
            data: self.data,
            // Nothing in this work gives up all that the image holds.
            beneath: Content::zeroes(),
        };
        let ledger = succession.ledger(expectation, &history);
        let ledger = ledger.expect("it was readable before the work");
        let served = (Witness::new(attempt.image), attempt.data);
        let verdict = self
            .judge_served(recovered, &served, &ledger)
            .and_then(|()| expect_durable(&recording, "closing after further work"));
        let verdict = match verdict {
            Ok(()) => Verdict::Survived,
            Err(verdict) => as_service(*verdict),
        };
        Service {
            verdict,
            recording,
            ledger: Some(ledger),
        }
    }

    /// Judges a state that a power loss in this work left. The work began with what recovery left, and
    /// so does its ledger: what the image held before that is legal no more.
    pub fn judge_in_service(
        &self,
        recovered: &Witness,
        image: PageImage,
        expectation: &Expectation<'_>,
    ) -> Judgement {
        let whole: Judge<'_> = *self;
        let judge = Judge {
            // The recovered image by itself does not tell what another file held.
            base: self.data.is_none().then_some(recovered),
            ..whole
        };
        judge.judge(image, expectation, None)
    }

    fn judge_served(
        &self,
        before: &Witness,
        (after, data): &(Witness, Option<PageImage>),
        ledger: &Ledger,
    ) -> Result<(), Ended> {
        let when = "after further work and a clean close";
        check_structure(&after.report, when)?;
        if before.report.is_perfect() && !after.report.is_perfect() {
            return Err(explain::imperfect(Oracle::Service, when, &after.report).into());
        }
        let expectation = ledger.expect_served();
        let Some(view) = after.view(self.backing, data.as_ref()) else {
            let why = "an image that passed the structure oracle has no guest view";
            return Err(Box::new(Verdict::HarnessBroken(why.into())));
        };
        let interest = interest(&view, &expectation);
        let before = before.view(self.backing, self.data);
        let accept = self.accept;
        check_guest(&view, before.as_ref(), &expectation, &interest, accept)?;
        check_snapshots(after, self.backing, &expectation)?;
        check_bitmaps(after, &view, &expectation)
    }
}

/// The same complaint, in the name of this oracle.
fn as_service(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Violated(violation) => Verdict::Violated(Violation {
            class: super::FailureClass {
                oracle: Oracle::Service,
                ..violation.class
            },
            ..violation
        }),
        Verdict::Survived | Verdict::NotMeasured(_) | Verdict::HarnessBroken(_) => verdict,
    }
}

/// What the subject is asked to do on what recovery left.
pub(super) fn work(
    view: &GuestView<'_>,
    recovered: &Witness,
    expectation: &Expectation<'_>,
) -> Vec<(OperationId, Operation)> {
    let first_id = expectation.ledger().next_id();
    workload(view, first_id, &snapshots_to_use(recovered))
}

/// A little of everything, at the places where recovery may have gone wrong: a cluster that is mapped,
/// one that is not, and the end of the disk.
fn workload(
    view: &GuestView<'_>,
    first: OperationId,
    snapshots: &[u32],
) -> Vec<(OperationId, Operation)> {
    let disk = 0..view.virtual_bytes() / 512;
    let cluster = view.cluster_sectors();
    let old = view.mapped_sectors().next().map_or(0, |range| range.start);
    let fresh = view.first_unmapped();
    let write = |sectors: Range<u64>| {
        clip(&sectors, &disk).map(|(offset, len_bytes)| Operation::Write { offset, len_bytes })
    };
    let discard = |sectors: Range<u64>| {
        clip(&sectors, &disk).map(|(offset, len_bytes)| Operation::Discard { offset, len_bytes })
    };
    let zero = |sectors: Range<u64>| {
        clip(&sectors, &disk).map(|(offset, len_bytes)| Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap: Unmap::Allow,
        })
    };
    let across = old + cluster.div_ceil(2);
    let operations = [
        write(across..across + cluster.min(LONGEST)),
        write(fresh + cluster - 1..fresh + cluster),
        Some(Operation::Flush),
        discard(old..old + cluster),
        write(old..old + 1),
        zero(fresh..fresh + cluster),
        write(disk.end.saturating_sub(2)..disk.end),
        Some(Operation::Flush),
        write(fresh..fresh + 1),
    ];
    // Where there are snapshots, work with them goes on as well.
    let own = snapshots.iter().max().map_or(0, |last| last + 1);
    let with_snapshots = match snapshots {
        [] => [None; 5],
        [first, ..] => [
            Some(on_snapshot(*first, SnapshotChange::Delete)),
            Some(on_snapshot(own, SnapshotChange::Create)),
            write(old..old + 1),
            Some(on_snapshot(own, SnapshotChange::Apply)),
            write(fresh..fresh + 2),
        ],
    };
    (first.0..)
        .map(OperationId)
        .zip(operations.into_iter().chain(with_snapshots).flatten())
        .collect()
}

fn on_snapshot(snapshot: u32, change: SnapshotChange) -> Operation {
    Operation::Snapshot(SnapshotOperation { snapshot, change })
}

/// The numbers of the snapshots, unless refcounts are too narrow for one to go and another to come.
fn snapshots_to_use(witness: &Witness) -> Vec<u32> {
    let numbers: Vec<u32> = witness.report.snapshots.iter().filter_map(number).collect();
    let bits = witness
        .report
        .layout
        .map_or(0, |layout| 1u32 << layout.refcount_order);
    if numbers.len() + 1 < 1 << bits.min(16) {
        numbers
    } else {
        Vec::new()
    }
}

/// The number of a snapshot that a workload took.
fn number(snapshot: &super::structure::Snapshot) -> Option<u32> {
    snapshot.name.strip_prefix('s')?.parse().ok()
}

/// No write is longer, in sectors.
const LONGEST: u64 = 128;

/// Offset and length in bytes of what of `sectors` lies on the disk, if anything does.
fn clip(sectors: &Range<u64>, disk: &Range<u64>) -> Option<(u64, u64)> {
    let (start, end) = (sectors.start, sectors.end.min(disk.end));
    (start < end).then(|| (start * 512, (end - start) * 512))
}
