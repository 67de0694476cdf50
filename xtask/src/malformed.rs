//! `malformed`: damaged images by the thousand, each with a limit of memory and time.
//!
//! Children do the work, one image after the other: each has little more address space than one image may
//! take, and whoever is silent for too long is stopped. So neither a huge allocation nor an endless loop
//! ends the campaign; both become findings with the number of the image.

#![allow(clippy::disallowed_methods, reason = "the command line has the clock")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::defect::Planted;
use engine::device::PageImage;
use harness::malformed::{Problem, Report, Specimen, Specimens, examine};
use harness::workload::pin::Pins;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::{Ending, Refusal};

/// What one image may take in memory, above what the program has anyway.
const MEMORY_BYTES: u64 = 256 << 20;
/// What one image may take in time, of its process's own: others may be at work on the machine.
const TIME: Duration = Duration::from_secs(1);
/// A child that is silent for so long is stopped. More than one image may take: a machine may be busy.
const SILENCE: Duration = Duration::from_secs(20);

/// Damage images at known places, and open, read, check, repair and write what comes of it
#[derive(Args, Clone, Debug)]
pub(crate) struct Malformed {
    /// Where all choices start from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many images
    #[arg(long, default_value_t = 100_000)]
    images: u64,
    /// Restrict the sound images that are damaged, as in `fuzz --options`
    #[arg(long, default_value = "")]
    options: String,
    /// Examine this image alone, and say what was done to it
    #[arg(long, value_name = "INDEX")]
    only: Option<u64>,
    /// Examine the image alone that the bytes of this file choose, as the fuzz target `damaged` does
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "options"])]
    chosen_by: Option<PathBuf>,
    /// With --only or --chosen-by: write the image to this file
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// How many children work at once; without it one a core
    #[arg(long)]
    jobs: Option<u64>,
    /// Do the work of child number K of N
    #[arg(long, hide = true, value_name = "K/N")]
    child: Option<String>,
    /// Misbehave at one image, so that a test can see it noticed
    #[arg(long, hide = true, value_enum, default_value_t = Plant::Nothing)]
    plant: Plant,
}

/// What goes wrong on purpose at image 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Nothing.
    #[default]
    Nothing,
    /// It takes more memory than one may.
    Memory,
    /// It takes more time than one may.
    Time,
    /// It says that a panic was caught.
    Problem,
}

impl Plant {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Memory => "memory",
            Self::Time => "time",
            Self::Problem => "problem",
        }
    }

    fn take(self, index: u64, examine: impl FnOnce() -> Report) -> Report {
        let mut report = examine();
        match self {
            Self::Memory if index == 1 => {
                let bytes = usize::try_from(2 * MEMORY_BYTES).expect("it fits the address space");
                std::hint::black_box(vec![1u8; bytes]);
            }
            Self::Time if index == 1 => {
                let began = CpuTime::now();
                while began.elapsed() <= TIME {}
            }
            Self::Problem if index == 1 => report.problems.push(Problem::Restless),
            Self::Nothing | Self::Memory | Self::Time | Self::Problem => {}
        }
        report
    }
}

/// A moment of this thread's own time, which stands still while others have the processor.
#[derive(Clone, Copy, Debug)]
struct CpuTime(Duration);

impl CpuTime {
    fn now() -> Self {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(tv_sec).expect("a thread's time is not negative");
        let nanoseconds = u64::try_from(tv_nsec).expect("nanoseconds are not negative");
        Self(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// What children say, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// It goes on to this image.
    Begins(u64),
    /// It is done with it: `opened`, `written`, `repaired`, each 0 or 1, and microseconds.
    Done { marks: [u64; 3], micros: u64 },
    /// A problem with it.
    Problem(String),
    /// The child ended.
    Ended,
}

#[derive(Debug, Default)]
struct Tally {
    images: u64,
    opened: u64,
    written: u64,
    repaired: u64,
    slowest: Duration,
    problems: BTreeMap<u64, Vec<String>>,
}

impl Malformed {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let pins = Pins::parse(&self.options).map_err(Refusal::new)?;
        let mut specimens = Specimens::new(self.seed, pins);
        if let Some(index) = self.only {
            return self.one(&specimens.get(index));
        }
        if let Some(path) = &self.chosen_by {
            let bytes = std::fs::read(path)
                .map_err(|error| Refusal::new(format!("{}: {error}", path.display())))?;
            return self.one(&specimens.chosen_by(&bytes));
        }
        if self.keep.is_some() {
            return Err(Refusal::new("--keep goes with --only or --chosen-by"));
        }
        if let Some(child) = &self.child {
            return self.work(child, pins);
        }
        let jobs = match self.jobs {
            Some(jobs) => jobs.max(1),
            None => thread::available_parallelism().map_or(1, |count| {
                u64::try_from(count.get()).expect("a number of cores fits 64 bits")
            }),
        };
        let watches: Vec<_> = (0..jobs)
            .map(|job| {
                let this = self.clone();
                thread::spawn(move || this.watch(job, jobs))
            })
            .collect();
        let mut tally = Tally::default();
        for watch in watches {
            tally.add(watch.join().expect("a watch does not panic")?);
        }
        Ok(tally.tell(self.seed))
    }

    /// Examines one image, in this process.
    fn one(&self, specimen: &Specimen) -> Result<Ending, Refusal> {
        for change in &specimen.changes {
            println!("{change}");
        }
        if let Some(path) = &self.keep {
            keep(&specimen.image, path)
                .map_err(|error| Refusal::new(format!("{}: {error}", path.display())))?;
        }
        let began = CpuTime::now();
        let report = examine(&specimen.image, Planted::NONE);
        println!(
            "opened: {}, for writing: {}, repaired: {}, compared: {} bytes, {:?}",
            report.opened,
            report.opened_for_writing,
            report.repaired,
            report.compared_bytes,
            began.elapsed()
        );
        for problem in &report.problems {
            println!("PROBLEM: {problem}");
        }
        Ok(if report.problems.is_empty() {
            Ending::Clean
        } else {
            Ending::Violation
        })
    }

    /// What a child does.
    fn work(&self, child: &str, pins: Pins) -> Result<Ending, Refusal> {
        let wrong = || Refusal::new(format!("{child} is not FROM/STEP"));
        let (from, step) = child.split_once('/').ok_or_else(wrong)?;
        let from: u64 = from.parse().map_err(|_| wrong())?;
        let step: usize = step.parse().map_err(|_| wrong())?;
        limit_memory()?;
        let mut specimens = Specimens::new(self.seed, pins);
        let mut out = std::io::stdout().lock();
        let broken = |error| Refusal::new(format!("the parent is gone: {error}"));
        for index in (from..self.images).step_by(step) {
            let specimen = specimens.get(index);
            writeln!(out, "begins {index}").map_err(broken)?;
            out.flush().map_err(broken)?;
            let began = CpuTime::now();
            let report = self
                .plant
                .take(index, || examine(&specimen.image, Planted::NONE));
            let micros = began.elapsed().as_micros();
            for problem in &report.problems {
                let text = problem.to_string().replace('\n', " ");
                writeln!(out, "problem {text}").map_err(broken)?;
            }
            let marks = [report.opened, report.opened_for_writing, report.repaired];
            let [opened, written, repaired] = marks.map(u8::from);
            writeln!(out, "done {opened} {written} {repaired} {micros}").map_err(broken)?;
        }
        Ok(Ending::Clean)
    }

    /// Keeps a child at work on every `jobs`-th image until all are done.
    fn watch(&self, job: u64, jobs: u64) -> Result<Tally, Refusal> {
        let mut tally = Tally::default();
        let mut next = job;
        while next < self.images {
            let (mut child, lines) = self.spawn(next, jobs)?;
            let mut current = None;
            loop {
                let silent = match lines.recv_timeout(SILENCE) {
                    Ok(Said::Begins(index)) => {
                        current = Some(index);
                        continue;
                    }
                    Ok(Said::Done { marks, micros }) => {
                        tally.done(current.take(), marks, Duration::from_micros(micros));
                        continue;
                    }
                    Ok(Said::Problem(text)) => {
                        tally.problem(current, text);
                        continue;
                    }
                    Ok(Said::Ended) | Err(RecvTimeoutError::Disconnected) => false,
                    Err(RecvTimeoutError::Timeout) => true,
                };
                let _ = child.kill();
                let status = child.wait().map_err(Refusal::new)?;
                match current {
                    Some(index) => {
                        let text = if silent {
                            format!("not done after {SILENCE:?}")
                        } else {
                            format!("the process ended with {status}: more than 256 MiB?")
                        };
                        tally.images += 1;
                        tally.problem(current, text);
                        next = index + jobs;
                    }
                    None if status.success() => next = self.images,
                    None => return Err(Refusal::new(format!("a child ended with {status}"))),
                }
                break;
            }
        }
        Ok(tally)
    }

    fn spawn(&self, from: u64, step: u64) -> Result<(Child, Receiver<Said>), Refusal> {
        let program = std::env::current_exe().map_err(Refusal::new)?;
        let mut child = Command::new(program)
            .arg("malformed")
            .args(["--seed", &self.seed.to_string()])
            .args(["--images", &self.images.to_string()])
            .args(["--options", &self.options])
            .args(["--child", &format!("{from}/{step}")])
            .args(["--plant", self.plant.name()])
            // Otherwise the allocator takes a gigabyte of address space in advance, in which what shall be stopped by a
            // limit of address space finds room.
            .env("MIMALLOC_ARENA_RESERVE", "8192")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Refusal::new)?;
        let lines = BufReader::new(child.stdout.take().expect("the output is piped"));
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let Some(said) = parse(&line) else { continue };
                if sender.send(said).is_err() {
                    return;
                }
            }
            let _ = sender.send(Said::Ended);
        });
        Ok((child, receiver))
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.opened += other.opened;
        self.written += other.written;
        self.repaired += other.repaired;
        self.slowest = self.slowest.max(other.slowest);
        self.problems.extend(other.problems);
    }

    fn done(&mut self, index: Option<u64>, marks: [u64; 3], took: Duration) {
        self.images += 1;
        self.opened += marks[0];
        self.written += marks[1];
        self.repaired += marks[2];
        self.slowest = self.slowest.max(took);
        if took > TIME {
            self.problem(index, format!("took {took:?}"));
        }
    }

    fn problem(&mut self, index: Option<u64>, text: String) {
        self.problems
            .entry(index.unwrap_or(u64::MAX))
            .or_default()
            .push(text);
    }

    fn tell(&self, seed: u64) -> Ending {
        println!(
            "{} images: {} opened, {} opened for writing, {} repaired to nothing found; slowest {:?}",
            self.images, self.opened, self.written, self.repaired, self.slowest
        );
        for (index, problems) in &self.problems {
            for problem in problems {
                println!("image {index}: {problem}");
            }
            println!("  again: cargo xtask malformed --seed {seed} --only {index}");
        }
        println!("{} images with a problem", self.problems.len());
        if self.problems.is_empty() {
            Ending::Clean
        } else {
            Ending::Violation
        }
    }
}

/// Writes an image to a file, with holes where it holds nothing.
fn keep(image: &PageImage, path: &Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(image.len())?;
    for (offset, page) in image.pages() {
        let within = image.len().saturating_sub(offset);
        let len = usize::try_from(within).map_or(page.len(), |within| within.min(page.len()));
        file.write_all_at(&page[..len], offset)?;
    }
    Ok(())
}

fn parse(line: &str) -> Option<Said> {
    let (word, rest) = line.split_once(' ')?;
    match word {
        "begins" => rest.parse().ok().map(Said::Begins),
        "problem" => Some(Said::Problem(rest.to_owned())),
        "done" => {
            let mut numbers = rest.split(' ').map_while(|number| number.parse().ok());
            let marks = [numbers.next()?, numbers.next()?, numbers.next()?];
            let micros = numbers.next()?;
            Some(Said::Done { marks, micros })
        }
        _ => None,
    }
}

/// Refuses this process more address space than it has and one image may take. Whoever asks for more
/// is ended by the allocator.
fn limit_memory() -> Result<(), Refusal> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(Refusal::new)?;
    let pages = statm.split(' ').next().and_then(|pages| pages.parse().ok());
    let pages: u64 = pages.ok_or_else(|| Refusal::new("/proc/self/statm cannot be read"))?;
    let page_bytes = u64::try_from(rustix::param::page_size()).map_err(Refusal::new)?;
    let limit = Some(pages * page_bytes + MEMORY_BYTES);
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::As, limit).map_err(Refusal::new)
}
