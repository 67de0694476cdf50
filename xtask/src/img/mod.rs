//! `img`: qemu-img's commands, with its words and exit codes.
//!
//! Scripts work by putting this program's path in place of qemu-img's. Messages therefore start with
//! qemu-img's name whatever this program was called by.

#![allow(
    clippy::format_push_string,
    reason = "the texts are short, and a string takes any text"
)]

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
pub(crate) mod creation;
mod dd;
mod encryption;
pub(crate) mod getopt;
pub(crate) mod info;
pub(crate) mod json;
mod key_slots;
mod map;
mod measure;
mod pace;
mod pack;
mod progress;
mod rebase;
pub(crate) mod resize;
mod sizes;
mod snapshot;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::block::secret::Secrets;
use crate::block::{Depth, Failure, Node, Opening, Sharing, Spec, open};
use engine::image::Access;

use self::getopt::Parsed;

/// What messages start with.
pub(crate) const PROGRAM: &str = "qemu-img";

/// Why a command ends before its work is done.
#[allow(dead_code, reason = "not every command ends in every way")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It could not be done; one message and exit code 1.
    Failed(Failure),
    /// The same with another exit code.
    FailedWith(u8, Failure),
    /// The call was wrong; `text` is the whole message.
    Misuse { command: &'static str, text: String },
    /// Everything is said already.
    Code(u8),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A command.
struct Command {
    name: &'static str,
    about: &'static str,
    operands: &'static str,
    options: &'static [getopt::Opt],
    run: fn(&Parsed) -> Result<u8, Stop>,
}

const COMMANDS: [&Command; 15] = [
    &amend::COMMAND,
    &bench::COMMAND,
    &bitmap::COMMAND,
    &check::COMMAND,
    &commit::COMMAND,
    &compare::COMMAND,
    &convert::COMMAND,
    &create::COMMAND,
    &dd::COMMAND,
    &info::COMMAND,
    &map::COMMAND,
    &measure::COMMAND,
    &rebase::COMMAND,
    &resize::COMMAND,
    &snapshot::COMMAND,
];

/// Runs the command that these arguments, without the program's name, ask for.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(word) => {
                tell(&format!("argument {} is not UTF-8", word.display()));
                return ExitCode::from(1);
            }
        }
    }
    ExitCode::from(match run(&words) {
        Ok(code) | Err(Stop::Code(code)) => code,
        Err(Stop::Failed(Failure(text))) => {
            tell(&text);
            1
        }
        Err(Stop::FailedWith(code, Failure(text))) => {
            tell(&text);
            code
        }
        Err(Stop::Misuse { command, text }) => {
            let command = if command.is_empty() {
                String::new()
            } else {
                format!("{command} ")
            };
            say_error(&format!(
                "{text}\nTry '{PROGRAM} {command}--help' for more info\n"
            ));
            1
        }
    })
}

fn run(words: &[String]) -> Result<u8, Stop> {
    let wrong = |text: String| Stop::Misuse {
        command: "",
        text: format!("{PROGRAM}: {text}"),
    };
    let Some(first) = words.first() else {
        return Err(wrong("Not enough arguments".into()));
    };
    match first.as_str() {
        "-h" | "--help" => {
            print(&usage());
            return Ok(0);
        }
        "-V" | "--version" => {
            print(&format!(
                "{PROGRAM} version 10.0.2 (as qrash {} has it)\n",
                env!("CARGO_PKG_VERSION")
            ));
            return Ok(0);
        }
        option if option.starts_with('-') => {
            return Err(wrong(format!("unrecognized option '{option}'")));
        }
        _ => {}
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == first) else {
        return Err(wrong(format!("Command not found: {first}")));
    };
    let parsed = getopt::parse(command.name, command.options, &words[1..])?;
    if parsed.has("help") {
        print(&command_usage(command));
        return Ok(0);
    }
    (command.run)(&parsed)
}

fn usage() -> String {
    let mut text = format!("Usage: {PROGRAM} COMMAND [OPTIONS] ...\n\nCommands:\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:9} {}\n", command.name, command.about));
    }
    text.push_str(&format!(
        "\n`{PROGRAM} COMMAND --help` tells a command's options.\n\nFormats:"
    ));
    for format in crate::block::Format::ALL {
        text.push_str(&format!(" {}", format.name()));
    }
    text.push('\n');
    text
}

fn command_usage(command: &Command) -> String {
    let mut text = format!(
        "{}.\n\nUsage: {PROGRAM} {} [OPTIONS] {}\n\nOptions:\n",
        command.about, command.name, command.operands
    );
    for option in command.options {
        let short = option
            .short
            .map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let argument = match option.takes {
            getopt::Takes::Nothing => "",
            getopt::Takes::Argument => " ARG",
        };
        let long = format!("--{}{argument}", option.long);
        text.push_str(&format!("  {short}{long:28} {}\n", option.help));
    }
    text
}

/// A wrong call of a command.
pub(crate) fn misuse(command: &'static str, text: impl std::fmt::Display) -> Stop {
    Stop::Misuse {
        command,
        text: format!("{PROGRAM}: {text}"),
    }
}

/// A message on the error stream, under the program's name.
pub(crate) fn tell(text: &str) {
    say_error(&format!("{PROGRAM}: {text}\n"));
}

/// Text on the error stream.
pub(crate) fn say_error(text: &str) {
    // Nobody is left to hear that this failed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Text on the output stream. A reader who has gone away is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// How a command shows what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Human,
    Json,
}

impl Output {
    /// By the option `--output`.
    fn of(command: &'static str, parsed: &Parsed) -> Result<Self, Stop> {
        match parsed.get("output") {
            None | Some("human") => Ok(Self::Human),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(misuse(
                command,
                format!("--output expects 'human' or 'json' not '{other}'"),
            )),
        }
    }
}

/// The secrets that `--object` options define.
fn secrets(parsed: &Parsed) -> Result<Secrets, Stop> {
    let mut secrets = Secrets::default();
    for object in parsed.all("object") {
        secrets.define(object)?;
    }
    Ok(secrets)
}

/// Whether others may write the image meanwhile: `-U`.
fn sharing(parsed: &Parsed) -> Sharing {
    if parsed.has("force-share") {
        Sharing::Anyone
    } else {
        Sharing::ByFormat
    }
}

/// The image that `name` means under `--image-opts` or `-f`.
fn spec_of(name: &str, parsed: &Parsed) -> Result<Spec, Failure> {
    let spec = if parsed.has("image-opts") {
        if parsed.has("format") {
            return Err(Failure::new(
                "--image-opts and --format are mutually exclusive",
            ));
        }
        Spec::from_image_opts(name)
    } else {
        Spec::from_name(name, parsed.get("format"))
    };
    spec.map_err(|why| Failure::could_not_open(name, &why))
}

/// Opens an image, and says on failure which.
fn open_named(name: &str, spec: &Spec, opening: &Opening<'_>) -> Result<Node, Failure> {
    open(spec, opening).map_err(|why| Failure::could_not_open(name, &why))
}

/// How to open an image for reading.
fn reading<'a>(parsed: &Parsed, secrets: &'a Secrets, depth: Depth) -> Opening<'a> {
    Opening {
        access: Access::ReadOnly,
        sharing: sharing(parsed),
        cache: crate::block::CacheMode::WriteBack,
        depth,
        secrets,
    }
}
