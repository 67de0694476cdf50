//! Every workload up to a length, over a fixed set of images and operations, and every crash state of each.
//!
//! A drawn workload shows that something is wrong; that nothing is wrong takes all of them. The space is finite and
//! numbered: a [`Space`] is grounds (images with their disks) times sequences of operations. Each workload is lived
//! through once. Of its crash states those are judged that its last operation brings about: the others are the
//! states of the workload without it, which has a number of its own. What was covered ends in a
//! [`crate::report::Certificate`].
//!
//! Workloads are done in blocks. A shard is every n-th block; counts and digests of blocks add up in any order, so
//! that the shards of a space come to what one process would have come to.

pub mod alphabet;
mod ground;
mod schedules;
mod tally;

use std::fmt;

use blkdebug::contract::Contract;
use engine::defect::Flaw;
use rayon::prelude::*;

use crate::campaign::{Found, NoThreads, Proceed, threads};
use crate::run::{Case, Effort, From, Outcome, Reach, Schedule, run};
use crate::workload::ops::Operation;
use crate::workload::shape::{Management, Scenario, Start};

pub use ground::{GeometrySet, Ground};
pub use schedules::Overlap;
use schedules::Schedules;
pub use tally::Tally;

/// So many workloads are done and counted together.
pub const BLOCK_WORKLOADS: u64 = 512;
/// So many blocks are done before somebody is asked whether to go on.
const BATCH_BLOCKS: usize = 8;
/// A cut with more classes of states is not visited completely, which the certificate says.
const MOST_CLASSES: u64 = 1 << 14;
/// One workload in so many is done twice, and must come to the same.
const TWICE_EVERY: u64 = 1000;

/// What is to be covered.
#[derive(Clone, Debug)]
pub struct Space {
    set: GeometrySet,
    length: u32,
    contract: Contract,
    overlap: Overlap,
    repairs: Repairs,
    flaw: Option<Flaw>,
    lots: Vec<Lot>,
}

/// A ground and the operations on it.
#[derive(Clone, Debug)]
struct Lot {
    ground: Ground,
    operations: Vec<Operation>,
    /// How many workloads there are.
    workloads: u64,
}

/// What happens to repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repairs {
    /// They run to their end.
    Whole,
    /// Power is lost inside each, and inside the repair of what that leaves, and once more.
    Interrupted,
}

/// A part of the blocks of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// The shard that is spelled `number/of`.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, of) = text.split_once('/')?;
        let (number, of) = (number.parse().ok()?, of.parse().ok()?);
        (1..=of).contains(&number).then_some(Self { number, of })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Where a search of a shard stands: what to begin it with again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The blocks of the shard that are done, counted from its first.
    pub blocks_done: u64,
    /// What they came to.
    pub tally: Tally,
}

/// What came of a search.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// How far it got.
    pub standing: Standing,
    /// What was found, in order of workloads.
    pub found: Vec<Found>,
    /// Why some states could not be judged; the first few.
    pub not_measured: Vec<String>,
    /// How the harness contradicted itself; the first few.
    pub broken: Vec<String>,
}

impl Space {
    /// Every workload of up to `length` operations on the images of a set.
    pub fn new(set: GeometrySet, length: u32) -> Self {
        let lots = set.grounds().into_iter().map(|ground| {
            let operations = alphabet::operations(&ground.image);
            let count = wide(operations.len());
            let workloads = (0..=length).map(|length| count.pow(length)).sum();
            Lot {
                ground,
                operations,
                workloads,
            }
        });
        Self {
            set,
            length,
            contract: Contract::Epoch,
            overlap: Overlap::NONE,
            repairs: Repairs::Whole,
            flaw: None,
            lots: lots.collect(),
        }
    }

    /// The same on a disk that may do this at a power loss; it is `epoch` otherwise.
    #[must_use]
    pub fn with_contract(self, contract: Contract) -> Self {
        Self { contract, ..self }
    }

    /// The same with power losses inside the repairs, or without.
    #[must_use]
    pub fn with_repairs(self, repairs: Repairs) -> Self {
        Self { repairs, ..self }
    }

    /// The same with operations in flight beside each other.
    #[must_use]
    pub fn with_overlap(self, overlap: Overlap) -> Self {
        Self { overlap, ..self }
    }

    /// The same with something wrong in the engine on purpose.
    #[must_use]
    pub fn with_flaw(self, flaw: Option<Flaw>) -> Self {
        Self { flaw, ..self }
    }

    /// The name of the set of images.
    pub fn set(&self) -> GeometrySet {
        self.set
    }

    /// How many operations a workload has at most.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// What the disk may do at a power loss.
    pub fn contract(&self) -> Contract {
        self.contract
    }

    /// What happens to repairs.
    pub fn repairs(&self) -> Repairs {
        self.repairs
    }

    /// How operations overlap.
    pub fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// The images, each with the operations that workloads on it are made of.
    pub fn grounds(&self) -> impl Iterator<Item = (&Ground, &[Operation])> {
        self.lots.iter().map(|lot| (&lot.ground, &*lot.operations))
    }

    /// How many workloads there are.
    pub fn workloads(&self) -> u64 {
        self.lots.iter().map(|lot| lot.workloads).sum()
    }

    /// How many blocks of workloads there are.
    pub fn blocks(&self) -> u64 {
        self.workloads().div_ceil(BLOCK_WORKLOADS)
    }

    /// How many blocks of those a shard has.
    pub fn blocks_of(&self, shard: Shard) -> u64 {
        (self.blocks() + shard.of - shard.number) / shard.of
    }

    /// The workload of that number.
    ///
    /// # Panics
    /// Where there are not that many.
    pub fn scenario(&self, number: u64) -> Scenario {
        let mut rest = number;
        let mut lots = self.lots.iter();
        let lot = lots.find(|lot| {
            let here = rest < lot.workloads;
            rest -= if here { 0 } else { lot.workloads };
            here
        });
        let lot = lot.expect("the number is of a workload of the space");
        Scenario {
            image: Start::New(lot.ground.image.clone()),
            caches: lot.ground.caches,
            options: lot.ground.options,
            operations: alphabet::numbered(lot.sequence(rest), lot.ground.image.snapshots),
            concurrency: self.overlap.requests,
            management: if self.overlap.requests > 1 {
                Management::Overlapping
            } else {
                Management::Alone
            },
            contract: self.contract,
            faults: Vec::new(),
            transitions: Vec::new(),
            flaw: self.flaw,
        }
    }

    /// The numbers of the workloads of a block of a shard.
    fn block(&self, shard: Shard, index: u64) -> std::ops::Range<u64> {
        let first = (index * shard.of + shard.number - 1) * BLOCK_WORKLOADS;
        first..self.workloads().min(first + BLOCK_WORKLOADS)
    }
}

impl Lot {
    /// The operations of a workload of this ground: shorter ones first, then in order of the alphabet.
    fn sequence(&self, number: u64) -> Vec<Operation> {
        let count = wide(self.operations.len());
        let mut rest = number;
        let mut length = 0;
        while rest >= count.pow(length) {
            rest -= count.pow(length);
            length += 1;
        }
        let digits = (0..length)
            .rev()
            .map(|place| rest / count.pow(place) % count);
        let at = |digit| usize::try_from(digit).expect("less than a length");
        digits.map(|digit| self.operations[at(digit)]).collect()
    }
}

/// What is judged of a workload: all that its last operation brings about.
fn effort(repairs: Repairs) -> Effort {
    Effort {
        reach: Reach::Classes {
            from: From::LastOperation,
            most: MOST_CLASSES,
        },
        repair_every: (repairs == Repairs::Interrupted).then_some(1),
        serve_every: None,
        ..Effort::campaign()
    }
}

/// Covers a shard of a space from where `standing` left it. After every few blocks `between` is told where it
/// stands, and decides. A search ends early with the blocks in which something was found.
pub fn search(
    space: &Space,
    shard: Shard,
    standing: Standing,
    jobs: usize,
    between: &mut dyn FnMut(&Standing) -> Proceed,
) -> Result<Search, NoThreads> {
    let threads = threads(jobs)?;
    let mut search = Search {
        standing,
        ..Search::default()
    };
    let blocks = space.blocks_of(shard);
    while search.standing.blocks_done < blocks {
        let start = search.standing.blocks_done;
        let end = blocks.min(start + wide(BATCH_BLOCKS));
        let batch: Vec<Block> = threads.install(|| {
            let blocks = (start..end).into_par_iter();
            blocks
                .map(|index| Block::judge(space, space.block(shard, index)))
                .collect()
        });
        for block in batch {
            search.fold(block);
        }
        // Whoever goes on from what `between` is told must not go on behind what went wrong.
        let wrong = !search.found.is_empty() || !search.broken.is_empty();
        if wrong || between(&search.standing) == Proceed::Stop {
            break;
        }
    }
    Ok(search)
}

/// A block of workloads, judged.
#[derive(Default)]
struct Block {
    tally: Tally,
    found: Vec<Found>,
    not_measured: Vec<String>,
    broken: Vec<String>,
}

impl Block {
    fn judge(space: &Space, numbers: std::ops::Range<u64>) -> Self {
        let mut block = Self::default();
        for number in numbers {
            block.workload(space, number);
        }
        block
    }

    fn workload(&mut self, space: &Space, number: u64) {
        let scenario = space.scenario(number);
        if let Err(bad) = scenario.check() {
            self.broken.push(format!("workload {number}: {bad}"));
            return;
        }
        let mut schedules = Schedules::of(space.overlap);
        while let Some(begun) = schedules.next() {
            let case = Case {
                scenario: scenario.clone(),
                schedule: Schedule::Given(begun.clone()),
            };
            let outcome = match run(&case, &effort(space.repairs)) {
                Ok(outcome) => outcome,
                Err(panic) => {
                    self.broken
                        .push(format!("workload {number}: the harness {panic}"));
                    return;
                }
            };
            let twice = begun.is_empty() && number % TWICE_EVERY == TWICE_EVERY / 2;
            if twice
                && run(&case, &effort(space.repairs)).map(|again| again.digest)
                    != Ok(outcome.digest)
            {
                let how = "came to something else when it was done again";
                self.broken.push(format!("workload {number} {how}"));
            }
            schedules.ran(&begun, &outcome.choices, &outcome.widths);
            self.tally.add_schedule(number, &begun, &outcome);
            self.note(number, &case.scenario, outcome);
        }
    }

    /// Keeps what is to be told of a run.
    fn note(&mut self, number: u64, scenario: &Scenario, outcome: Outcome) {
        let told = |text: String| format!("workload {number}: {text}");
        self.not_measured
            .extend(outcome.not_measured.into_iter().map(told));
        self.broken.extend(outcome.broken.into_iter().map(told));
        let choices = outcome.choices;
        self.found
            .extend(outcome.findings.into_iter().map(|finding| Found {
                run: number,
                scenario: scenario.clone(),
                choices: choices.clone(),
                finding,
            }));
    }
}

impl Search {
    fn fold(&mut self, block: Block) {
        const KEPT: usize = 8;
        self.standing.blocks_done += 1;
        self.standing.tally.add(&block.tally);
        self.found.extend(block.found);
        self.not_measured.extend(block.not_measured);
        self.broken.extend(block.broken);
        self.not_measured.truncate(KEPT);
        self.broken.truncate(KEPT);
    }
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests;
