//! `iotests`: QEMU's own tests of qemu-img and qemu-io, run with its programs and with this one in their place.
//!
//! The tests come with QEMU's source (`tests/qemu-iotests`) and are shell scripts that call the programs which the
//! environment names. Each is run twice, and what it prints must be the same. What its author wrote down as
//! expected is not compared: it depends on the version and on the file system, which are the same for both runs.

mod accepted;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use rayon::ThreadPoolBuilder;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use similar::TextDiff;

use crate::{Ending, Refusal, link_programs};

/// What a test may take; some wait for what never comes.
const SECONDS: &str = "120";
/// What is told of a test that took longer, by the exit code of `timeout`.
const TIMED_OUT: &str = "exit code 124\n";
/// What only a running machine, a server or another format can answer.
const NEEDS_MORE: [&str; 9] = [
    "_launch_qemu",
    "run_qemu",
    "$QEMU ",
    "QEMU_PROG",
    "_require_devices",
    "$QSD",
    "qemu-nbd",
    "QEMU_NBD",
    "nbd_server",
];

/// Run QEMU's own tests with its programs and with this one, and compare what they print
#[derive(Args, Debug)]
pub(crate) struct Iotests {
    /// The folder tests/qemu-iotests of QEMU's source
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// Only these tests, by their numbers
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many tests at once; without it one a core
    #[arg(long)]
    jobs: Option<usize>,
    /// Where the differences go
    #[arg(long, default_value = "reports/iotests", value_name = "DIR")]
    out: PathBuf,
}

/// Which programs a test runs.
#[derive(Clone, Copy, Debug)]
enum Side {
    Theirs,
    Ours,
}

/// What came of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// It says with QEMU's programs that it cannot be run here, or does not end: nothing was compared.
    NotRun,
    Differs,
}

impl Iotests {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let tests = if self.only.is_empty() {
            self.runnable()?
        } else {
            self.only.clone()
        };
        fs::create_dir_all(&self.out).map_err(Refusal::new)?;
        let folder = tempfile::tempdir().map_err(Refusal::new)?;
        link_programs(&folder.path().join("programs")).map_err(Refusal::new)?;
        let verdicts = self.verdicts(&tests, folder.path())?;
        let count = |wanted| verdicts.iter().filter(|(_, one)| *one == wanted).count();
        let differs: Vec<&str> = verdicts
            .iter()
            .filter(|(_, verdict)| *verdict == Verdict::Differs)
            .map(|(test, _)| test.as_str())
            .collect();
        let mut unexpected = 0;
        for test in &differs {
            let reason = accepted::reason(test);
            unexpected += usize::from(reason.is_none());
            println!("{test:<6} differs: {}", reason.unwrap_or("UNEXPECTED"));
        }
        println!(
            "{} tests: {} print the same, {} differ ({unexpected} of them unexpectedly), {} not run",
            verdicts.len(),
            count(Verdict::Same),
            differs.len(),
            count(Verdict::NotRun)
        );
        println!("differences: {}", self.out.display());
        Ok(if unexpected > 0 {
            Ending::Violation
        } else {
            Ending::Clean
        })
    }

    /// The tests of qcow2 that call these two programs and nothing else.
    fn runnable(&self) -> Result<Vec<String>, Refusal> {
        let wrong = |error| Refusal::new(format!("{}: {error}", self.source.display()));
        let mut tests = Vec::new();
        for entry in fs::read_dir(&self.source).map_err(wrong)? {
            let path = entry.map_err(wrong)?.path();
            let Some(name) = path.file_name().and_then(OsStr::to_str) else {
                continue;
            };
            if name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_digit()) {
                let script = fs::read_to_string(&path).map_err(wrong)?;
                if is_runnable(&script) {
                    tests.push(name.to_owned());
                }
            }
        }
        if tests.is_empty() {
            let source = self.source.display();
            return Err(Refusal(format!(
                "{source}: there are no tests in it; name the folder tests/qemu-iotests of QEMU's source"
            )));
        }
        tests.sort_unstable();
        Ok(tests)
    }

    fn verdicts(&self, tests: &[String], folder: &Path) -> Result<Vec<(String, Verdict)>, Refusal> {
        // No number stands for all cores.
        let jobs = self.jobs.unwrap_or(0);
        let pool = ThreadPoolBuilder::new().num_threads(jobs).build();
        pool.map_err(Refusal::new)?.install(|| {
            let verdicts = tests.par_iter().map(|test| {
                let verdict = self.compare(test, folder)?;
                Ok((test.clone(), verdict))
            });
            verdicts.collect()
        })
    }

    fn compare(&self, test: &str, folder: &Path) -> Result<Verdict, Refusal> {
        let theirs = self.printed(test, Side::Theirs, folder)?;
        let ours = self.printed(test, Side::Ours, folder)?;
        let diff = self.out.join(format!("{test}.diff"));
        let _ = fs::remove_file(&diff);
        let not_run = [format!("{test} not run: "), TIMED_OUT.to_owned()];
        if not_run.iter().any(|sign| theirs.contains(sign)) {
            return Ok(Verdict::NotRun);
        }
        if theirs == ours {
            return Ok(Verdict::Same);
        }
        let text = TextDiff::from_lines(&theirs, &ours)
            .unified_diff()
            .header("qemu", "qrash")
            .to_string();
        fs::write(&diff, text).map_err(Refusal::new)?;
        Ok(Verdict::Differs)
    }

    /// Runs a test in a folder of its own, which has the same name whoever runs it. Hands back the output stream,
    /// the other one, and the exit code.
    fn printed(&self, test: &str, side: Side, folder: &Path) -> Result<String, Refusal> {
        let place = folder.join(test);
        let _ = fs::remove_dir_all(&place);
        for name in ["images", "sockets", "output"] {
            fs::create_dir_all(place.join(name)).map_err(Refusal::new)?;
        }
        let program = |name: &str| match side {
            Side::Theirs => PathBuf::from(name),
            Side::Ours => folder.join("programs").join(name),
        };
        let source = self.source.canonicalize().map_err(Refusal::new)?;
        let output = Command::new("timeout")
            .args([SECONDS, "bash", test])
            .current_dir(&source)
            .stdin(Stdio::null())
            .env("QEMU_IMG_PROG", program("qemu-img"))
            .env("QEMU_IO_PROG", program("qemu-io"))
            .env("TEST_DIR", place.join("images"))
            .env("SOCK_DIR", place.join("sockets"))
            .env("OUTPUT_DIR", place.join("output"))
            .env("SAMPLE_IMG_DIR", source.join("sample_images"))
            .envs([
                ("IMGFMT", "qcow2"),
                ("IMGFMT_GENERIC", "true"),
                ("IMGPROTO", "file"),
                ("IMGOPTS", ""),
                ("IMGOPTSSYNTAX", "false"),
                ("CACHEMODE", "writeback"),
                ("CACHEMODE_IS_DEFAULT", "true"),
                ("AIOMODE", "threads"),
                ("QEMU_IMG_OPTIONS", ""),
                (
                    "QEMU_IO_OPTIONS",
                    "--cache writeback --aio threads -f qcow2",
                ),
                ("QEMU_IO_OPTIONS_NO_FMT", "--cache writeback --aio threads"),
                // Tests look whether these are there, and those that use them are not run.
                ("QEMU_PROG", "true"),
                ("QEMU_NBD_PROG", "true"),
                ("QSD_PROG", "true"),
                ("QEMU_OPTIONS", ""),
                ("QEMU_NBD_OPTIONS", ""),
                ("QEMU_DEFAULT_MACHINE", "none"),
                ("PYTHON", "python3"),
            ])
            .output()
            .map_err(Refusal::new)?;
        let _ = fs::remove_dir_all(&place);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let ours = folder.join("programs");
        let text = text
            .replace(&format!("{}/", ours.display()), "")
            .replace("/usr/bin/qemu-", "qemu-");
        let code = output.status.code().unwrap_or(-1);
        Ok(format!("{text}\nexit code {code}\n"))
    }
}

/// Whether a script is a test of qcow2 images that needs nothing but qemu-img and qemu-io.
fn is_runnable(script: &str) -> bool {
    let formats = script
        .lines()
        .find_map(|line| line.strip_prefix("_supported_fmt "));
    let is_of_qcow2 = formats.is_some_and(|formats| {
        let mut words = formats.split_whitespace();
        words.any(|word| word == "generic" || word == "qcow2")
    });
    script.starts_with("#!/usr/bin/env bash")
        && is_of_qcow2
        && !NEEDS_MORE.iter().any(|word| script.contains(word))
}
