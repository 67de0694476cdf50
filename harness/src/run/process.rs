//! The processes that had the image open in a life, one after the other.
//!
//! A process that is killed takes along what it had in memory. What it had written is in the caches of the
//! disks, and stays there: a power loss may still take it back, until somebody makes it durable. The process that
//! opens the image next does so before it builds on anything (rule 12 of [`engine::qcow2`]). So a life with a
//! kill falls in two: up to the moment when the image is open again a power loss is judged by what the first process
//! was asked and answered, and from then on by what the second one found, all of it durable, and by what it was
//! asked.

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Recording, Tick};
use engine::device::PageImage;

use crate::crash::durability::Frontier;
use crate::crash::state::{CrashState, Survivors};
use crate::guest::Ledger;
use crate::oracle::{Succession, Witness};
use crate::sim::stage::Stage;
use crate::workload::ops::{Answer, Happening, Moment, Operation, OperationId};

/// A process after the first.
#[derive(Debug)]
pub struct Process {
    /// When it had the image open.
    pub since: Tick,
    /// The image as it found it.
    pub found: Witness,
    /// The history of the guest's disk since then.
    pub ledger: Ledger,
}

/// The operations of each process. A kill that did not come to its end belongs to nobody, and what was asked of
/// the process that never came up to the one before.
fn shares(history: &[Happening]) -> Vec<(Option<Happening>, Vec<Happening>)> {
    let mut shares = vec![(None, Vec::new())];
    for happening in history {
        let is_kill = happening.operation == Operation::Kill;
        match happening.completed {
            Some((_, Answer::Done)) if is_kill => shares.push((Some(*happening), Vec::new())),
            Some(_) | None if is_kill => {}
            Some(_) | None => shares
                .last_mut()
                .expect("there is a first")
                .1
                .push(*happening),
        }
    }
    shares
}

/// The operations of the first process.
pub(super) fn first_share(history: &[Happening]) -> Vec<Happening> {
    shares(history).swap_remove(0).1
}

/// The processes after the first, whose history is `first`. Where one found an image that cannot be read, no
/// later ones are told: that is a violation of what the one before promised.
pub(super) fn later(
    stage: &Stage,
    first: &Ledger,
    recording: &Recording,
    history: &[Happening],
) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    for (kill, share) in shares(history) {
        let Some((kill, (since, _))) = kill.and_then(|kill| Some((kill, kill.completed?))) else {
            continue;
        };
        let disks = everything(recording, since).disks;
        let before = processes.last().map_or(first, |process| &process.ledger);
        let found = Witness::new(disks.image().clone());
        let Some(ledger) = found_by(stage, &found, &disks, |succession| {
            succession.ledger(&before.expect(since), &share)
        }) else {
            break;
        };
        let ledger = match found.report.layout {
            Some(layout) => ledger.starting(layout.facts(&found.image), &share),
            None => ledger,
        };
        let ledger = ledger.following(before, OperationId(kill.id.0 + 1));
        processes.push(Process {
            since,
            found,
            ledger,
        });
    }
    processes
}

/// What is made of the disks as a process found them.
fn found_by<T>(
    stage: &Stage,
    found: &Witness,
    disks: &Disks<PageImage>,
    make: impl FnOnce(Succession<'_>) -> T,
) -> T {
    let over = stage.over(Disk::Image, disks);
    let backing = over.map(|over| stage.view(over, disks));
    make(Succession {
        witness: found,
        backing: backing.as_ref(),
        data: disks.get(Disk::Data).or(stage.data.as_ref()),
        beneath: stage.shown_beneath.clone(),
    })
}

/// The disks with everything that had been carried out by a moment: what a process finds.
pub(super) fn everything(recording: &Recording, at: Tick) -> CrashState {
    let frontier = Frontier::at(recording, at);
    let everything = Survivors::everything(&frontier);
    CrashState::build(recording, at, &everything).expect("the survivors are those of the cut")
}

/// The moments at which processes were killed.
pub(super) fn kills(history: &[Happening]) -> impl Iterator<Item = Moment> {
    let kills = history.iter().filter(|it| it.operation == Operation::Kill);
    kills.map(|kill| kill.submitted)
}
