//! `log`: logs of writes as dm-log-writes and blklogwrites keep them: told of, written, put on a disk, explored.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use blkdebug::log_writes::{Flags, Log, copy};
use blkdebug::record::Recording;
use clap::{Args, Subcommand, ValueEnum};
use engine::device::PageImage;
use harness::logged::{self, Discards, Explored, Exported, Finding, How, Imported, Plan, Progress};
use harness::oracle::Acceptance;
use harness::oracle::view::Backing;
use harness::run::{Case, Schedule, live};

use crate::block::open::identity;
use crate::fuzz::{Format, parse_contract};
use crate::terminal::{Display, Limit, parse_duration};
use crate::{Ending, Refusal, source};

/// States where nobody said how many.
const DEFAULT_STATES: u64 = 20_000;

/// Logs of writes: dm-log-writes of Linux, blklogwrites of QEMU.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct LogCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Info(Info),
    Export(Export),
    Import(Import),
    Explore(Explore),
}

/// Say what is in a log.
#[derive(Args, Debug)]
struct Info {
    /// The log
    log: PathBuf,
    /// Print every entry
    #[arg(long)]
    list: bool,
}

/// Write what a trace records, or a log, as a log.
///
/// Of a trace with several disks each has a log of its own, FILE for the image's and FILE.NAME for the others. A log comes out
/// as it was, byte by byte.
#[derive(Args, Debug)]
struct Export {
    /// The trace, or the log
    from: PathBuf,
    /// Where the log goes
    to: PathBuf,
    /// The log of this disk alone: image, backing, base, other or data
    #[arg(long, value_name = "NAME", value_parser = parse_disk)]
    disk: Option<Disk>,
    /// Write what each disk held at the start as well, to FILE.start
    #[arg(long)]
    start: bool,
}

/// How a log is taken.
#[derive(Args, Debug)]
struct Taking {
    /// What the disk held before [default: nothing]
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Take so many entries alone
    #[arg(long, value_name = "N")]
    entries: Option<u64>,
    /// Take what follows the entries that the log counts as well, as far as it makes sense
    #[arg(long)]
    beyond: bool,
    /// What a discarded sector may read until the next flush: anything, or what it did or zeroes
    #[arg(long, value_enum, default_value_t = Discarded::Anything)]
    discarded: Discarded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Discarded {
    Anything,
    Zeroes,
}

/// Put the writes of a log on a disk.
#[derive(Args, Debug)]
struct Import {
    /// The log
    log: PathBuf,
    /// Where the disk goes
    to: PathBuf,
    #[command(flatten)]
    taking: Taking,
    /// Stop in front of the first mark of this name
    #[arg(long, value_name = "NAME")]
    mark: Option<String>,
}

/// Lose power at every moment of a log that is worth it, and judge what is left.
///
/// What a guest may find is taken from the log itself. The same seed comes to the same digest where --time does not end it.
#[derive(Args, Debug)]
struct Explore {
    /// The log
    log: PathBuf,
    #[command(flatten)]
    taking: Taking,
    /// The format of the image on the disk
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    format: Format,
    /// The file beneath the image
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// The format of that
    #[arg(long, value_enum, default_value_t = BackingFormat::Raw)]
    backing_format: BackingFormat,
    /// What the disk may do at power loss: perfect, prefix, epoch or epoch-torn
    #[arg(long, value_name = "C", value_parser = parse_contract, default_value = "epoch-torn")]
    contract: Contract,
    /// Let pass what misses by no more than this: strict, zeros, stale-own or stale-foreign
    #[arg(long, value_name = "LEVEL", value_parser = parse_acceptance, default_value = "strict")]
    accept: Acceptance,
    /// Where the generators start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Judge so many states at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_STATES, value_parser = clap::value_parser!(u64).range(1..))]
    states: u64,
    /// End after so long, such as 30s, 10m or 2h
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Where what power losses left goes, if it is wrong
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackingFormat {
    Raw,
    Qcow2,
}

fn parse_disk(name: &str) -> Result<Disk, String> {
    Disk::from_name(name).ok_or_else(|| "expected image, backing, base, other or data".into())
}

fn parse_acceptance(name: &str) -> Result<Acceptance, String> {
    Acceptance::from_name(name)
        .ok_or_else(|| "expected strict, zeros, stale-own or stale-foreign".into())
}

impl LogCommand {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        match &self.what {
            What::Info(info) => info.run(),
            What::Export(export) => export.run(),
            What::Import(import) => import.run(),
            What::Explore(explore) => explore.run(),
        }
    }
}

/// The same words about a file.
fn about(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> Refusal {
    move |problem| Refusal(format!("{}: {problem}", path.display()))
}

fn open(path: &Path) -> Result<Log<File>, Refusal> {
    let refuse = about(path);
    let file = File::open(path).map_err(|error| refuse(&error))?;
    Log::open(file).map_err(|error| refuse(&error))
}

impl Info {
    fn run(&self) -> Result<Ending, Refusal> {
        let (log, refuse) = (open(&self.log)?, about(&self.log));
        let head = log.head();
        println!("sector            {} bytes", head.sector.bytes());
        println!("entries           {}", head.entry_count);
        let mut counts = [0_u64; 5];
        let mut marks: Vec<String> = Vec::new();
        let (mut data_bytes, mut disk_bytes) = (0, 0);
        let mut entries = log.entries();
        for read in entries.by_ref() {
            let (place, entry) = read.map_err(|error| refuse(&error))?;
            let flags = [
                Flags::FLUSH,
                Flags::FUA,
                Flags::DISCARD,
                Flags::MARK,
                Flags::METADATA,
            ];
            for (count, flag) in counts.iter_mut().zip(flags) {
                *count += u64::from(entry.flags.has(flag));
            }
            data_bytes += place.data_bytes;
            if place.data_bytes > 0 {
                disk_bytes = (entry.sector + entry.sector_count).max(disk_bytes);
            }
            if self.list {
                let name = entry.name();
                let name = if name.is_empty() {
                    name
                } else {
                    format!(" {name:?}")
                };
                let (from, bytes) = (
                    entry.sector * head.sector.bytes(),
                    entry.sector_count * head.sector.bytes(),
                );
                println!(
                    "{:>8}  at {:<10} {:<15} disk {from:#x} {bytes:#x}{name}",
                    place.index,
                    place.offset,
                    entry.flags.to_string()
                );
            } else if entry.flags.has(Flags::MARK) {
                marks.push(format!("{} {:?}", place.index, entry.name()));
            }
        }
        let [flushes, fua, discards, marked, metadata] = counts;
        println!("flushes           {flushes}");
        println!("fua               {fua}");
        println!("discards          {discards}");
        println!("marks             {marked}");
        for mark in marks {
            println!("  {mark}");
        }
        println!("metadata          {metadata}");
        println!("data              {data_bytes} bytes");
        println!(
            "disk              at least {} bytes",
            disk_bytes * head.sector.bytes()
        );
        let end = entries.offset();
        let beyond = entries.and_beyond().count();
        println!(
            "behind the end    {} bytes, which make sense as {beyond} entries (take them with --beyond)",
            log.len_bytes() - end
        );
        Ok(Ending::Clean)
    }
}

impl Export {
    fn run(&self) -> Result<Ending, Refusal> {
        let refuse = about(&self.from);
        let mut start = [0; 8];
        let file = File::open(&self.from).map_err(|error| refuse(&error))?;
        let is_log =
            std::io::Read::read_exact(&mut &file, &mut start).is_ok() && start == *b"rhswfsj\0";
        drop(file);
        if is_log {
            let log = open(&self.from)?;
            // What stands where the copy goes is lost for a log that can be copied whole.
            for read in log.entries() {
                read.map_err(|error| refuse(&error))?;
            }
            let mut out = self.create(&self.to)?;
            copy(&log, &mut out).map_err(|error| refuse(&error))?;
            finish(out, &self.to)?;
            println!(
                "wrote {}: {} entries",
                self.to.display(),
                log.head().entry_count
            );
            return Ok(Ending::Clean);
        }
        let trace = source::load_trace(&self.from)?;
        let case = Case {
            scenario: trace.scenario,
            schedule: Schedule::Given(trace.choices),
        };
        let life = live(&case).map_err(|error| refuse(&error))?;
        let recording = life.recording();
        let disks: Vec<Disk> = recording.bases.iter().map(|(disk, _)| disk).collect();
        if let Some(disk) = self.disk.filter(|disk| !disks.contains(disk)) {
            return Err(refuse(&format!(
                "nothing is written to the disk `{}`",
                disk.name()
            )));
        }
        for disk in disks
            .into_iter()
            .filter(|disk| self.disk.is_none_or(|only| only == *disk))
        {
            self.write(recording, disk)?;
        }
        Ok(Ending::Clean)
    }

    fn write(&self, recording: &Recording, disk: Disk) -> Result<(), Refusal> {
        let path = match (disk, self.disk) {
            (Disk::Image, _) | (_, Some(_)) => self.to.clone(),
            (other, None) => with_suffix(&self.to, other.name()),
        };
        let mut out = self.create(&path)?;
        let exported =
            logged::export(recording, disk, &mut out).map_err(|error| about(&path)(&error))?;
        finish(out, &path)?;
        let Exported {
            entries,
            unanswered,
            undone,
            lengths,
        } = exported;
        println!(
            "wrote {}: {entries} entries of the disk `{}` ({lengths} of them marks for changes of length); left out: \
             {unanswered} requests without an answer, {undone} that came to nothing",
            path.display(),
            disk.name()
        );
        if self.start {
            let path = with_suffix(&path, "start");
            let image = recording
                .bases
                .get(disk)
                .expect("a disk that was written to has a start");
            must_differ(&path, &self.from)?;
            save(image, &path)?;
            println!("wrote {}", path.display());
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<BufWriter<File>, Refusal> {
        must_differ(path, &self.from)?;
        File::create(path)
            .map(BufWriter::new)
            .map_err(|error| about(path)(&error))
    }
}

/// Refuses to write to the file that is read, by whatever name: it would be gone.
fn must_differ(to: &Path, from: &Path) -> Result<(), Refusal> {
    match (identity(to), identity(from)) {
        (Ok(written), Ok(read)) if written == read => {
            Err(about(to)(&"this is what is read; write to another file"))
        }
        // What is not there is no other's, and what cannot be read is refused by who reads it.
        (Ok(_) | Err(_), _) => Ok(()),
    }
}

fn finish(mut out: BufWriter<File>, path: &Path) -> Result<(), Refusal> {
    out.flush().map_err(|error| about(path)(&error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Writes an image as a file with holes.
fn save(image: &PageImage, path: &Path) -> Result<(), Refusal> {
    use std::os::unix::fs::FileExt;
    let refuse = about(path);
    let file = File::create(path).map_err(|error| refuse(&error))?;
    file.set_len(image.len()).map_err(|error| refuse(&error))?;
    for (offset, page) in image.pages() {
        let left = image.len().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(page.len());
        file.write_all_at(&page[..len], offset)
            .map_err(|error| refuse(&error))?;
    }
    Ok(())
}

impl Taking {
    fn how(&self) -> How {
        How {
            entries: self.entries,
            beyond: self.beyond,
            discards: match self.discarded {
                Discarded::Anything => Discards::Advice,
                Discarded::Zeroes => Discards::Zeroes,
            },
        }
    }

    fn take(&self, path: &Path, how: &How) -> Result<Imported, Refusal> {
        let log = open(path)?;
        let base = self.base.as_deref().map(source::load).transpose()?;
        logged::import(&log, base.unwrap_or_default(), how).map_err(|error| about(path)(&error))
    }
}

impl Import {
    fn run(&self) -> Result<Ending, Refusal> {
        for read in std::iter::once(&self.log).chain(&self.taking.base) {
            must_differ(&self.to, read)?;
        }
        let mut how = self.taking.how();
        if let Some(mark) = &self.mark {
            let before = self.find(mark)?;
            how.entries = Some(before.min(how.entries.unwrap_or(u64::MAX)));
        }
        let imported = self.taking.take(&self.log, &how)?;
        save(&imported.finished(), &self.to)?;
        println!(
            "wrote {}, behind {} entries",
            self.to.display(),
            imported.entries
        );
        Ok(Ending::Clean)
    }

    /// How many entries stand in front of the first mark of this name.
    fn find(&self, mark: &str) -> Result<u64, Refusal> {
        let refuse = about(&self.log);
        for read in open(&self.log)?.entries() {
            let (place, entry) = read.map_err(|error| refuse(&error))?;
            if entry.flags.has(Flags::MARK) && entry.name() == mark {
                return Ok(place.index);
            }
        }
        Err(refuse(&format!(
            "there is no mark `{mark}`; `log info` lists the marks"
        )))
    }
}

impl Explore {
    fn run(&self) -> Result<Ending, Refusal> {
        let Format::Qcow2 = self.format;
        println!("seed              {}", self.seed);
        source::writable_directory(&self.out)?;
        let imported = self.taking.take(&self.log, &self.taking.how())?;
        let backing = self.backing.as_deref().map(source::load).transpose()?;
        let backing = backing.map(|image| match self.backing_format {
            BackingFormat::Raw => Backing::raw(image),
            BackingFormat::Qcow2 => Backing::qcow2(image, None),
        });
        let plan = Plan {
            seed: self.seed,
            contract: self.contract,
            states: self.states,
            accept: self.accept.level(),
            backing: backing.as_ref(),
        };
        let limit = self.time.map_or(Limit::Runs(self.states), Limit::Time);
        let mut display = Display::start(limit);
        let mut proceed = |progress: &Progress| {
            let Progress {
                judged, violations, ..
            } = progress;
            display.show_at(
                *judged,
                format!("{judged} states judged, {violations} violations"),
            );
            display.proceed()
        };
        let explored = logged::explore(&imported, &plan, &mut proceed)
            .map_err(|error| about(&self.log)(&error))?;
        let seconds = display.finish().as_secs_f64();
        for finding in &explored.findings {
            self.tell(finding)?;
        }
        Ok(self.close(&imported, &explored, seconds))
    }

    fn tell(&self, finding: &Finding) -> Result<(), Refusal> {
        let class = finding.violation.class.to_string();
        println!("");
        println!("VIOLATION {class}");
        if let Some(sentence) = &finding.sentence {
            println!("  {sentence}");
        }
        for line in &finding.violation.lines {
            println!("  | {line}");
        }
        println!("  {}", finding.cut);
        for line in &finding.survivors {
            println!("    {line}");
        }
        let stem = self.log.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!(
            "{}-{}.img",
            crate::violation::plain(&class),
            crate::violation::plain(&stem)
        );
        let path = self.out.join(name);
        save(&finding.image, &path)?;
        println!("  what was left: {}", path.display());
        Ok(())
    }

    fn close(&self, imported: &Imported, explored: &Explored, seconds: f64) -> Ending {
        println!("");
        for text in &explored.not_measured {
            println!("NOT MEASURED {text}");
        }
        for text in &explored.broken {
            println!("HARNESS BROKEN {text}");
        }
        let Progress {
            versions,
            cuts,
            generated,
            distinct,
            spared,
            audited,
            judged,
            nested,
            ..
        } = explored.progress;
        let Progress {
            repairs,
            served,
            not_measured,
            violations,
            ..
        } = explored.progress;
        println!("contract          {}", self.contract.name());
        println!("let pass          {}", self.accept.name());
        println!(
            "entries           {} ({} flushes, {} marks)",
            imported.entries,
            imported.flushes(),
            imported.marks.len()
        );
        if explored.unborn > 0 {
            println!(
                "before the image  {} requests, which were passed over",
                explored.unborn
            );
        }
        println!("read behind flush {versions}");
        println!("cuts              {cuts}");
        println!("states generated  {generated}");
        println!("states distinct   {distinct}");
        println!(
            "states spared     {spared} (as one that passed where that was read; {audited} more were judged to see)"
        );
        println!("states judged     {judged} ({nested} of them inside a repair)");
        println!("states repaired   {repairs}");
        println!("states gone on    {served}");
        println!("seconds           {seconds:.1}");
        println!("digest            {:032x}", explored.digest);
        println!("violations        {violations}");
        if violations > 0 {
            Ending::Violation
        } else if not_measured > 0 || !explored.broken.is_empty() {
            Ending::Unmeasured
        } else {
            Ending::Clean
        }
    }
}
