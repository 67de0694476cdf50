//! What is wrong with a run in which requests failed, whatever a power loss would have left.
//!
//! - *Told.* An operation on behalf of which a request failed says that it failed. What is advice may fail unnoticed.
//! - *Founded.* An operation fails only where a request failed that it waited for; or where an earlier failure left in
//!   doubt what the file holds, and the image refuses to build on that until it is opened again; or where it would have
//!   been refused all the same. So once the faults are gone, whatever is asked of the image behind its next opening
//!   succeeds: the failed operation, asked again, too.
//!
//! That a failed operation has happened or not, sector by sector, that nothing acknowledged is lost, and that the image is
//! sound, is what the oracles say of the states that the run could have left, the one at its end among them.

use blkdebug::class::Class;
use blkdebug::disks::Disk;
use blkdebug::record::{Effect, Tick};
use blkdebug::rule::Fault;
use blkdebug::volatile::Injected;
use engine::device::{DeviceError, Event, OpKind};
use engine::error::{Error, Problem, Refused};

use crate::oracle::{Oracle, Violation};
use crate::run::Life;
use crate::sim::{Failure, Opening};
use crate::trace::operation_text;
use crate::workload::ops::{Answer, Happening, Operation, OperationId};

/// What is wrong with a run in which requests failed that said so.
pub(crate) fn violations(life: &Life, may_be_refused: &Refusable<'_>) -> Vec<Violation> {
    let untold = untold(life);
    let unfounded = unfounded(life, may_be_refused);
    untold.into_iter().chain(unfounded).collect()
}

/// Whether an operation may fail so on a disk that never does.
pub(crate) type Refusable<'a> = dyn Fn(Operation, &Error) -> bool + 'a;

/// Whether whoever makes a request is told that it failed.
pub fn fails(fault: &Fault) -> bool {
    fault.cause().is_some()
}

/// The first failed request that nobody was told of.
fn untold(life: &Life) -> Option<Violation> {
    life.injected.iter().find_map(|(disk, injected)| {
        let id = injected.operation;
        let happening = id.and_then(|id| happening(life, id));
        let operation = happening.map(|it| it.operation);
        if !fails(&injected.fault) || is_advice(injected, operation) {
            return None;
        }
        let told = match (id, happening) {
            (None, _) => !life.lived.was_opened,
            // Whoever makes requests has asked for something.
            (Some(_), None) => false,
            (Some(_), Some(happening)) => match happening.completed {
                None | Some((_, Answer::Failed)) => true,
                Some((_, Answer::Done)) => {
                    has_failed(life, happening.id) || is_put_off(life, *disk, happening, injected)
                }
            },
        };
        if told {
            return None;
        }
        let what = what(life, id);
        let line = format!(
            "{what} succeeded although a request failed that it made: {} {}",
            injected.event,
            injected.kind.name()
        );
        let site = injected.event.name();
        Some(Violation::new(Oracle::Progress, "untold", site, vec![line]))
    })
}

/// Whether a request was advice: nothing that was promised hangs on it.
pub(super) fn is_advice(injected: &Injected, operation: Option<Operation>) -> bool {
    match injected.kind {
        OpKind::Discard => true,
        OpKind::WriteZeroes => injected.event == Event::ClusterFree,
        // A file that stays longer than it must be is a leak.
        OpKind::SetLen => matches!(operation, Some(Operation::Shrink { .. })),
        OpKind::Read | OpKind::Write | OpKind::Flush => false,
    }
}

/// Whether something failed that an operation did, be it behind its answer.
fn has_failed(life: &Life, id: OperationId) -> bool {
    let mut failures = life.lived.failures.iter();
    failures.any(|failure| failure.id == Some(id))
}

/// Whether a failure may be told later: a guest's flush has kept its promise before it looks for clusters to free, for which
/// it flushes nothing any more.
pub(super) fn is_put_off(
    life: &Life,
    disk: Disk,
    happening: &Happening,
    injected: &Injected,
) -> bool {
    let frees = matches!(
        injected.event,
        Event::RefblockLoad | Event::RefblockUpdatePart
    );
    let requesters = life.lived.requesters.iter().flatten();
    let entries = life.lived.recordings.iter();
    let entries = entries.flat_map(|recording| &recording.entries);
    let mut later = entries.zip(requesters).filter(|(entry, requester)| {
        entry.submitted > injected.at && **requester == Some(u64::from(happening.id.0))
    });
    let is_flush = happening.operation == Operation::Flush;
    is_flush
        && disk == Disk::Image
        && frees
        && !later.any(|(entry, _)| entry.op.kind() == OpKind::Flush)
}

/// The first operation that failed without a cause.
fn unfounded(life: &Life, may_be_refused: &Refusable<'_>) -> Option<Violation> {
    let failures = life.lived.failures.iter();
    let failure = failures
        .into_iter()
        .find(|failure| !is_founded(life, failure, may_be_refused))?;
    let what = what(life, failure.id.map(|id| u64::from(id.0)));
    let line = format!(
        "{what} failed, and no request that failed explains it: {}",
        failure.error
    );
    let site = match &failure.error {
        Error::Device(_) => "device",
        Error::BadImage(_) => "bad-image",
        Error::Unsupported(_) => "unsupported",
        Error::Refused(_) => "refused",
    };
    let lines = vec![line];
    Some(Violation::new(Oracle::Progress, "unfounded", site, lines))
}

fn is_founded(life: &Life, failure: &Failure, may_be_refused: &Refusable<'_>) -> bool {
    let span = span(life, failure.id);
    match &failure.error {
        Error::Device(error) => {
            let mut injected = life.injected.iter();
            let id = failure.id.map(|id| u64::from(id.0));
            injected.any(|(_, one)| {
                one.operation == id && is_told_of(one, error) && span.contains(one.at)
            })
        }
        Error::Refused(Refused::Distrusted) => is_in_doubt(life, failure, &span),
        Error::BadImage(_) | Error::Refused(Refused::FoundCorrupt)
            if has_lost(life, failure, &span) =>
        {
            true
        }
        error @ (Error::Refused(_) | Error::BadImage(_) | Error::Unsupported(_)) => {
            let id = failure.id.map(|id| u64::from(id.0));
            let happening = id.and_then(|id| happening(life, id));
            happening.is_some_and(|it| may_be_refused(it.operation, error))
        }
    }
}

/// Whether it is the failure of this request.
fn is_told_of(injected: &Injected, error: &DeviceError) -> bool {
    let is_same = injected.event == error.event && injected.kind == error.kind;
    // A discard is clipped, and a moved request is not one that fails.
    let is_cause = injected.fault.cause() == Some(error.cause);
    is_same && injected.range.0 == error.offset && is_cause
}

/// Whether an earlier failure leaves in doubt what the file holds, or no image is open because one failed.
fn is_in_doubt(life: &Life, failure: &Failure, span: &Span) -> bool {
    let Some(opening) = opening_of(life, failure) else {
        return false;
    };
    let is_nothing_open = !opening.is_open && opening.id != failure.id;
    let mut injected = life.injected.iter();
    let doubt = injected.any(|(_, one)| {
        let since = opening.began <= one.at && one.at <= span.end;
        since && fails(&one.fault) && leaves_doubt(one)
    });
    is_nothing_open || doubt
}

/// Whether a device has lost something since the image was opened that the engine takes for written: what it reads there
/// makes no sense then. Where data were lost that is a compressed cluster, or a file that ends before them.
fn has_lost(life: &Life, failure: &Failure, span: &Span) -> bool {
    let Some(opening) = opening_of(life, failure) else {
        return false;
    };
    let shows_in_data = match &failure.error {
        Error::BadImage(bad) => {
            matches!(bad.problem, Problem::Decompress | Problem::BeyondEnd { .. })
        }
        Error::Refused(_) | Error::Device(_) | Error::Unsupported(_) => false,
    };
    let forgotten = life
        .injected
        .iter()
        .filter(|(_, one)| one.fault.forgets() && opening.began <= one.at && one.at <= span.end);
    let Some(last) = forgotten.map(|(_, one)| one.at).max() else {
        return false;
    };
    let entries = life.lived.recordings.iter();
    let mut entries = entries.flat_map(|recording| &recording.entries);
    entries.any(|entry| {
        let is_lost = entry.effect == Effect::Dropped && entry.op.kind() != OpKind::Flush;
        let since = |at: Tick| opening.began <= at && at <= last;
        let is_data = Class::of_request(entry.event, entry.op.kind()) == Class::Data;
        is_lost && entry.succeeded().is_some_and(since) && (shows_in_data || !is_data)
    })
}

/// Whether a failure leaves in doubt what the file holds: which of two places a pointer names, or what a later flush
/// makes durable.
fn leaves_doubt(injected: &Injected) -> bool {
    let is_pointer = matches!(
        injected.event,
        Event::None
            | Event::L1GrowActivateTable
            | Event::RefblockAllocSwitchTable
            | Event::RefblockAllocHookup
    );
    let writes = matches!(
        injected.kind,
        OpKind::Write | OpKind::WriteZeroes | OpKind::SetLen
    );
    injected.kind == OpKind::Flush || is_pointer && writes
}

/// From the submission of an operation to its answer; from the start where it is the first opening.
struct Span {
    start: Tick,
    end: Tick,
}

impl Span {
    fn contains(&self, at: Tick) -> bool {
        self.start <= at && at <= self.end
    }
}

fn span(life: &Life, id: Option<OperationId>) -> Span {
    let happening = id.and_then(|id| happening(life, u64::from(id.0)));
    Span {
        start: happening.map_or(Tick(0), |it| it.submitted),
        end: happening
            .and_then(|it| it.completed)
            .map_or(Tick(u64::MAX), |(at, _)| at),
    }
}

/// The opening of the image by which an operation failed, or else the last one before it began.
fn opening_of<'a>(life: &'a Life, failure: &Failure) -> Option<&'a Opening> {
    let mut openings = life.lived.openings.iter();
    openings.rfind(|it| it.id < failure.id || it.id == failure.id && !it.is_open)
}

pub(super) fn happening(life: &Life, id: u64) -> Option<&Happening> {
    let mut history = life.lived.history.iter();
    history.find(|it| u64::from(it.id.0) == id)
}

fn what(life: &Life, id: Option<u64>) -> String {
    match id.and_then(|id| happening(life, id)) {
        None => "opening the image".to_owned(),
        Some(it) => format!("operation {} ({})", it.id.0, operation_text(it.operation)),
    }
}
