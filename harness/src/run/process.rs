//! The processes that had the image open in a life, one after the other.
//!
//! A process that is killed takes along what it had in memory. What it had written is in the caches of the
//! disks, and stays there: a power loss may still take it back, until somebody makes it durable. The process that
//! opens the image next does so before it builds on anything (rule 12 of [`engine::qcow2`]). So a life with a
//! kill falls in two: up to the moment when the image is open again a power loss is judged by what the first process
//! was asked and answered, and from then on by what the second one found, all of it durable, and by what it was
//! asked. So does a life in which closing the image failed.

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Recording, Tick};
use engine::device::PageImage;
use engine::error::{Error, Refused};

use crate::crash::durability::Frontier;
use crate::crash::state::{CrashState, Survivors};
use crate::guest::Ledger;
use crate::oracle::{Succession, Witness};
use crate::sim::stage::Stage;
use crate::sim::world::Lived;
use crate::workload::ops::{Happening, Moment, Operation, OperationId};

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

/// The operation that opened the image behind a process that had not closed it, and when it was answered.
type Start = Option<(OperationId, Moment)>;

/// The operations of each process. A kill that did not come to its end belongs to nobody, and what was asked of
/// the process that never came up to the one before.
fn shares(lived: &Lived) -> Vec<(Start, Vec<Happening>)> {
    let mut shares = vec![(None, Vec::new())];
    for happening in &lived.history {
        if was_refused(lived, happening) {
            continue;
        }
        let answered = happening.completed.map(|(since, _)| (happening.id, since));
        let start = answered.filter(|(id, _)| lived.revived.contains(id));
        if start.is_some() {
            shares.push((start, Vec::new()));
        } else if happening.operation != Operation::Kill {
            let last = shares.last_mut().expect("there is a first");
            last.1.push(*happening);
        }
    }
    shares
}

/// Whether a change of size was not even begun: the disk has not had that size.
fn was_refused(lived: &Lived, happening: &Happening) -> bool {
    let resizes = matches!(
        happening.operation,
        Operation::Grow { .. } | Operation::Shrink { .. }
    );
    let mut failures = lived.failures.iter();
    resizes
        && failures.any(|failure| {
            let is_refusal =
                matches!(&failure.error, Error::Refused(why) if *why != Refused::Distrusted);
            failure.id == Some(happening.id) && is_refusal
        })
}

/// The operations of the first process.
pub(super) fn first_share(lived: &Lived) -> Vec<Happening> {
    shares(lived).swap_remove(0).1
}

/// The processes after the first, whose history is `first`. Where one found an image that cannot be read, no
/// later ones are told: that is a violation of what the one before promised.
pub(super) fn later(
    stage: &Stage,
    first: &Ledger,
    recording: &Recording,
    lived: &Lived,
) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    for (start, share) in shares(lived) {
        let Some((id, since)) = start else {
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
        let ledger = ledger.following(before, OperationId(id.0 + 1));
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
