//! Every event, failed in every way: with each cause, with what failed having happened all the same, and with flushes that
//! lose what they were to make durable; once and for good; on a whole image and on one that lost power.
//!
//! A cell is a few drawn workloads that come to the event. *Once*: its first request fails; the operation is asked again,
//! the workload goes on, and at the end the image is closed, opened, and the operation asked once more. *For good*: its
//! requests fail from there on, through the operation asked again, through the rest of the workload, through closing and
//! opening the image, and through the operation asked once more; then the fault is taken away, and the same follows as
//! after one that was there once. Everything is judged, the crash states that the run could have left included.

use std::collections::BTreeMap;

use blkdebug::disks::Disk;
use blkdebug::rule::{Fault, Repeat, Rule};
use engine::device::{Cause, Event, OpKind};
use rayon::prelude::*;

use super::draw::{CAUSES, insert};
use super::events::{Raised, raised};
use super::oracle::{happening, is_advice, is_put_off};
use crate::campaign::{Found, NoThreads, threads};
use crate::crash::explore::Budget;
use crate::prng::Prng;
use crate::run::{Case, Effort, Life, Schedule, live, run};
use crate::workload::generate;
use crate::workload::ops::{Answer, Happening, Operation};
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

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// With this cause, and nothing of it happens.
    With(Cause),
    /// What is written happens all the same.
    ButHappens,
    /// What a flush was to make durable is gone.
    AndForgets,
}

/// One way to let an event fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What the image had behind it.
    pub past: Past,
    /// How requests fail.
    pub fails: Fails,
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
    /// Asked again while requests still failed, it failed again, and said so.
    ToldAgain,
    /// Asked again while requests still failed, it succeeded: it came to none of them.
    Around,
    /// Other operations succeeded while requests still failed.
    OthersGoOn,
    /// Other operations failed while requests still failed.
    OthersFail,
    /// The image that could not be opened was opened once the fault was gone.
    Opened,
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
    /// What became of the operations, and in how many workloads it was just that.
    pub became: BTreeMap<Vec<Became>, usize>,
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
            let causes = CAUSES.map(Fails::With).into_iter();
            for fails in causes.chain([Fails::ButHappens, Fails::AndForgets]) {
                for repeat in [Repeat::Once, Repeat::Always] {
                    ways.push(Self {
                        past,
                        fails,
                        repeat,
                    });
                }
            }
        }
        ways
    }

    /// Whether requests of an event can fail so: a read does not happen all the same, and only a flush forgets.
    pub fn applies_to(self, event: Event) -> bool {
        let reads = matches!(
            event,
            Event::L2Load
                | Event::L2AllocCowRead
                | Event::ReadAio
                | Event::ReadBackingAio
                | Event::ReadCompressed
                | Event::CowRead
                | Event::ReftableLoad
                | Event::RefblockLoad
        );
        let flushes = matches!(event, Event::FlushToOs | Event::FlushToDisk);
        match self.fails {
            Fails::With(_) => true,
            Fails::ButHappens => !reads && !flushes,
            Fails::AndForgets => flushes,
        }
    }

    fn fault(self) -> Fault {
        match self.fails {
            Fails::With(cause) => Fault::Fail(cause),
            Fails::ButHappens => Fault::Persist(Cause::IO, None),
            Fails::AndForgets => Fault::Forget(Cause::IO),
        }
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
            Self::ToldAgain => "told again",
            Self::Around => "around",
            Self::OthersGoOn => "others go on",
            Self::OthersFail => "others fail",
            Self::Opened => "opened",
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

/// Lets each of these events fail in every way, on so many threads, in the order of [`Way::all`].
pub fn cells(events: &[Event], jobs: usize) -> Result<Vec<Vec<Cell>>, NoThreads> {
    let ways = Way::all();
    let pairs: Vec<(Event, Way)> = events
        .iter()
        .flat_map(|event| ways.iter().map(|way| (*event, *way)))
        .collect();
    let cells: Vec<Cell> = threads(jobs)?.install(|| {
        let cells = pairs.into_par_iter();
        cells.map(|(event, way)| cell(event, way)).collect()
    });
    Ok(cells.chunks(ways.len()).map(<[Cell]>::to_vec).collect())
}

/// Lets an event fail in one way.
pub fn cell(event: Event, way: Way) -> Cell {
    let mut cell = Cell::default();
    if !way.applies_to(event) {
        return cell;
    }
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

/// The rule by which an event fails; `None` where it is never raised.
fn rule(event: Event, way: Way) -> Option<Rule> {
    let mut rule = Rule::new(way.fault());
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
    Some(rule)
}

/// Whether an operation of a workload does not succeed on a device on which nothing fails.
fn is_refused(scenario: &Scenario, at: usize) -> bool {
    let whole = live(&case(&Scenario {
        faults: Vec::new(),
        ..scenario.clone()
    }));
    let it = whole.as_ref().ok();
    let it = it.and_then(|life| life.lived.history.get(at));
    let answer = it.and_then(|it| it.completed);
    !matches!(answer, Some((_, Answer::Done)))
}

fn append(scenario: &mut Scenario, operations: &[Operation]) {
    for operation in operations {
        let end = scenario.operations.len();
        insert(scenario, end, *operation);
    }
}

/// A workload in which the event fails, and after which what failed is asked for again; `None` where it does not come to
/// that event.
fn with_fault(event: Event, way: Way, drawn: &Scenario) -> Option<Scenario> {
    let mut rule = rule(event, way)?;
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
    if failed.is_some_and(|at| is_refused(&scenario, at)) {
        // It would have been refused all the same.
        return None;
    }
    rule.repeat = way.repeat;
    let before = scenario.operations.len();
    insert(&mut scenario, place, again);
    if scenario.operations.len() == before {
        // What it asked for cannot be asked for twice.
        return None;
    }
    if way.repeat == Repeat::Always {
        append(&mut scenario, &[Operation::Reopen, again]);
        let gone = scenario.operations.len();
        rule.during.until = Some(u64::try_from(gone).expect("a workload is short"));
        append(&mut scenario, &[again]);
    }
    scenario.faults = vec![rule];
    let last = [
        Operation::Reopen,
        again,
        Operation::Flush,
        Operation::Reopen,
    ];
    append(&mut scenario, &last);
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
    let lasting = scenario.faults.iter();
    let lasting = lasting.filter(|rule| rule.repeat == Repeat::Always);
    let until = lasting.filter_map(|rule| rule.during.until).max();
    let became = became(&life, until.unwrap_or(0));
    *cell.became.entry(became).or_default() += 1;
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

/// What became of the operation that was hit first, in the order in which it did. Requests fail until operation `until`.
pub fn became(life: &Life, until: u64) -> Vec<Became> {
    let mut all = Vec::new();
    let Some((disk, first)) = life.injected.first() else {
        return all;
    };
    let it = first.operation.and_then(|id| happening(life, id));
    let is_done = |it: &Happening| matches!(it.completed, Some((_, Answer::Done)));
    all.push(match it {
        None => Became::NotOpened,
        Some(it) if is_done(it) && is_advice(first, Some(it.operation)) => Became::Advice,
        Some(it) if is_done(it) && is_put_off(life, *disk, it, first) => Became::PutOff,
        Some(_) => Became::Told,
    });
    let asked = it.map_or(Operation::Reopen, |it| it.operation);
    let later = life.lived.history.iter();
    let later: Vec<&Happening> = later
        .filter(|other| it.is_none_or(|it| other.id > it.id))
        .collect();
    let (under, after): (Vec<&Happening>, Vec<&Happening>) =
        later.into_iter().partition(|it| u64::from(it.id.0) < until);
    all.extend(while_it_lasts(&under, asked));
    if matches!(all[0], Became::Advice | Became::PutOff) {
        return all;
    }
    all.extend(once_it_is_gone(&after, asked, it.is_none()));
    all
}

/// What became of everything that was asked while requests still failed.
fn while_it_lasts(under: &[&Happening], asked: Operation) -> Vec<Became> {
    let is_done = |it: &&&Happening| matches!(it.completed, Some((_, Answer::Done)));
    let mut all = Vec::new();
    let again = under.iter().filter(|it| it.operation == asked);
    let (done, failed): (Vec<&&Happening>, Vec<&&Happening>) = again.partition(is_done);
    if !failed.is_empty() {
        all.push(Became::ToldAgain);
    }
    if !done.is_empty() {
        all.push(Became::Around);
    }
    let others = under.iter().filter(|it| it.operation != asked);
    let (done, failed): (Vec<&&Happening>, Vec<&&Happening>) = others.partition(is_done);
    if !done.is_empty() {
        all.push(Became::OthersGoOn);
    }
    if !failed.is_empty() {
        all.push(Became::OthersFail);
    }
    all
}

/// What became of the operation once nothing failed any more.
fn once_it_is_gone(after: &[&Happening], asked: Operation, was_shut: bool) -> Option<Became> {
    let mut between = false;
    let mut last = None;
    for it in after {
        let is_done = matches!(it.completed, Some((_, Answer::Done)));
        if it.operation == asked {
            last = Some(match is_done {
                false => Became::Refused,
                true if was_shut => Became::Opened,
                true if between => Became::Reopened,
                true => Became::Again,
            });
            if is_done {
                break;
            }
        }
        between |= it.operation == Operation::Reopen;
    }
    last
}
