//! Every event, failed in every way: with each cause, once and for good, on a whole image and on one that lost power.
//!
//! A cell is a few drawn workloads that come to the event. Each is lived through with its requests failing there, once or
//! for the rest of the operation; then the operation is asked again, the image is closed and opened, and the operation
//! asked once more. Everything is judged, the crash states that the run could have left included.

use std::collections::BTreeSet;

use blkdebug::disks::Disk;
use blkdebug::rule::{During, Fault, Repeat, Rule};
use engine::device::{Cause, Event, OpKind};

use super::draw::{CAUSES, insert};
use super::events::{Raised, raised};
use super::oracle::{happening, is_advice, is_put_off};
use crate::campaign::Found;
use crate::crash::explore::Budget;
use crate::prng::Prng;
use crate::run::{Case, Effort, Life, Schedule, live, run};
use crate::workload::generate;
use crate::workload::ops::{Answer, Operation};
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

/// So many workloads that come to an event make a cell.
const WANTED: usize = 2;
/// So many are drawn in order to find them.
const DRAWN: u64 = 400;

/// What an image had behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Past {
    /// It was whole.
    Whole,
    /// Whoever had it open lost power with the dirty bit set: opening it repairs it.
    PowerLoss,
}

/// One way to let an event fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What the image had behind it.
    pub past: Past,
    /// Why requests fail.
    pub cause: Cause,
    /// How often.
    pub repeat: Repeat,
}

/// What became of an operation whose request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Became {
    /// It said so.
    Told,
    /// The image could not be opened, and said so.
    NotOpened,
    /// The request was advice, and nothing hangs on it.
    Advice,
    /// What failed was put off: the operation had kept its promise already.
    PutOff,
    /// Asked again, it succeeded.
    Again,
    /// It succeeded once the image had been opened again.
    Reopened,
    /// It was refused then for what had come before: a snapshot that is there already, and the like.
    Refused,
}

/// What came of an event in a way.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// What became of the operations.
    pub became: BTreeSet<Became>,
    /// How many workloads there were.
    pub runs: usize,
    /// How many requests failed.
    pub hits: u64,
    /// How many crash states were judged.
    pub states: u64,
    /// What is wrong.
    pub found: Vec<Found>,
    /// How the harness contradicted itself, or could not judge.
    pub broken: Vec<String>,
}

impl Way {
    /// Each of them, in the order of the table.
    pub fn all() -> Vec<Self> {
        let mut ways = Vec::new();
        for past in [Past::Whole, Past::PowerLoss] {
            for cause in CAUSES {
                for repeat in [Repeat::Once, Repeat::Always] {
                    ways.push(Self {
                        past,
                        cause,
                        repeat,
                    });
                }
            }
        }
        ways
    }
}

impl Became {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::NotOpened => "not opened",
            Self::Advice => "advice",
            Self::PutOff => "put off",
            Self::Again => "again",
            Self::Reopened => "reopened",
            Self::Refused => "refused",
        }
    }
}

/// What workloads are fixed to that are to come to rare events.
const FIXED: [(&[Event], &str); 8] = [
    (
        &[Event::CowRead, Event::L2AllocCowRead],
        "snapshots=on,cluster_size=1k",
    ),
    (&[Event::ReadBackingAio], "backing=raw"),
    (
        &[Event::ReadCompressed, Event::WriteCompressed],
        "compression=zlib",
    ),
    (
        &[
            Event::RefblockAlloc,
            Event::RefblockAllocHookup,
            Event::RefblockAllocWrite,
        ],
        "room=block",
    ),
    (
        &[
            Event::RefblockAllocWriteBlocks,
            Event::RefblockAllocWriteTable,
            Event::RefblockAllocSwitchTable,
        ],
        "manage=amend",
    ),
    (
        &[Event::ReftableGrow],
        "room=table,compression=off,encrypt=off,snapshots=off,manage=off",
    ),
    (&[Event::EmptyImagePrepare], "manage=empty"),
    (
        &[
            Event::L1GrowAllocTable,
            Event::L1GrowWriteTable,
            Event::L1GrowActivateTable,
        ],
        "cluster_size=512",
    ),
];

/// What drawn workloads are fixed to so that they come to an event soon.
fn pins(event: Event, past: Past) -> Pins {
    let mut fixed = FIXED.iter().filter(|(events, _)| events.contains(&event));
    let options = fixed.next().map_or("", |(_, options)| options);
    let after = match past {
        Past::Whole => "abandoned=off",
        Past::PowerLoss => "version=3,abandoned=on",
    };
    let text = format!("{options},{after},chain=off,kill=off,concurrency=1,overlap=off");
    Pins::parse(&text).expect("the options are constant")
}

/// Lets an event fail in one way.
pub fn cell(event: Event, way: Way) -> Cell {
    let mut cell = Cell::default();
    let pins = pins(event, way.past);
    for seed in 0..DRAWN {
        if cell.runs == WANTED {
            break;
        }
        let prng = Prng::from_seed(seed).fork(event.name());
        let drawn = generate::scenario(&prng, &pins);
        if let Some(scenario) = with_fault(event, way, &drawn) {
            judge(&mut cell, seed, &scenario);
        }
    }
    cell
}

/// A workload in which the event fails, and after which what failed is asked for again; `None` where it does not come to
/// that event.
fn with_fault(event: Event, way: Way, drawn: &Scenario) -> Option<Scenario> {
    let mut rule = Rule::new(Fault::Fail(way.cause));
    match raised(event) {
        // It is raised on the image, and what is read then is another disk.
        _ if event == Event::ReadBackingAio => {
            rule.disk = Disk::Backing;
            rule.kind = Some(OpKind::Read);
        }
        Raised::WithRequest => rule.event = Some(event),
        Raised::Alone => rule.after = Some(event),
        Raised::Never(_) => return None,
    }
    if way.past == Past::Whole {
        // The image is open; what is met in opening it is met where it is opened again.
        rule.during.from = Some(0);
    }
    let mut scenario = drawn.clone();
    if scenario.operations.last() != Some(&Operation::Reopen) {
        scenario.operations.push(Operation::Reopen);
    }
    scenario.faults = vec![rule.clone()];
    let life = live(&case(&scenario)).ok()?;
    let (_, hit) = life.injected.first()?;
    let failed = hit
        .operation
        .map(|at| usize::try_from(at).unwrap_or(usize::MAX));
    let place = failed.map_or(0, |at| at + 1);
    let again = failed.map_or(Operation::Reopen, |at| scenario.operations[at]);
    let whole = live(&case(&Scenario {
        faults: Vec::new(),
        ..scenario.clone()
    }));
    let is_refused = |at: usize| {
        let life = whole.as_ref().ok();
        let it = life.and_then(|life| life.lived.history.get(at));
        let answer = it.and_then(|it| it.completed);
        !matches!(answer, Some((_, Answer::Done)))
    };
    if failed.is_some_and(is_refused) {
        // It would have been refused all the same.
        return None;
    }
    rule.repeat = way.repeat;
    if way.repeat == Repeat::Always {
        rule.during = During {
            until: Some(u64::try_from(place).expect("a workload is short")),
            ..rule.during
        };
    }
    scenario.faults = vec![rule];
    insert(&mut scenario, place, again);
    for operation in [
        Operation::Reopen,
        again,
        Operation::Flush,
        Operation::Reopen,
    ] {
        let end = scenario.operations.len();
        insert(&mut scenario, end, operation);
    }
    Some(scenario)
}

fn case(scenario: &Scenario) -> Case {
    Case {
        scenario: scenario.clone(),
        schedule: Schedule::Given(Vec::new()),
    }
}

/// A few crash states of each run: the campaigns look at many.
fn effort() -> Effort {
    let campaign = Effort::campaign();
    Effort {
        states: Budget {
            states: 60,
            ..campaign.states
        },
        inner_states: Budget {
            states: 6,
            ..campaign.inner_states
        },
        repair_every: Some(16),
        depth: 1,
        serve_every: Some(16),
        ..campaign
    }
}

fn judge(cell: &mut Cell, seed: u64, scenario: &Scenario) {
    let case = case(scenario);
    let (Ok(life), outcome) = (live(&case), run(&case, &effort())) else {
        return;
    };
    if life.injected.is_empty() {
        return;
    }
    cell.runs += 1;
    cell.hits += life.faults;
    cell.became.extend(became(&life));
    match outcome {
        Err(panic) => cell.broken.push(format!("the harness {panic}")),
        Ok(outcome) => {
            cell.states += outcome.counts.states_judged;
            cell.broken.extend(outcome.broken);
            cell.broken.extend(outcome.not_measured);
            for finding in outcome.findings {
                cell.found.push(Found {
                    run: seed,
                    scenario: scenario.clone(),
                    choices: outcome.choices.clone(),
                    finding,
                });
            }
        }
    }
}

/// What became of the operations that were hit.
pub fn became(life: &Life) -> BTreeSet<Became> {
    let mut all = BTreeSet::new();
    for (disk, injected) in &life.injected {
        let Some(it) = injected.operation.and_then(|id| happening(life, id)) else {
            all.insert(Became::NotOpened);
            continue;
        };
        match it.completed {
            Some((_, Answer::Done)) if is_advice(injected, Some(it.operation)) => {
                all.insert(Became::Advice);
            }
            Some((_, Answer::Done)) if is_put_off(life, *disk, it, injected) => {
                all.insert(Became::PutOff);
            }
            Some((_, Answer::Done)) => {}
            None | Some((_, Answer::Failed)) => {
                all.insert(Became::Told);
            }
        }
    }
    let told = life.injected.iter().find_map(|(_, injected)| {
        let it = injected.operation.and_then(|id| happening(life, id))?;
        matches!(it.completed, Some((_, Answer::Failed))).then_some(it)
    });
    let Some(told) = told else {
        return all;
    };
    let mut between = false;
    let later = life.lived.history.iter().filter(|it| it.id > told.id);
    let mut last = None;
    for it in later {
        let is_done = matches!(it.completed, Some((_, Answer::Done)));
        if it.operation == told.operation {
            last = Some(if !is_done {
                Became::Refused
            } else if between {
                Became::Reopened
            } else {
                Became::Again
            });
            if is_done {
                break;
            }
        }
        between |= it.operation == Operation::Reopen;
    }
    all.extend(last);
    all
}
