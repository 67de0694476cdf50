//! `faults`: requests that fail, drawn by the thousand, or event by event as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use engine::device::Event;
use harness::fault::campaign::{Campaign, Plan, campaign};
use harness::fault::matrix::{Cell, Past, Way, cells};
use harness::fault::silent::{Report, silent};
use harness::fault::table::{Row, document, events, fails_name, reasons, repeat_name};
use harness::workload::pin::{OPTIONS, Pins};

use crate::terminal::{Display, Limit, default_jobs, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// Faults where nobody said how many: some seconds on two cores.
const DEFAULT_FAULTS: u64 = 2_000;
/// Where traces go.
const REPORTS: &str = "reports";
/// Workloads whose images are damaged for the table.
const DAMAGED: u64 = 200;

/// Let requests fail in drawn workloads, and judge what that leads to: every operation says so, nothing acknowledged is lost,
/// the image is sound, and once the faults are gone everything works.
///
/// The same seed with the same count comes to the same digest, with any number of jobs.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Faults {
    /// Where the generators start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// End behind the batch of runs with which so many requests went wrong
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long, such as 30s, 10m or 2h
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Use so many threads [default: one for each core]
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Fix what would be drawn, as name=value,..
    #[arg(long, value_name = "OPTIONS", value_parser = Pins::parse, long_help = format!(
        "Fix what would be drawn, as name=value,..\n\nOptions: {OPTIONS}"))]
    options: Option<Pins>,
    /// Let every event fail in every way, and print what became of it as a table
    #[arg(long, conflicts_with_all = ["seed", "count", "time", "options", "silent"])]
    table: bool,
    /// With --table: compare the table with this file instead of writing it
    #[arg(long, value_name = "FILE", requires = "table", conflicts_with = "out")]
    check: Option<PathBuf>,
    /// Damage images without a word, those of so many workloads
    #[arg(long, value_name = "RUNS", conflicts_with_all = ["count", "time"])]
    silent: Option<u64>,
    /// Where the traces go; with --table the file that the table is written to, and traces go to reports
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

impl Faults {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let jobs = self.jobs.map_or_else(default_jobs, usize::from);
        if self.table {
            return self.table(jobs);
        }
        self.refuse_options()?;
        println!("seed {}", self.seed);
        let out = self.out.clone().unwrap_or_else(|| REPORTS.into());
        source::writable_directory(&out)?;
        if let Some(runs) = self.silent {
            let pins = self.options.unwrap_or_default();
            let report = silent(self.seed, runs, pins, None, jobs).map_err(Refusal::new)?;
            return tell_damage(&report, self.seed, &out);
        }
        let unlimited = self.time.map_or(DEFAULT_FAULTS, |_| u64::MAX);
        let plan = Plan {
            seed: self.seed,
            faults: self.count.unwrap_or(unlimited),
            pins: self.options.unwrap_or_default(),
        };
        let limit = self.time.map_or(Limit::Runs(plan.faults), Limit::Time);
        let mut display = Display::start(limit);
        let done = campaign(&plan, jobs, &mut |campaign| {
            let counts = &campaign.counts;
            let message = format!(
                "{} faults in {} runs, {} states judged, {} violations",
                counts.faults, campaign.runs, counts.states_judged, counts.violations
            );
            display.show_at(counts.faults, message);
            display.proceed()
        });
        let done = done.map_err(Refusal::new)?;
        let seconds = display.finish().as_secs_f64();
        let origin = format!("faults-seed-{}-", self.seed);
        violation::tell_each(&done.found, "run", &origin, &out)?;
        Ok(tell(&done, seconds))
    }

    /// Nothing that was asked for is left out without a word.
    fn refuse_options(&self) -> Result<(), Refusal> {
        let pins = self.options.unwrap_or_default();
        let is_on = [pins.chain, pins.kill, pins.faults].contains(&Some(true));
        if self.silent.is_some() && is_on {
            let text = "nothing fails here with an error, nobody is killed, and there is no chain: leave chain=on, kill=on and \
                        faults=on out";
            return Err(Refusal(text.into()));
        }
        if self.silent.is_none() && (pins.chain == Some(true) || pins.faults == Some(false)) {
            let text = "requests fail in every workload here, and not over a chain: leave chain=on and faults=off out";
            return Err(Refusal(text.into()));
        }
        Ok(())
    }

    fn table(&self, jobs: usize) -> Result<Ending, Refusal> {
        let out = Path::new(REPORTS);
        source::writable_directory(out)?;
        let mut ending = Ending::Clean;
        let mut rows = Vec::new();
        let events: Vec<Event> = events().collect();
        let cells = cells(&events, jobs).map_err(Refusal::new)?;
        for (event, cells) in events.into_iter().zip(cells) {
            for (way, cell) in Way::all().into_iter().zip(&cells) {
                ending = ending.max(tell_cell(event, way, cell, out)?);
            }
            rows.push(Row { event, cells });
        }
        let pins = Pins::default();
        let report = silent(self.seed, DAMAGED, pins, None, jobs).map_err(Refusal::new)?;
        ending = ending.max(tell_violations(&report, self.seed, out)?);
        let text = document(&rows, &report);
        let named =
            |path: &Path, error: std::io::Error| Refusal(format!("{}: {error}", path.display()));
        match (&self.out, &self.check) {
            (Some(path), _) => std::fs::write(path, text).map_err(|error| named(path, error))?,
            (None, Some(path)) => {
                let kept = std::fs::read_to_string(path).map_err(|error| named(path, error))?;
                if let Some(difference) = difference(&kept, &text) {
                    println!(
                        "{}: not as the engine behaves\n{difference}",
                        path.display()
                    );
                    ending = ending.max(Ending::Violation);
                }
            }
            (None, None) => print!("{text}"),
        }
        Ok(ending)
    }
}

/// The lines that differ, if any do.
fn difference(kept: &str, made: &str) -> Option<String> {
    let lines = similar::TextDiff::from_lines(kept, made);
    let changed = lines.iter_all_changes().filter_map(|change| {
        let sign = match change.tag() {
            similar::ChangeTag::Delete => '-',
            similar::ChangeTag::Insert => '+',
            similar::ChangeTag::Equal => return None,
        };
        Some(format!("{sign}{}", change.value().trim_end()))
    });
    let changed: Vec<String> = changed.collect();
    (!changed.is_empty()).then(|| changed.join("\n"))
}

/// Tells what is wrong with a cell.
fn tell_cell(event: Event, way: Way, cell: &Cell, out: &Path) -> Result<Ending, Refusal> {
    let mut ending = Ending::Clean;
    let is_missing = cell.runs == 0 && way.applies_to(event);
    if is_missing || !cell.broken.is_empty() {
        let why = cell.broken.first();
        let why = why.map_or("no workload comes to it", |why| why);
        println!("NOT MEASURED {}: {why}", name(event, way));
        ending = Ending::Unmeasured;
    }
    if !cell.found.is_empty() {
        println!("{}:", name(event, way));
        violation::tell_each(&cell.found, "run", &format!("{}-", name(event, way)), out)?;
        ending = ending.max(Ending::Violation);
    }
    Ok(ending)
}

fn name(event: Event, way: Way) -> String {
    let past = match way.past {
        Past::Whole => "before",
        Past::PowerLoss => "after",
    };
    format!(
        "{event}, {} {}, {past} a power loss",
        fails_name(way.fails),
        repeat_name(way.repeat)
    )
}

fn tell(done: &Campaign, seconds: f64) -> Ending {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut by_event: BTreeMap<Event, u64> = BTreeMap::new();
    for ((event, kind), count) in &done.injected {
        *kinds.entry(kind).or_default() += count;
        *by_event.entry(*event).or_default() += count;
    }
    for text in &done.broken {
        println!("HARNESS BROKEN {text}");
    }
    println!("faults            {}", done.counts.faults);
    for (kind, count) in kinds {
        println!("  {kind:<26} {count}");
    }
    println!("by event");
    for (event, count) in &by_event {
        println!("  {:<26} {count}", event.name());
    }
    let never: Vec<&str> = events()
        .filter(|event| !by_event.contains_key(event))
        .map(Event::name)
        .collect();
    println!(
        "never failed      {}",
        if never.is_empty() {
            "none".into()
        } else {
            never.join(" ")
        }
    );
    println!("workloads         {}", done.counts.workloads);
    println!("states judged     {}", done.counts.states_judged);
    println!("states repaired   {}", done.counts.repairs);
    println!("seconds           {seconds:.1}");
    println!(
        "digest            {:032x} (of {} runs)",
        done.digest, done.runs
    );
    println!("violations        {}", done.counts.violations);
    if done.counts.violations > 0 {
        Ending::Violation
    } else if done.broken.is_empty() {
        Ending::Clean
    } else {
        Ending::Unmeasured
    }
}

/// Tells of violations, and leaves a trace of each.
fn tell_violations(report: &Report, seed: u64, out: &Path) -> Result<Ending, Refusal> {
    for text in &report.broken {
        println!("NOT MEASURED {text}");
    }
    let mut classes = BTreeSet::new();
    for found in &report.at_rest {
        let class = found.violation.class.to_string();
        if !classes.insert(class.clone()) {
            continue;
        }
        let origin = format!("silent-seed-{seed}-run-{}", found.run);
        let trace = violation::save_trace(&found.trace, &class, &origin, out)?;
        println!("VIOLATION {class}\n  {}", found.trace.about);
        println!("  replay: cargo xtask replay {}", trace.display());
    }
    let origin = format!("silent-seed-{seed}-");
    violation::tell_each(&report.in_use, "run", &origin, out)?;
    Ok(if report.violations() > 0 {
        Ending::Violation
    } else if report.broken.is_empty() {
        Ending::Clean
    } else {
        Ending::Unmeasured
    })
}

fn tell_damage(report: &Report, seed: u64, out: &Path) -> Result<Ending, Refusal> {
    for ((class, damage), standings) in &report.standings {
        let readings = &standings.readings;
        println!(
            "{:<15} {:<18} images: right {:>5}  refused {:>5}  undetectable {:>5}  sectors: right {:>7}  refused {:>7}  undetectable {}",
            class.name(),
            damage.name(),
            standings.right,
            standings.refused,
            standings.undetectable,
            readings.right,
            readings.refused,
            reasons(readings)
        );
    }
    println!("workloads         {}", report.runs);
    for (kind, count) in &report.live {
        println!("  {kind:<26} {count}");
    }
    println!(
        "while it was open sectors: right {}, refused {}, undetectable {}",
        report.readings.right,
        report.readings.refused,
        reasons(&report.readings)
    );
    for (blind, count) in &report.blind {
        println!("written to another's, since {}: {count}", blind.name());
    }
    println!("violations        {}", report.violations());
    tell_violations(report, seed, out)
}
