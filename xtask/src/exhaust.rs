//! `exhaust`: every workload up to a length, every crash state of each, and a certificate of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkdebug::contract::Contract;
use clap::Args;
use engine::defect::Flaw;
use harness::campaign::Proceed;
use harness::exhaust::{GeometrySet, Overlap, Repairs, Search, Shard, Space, Standing, search};
use harness::report::{Certificate, Circumstances};
use xxhash_rust::xxh3::Xxh3;

use crate::fuzz::Format;
use crate::terminal::{Display, Limit, default_jobs, parse_duration};
use crate::{Ending, Refusal, source, violation};

/// What is done by then is kept for a search that is begun again.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Run every workload up to a length, lose power in every way at every moment, and judge what is left.
///
/// The certificate says what was covered. Where there is one of a part already, the search goes on from there.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Exhaust {
    /// The most operations of a workload
    #[arg(long, value_name = "L", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4))]
    length: u32,
    /// The image format under test
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    format: Format,
    /// The images to start from: small (six, each with lazy refcounts and without) or one (the first of them)
    #[arg(long, value_name = "SET", value_parser = parse_set, default_value = "small")]
    geometry: GeometrySet,
    /// What the disk may do at power loss: epoch or epoch-torn
    #[arg(long, value_name = "C", value_parser = parse_free, default_value = "epoch")]
    contract: Contract,
    /// So many operations are in flight at once, at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
    overlap: u16,
    /// Where they overlap: how often a schedule deviates from the plainest at most, or `all` for every schedule
    #[arg(long, value_name = "D", value_parser = parse_deviations, default_value = "2")]
    deviations: u32,
    /// Lose power inside each repair too, and inside the repair of what that leaves, to depth 3
    #[arg(long)]
    repairs: bool,
    /// Only every N-th block of workloads, from the I-th on
    #[arg(long, value_name = "I/N", value_parser = parse_shard, default_value = "1/1")]
    shard: Shard,
    /// Put the certificates of N shards together that were written by the same command with `--shard I/N`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..), conflicts_with_all = ["shard", "time", "jobs", "plant"])]
    merge: Option<u64>,
    /// Stop after so long, such as 30s, 10m or 2h; the same command goes on from there
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Use so many threads [default: one for each core]
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Plant a defect in the engine, or leave out a barrier (without:NAME), to see it found; certifies nothing
    #[arg(long, value_name = "NAME", value_parser = parse_flaw)]
    plant: Option<Flaw>,
    /// Where the certificate and the traces go
    #[arg(long, value_name = "DIR", default_value = "reports/exhaust")]
    out: PathBuf,
}

fn parse_set(name: &str) -> Result<GeometrySet, String> {
    GeometrySet::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = GeometrySet::ALL.iter().map(|set| set.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn parse_shard(text: &str) -> Result<Shard, String> {
    Shard::parse(text).ok_or_else(|| format!("`{text}` is no shard such as 2/8"))
}

fn parse_free(name: &str) -> Result<Contract, String> {
    let free = Contract::from_name(name)
        .filter(|contract| *contract >= Contract::Epoch && !contract.destroys());
    free.ok_or_else(|| {
        "expected epoch or epoch-torn: the weaker leave little open, and what the stronger destroy is not looked \
         through by classes; `fuzz` takes those"
            .into()
    })
}

fn parse_deviations(text: &str) -> Result<u32, String> {
    match text {
        "all" => Ok(Overlap::ALL),
        number => number
            .parse()
            .map_err(|_| format!("`{text}` is neither a number nor `all`")),
    }
}

fn parse_flaw(name: &str) -> Result<Flaw, String> {
    Flaw::from_name(name).ok_or_else(|| {
        format!("`{name}` is no defect, and no barrier after `without:`; `canary` and `mutants` list them")
    })
}

impl Exhaust {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let Format::Qcow2 = self.format;
        source::writable_directory(&self.out)?;
        let space = Space::new(self.geometry, self.length)
            .with_contract(self.contract)
            .with_repairs(if self.repairs {
                Repairs::Interrupted
            } else {
                Repairs::Whole
            })
            .with_overlap(self.overlap())
            .with_flaw(self.plant);
        let engine = engine_sources()?;
        if let Some(shards) = self.merge {
            return self.put_together(shards, &space, engine);
        }
        let path = self.certificate(self.shard);
        let (standing, before) = self.earlier(&path, &space, &engine)?;
        let blocks = space.blocks_of(self.shard);
        println!(
            "{} workloads in {} blocks, shard {} has {blocks} of them; {} are done already",
            space.workloads(),
            space.blocks(),
            self.shard,
            standing.blocks_done
        );
        let jobs = self.jobs.map_or_else(default_jobs, usize::from);
        let made = |seconds: f64| Circumstances {
            engine: engine.clone(),
            seconds: before + seconds,
            jobs,
        };
        let mut display = Display::start(self.time.map_or(Limit::Runs(blocks), Limit::Time));
        let mut saved = Duration::ZERO;
        let mut unsaved = None;
        let mut between = |standing: &Standing| {
            let tally = standing.tally;
            let message = format!(
                "{} of {blocks} blocks, {} states judged, {} violations",
                standing.blocks_done, tally.states_judged, tally.violations
            );
            display.show_at(standing.blocks_done, message);
            let elapsed = display.elapsed();
            if self.plant.is_none() && elapsed >= saved + SAVE_EVERY {
                saved = elapsed;
                let so_far = Search {
                    standing: standing.clone(),
                    ..Search::default()
                };
                let made = made(elapsed.as_secs_f64());
                let certificate = Certificate::new(&space, self.shard, &so_far, made);
                unsaved = write(&path, &certificate.to_json()).err();
            }
            match unsaved {
                None => display.proceed(),
                Some(_) => Proceed::Stop,
            }
        };
        let search =
            search(&space, self.shard, standing, jobs, &mut between).map_err(Refusal::new)?;
        let seconds = display.finish().as_secs_f64();
        if let Some(refusal) = unsaved {
            return Err(refusal);
        }
        let certificate = Certificate::new(&space, self.shard, &search, made(seconds));
        self.close(&path, &search, &certificate)
    }

    fn overlap(&self) -> Overlap {
        match self.overlap {
            1 => Overlap::NONE,
            requests => Overlap {
                requests: requests.into(),
                deviations: self.deviations,
            },
        }
    }

    fn certificate(&self, shard: Shard) -> PathBuf {
        let Shard { number, of } = shard;
        let shard = if of > 1 {
            format!("-{number}-of-{of}")
        } else {
            String::new()
        };
        let (set, length) = (self.geometry.name(), self.length);
        let overlap = match self.overlap() {
            Overlap::NONE => String::new(),
            Overlap {
                requests,
                deviations,
            } => format!("-{requests}-at-once-{}", name_of(deviations)),
        };
        let repairs = if self.repairs { "-repairs" } else { "" };
        let contract = self.contract.name();
        let name = format!("qcow2-{set}-{length}-{contract}{overlap}{repairs}{shard}.json");
        self.out.join(name)
    }

    /// Where an earlier search stood that did not come to its end, and how many seconds it had taken.
    fn earlier(
        &self,
        path: &Path,
        space: &Space,
        engine: &str,
    ) -> Result<(Standing, f64), Refusal> {
        if self.plant.is_some() || !path.exists() {
            return Ok((Standing::default(), 0.0));
        }
        let certificate = read(path)?;
        if certificate.counts.violations > 0 {
            return Err(in_the_way(path, "it ends with a violation"));
        }
        let standing = certificate.standing(space, self.shard, engine);
        let standing = standing.map_err(|error| in_the_way(path, &error.to_string()))?;
        Ok((standing, certificate.seconds))
    }

    /// The certificate of all shards, from those of each.
    fn put_together(&self, shards: u64, space: &Space, engine: String) -> Result<Ending, Refusal> {
        let mut search = Search::default();
        let (mut seconds, mut jobs) = (0.0, 0);
        for number in 1..=shards {
            let shard = Shard { number, of: shards };
            let path = self.certificate(shard);
            let told = |text: &str| Refusal(format!("{}: {text}", path.display()));
            if !path.exists() {
                return Err(told(&format!(
                    "there is none yet: run the same with `--shard {shard}`"
                )));
            }
            let certificate = read(&path)?;
            let standing = certificate.standing(space, shard, &engine);
            let standing = standing.map_err(|error| told(&error.to_string()))?;
            if standing.blocks_done < space.blocks_of(shard) {
                let text = format!(
                    "the shard is not done: run the same with `--shard {shard}` to its end"
                );
                return Err(told(&text));
            }
            search.standing.blocks_done += standing.blocks_done;
            search.standing.tally.add(&standing.tally);
            seconds += certificate.seconds;
            jobs = jobs.max(certificate.jobs);
        }
        let made = Circumstances {
            engine,
            seconds,
            jobs,
        };
        let certificate = Certificate::new(space, Shard::WHOLE, &search, made);
        self.close(&self.certificate(Shard::WHOLE), &search, &certificate)
    }

    fn close(
        &self,
        path: &Path,
        search: &Search,
        certificate: &Certificate,
    ) -> Result<Ending, Refusal> {
        violation::tell_each(&search.found, "workload", "", &self.out)?;
        let certifies = self.plant.is_none() && search.broken.is_empty();
        if certifies {
            write(path, &certificate.to_json())?;
        }
        for text in &search.not_measured {
            println!("NOT MEASURED {text}");
        }
        for text in &search.broken {
            println!("HARNESS BROKEN {text}");
        }
        println!("{}", certificate.about);
        println!("digest       {:032x}", certificate.counts.digest);
        println!("engine       {}", certificate.engine);
        if certifies {
            println!("certificate  {}", path.display());
        }
        println!("violations   {}", certificate.counts.violations);
        Ok(if certificate.counts.violations > 0 {
            Ending::Violation
        } else if search.broken.is_empty() && certificate.holds() {
            Ending::Clean
        } else {
            Ending::Unmeasured
        })
    }
}

fn read(path: &Path) -> Result<Certificate, Refusal> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| in_the_way(path, &error.to_string()))?;
    Certificate::from_json(&text).map_err(|error| in_the_way(path, &error.to_string()))
}

/// A certificate that cannot be gone on with.
fn in_the_way(path: &Path, text: &str) -> Refusal {
    Refusal(format!(
        "{}: {text}; remove it to begin anew",
        path.display()
    ))
}

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    // A search that is killed while it writes leaves the file before.
    let beside = path.with_extension("part");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| Refusal(format!("{}: {error}", path.display())))
}

/// A hash of the engine's sources: names and bytes, in order of names.
fn engine_sources() -> Result<String, Refusal> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src");
    let unreadable = |error: std::io::Error| Refusal(format!("{}: {error}", root.display()));
    let mut folders = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    let mut hash = Xxh3::new();
    for path in files {
        let name = path.strip_prefix(&root).unwrap_or(&path);
        hash.update(name.to_string_lossy().as_bytes());
        hash.update(&std::fs::read(&path).map_err(unreadable)?);
    }
    Ok(format!("{:032x}", hash.digest128()))
}

fn name_of(deviations: u32) -> String {
    match deviations {
        Overlap::ALL => "all".into(),
        number => number.to_string(),
    }
}
