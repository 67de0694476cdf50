//! `io`: qemu-io's commands, with its words and exit codes.
//!
//! Scripts work by putting this program's path in place of qemu-io's. Messages therefore start with
//! qemu-io's name whatever this program was called by. As there, writes are durable when they end,
//! unless a cache mode says otherwise.

mod aio;
mod breakpoints;
mod command;
mod look;
mod opening;
mod process;
mod report;
mod session;
mod transfer;
mod words;

use std::ffi::OsString;
use std::fmt::Write;
use std::io::BufRead;
use std::process::ExitCode;

use self::command::{carry_out, complain};
use self::opening::{Settings, open_named};
use self::session::{Ending, Session};
use crate::block::{Failure, Spec};
use crate::img::getopt::{self, Opt, Parsed, Takes, flag, value};
use crate::img::print;

/// What messages start with.
pub(crate) const PROGRAM: &str = "qemu-io";

const OPTIONS: [Opt; 17] = [
    value(None, "object", "a secret that options refer to"),
    flag(None, "image-opts", "FILE is a set of options"),
    value(Some('c'), "cmd", "carry out a command; may be repeated"),
    value(Some('f'), "format", "the format of FILE"),
    flag(Some('r'), "read-only", "for reading only"),
    flag(Some('s'), "snapshot", "changes go into memory and are lost"),
    flag(Some('n'), "nocache", "short for -t none"),
    flag(
        Some('C'),
        "copy-on-read",
        "what is read from beneath is copied into the image",
    ),
    flag(Some('m'), "misalign", "accepted, and without effect"),
    flag(Some('k'), "native-aio", "accepted, and without effect"),
    value(
        Some('i'),
        "aio",
        "threads, native or io_uring: accepted, and without effect",
    ),
    value(Some('t'), "cache", "the cache mode [writethrough]"),
    value(
        Some('d'),
        "discard",
        "whether discards reach the image: unmap or ignore",
    ),
    value(Some('T'), "trace", "accepted, and without effect"),
    flag(
        Some('U'),
        "force-share",
        "others may write the image meanwhile",
    ),
    flag(Some('h'), "help", "tell the options"),
    flag(Some('V'), "version", "tell the version"),
];

/// Runs what these arguments, without the program's name, ask for.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(word) => {
                complain(&format!("argument {} is not UTF-8", word.display()));
                return ExitCode::from(1);
            }
        }
    }
    let parsed = match getopt::read(&OPTIONS, &words) {
        Ok(parsed) => parsed,
        Err(text) => {
            complain(&text);
            print(&usage());
            return ExitCode::from(1);
        }
    };
    if parsed.has("help") {
        print(&usage());
        return ExitCode::SUCCESS;
    }
    if parsed.has("version") {
        let version = env!("CARGO_PKG_VERSION");
        print(&format!(
            "{PROGRAM} version 10.0.2 (as qrash {version} has it)\n"
        ));
        return ExitCode::SUCCESS;
    }
    if parsed.operands.len() > 1 {
        print(&usage());
        return ExitCode::from(1);
    }
    let mut session = Session::default();
    if let Err(Failure(text)) = open_first(&mut session, &parsed) {
        complain(&text);
        return ExitCode::from(1);
    }
    ExitCode::from(run(session, &parsed))
}

fn open_first(session: &mut Session, parsed: &Parsed) -> Result<(), Failure> {
    for object in parsed.all("object") {
        session.secrets.define(object)?;
    }
    let mut draft = Settings::of(Spec::from_name("", None)?);
    for (long, argument) in &parsed.options {
        let short = OPTIONS
            .iter()
            .find(|option| option.long == *long)
            .and_then(|option| option.short);
        if let Some(short) = short {
            draft.take(short, argument)?;
        }
    }
    let image_opts = parsed.has("image-opts");
    if image_opts && parsed.has("format") {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    let [name] = parsed.operands.as_slice() else {
        return Ok(());
    };
    let (path, spec) = if image_opts {
        (None, Spec::from_image_opts(name))
    } else {
        (
            Some(name.as_str()),
            Spec::from_name(name, parsed.get("format")),
        )
    };
    let settings = spec.map(|spec| Settings { spec, ..draft });
    open_named(session, path, settings)
}

/// Carries out the commands, and tells the exit code.
fn run(mut session: Session, parsed: &Parsed) -> u8 {
    let mut code = 0;
    let mut commands = parsed.all("cmd").map(str::to_owned).peekable();
    let ending = if commands.peek().is_some() {
        carry_out_all(&mut session, commands, &mut code)
    } else {
        carry_out_all(&mut session, Prompted, &mut code)
    };
    if ending == Ending::Stuck {
        return 1;
    }
    if session.close().is_err() {
        complain("a request is still suspended and will never end");
        return 1;
    }
    code
}

/// Carries out lines until there are no more, or one says so.
fn carry_out_all(
    session: &mut Session,
    lines: impl Iterator<Item = String>,
    code: &mut u8,
) -> Ending {
    for line in lines {
        match carry_out(session, &line) {
            Ending::Done => {}
            Ending::Failed => *code = 1,
            ending @ (Ending::Quit | Ending::Stuck) => return ending,
        }
    }
    Ending::Done
}

/// The lines of the input stream, each asked for.
struct Prompted;

impl Iterator for Prompted {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        print(&format!("{PROGRAM}> "));
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end_matches('\n').to_owned()),
        }
    }
}

fn usage() -> String {
    let mut text =
        format!("Usage: {PROGRAM} [OPTIONS]... [-c STRING]... [file]\nQEMU Disk exerciser\n\n");
    for option in OPTIONS {
        let short = option
            .short
            .map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let argument = match option.takes {
            Takes::Nothing => "",
            Takes::Argument => " ARG",
        };
        let long = format!("--{}{argument}", option.long);
        writeln!(text, "  {short}{long:18} {}", option.help).expect("a string takes any text");
    }
    text.push_str("\nSee 'qemu-io -c help' for information on available commands.\n");
    text
}
