//! `faults`: requests that fail, drawn by the thousand, or event by event as a table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use engine::device::Event;
use harness::fault::campaign::{Campaign, Plan, campaign};
use harness::fault::matrix::{Past, Way, cell};
use harness::fault::silent::{Report, silent};
use harness::fault::table::{Row, cause_name, document, events, repeat_name};
use harness::workload::pin::{OPTIONS, Pins};

use crate::terminal::{Display, Limit, default_jobs, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// Faults where nobody said how many: some seconds on two cores.
const DEFAULT_FAULTS: u64 = 2_000;
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
    /// Damage images without a word, those of so many workloads
    #[arg(long, value_name = "RUNS", conflicts_with_all = ["count", "time"])]
    silent: Option<u64>,
    /// Where the traces go; with --table the file that the table is written to
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

impl Faults {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let jobs = self.jobs.map_or_else(default_jobs, usize::from);
        if self.table {
            return self.table();
        }
        let pins = self.options.unwrap_or_default();
        if pins.chain == Some(true) || pins.faults == Some(false) {
            let text = "requests fail in every workload here, and not over a chain: leave chain=on and faults=off out";
            return Err(Refusal(text.into()));
        }
        println!("seed {}", self.seed);
        if let Some(runs) = self.silent {
            let report = silent(self.seed, runs, self.options.unwrap_or_default(), None);
            let report = report.map_err(|panic| Refusal(format!("the harness {panic}")))?;
            return Ok(tell_damage(&report));
        }
        let out = self.out.clone().unwrap_or_else(|| "reports".into());
        source::writable_directory(&out)?;
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

    fn table(&self) -> Result<Ending, Refusal> {
        let mut ending = Ending::Clean;
        let mut rows = Vec::new();
        for event in events() {
            let cells = Way::all().into_iter().map(|way| {
                let cell = cell(event, way);
                if cell.runs == 0 || !cell.broken.is_empty() {
                    let why = cell
                        .broken
                        .first()
                        .map_or("no workload comes to it", |why| why);
                    println!("NOT MEASURED {}: {why}", name(event, way));
                    ending = ending.max(Ending::Unmeasured);
                }
                for found in &cell.found {
                    println!(
                        "VIOLATION {}: {}",
                        name(event, way),
                        found.finding.violation
                    );
                    ending = ending.max(Ending::Violation);
                }
                cell
            });
            let cells = cells.collect();
            rows.push(Row { event, cells });
        }
        let report = silent(self.seed, DAMAGED, Pins::default(), None);
        let report = report.map_err(|panic| Refusal(format!("the harness {panic}")))?;
        ending = ending.max(tell_violations(&report));
        let text = document(&rows, &report);
        match &self.out {
            None => print!("{text}"),
            Some(path) => std::fs::write(path, text)
                .map_err(|error| Refusal(format!("{}: {error}", path.display())))?,
        }
        Ok(ending)
    }
}

fn name(event: Event, way: Way) -> String {
    let past = match way.past {
        Past::Whole => "before",
        Past::PowerLoss => "after",
    };
    format!(
        "{event}, {} {}, {past} a power loss",
        cause_name(way.cause),
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

fn tell_violations(report: &Report) -> Ending {
    for (run, what, verdict) in &report.found {
        println!("VIOLATION run {run}, {what}: {verdict:?}");
    }
    if report.found.is_empty() {
        Ending::Clean
    } else {
        Ending::Violation
    }
}

fn tell_damage(report: &Report) -> Ending {
    for ((class, damage), standings) in &report.standings {
        println!(
            "{:<15} {:<18} right {:>5}  refused {:>5}  undetectable {:>5}",
            class.name(),
            damage.name(),
            standings.right,
            standings.refused,
            standings.undetectable
        );
    }
    println!("workloads         {}", report.runs);
    println!("while it was open {} requests", report.live);
    println!("violations        {}", report.found.len());
    tell_violations(report)
}
