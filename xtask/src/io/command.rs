//! The table of commands, and carrying out a line.

use super::session::{Complaint, Ending, Outcome, Session};
use super::words;
use super::{aio, breakpoints, look, opening, process, transfer};
use crate::img::{print, say_error};

/// A command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// Another name for it.
    pub(super) short: Option<&'static str>,
    /// How many words it takes: at least, and at most.
    pub(super) takes: (usize, Option<usize>),
    pub(super) operands: &'static str,
    pub(super) about: &'static str,
    pub(super) needs: Needs,
    /// What `help` says of its options.
    pub(super) options: &'static [(char, &'static str)],
    pub(super) run: fn(&mut Session, &[String]) -> Outcome,
}

/// What must be open for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    Disk,
    WritableDisk,
}

const COMMANDS: [&Command; 26] = [
    &process::ABORT,
    &aio::FLUSH,
    &aio::READ,
    &aio::WRITE,
    &look::ALLOC,
    &breakpoints::BREAK,
    &opening::CLOSE,
    &transfer::DISCARD,
    &transfer::FLUSH,
    &HELP,
    &look::INFO,
    &look::LENGTH,
    &look::MAP,
    &opening::OPEN,
    &process::QUIT,
    &transfer::READ,
    &transfer::READV,
    &breakpoints::REMOVE,
    &opening::REOPEN,
    &breakpoints::RESUME,
    &process::SIGRAISE,
    &process::SLEEP,
    &look::TRUNCATE,
    &breakpoints::WAIT,
    &transfer::WRITE,
    &transfer::WRITEV,
];

const HELP: Command = Command {
    name: "help",
    short: Some("?"),
    takes: (0, Some(1)),
    operands: "[command]",
    about: "help for one or all commands",
    needs: Needs::Nothing,
    options: &[],
    run: help,
};

impl Command {
    fn find(name: &str) -> Option<&'static Self> {
        COMMANDS
            .into_iter()
            .find(|command| command.name == name || command.short == Some(name))
    }

    /// The line that tells how it is called.
    fn line(&self) -> String {
        // `map` takes nothing and has two spaces all the same.
        let operands = match (self.operands, self.name) {
            ("", "map") => " ".to_owned(),
            ("", _) => String::new(),
            (operands, _) => format!(" {operands}"),
        };
        format!("{}{operands} -- {}\n", self.name, self.about)
    }

    /// What is wrong with so many words, if anything is.
    fn refuse_count(&self, count: usize) -> Option<String> {
        let (least, most) = self.takes;
        if count >= least && most.is_none_or(|most| count <= most) {
            return None;
        }
        let expected = match most {
            None => format!("at least {least}"),
            Some(most) if most == least => least.to_string(),
            Some(most) => format!("between {least} and {most}"),
        };
        Some(format!(
            "bad argument count {count} to {}, expected {expected} arguments\n",
            self.name
        ))
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every command hands back an outcome"
)]
fn help(_: &mut Session, words: &[String]) -> Outcome {
    let Some(name) = words.first() else {
        for command in COMMANDS {
            print(&command.line());
        }
        print("\nUse 'help commandname' for extended help.\n");
        return Ok(Ending::Done);
    };
    let Some(command) = Command::find(name) else {
        print(&format!("command {name} not found\n"));
        return Ok(Ending::Done);
    };
    print(&command.line());
    for (letter, about) in command.options {
        print(&format!(" -{letter}, -- {about}\n"));
    }
    Ok(Ending::Done)
}

/// Carries out one line.
pub(super) fn carry_out(session: &mut Session, line: &str) -> Ending {
    session.clean_caches();
    let words = words::split(line);
    let Some((name, words)) = words.split_first() else {
        return Ending::Done;
    };
    let Some(command) = Command::find(name) else {
        say_error(&format!("command \"{name}\" not found\n"));
        return Ending::Failed;
    };
    if command.needs != Needs::Nothing && session.open.is_none() {
        say_error("no file open, try 'help open'\n");
        return Ending::Failed;
    }
    if let Some(text) = command.refuse_count(words.len()) {
        say_error(&text);
        return Ending::Failed;
    }
    if command.needs == Needs::WritableDisk && !session.opened().is_writable() {
        complain("Block node is read-only");
        return Ending::Failed;
    }
    match (command.run)(session, words) {
        Ok(ending) => ending,
        Err(complaint) => told(command, complaint),
    }
}

fn told(command: &Command, complaint: Complaint) -> Ending {
    match complaint {
        Complaint::Said(text) => print(&format!("{text}\n")),
        Complaint::Told(text) => complain(&text),
        Complaint::Option(text) => {
            say_error(&format!("{}: {text}\n", command.name));
            print(&command.line());
        }
        Complaint::Usage => print(&command.line()),
        Complaint::Nothing => {}
        Complaint::Stuck => {
            complain(
                "everything that is under way waits for a suspended request, and no command is left \
                 that could resume it",
            );
            return Ending::Stuck;
        }
    }
    Ending::Failed
}

/// A message of the program.
pub(super) fn complain(text: &str) {
    say_error(&format!("{}: {text}\n", super::PROGRAM));
}
