//! `differential`: the same random histories by QEMU's programs and by this one, on the same files.
//!
//! Each history is carried out on two images: what qemu-img or qemu-io does to the one, this program does to the
//! other, and step by step they take turns at random. So every step meets images that the other side wrote. In
//! the end both images must show the same bytes to both sides, be clean in both checks, and be described
//! alike.

mod agree;
mod duel;
mod family;
mod faults;
mod history;
mod known;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::Args;
use harness::prng::Prng;

use self::duel::{Arena, Outcome};
use self::family::Family;
use crate::{Ending, Refusal};

/// Carry out random histories by QEMU's programs and by this one, and compare
#[derive(Args, Debug)]
pub(crate) struct Differential {
    /// Where all choices start from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The feature families, separated by commas; without it all of them
    #[arg(long, value_enum, value_delimiter = ',')]
    family: Vec<Family>,
    /// How many histories of each family
    #[arg(long, default_value_t = 2000)]
    histories: u64,
    /// Carry out this history alone
    #[arg(long, value_name = "INDEX")]
    only: Option<u64>,
    /// Put QEMU on both sides: whatever disagrees then is the fault of the histories
    #[arg(long)]
    control: bool,
    /// The cases of the family `blkdebug` that are carried out before those that are drawn
    #[arg(long, default_value = "corpus/blkdebug", value_name = "DIR")]
    corpus: PathBuf,
    /// How many histories at once; without it one a core
    #[arg(long)]
    jobs: Option<usize>,
    /// Where images of histories that end in a disagreement are kept
    #[arg(long, default_value = "reports/differential", value_name = "DIR")]
    keep: PathBuf,
}

/// What came of a family.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    refused: u64,
    known: u64,
    disagreements: Vec<(u64, Vec<String>)>,
}

impl Differential {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let arena = Arena::new(self.keep.clone(), self.control).map_err(Refusal::new)?;
        println!("{} against {}", env!("CARGO_PKG_NAME"), arena.version());
        let families = if self.family.is_empty() {
            Family::ALL.to_vec()
        } else {
            self.family.clone()
        };
        let mut ending = Ending::Clean;
        for family in families {
            if family == Family::Blkdebug && self.only.is_none() && !self.kept_cases(&arena)? {
                ending = Ending::Violation;
            }
            let tally = self.family(&arena, family)?;
            println!(
                "{family:<14} {:>6} histories, {:>7} steps, {:>5} refused alike, {} ended by a known bug of QEMU's, {} with a disagreement",
                self.indexes().count(),
                tally.steps,
                tally.refused,
                tally.known,
                tally.disagreements.len()
            );
            for (index, lines) in tally.disagreements.iter().take(10) {
                for line in lines.iter().take(4) {
                    println!("  history {index}: {line}");
                }
                let seed = self.seed;
                println!(
                    "    again: cargo xtask differential --seed {seed} --family {family} --only {index}"
                );
            }
            if !tally.disagreements.is_empty() {
                ending = Ending::Violation;
            }
        }
        Ok(ending)
    }

    /// Carries out the cases of the corpus; tells whether both sides agree in all of them.
    fn kept_cases(&self, arena: &Arena) -> Result<bool, Refusal> {
        let cases = faults::kept(&self.corpus)?;
        let mut failed = 0;
        for case in &cases {
            let place = format!("blkdebug-{}", case.name);
            let outcome = faults::carry_out(arena, &place, case)?;
            if !outcome.disagreements.is_empty() {
                failed += 1;
                println!("  {}: {}", case.name, outcome.disagreements.join("; "));
            }
        }
        let folder = self.corpus.display();
        println!(
            "{folder}: {} cases, {failed} with a disagreement",
            cases.len()
        );
        Ok(failed == 0)
    }

    fn indexes(&self) -> std::ops::Range<u64> {
        self.only
            .map_or(0..self.histories, |only| only..only.saturating_add(1))
    }

    fn family(&self, arena: &Arena, family: Family) -> Result<Tally, Refusal> {
        let cores = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let jobs = self.jobs.unwrap_or_else(cores).max(1);
        let indexes = self.indexes();
        let next = AtomicU64::new(indexes.start);
        let tally = Mutex::new(Tally::default());
        let prng = Prng::from_seed(self.seed).fork(&family.to_string());
        let work = || -> Result<(), Refusal> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= indexes.end {
                    return Ok(());
                }
                let prng = prng.fork_indexed("history", index);
                let place = format!("{family}-{index}");
                let outcome = if family == Family::Blkdebug {
                    faults::carry_out(arena, &place, &faults::draw(&prng))?
                } else {
                    let history = history::draw(&prng, family);
                    arena
                        .carry_out(&place, &history, &mut prng.fork("sides"))
                        .map_err(|error| Refusal::new(format!("history {index}: {error}")))?
                };
                let mut tally = tally.lock().expect("no worker panics");
                tally.add(index, outcome);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("no worker panics"))
        })?;
        let mut tally = tally.into_inner().expect("no worker panics");
        tally.disagreements.sort_unstable();
        Ok(tally)
    }
}

impl Tally {
    fn add(&mut self, index: u64, outcome: Outcome) {
        self.steps += outcome.steps;
        self.refused += outcome.refused;
        self.known += u64::from(outcome.known.is_some());
        if !outcome.disagreements.is_empty() {
            self.disagreements.push((index, outcome.disagreements));
        }
    }
}
