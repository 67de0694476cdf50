//! Commands about the program itself.

use std::io::Write;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::command::{Command, Needs};
use super::session::{Complaint, Ending, Outcome, Session};
use super::words;

pub(super) const ABORT: Command = Command {
    name: "abort",
    short: None,
    takes: (0, Some(0)),
    operands: "",
    about: "simulate a program crash using abort(3)",
    needs: Needs::Nothing,
    options: &[],
    run: |_, _| std::process::abort(),
};

pub(super) const QUIT: Command = Command {
    name: "quit",
    short: Some("q"),
    takes: (0, Some(0)),
    operands: "",
    about: "exit the program",
    needs: Needs::Nothing,
    options: &[],
    run: |_, _| Ok(Ending::Quit),
};

pub(super) const SIGRAISE: Command = Command {
    name: "sigraise",
    short: None,
    takes: (1, Some(1)),
    operands: "signal",
    about: "raises a signal",
    needs: Needs::Nothing,
    options: &[],
    run: sigraise,
};

pub(super) const SLEEP: Command = Command {
    name: "sleep",
    short: None,
    takes: (1, Some(1)),
    operands: "",
    about: "waits for the given value in milliseconds",
    needs: Needs::Nothing,
    options: &[],
    run: sleep,
};

fn sigraise(_: &mut Session, words: &[String]) -> Outcome {
    let text = &words[0];
    let number = words::number(text).map_err(Complaint::Said)?;
    let too_large = || {
        Complaint::Said(format!(
            "signal argument '{text}' is too large to be a valid signal"
        ))
    };
    let number = i32::try_from(number).map_err(|_| too_large())?;
    if number == 0 {
        // It tests whether the process is there, and it is.
        return Ok(Ending::Done);
    }
    let signal = Signal::from_named_raw(number).ok_or_else(too_large)?;
    // Nobody is left to hear that this failed.
    let _ = std::io::stdout().flush();
    kill_process(getpid(), signal)
        .map_err(|errno| Complaint::Told(format!("Failed to raise the signal: {errno}")))?;
    Ok(Ending::Done)
}

#[expect(
    clippy::disallowed_methods,
    reason = "waiting is what the command is for"
)]
fn sleep(session: &mut Session, words: &[String]) -> Outcome {
    let text = &words[0];
    let milliseconds = words::integer(text)
        .ok_or_else(|| Complaint::Said(format!("{text} is not a valid number")))?;
    session.go_on();
    thread::sleep(Duration::from_millis(milliseconds));
    Ok(Ending::Done)
}
