//! `fuzz`: a campaign of drawn workloads, every crash state worth visiting judged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkdebug::contract::Contract;
use clap::{Args, ValueEnum};
use harness::campaign::{BATCH_RUNS, Campaign, Plan, Proceed, carry_on};
use harness::guide::way::{Way, Yield};
use harness::guide::{Guidance, Guide};
use harness::report::{self, Summary, read_standing, write_standing};
use harness::run::Effort;
use harness::workload::pin::{OPTIONS, Pins};

use crate::terminal::{Display, Limit, default_jobs, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// Runs where nobody said how many: a few seconds on two cores.
const DEFAULT_RUNS: u64 = 160;

/// Run drawn workloads, lose power at every moment worth it, and judge what is left.
///
/// The same seed with the same number of runs comes to the same digest, with any number of jobs.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Fuzz {
    /// Where the generators start; printed first
    #[arg(long, value_name = "N")]
    seed: u64,
    /// End after so many runs [default: 160 where no other end is given]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// End after the batch with which so many crash states are judged
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// End after so long, such as 30s, 10m or 2h
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Use so many threads [default: one for each core]
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// What the disk may do at power loss: perfect, prefix, epoch, epoch-torn, epoch-torn-garbage or liar
    #[arg(long, value_name = "C", value_parser = parse_contract, default_value = "epoch-torn")]
    contract: Contract,
    /// The image format under test
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    format: Format,
    /// Fix what would be drawn, as name=value,..
    #[arg(long, value_name = "OPTIONS", value_parser = Pins::parse, long_help = format!(
        "Fix what would be drawn, as name=value,..\n\nOptions: {OPTIONS}"))]
    options: Option<Pins>,
    /// Start from a copy of this qcow2 image; the file itself is never written
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Whether what earlier runs showed decides about later ones
    #[arg(long, value_name = "on|off", value_parser = parse_guidance, default_value = "off")]
    guide: Guidance,
    /// Go on from where the campaign stands whose campaign.json is in DIR, unless it has ended with a violation
    #[arg(long)]
    resume: bool,
    /// Where summary.json, campaign.json and the traces go
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
}

/// The formats that can be tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Qcow2,
}

pub(crate) fn parse_contract(name: &str) -> Result<Contract, String> {
    Contract::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Contract::ALL
            .iter()
            .map(|contract| contract.name())
            .collect();
        format!("expected one of {}", names.join(", "))
    })
}

pub(crate) fn parse_guidance(name: &str) -> Result<Guidance, String> {
    match name {
        "on" => Ok(Guidance::On),
        "off" => Ok(Guidance::Off),
        _ => Err("expected on or off".into()),
    }
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let Format::Qcow2 = self.format;
        println!("seed {}", self.seed);
        let given = self.image.as_deref().map(source::load_image).transpose()?;
        source::writable_directory(&self.out)?;
        let plan = Plan {
            seed: self.seed,
            runs: self
                .runs
                .unwrap_or(if self.time.is_some() || self.states.is_some() {
                    u64::MAX
                } else {
                    DEFAULT_RUNS
                }),
            pins: self.options.unwrap_or_default(),
            contract: Some(self.contract),
            given,
            flaw: None,
            effort: Effort::campaign(),
            guidance: self.guide,
        };
        let limit = self.time.map_or(Limit::Runs(plan.runs), Limit::Time);
        let mut display = Display::start(limit);
        let jobs = self.jobs.map_or_else(default_jobs, usize::from);
        let ledger = Ledger::of(&plan, &self.out);
        let start = if self.resume {
            ledger.load()?
        } else {
            Campaign::default()
        };
        let (mut saved_at, mut trouble) = (Duration::ZERO, None);
        let mut between = |campaign: &Campaign| {
            display.show(&campaign.progress);
            match ledger.keep(campaign, saved_at, display.elapsed()) {
                Ok(at) => saved_at = at,
                Err(refusal) => {
                    trouble = Some(refusal);
                    return Proceed::Stop;
                }
            }
            let judged = campaign.progress.counts.states_judged;
            if self.states.is_some_and(|states| judged >= states) {
                return Proceed::Stop;
            }
            display.proceed()
        };
        let campaign = carry_on(&plan, jobs, start, &mut between).map_err(Refusal::new)?;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        if campaign.is_between_batches() {
            ledger.save(&campaign)?;
        }
        let mut summary = Summary::new(self.seed, &campaign, display.finish().as_secs_f64());
        let origin = format!("seed-{}-", self.seed);
        let traces = violation::tell_each(&campaign.found, "run", &origin, &self.out)?;
        let traces = traces.iter().map(|trace| trace.display().to_string());
        summary.traces.extend(traces);
        self.close(&campaign, &summary)
    }

    /// The last lines, and the same numbers for programs.
    fn close(&self, campaign: &Campaign, summary: &Summary) -> Result<Ending, Refusal> {
        let path = self.out.join("summary.json");
        std::fs::write(&path, summary.to_json())
            .map_err(|error| Refusal(format!("{}: {error}", path.display())))?;
        for text in &campaign.not_measured {
            println!("NOT MEASURED {text}");
        }
        for text in &campaign.broken {
            println!("HARNESS BROKEN {text}");
        }
        println!("contract          {}", self.contract.name());
        println!("workloads         {}", summary.workloads);
        println!("cuts              {}", summary.cuts);
        println!("states generated  {}", summary.states_generated);
        println!("states distinct   {}", summary.states_distinct);
        println!(
            "states spared     {} (as one that passed where that was read; {} more were judged to see)",
            summary.states_spared, summary.states_audited
        );
        println!(
            "states judged     {} ({} of them inside a repair)",
            summary.states_judged, summary.states_nested
        );
        if self.contract.destroys() {
            let [refused, undetectable] = [summary.states_refused, summary.states_undetectable];
            let right = campaign.progress.counts.survived - refused - undetectable;
            println!("  all of it right {right}");
            println!("  refused in part {refused} (nothing else read wrong)");
            println!(
                "  undetectable    {undetectable} (data or old tables that the disk destroyed)"
            );
        }
        println!("states repaired   {}", summary.repairs);
        tell_guidance(&campaign.guide);
        println!("seconds           {:.1}", summary.seconds);
        println!("states a second   {:.0}", summary.states_per_second);
        println!(
            "digest            {} (of {} runs)",
            summary.digest, summary.runs
        );
        println!("summary           {}", path.display());
        println!("violations        {}", summary.violations);
        Ok(if summary.violations > 0 {
            Ending::Violation
        } else if summary.not_measured > 0 || !campaign.broken.is_empty() {
            Ending::Unmeasured
        } else {
            Ending::Clean
        })
    }
}

/// The file that says where a campaign stands.
struct Ledger<'a> {
    plan: &'a Plan,
    path: PathBuf,
}

impl<'a> Ledger<'a> {
    /// It is written so often while a campaign goes on, and at its end.
    const EVERY: Duration = Duration::from_mins(1);

    fn of(plan: &'a Plan, directory: &Path) -> Self {
        let path = directory.join("campaign.json");
        Self { plan, path }
    }

    fn refuse(&self, problem: &dyn std::fmt::Display) -> Refusal {
        Refusal(format!("{}: {problem}", self.path.display()))
    }

    fn load(&self) -> Result<Campaign, Refusal> {
        let text = std::fs::read_to_string(&self.path).map_err(|error| self.refuse(&error))?;
        let campaign = read_standing(self.plan, &text).map_err(|error| self.refuse(&error))?;
        println!("going on          after {} runs", campaign.progress.runs);
        Ok(campaign)
    }

    /// Writes where the campaign stands if it was not written for long, or if what follows is less than a whole batch,
    /// behind which nothing can go on. `last` is when it was written last; so is the answer.
    fn keep(
        &self,
        campaign: &Campaign,
        last: Duration,
        now: Duration,
    ) -> Result<Duration, Refusal> {
        let left = self.plan.runs.saturating_sub(campaign.progress.runs);
        let is_last = (1..BATCH_RUNS).contains(&left);
        if campaign.is_between_batches() && (is_last || now >= last + Self::EVERY) {
            self.save(campaign)?;
            return Ok(now);
        }
        Ok(last)
    }

    /// Puts a new file in the place of the old one, whole.
    fn save(&self, campaign: &Campaign) -> Result<(), Refusal> {
        let fresh = self.path.with_extension("json.new");
        let text = write_standing(self.plan, campaign);
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &self.path))
            .map_err(|error| self.refuse(&error))
    }
}

/// What a campaign was led to, and what it was never led to.
fn tell_guidance(guide: &Guide) {
    let counts = guide.counts;
    let features: u64 = guide.topics().iter().map(|(_, count)| count).sum();
    println!(
        "features          {features} (of {} topics)",
        guide.topics().len()
    );
    for way in Way::ALL {
        let Yield { runs, kept, .. } = guide.yields.of(way);
        println!(
            "runs {:<12} {runs} ({kept} of them with something new)",
            way.name()
        );
    }
    println!(
        "runs spared       {} ({} more for want of another were run again; {} neighbours meant nothing)",
        counts.repeated, counts.run_again, counts.senseless
    );
    println!("rare situations");
    for rare in guide.rare.iter().filter(|rare| rare.count > 0) {
        println!("  {:<26} {}", rare.name, rare.count);
    }
    let never: Vec<&str> = report::never(&guide.rare).collect();
    let never = if never.is_empty() {
        "none".into()
    } else {
        never.join(" ")
    };
    println!("never there       {never}");
}
