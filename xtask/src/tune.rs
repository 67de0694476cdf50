//! `tune`: this program once more, compiled for this machine with what a short campaign shows of it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::{Ending, Refusal};

/// Build this program for campaigns of hours, on this machine: twice, the second time with what a short campaign showed of
/// the first.
///
/// The program is optimised as a whole, for this processor and for the paths that judging crash states takes. Where there
/// is llvm-bolt, its code is put in the order in which it runs. It judges the same states and comes to the same digests.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Tune {
    /// From how many workloads to learn
    #[arg(long, value_name = "R", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// The program that merges profiles; without this, that of the compiler's llvm-tools, or of the PATH
    #[arg(long, value_name = "FILE")]
    profdata: Option<PathBuf>,
    /// The program that puts code in order; without this, llvm-bolt of the PATH, if it is there
    #[arg(long, value_name = "FILE")]
    bolt: Option<PathBuf>,
    /// Where to build
    #[arg(long, value_name = "DIR", default_value = "target/tuned")]
    out: PathBuf,
}

impl Tune {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let merger = match &self.profdata {
            Some(given) => given.clone(),
            None => find_merger(),
        };
        // What cannot be merged in the end is not worth two builds.
        if !ends_well(Command::new(&merger).args(["merge", "--help"])) {
            return Err(Refusal(format!(
                "{} does not run: `rustup component add llvm-tools` brings the compiler's own, --profdata names another",
                merger.display()
            )));
        }
        let bolt = self.find_bolt()?;
        let out = std::path::absolute(&self.out).map_err(|error| refuse(&self.out, &error))?;
        let (profiles, merged) = (out.join("profiles"), out.join("merged.profdata"));
        println!("building a program that takes notes ..");
        let flag = flag("-Cprofile-generate=", &profiles);
        let learning = build(&out.join("learn"), &[&flag])?;
        println!("running {} workloads ..", self.runs);
        if profiles.exists() {
            std::fs::remove_dir_all(&profiles).map_err(|error| refuse(&profiles, &error))?;
        }
        self.take_notes(&learning)?;
        let mut merge = Command::new(&merger);
        succeed(merge.arg("merge").arg("-o").arg(&merged).arg(&profiles))?;
        println!("building once more, with these ..");
        let flag = self::flag("-Cprofile-use=", &merged);
        let movable = bolt
            .as_ref()
            .map(|_| OsStr::new("-Clink-arg=-Wl,--emit-relocs"));
        let flags: Vec<&OsStr> = std::iter::once(&*flag).chain(movable).collect();
        let tuned = build(&out, &flags)?;
        let finished = out.join("xtask");
        match bolt {
            None => {
                std::fs::copy(&tuned, &finished).map_err(|error| refuse(&finished, &error))?;
            }
            Some(bolt) => {
                println!("putting its code in order ..");
                self.put_in_order(&bolt, &tuned, &finished)?;
            }
        }
        println!("{}", finished.display());
        Ok(Ending::Clean)
    }

    /// Lets a program run that takes notes.
    fn take_notes(&self, program: &Path) -> Result<(), Refusal> {
        let mut campaign = Command::new(program);
        campaign.args(["pace", "--every", "--seed", "77", "--runs"]);
        succeed(campaign.arg(self.runs.to_string()).stdout(Stdio::null()))
    }

    /// The program that puts code in order, where it is there.
    fn find_bolt(&self) -> Result<Option<PathBuf>, Refusal> {
        let given = self.bolt.clone().or_else(|| find_in_path("llvm-bolt"));
        let Some(bolt) = given else {
            println!("no llvm-bolt: the code stays in the order in which the compiler puts it");
            return Ok(None);
        };
        // It looks for what it links into a program beside itself, and not where a link to it stands.
        let bolt = bolt.canonicalize().map_err(|error| refuse(&bolt, &error))?;
        if !ends_well(Command::new(&bolt).arg("--version")) {
            return Err(Refusal(format!("{} does not run", bolt.display())));
        }
        Ok(Some(bolt))
    }

    fn put_in_order(&self, bolt: &Path, tuned: &Path, finished: &Path) -> Result<(), Refusal> {
        let (learning, notes) = (
            finished.with_extension("learn"),
            finished.with_extension("fdata"),
        );
        let mut instrument = Command::new(bolt);
        instrument.arg(tuned).arg("-instrument").arg("-o");
        instrument.arg(&learning);
        instrument.arg(flag("-instrumentation-file=", &notes));
        succeed_quietly(&mut instrument)?;
        self.take_notes(&learning)?;
        let mut order = Command::new(bolt);
        order.arg(tuned).arg("-o").arg(finished);
        order.arg(flag("-data=", &notes)).args([
            "-reorder-blocks=ext-tsp",
            "-reorder-functions=cdsort",
            "-split-functions",
            "-split-all-cold",
            "-split-eh",
            "-icf=1",
        ]);
        succeed_quietly(&mut order)
    }
}

/// The compiler's own program, where it has one.
fn find_merger() -> PathBuf {
    const NAME: &str = "llvm-profdata";
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot
        .ok()
        .and_then(|out| String::from_utf8(out.stdout).ok());
    let hosts = sysroot.and_then(|root| Path::new(root.trim()).join("lib/rustlib").read_dir().ok());
    let programs = hosts.into_iter().flatten().flatten();
    let mut programs = programs.map(|host| host.path().join("bin").join(NAME));
    programs
        .find(|program| program.exists())
        .unwrap_or_else(|| NAME.into())
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join(name));
    programs.find(|program| program.is_file())
}

/// Builds this program for this machine in a folder, with these flags given to the compiler, and says where it is.
fn build(folder: &Path, own: &[&OsStr]) -> Result<PathBuf, Refusal> {
    let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
    for own in [OsStr::new("-Ctarget-cpu=native")].iter().chain(own) {
        flags.push(" ");
        flags.push(own);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    build
        .args([
            "build",
            "--quiet",
            "--profile",
            "campaign",
            "--package",
            "xtask",
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", flags);
    succeed(&mut build)?;
    Ok(folder.join("campaign").join("xtask"))
}

/// An option and the file that it names, in one word.
fn flag(option: &str, file: &Path) -> OsString {
    let mut flag = OsString::from(option);
    flag.push(file);
    flag
}

fn refuse(file: &Path, error: &std::io::Error) -> Refusal {
    Refusal(format!("{}: {error}", file.display()))
}

/// Whether a program is there and ends well. What it says is of no interest.
fn ends_well(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn succeed(command: &mut Command) -> Result<(), Refusal> {
    let name = command.get_program().to_owned();
    let status = command.status();
    let status = status.map_err(|error| refuse(Path::new(&name), &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Refusal(format!("{} failed: {status}", name.display())))
}

/// The same for a program that says much: it is told where it fails.
fn succeed_quietly(command: &mut Command) -> Result<(), Refusal> {
    let name = command.get_program().to_owned();
    let output = command.output();
    let output = output.map_err(|error| refuse(Path::new(&name), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Refusal(format!(
        "{} failed: {}\n{}",
        name.display(),
        output.status,
        said.trim_end()
    )))
}
