//! The command line of qrash, and the only place with a clock, an environment, a terminal and an exit
//! code.

#![allow(clippy::print_stderr, reason = "this is the command line")]

/// What every command prints with: as the standard library's, but that it is no error where nobody reads on. That one
/// panics there.
macro_rules! print {
    ($($text:tt)*) => {
        $crate::img::print(&format!($($text)*))
    };
}

/// A line, in the same way.
macro_rules! println {
    () => {
        $crate::img::print("\n")
    };
    ($($text:tt)+) => {
        $crate::img::print(&format!("{}\n", format_args!($($text)+)))
    };
}

mod bench;
mod block;
mod canary;
mod ci;
mod differential;
mod exhaust;
mod faults;
mod fuzz;
mod img;
mod io;
mod iotests;
mod log;
mod malformed;
mod memory;
mod minimise;
mod mutants;
mod pace;
mod replay;
mod source;
mod terminal;
mod tune;
mod violation;
mod zoo;

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

// A judged crash state is hundreds of small allocations that live for microseconds.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Crash-consistency tests for virtual-disk images.
#[derive(Debug, Parser)]
#[command(name = "qrash", bin_name = "cargo xtask", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  nothing was found
  1  a violation was found
  2  usage or environment: a wrong option, an unreadable file, a directory that cannot be written
  3  the harness is broken, or something was not measured
`img` and `io` end as qemu-img and qemu-io do.";

#[derive(Debug, Subcommand)]
enum Command {
    Fuzz(fuzz::Fuzz),
    Faults(faults::Faults),
    Exhaust(exhaust::Exhaust),
    Replay(replay::Replay),
    Minimise(minimise::Minimise),
    Canary(canary::Canary),
    Mutants(mutants::Mutants),
    Zoo(zoo::Zoo),
    Pace(pace::Pace),
    Tune(tune::Tune),
    Malformed(malformed::Malformed),
    Bench(bench::Bench),
    Differential(differential::Differential),
    Iotests(iotests::Iotests),
    Log(log::LogCommand),
    Ci(ci::Ci),
    /// qemu-img's commands, with its words and exit codes: `img --help` lists them
    #[command(disable_help_flag = true)]
    Img,
    /// qemu-io's commands, with its words and exit codes: `io -c help` lists them
    #[command(disable_help_flag = true)]
    Io,
}

impl Command {
    /// Whether it judges so many crash states that their pace matters.
    fn is_campaign(&self) -> bool {
        match self {
            Self::Fuzz(_)
            | Self::Faults(_)
            | Self::Exhaust(_)
            | Self::Canary(_)
            | Self::Mutants(_)
            | Self::Zoo(_)
            | Self::Pace(_) => true,
            Self::Replay(_)
            | Self::Minimise(_)
            | Self::Tune(_)
            | Self::Malformed(_)
            | Self::Bench(_)
            | Self::Differential(_)
            | Self::Iotests(_)
            | Self::Log(_)
            | Self::Ci(_)
            | Self::Img
            | Self::Io => false,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// There is nothing to report.
    Clean,
    /// A violation was found.
    Violation,
    /// The harness contradicts itself, or could not judge.
    Unmeasured,
}

/// A wrong call or a world that does not play along: one line for a person.
#[derive(Debug)]
struct Refusal(String);

impl Refusal {
    fn new(text: impl std::fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(match ending {
            Ending::Clean => 0,
            Ending::Violation => 1,
            Ending::Unmeasured => 3,
        })
    }
}

/// Makes a folder in which this program stands under the names of QEMU's.
fn link_programs(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let program = std::env::current_exe()?;
    for name in [img::PROGRAM, io::PROGRAM] {
        symlink(&program, folder.join(name))?;
    }
    Ok(())
}

/// The commands that read their own arguments, as the program of that name does.
fn other_program() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let called = Path::new(&called)
        .file_name()
        .unwrap_or_default()
        .to_owned();
    if called == img::PROGRAM {
        return Some(img::main(arguments));
    }
    if called == io::PROGRAM {
        return Some(io::main(arguments));
    }
    let command: OsString = arguments.next()?;
    match command.to_str() {
        Some("img") => Some(img::main(arguments)),
        Some("io") => Some(io::main(arguments)),
        Some(_) | None => None,
    }
}

fn main() -> ExitCode {
    if let Some(code) = other_program() {
        return code;
    }
    let command = Arguments::parse().command;
    if command.is_campaign() {
        memory::keep_freed();
    }
    let outcome = match command {
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Faults(faults) => faults.run(),
        Command::Exhaust(exhaust) => exhaust.run(),
        Command::Replay(replay) => replay.run(),
        Command::Minimise(minimise) => minimise.run(),
        Command::Canary(canary) => canary.run(),
        Command::Mutants(mutants) => mutants.run(),
        Command::Zoo(zoo) => zoo.run(),
        Command::Pace(pace) => pace.run(),
        Command::Tune(tune) => tune.run(),
        Command::Malformed(malformed) => malformed.run(),
        Command::Bench(bench) => bench.run(),
        Command::Differential(differential) => differential.run(),
        Command::Iotests(iotests) => iotests.run(),
        Command::Log(log) => log.run(),
        Command::Ci(ci) => ci.run(),
        Command::Img | Command::Io => unreachable!("these read their own arguments"),
    };
    match outcome {
        Ok(ending) => ending.into(),
        Err(Refusal(text)) => {
            eprintln!("error: {text}");
            ExitCode::from(2)
        }
    }
}
