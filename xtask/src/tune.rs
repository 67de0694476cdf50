//! `tune`: this program once more, compiled with what a short campaign shows of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::{Ending, Refusal};

/// Build this program for campaigns of hours: twice, the second time with what a short campaign showed of the first.
///
/// The program is optimised as a whole, for the paths that judging crash states takes. It judges the same states and comes
/// to the same digests.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Tune {
    /// From how many workloads to learn
    #[arg(long, value_name = "R", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// The program that merges profiles; without this, that of the compiler's llvm-tools, or of the PATH
    #[arg(long, value_name = "FILE")]
    profdata: Option<PathBuf>,
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
        let version = Command::new(&merger).args(["merge", "--help"]).output();
        if !version.is_ok_and(|output| output.status.success()) {
            return Err(Refusal(format!(
                "{} does not run: `rustup component add llvm-tools` brings the compiler's own, --profdata names another",
                merger.display()
            )));
        }
        let out = std::path::absolute(&self.out)
            .map_err(|error| Refusal(format!("{}: {error}", self.out.display())))?;
        let (profiles, merged) = (out.join("profiles"), out.join("merged.profdata"));
        println!("building a program that takes notes ..");
        let learning = build(&out.join("learn"), "-Cprofile-generate=", &profiles)?;
        println!("running {} workloads ..", self.runs);
        if profiles.exists() {
            std::fs::remove_dir_all(&profiles)
                .map_err(|error| Refusal(format!("{}: {error}", profiles.display())))?;
        }
        let mut campaign = Command::new(learning);
        campaign.args(["pace", "--every", "--seed", "77", "--runs"]);
        succeed(campaign.arg(self.runs.to_string()).stdout(Stdio::null()))?;
        let mut merge = Command::new(&merger);
        succeed(merge.arg("merge").arg("-o").arg(&merged).arg(&profiles))?;
        println!("building once more, with these ..");
        let tuned = build(&out, "-Cprofile-use=", &merged)?;
        println!("{}", tuned.display());
        Ok(Ending::Clean)
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

/// Builds this program in a folder, with this flag and file given to the compiler, and says where it is.
fn build(folder: &Path, flag: &str, file: &Path) -> Result<PathBuf, Refusal> {
    let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" ");
    flags.push(flag);
    flags.push(file);
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

fn succeed(command: &mut Command) -> Result<(), Refusal> {
    let name = command.get_program().to_owned();
    let status = command.status();
    let status = status.map_err(|error| Refusal(format!("{}: {error}", name.display())))?;
    if status.success() {
        return Ok(());
    }
    Err(Refusal(format!("{} failed: {status}", name.display())))
}
