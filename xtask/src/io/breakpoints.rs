//! Commands that suspend requests at blkdebug's events and resume them.

use blkdebug::filter::Filter;
use engine::device::Event;

use super::command::{Command, Needs};
use super::session::{Complaint, Ending, Outcome, Session};

pub(super) const BREAK: Command = Command {
    name: "break",
    short: None,
    takes: (2, Some(2)),
    operands: "event tag",
    about: "sets a breakpoint on event and tags the stopped request as tag",
    needs: Needs::Disk,
    options: &[],
    run: set,
};

pub(super) const REMOVE: Command = Command {
    name: "remove_break",
    short: None,
    takes: (1, Some(1)),
    operands: "tag",
    about: "remove a breakpoint by tag",
    needs: Needs::Disk,
    options: &[],
    run: remove,
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    short: None,
    takes: (1, Some(1)),
    operands: "tag",
    about: "resumes the request tagged as tag",
    needs: Needs::Disk,
    options: &[],
    run: resume,
};

pub(super) const WAIT: Command = Command {
    name: "wait_break",
    short: None,
    takes: (1, Some(1)),
    operands: "tag",
    about: "waits for the suspension of a request",
    needs: Needs::Disk,
    options: &[],
    run: wait,
};

fn filter(session: &Session, failed: &str) -> Result<Filter, Complaint> {
    let filter = session.opened().node.file.filter.clone();
    filter.ok_or_else(|| Complaint::Said(format!("{failed}: Operation not supported")))
}

fn missing(failed: &str) -> Complaint {
    Complaint::Said(format!("{failed}: No such file or directory"))
}

fn set(session: &mut Session, words: &[String]) -> Outcome {
    let failed = "Could not set breakpoint";
    let filter = filter(session, failed)?;
    let event = Event::from_name(&words[0]).ok_or_else(|| missing(failed))?;
    filter.set_breakpoint(event, &words[1]);
    Ok(Ending::Done)
}

fn remove(session: &mut Session, words: &[String]) -> Outcome {
    let failed = format!("Could not remove breakpoint {}", words[0]);
    let removed = filter(session, &failed)?.remove_breakpoints(&words[0]);
    session.run();
    if removed {
        Ok(Ending::Done)
    } else {
        Err(missing(&failed))
    }
}

fn resume(session: &mut Session, words: &[String]) -> Outcome {
    let failed = "Could not resume request";
    let resumed = filter(session, failed)?.resume(&words[0]);
    session.run();
    if resumed {
        Ok(Ending::Done)
    } else {
        Err(missing(failed))
    }
}

/// Without blkdebug nothing is ever suspended, and the wait has no end.
fn wait(session: &mut Session, words: &[String]) -> Outcome {
    session.go_on();
    let filter = session.opened().node.file.filter.as_ref();
    if filter.is_some_and(|filter| filter.is_parked(&words[0])) {
        Ok(Ending::Done)
    } else {
        Err(Complaint::Stuck)
    }
}
