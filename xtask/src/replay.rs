//! `replay`: one trace again, exactly.

use std::path::{Path, PathBuf};

use clap::Args;
use engine::device::PageImage;
use harness::oracle::Verdict;
use harness::run::{Replayed, replay};

use crate::{Ending, Refusal, source};

/// Run a trace again: the same bytes, the same crash, the same verdict.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Replay {
    /// The trace
    trace: PathBuf,
    /// Print every step up to the power loss
    #[arg(long)]
    steps: bool,
    /// Write the image as the power loss left it, as recovery left it, and the steps
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

impl Replay {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let trace = source::load_trace(&self.trace)?;
        let replayed = replay(&trace)
            .map_err(|error| Refusal(format!("{}: {error}", self.trace.display())))?;
        println!("{}", trace.about);
        if let Some(shown) = trace.shown {
            println!("shown by: {shown}");
        }
        if self.steps {
            print!("{}", steps(&replayed));
        }
        if !replayed.survivors.is_empty() {
            println!("what became of the volatile requests:");
            for line in replayed.survivors.lines() {
                println!("  {line}");
            }
        }
        if let Some(directory) = &self.dump {
            dump(&replayed, directory)?;
        }
        match replayed.same_run {
            Some(true) => println!("digest  {:032x}, as in the trace", replayed.digest),
            Some(false) => println!(
                "digest  {:032x}, unlike the trace: the engine writes otherwise by now",
                replayed.digest
            ),
            None => println!("digest  {:032x}", replayed.digest),
        }
        let as_expected = if replayed.is_as(&trace.expected) {
            "as"
        } else {
            "NOT as"
        };
        let (text, ending) = verdict(&replayed.verdict);
        println!("verdict {text} ({as_expected} the trace expects)");
        Ok(ending)
    }
}

fn verdict(verdict: &Verdict) -> (String, Ending) {
    match verdict {
        Verdict::Survived => ("survived".into(), Ending::Clean),
        Verdict::Violated(violation) => {
            for line in &violation.lines {
                println!("| {line}");
            }
            (format!("violated: {}", violation.class), Ending::Violation)
        }
        Verdict::NotMeasured(why) => (format!("not measured: {why}"), Ending::Unmeasured),
        Verdict::HarnessBroken(how) => (format!("harness broken: {how}"), Ending::Unmeasured),
    }
}

fn steps(replayed: &Replayed) -> String {
    let line = |step: &harness::run::Step| format!("{:>6}  {}\n", step.moment, step.text);
    replayed.steps.iter().map(line).collect()
}

fn dump(replayed: &Replayed, directory: &Path) -> Result<(), Refusal> {
    source::writable_directory(directory)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes)
            .map_err(|error| Refusal(format!("{}: {error}", path.display())))?;
        println!("wrote {}", path.display());
        Ok(())
    };
    write("steps.txt", steps(replayed).as_bytes())?;
    if let Some(disks) = &replayed.crashed {
        write("crashed.img", &bytes_of(disks.image()))?;
        for (disk, image) in disks.others() {
            write(&format!("crashed-{}.img", disk.name()), &bytes_of(image))?;
        }
    }
    if let Some(image) = &replayed.recovered {
        write("recovered.img", &bytes_of(image))?;
    }
    Ok(())
}

fn bytes_of(image: &PageImage) -> Vec<u8> {
    let len = usize::try_from(image.len()).expect("an image that was judged fits memory");
    image.read_vec(0, len)
}
