//! Every crash state of a recording, class by class.
//!
//! The states of a cut are as many as there are subsets of what is volatile there, times the lengths that the file may
//! have: too many to build. Most of them differ in nothing that anybody reads. So a state is judged first, and what
//! the judgement read (its [`Footprint`]) says which requests mattered; the state stands for all that treat these in
//! the same way. Then each request that mattered is treated otherwise, with those before it as they were, and so on:
//! the classes are disjoint, and together they are all states.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use blkdebug::mask::SectorMask;
use blkdebug::record::{Recording, Tick};
use engine::device::ContentHash;
use xxhash_rust::xxh3::xxh3_128;

use super::cuts::{Cut, Plan, Scope};
use super::durability::{Frontier, Tail, set_len};
use super::footprint::Footprint;
use super::forecast::Forecast;
use super::state::{CrashState, Fate, Length, Level, Part, Survivors};

/// One class in so many has another of its states judged; which, its state says.
const AUDIT_EVERY: u128 = 100;

/// How much was covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// Cuts that were visited.
    pub cuts: u64,
    /// Cuts that were given up with classes left.
    pub incomplete: u64,
    /// All states of these cuts, as far as that can be counted.
    pub states: u128,
    /// Classes, those of which the state was known from an earlier cut included.
    pub classes: u64,
    /// States that were handed out to be judged for the first time.
    pub judged: u64,
    /// States that were handed out as others of their class.
    pub audited: u64,
}

/// What is handed out.
#[derive(Debug)]
pub enum Task {
    /// A state to be judged; [`Classes::learn`] wants to know what that read.
    Judge(CrashState),
    /// Another state of the class that was judged last: it must come to the same, and [`Classes::confirms`] knows
    /// whether what judging it read is the same.
    Audit(CrashState),
}

/// The crash states of a recording on a disk that keeps any subset of whole requests, or of their sectors, and of their
/// changes of length.
pub struct Classes<'a> {
    tearing: Tearing,
    cuts: std::vec::IntoIter<Cut<'a>>,
    expectation: Box<dyn FnMut(Tick) -> u128 + 'a>,
    /// The most classes of a cut.
    most: u64,
    open: Option<Open<'a>>,
    /// What the judgement of a state read, by content and expectation.
    known: BTreeMap<u128, Rc<Footprint>>,
    covered: Covered,
}

/// A cut while it is visited.
struct Open<'a> {
    frontier: Frontier<'a>,
    key: u128,
    forecast: Forecast,
    /// What every volatile request is if it survives.
    whole: Vec<Part>,
    questions: Vec<Question>,
    /// Classes to visit: the answers that are fixed.
    todo: Vec<Vec<Option<usize>>>,
    current: Option<Current>,
    left: u64,
}

/// The state that was handed out last.
struct Current {
    fixed: Vec<Option<usize>>,
    answers: Vec<usize>,
    tag: u128,
    audit: bool,
}

/// Whether requests survive as a whole or sector by sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tearing {
    Whole,
    Torn,
}

/// Something that a power loss decides. The first answer is that what was asked has come to pass.
#[derive(Clone, Debug)]
struct Question {
    of: Of,
    disk: Disk,
    /// The sectors that hang on it; of a length, whatever is there.
    sectors: Option<Range<u64>>,
    answers: usize,
}

#[derive(Clone, Debug)]
enum Of {
    /// What became of these sectors of the request at this place: asked, lost, or garbage.
    Content(usize),
    /// What became of the request at this place that sets a length: kept or lost.
    SetLen(usize),
    /// Whether the end of the request at this place counts, where others set the length.
    End(usize),
    /// How far the file reaches: the ends that requests ask for, the furthest first, and without any of them.
    Reach(Vec<u64>),
}

const ASKED: usize = 0;
const LOST: usize = 1;
const GARBAGE: usize = 2;

impl<'a> Classes<'a> {
    /// The states of the cuts from a moment on, at most so many classes a cut; under `epoch-torn` with torn requests, and
    /// under any other contract as `epoch` has them. `expectation` names what may be expected at a cut, as
    /// [`super::dedupe::Visited`] wants it.
    ///
    /// # Panics
    /// Where the contract lets disks destroy what was durable.
    pub fn new(
        recording: &'a Recording,
        contract: Contract,
        promises: &[Tick],
        from: Tick,
        most: u64,
        expectation: impl FnMut(Tick) -> u128 + 'a,
    ) -> Self {
        let mut cuts = Plan::new(recording, promises).all();
        cuts.retain(|cut| cut.frontier.cut() >= from && cut.scope != Scope::Shallow);
        // A state that was legal at one cut is legal at a later one with the same key.
        cuts.sort_by_key(|cut| cut.frontier.cut());
        let tearing = match contract {
            Contract::EpochTorn => Tearing::Torn,
            Contract::EpochTornGarbage | Contract::Liar => {
                panic!("a judgement of what a disk destroyed does not tell what it hangs on")
            }
            Contract::Perfect | Contract::Prefix | Contract::Epoch => Tearing::Whole,
        };
        Self {
            tearing,
            cuts: cuts.into_iter(),
            expectation: Box::new(expectation),
            most,
            open: None,
            known: BTreeMap::new(),
            covered: Covered::default(),
        }
    }

    /// How much was covered so far.
    pub fn covered(&self) -> Covered {
        self.covered
    }

    /// What to judge next. What is asked for to be judged must be learnt from before.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator cannot be told what came of its items"
    )]
    pub fn next(&mut self) -> Option<Task> {
        loop {
            if let Some(twin) = self.audit() {
                return Some(Task::Audit(twin));
            }
            if self.open.as_ref().is_none_or(|open| open.todo.is_empty()) {
                let cut = self.cuts.next()?;
                self.open_cut(cut);
                continue;
            }
            if let Some(state) = self.visit() {
                return Some(Task::Judge(state));
            }
        }
    }

    fn open_cut(&mut self, cut: Cut<'a>) {
        let key = (self.expectation)(cut.frontier.cut());
        let open = Open::new(cut, self.tearing, key, self.most);
        self.covered.cuts += 1;
        self.covered.states = self.covered.states.saturating_add(open.count());
        self.open = Some(open);
    }

    /// Goes on to the next class of the open cut, and yields its state if that is not known.
    fn visit(&mut self) -> Option<CrashState> {
        let open = self.open.as_mut()?;
        let fixed = open.todo.pop()?;
        if open.left == 0 {
            self.covered.incomplete += 1;
            open.todo.clear();
            return None;
        }
        open.left -= 1;
        self.covered.classes += 1;
        let answers: Vec<usize> = fixed.iter().map(|answer| answer.unwrap_or(0)).collect();
        let survivors = open.survivors(&answers);
        let hash = open.forecast.hash(&open.frontier, &survivors);
        let tag = tag(hash, open.key);
        let known = self.known.get(&tag).cloned();
        open.current = Some(Current {
            fixed,
            answers,
            tag,
            audit: false,
        });
        if let Some(footprint) = known {
            open.branch(&footprint);
            return None;
        }
        self.covered.judged += 1;
        Some(CrashState::at(&open.frontier, survivors, Level::Every))
    }

    /// Takes note of what judging the state read that was handed out last; `None` where that is not known, and
    /// everything counts as read.
    pub fn learn(&mut self, footprint: Option<Footprint>) {
        let Some(open) = self.open.as_mut() else {
            return;
        };
        let everything = std::iter::once(0..u64::MAX).collect();
        let footprint = Rc::new(footprint.unwrap_or_else(|| Footprint::of(everything)));
        if let Some(current) = &mut open.current {
            self.known.insert(current.tag, Rc::clone(&footprint));
            current.audit = current.tag.is_multiple_of(AUDIT_EVERY);
        }
        open.branch(&footprint);
    }

    /// Whether judging the audited state that was handed out last read what judging the other of its class read. A judge
    /// that reads elsewhere has read something that it did not tell of before.
    pub fn confirms(&self, footprint: Option<&Footprint>) -> bool {
        let current = self.open.as_ref().and_then(|open| open.current.as_ref());
        let told = current.and_then(|current| self.known.get(&current.tag));
        told.map(|told| &**told) == footprint
    }

    /// Another state of the class that was judged last, if it is to be looked at and has one.
    fn audit(&mut self) -> Option<CrashState> {
        let open = self.open.as_mut()?;
        let current = open.current.as_mut().filter(|current| current.audit)?;
        current.audit = false;
        let footprint = self.known.get(&current.tag)?;
        let unread = |question: &Question| !question.is_read(footprint);
        let mut differs = false;
        let questions = open
            .questions
            .iter()
            .zip(&current.answers)
            .zip(&current.fixed);
        let answers: Vec<usize> = questions
            .map(|((question, answer), fixed)| {
                if fixed.is_some() || !unread(question) {
                    return *answer;
                }
                differs = true;
                (answer + 1) % question.answers
            })
            .collect();
        if !differs {
            return None;
        }
        self.covered.audited += 1;
        let survivors = open.survivors(&answers);
        Some(CrashState::at(&open.frontier, survivors, Level::Every))
    }
}

impl<'a> Open<'a> {
    fn new(cut: Cut<'a>, tearing: Tearing, key: u128, most: u64) -> Self {
        let Cut { frontier, scope } = cut;
        let tails: Vec<&Tail> = frontier.volatile().collect();
        let questions = questions(&frontier, tearing, &tails);
        let free = vec![None; questions.len()];
        let todo = match scope {
            Scope::Newest(id) => {
                let place = tails.iter().position(|tail| tail.request == id);
                match place {
                    Some(place) => with_newest(&questions, place, end_of(&frontier, tails[place])),
                    None => vec![free],
                }
            }
            Scope::Full | Scope::Shallow => vec![free],
        };
        Self {
            key,
            forecast: Forecast::of(&frontier),
            whole: tails.iter().map(|tail| Part::whole(tail)).collect(),
            questions,
            todo,
            current: None,
            left: most,
            frontier,
        }
    }

    /// How many states there are.
    fn count(&self) -> u128 {
        let count = |fixed: &Vec<Option<usize>>| {
            let free = fixed
                .iter()
                .zip(&self.questions)
                .filter(|(answer, _)| answer.is_none());
            free.fold(1u128, |product, (_, question)| {
                let answers = u128::try_from(question.answers).expect("a few answers");
                product.saturating_mul(answers)
            })
        };
        self.todo.iter().map(count).fold(0, u128::saturating_add)
    }

    fn survivors(&self, answers: &[usize]) -> Survivors {
        let mut parts = self.whole.clone();
        let volatile = || self.frontier.volatile().zip(0usize..);
        let mut contents: Vec<Vec<usize>> = volatile().map(|_| Vec::new()).collect();
        for (question, answer) in self.questions.iter().zip(answers) {
            match &question.of {
                // The questions of a request are in the order of its sectors, and leave none out.
                Of::Content(place) => {
                    let sectors = question.sectors.clone().unwrap_or_default();
                    contents[*place].extend(sectors.map(|_| *answer));
                }
                Of::SetLen(place) if *answer == LOST => {
                    parts[*place].content = Fate::Lost;
                    parts[*place].length = Length::Lost;
                }
                Of::End(place) if *answer == LOST => parts[*place].length = Length::Lost,
                Of::SetLen(_) | Of::End(_) => {}
                Of::Reach(ends) => {
                    let reach = ends.get(*answer).copied().unwrap_or(0);
                    for (tail, place) in volatile().filter(|(tail, _)| tail.disk == question.disk) {
                        let end = end_of(&self.frontier, tail);
                        if end.is_some_and(|end| end > reach) {
                            parts[place].length = Length::Lost;
                        }
                    }
                }
            }
        }
        for (tail, place) in volatile().filter(|(_, place)| !contents[*place].is_empty()) {
            parts[place].content = fate(&contents[place], tail);
        }
        Survivors::from_parts(parts)
    }

    /// Puts the classes on the list that differ from the current one in what was read.
    fn branch(&mut self, footprint: &Footprint) {
        let Some(current) = &self.current else {
            return;
        };
        let mut fixed = current.fixed.clone();
        for (index, question) in self.questions.iter().enumerate() {
            if fixed[index].is_some() || !question.is_read(footprint) {
                continue;
            }
            for answer in (0..question.answers).filter(|answer| *answer != current.answers[index]) {
                let mut other = fixed.clone();
                other[index] = Some(answer);
                self.todo.push(other);
            }
            fixed[index] = Some(current.answers[index]);
        }
    }
}

impl Question {
    /// Whether whoever has read so much has read what hangs on it.
    fn is_read(&self, footprint: &Footprint) -> bool {
        match &self.sectors {
            Some(sectors) if self.disk == Disk::Image => footprint.meets(sectors),
            Some(_) | None => true,
        }
    }
}

/// What is left of a request of which this became of each sector.
fn fate(sectors: &[usize], tail: &Tail) -> Fate {
    let pick = |wanted: usize| SectorMask::from_fn(sectors.len(), |at| sectors[at] == wanted);
    let all = |wanted: usize| sectors.iter().all(|answer| *answer == wanted);
    if all(ASKED) {
        Fate::Whole
    } else if all(LOST) {
        Fate::Lost
    } else if tail.advisory {
        Fate::Scattered {
            asked: pick(ASKED),
            garbage: pick(GARBAGE),
        }
    } else {
        Fate::Torn(pick(ASKED))
    }
}

/// How far the file must reach for a request, where its length hangs on that and is not set.
fn end_of(frontier: &Frontier<'_>, tail: &Tail) -> Option<u64> {
    frontier
        .entry(tail)
        .op
        .grows_to()
        .filter(|_| tail.has_length)
}

/// What a power loss decides at a cut. Where a length is set, the ends of the others are asked one by one.
fn questions(frontier: &Frontier<'_>, tearing: Tearing, tails: &[&Tail]) -> Vec<Question> {
    let mut questions = Vec::new();
    for (place, tail) in tails.iter().enumerate() {
        if set_len(&frontier.entry(tail).op).is_some() {
            questions.push(Question {
                of: Of::SetLen(place),
                disk: tail.disk,
                sectors: None,
                answers: 2,
            });
        } else {
            let asked = |sectors| Question {
                of: Of::Content(place),
                disk: tail.disk,
                sectors: Some(sectors),
                answers: if tail.advisory { 3 } else { 2 },
            };
            match tearing {
                Tearing::Whole => questions.push(asked(tail.sectors.clone())),
                Tearing::Torn => {
                    let each = tail.sectors.clone().map(|sector| sector..sector + 1);
                    questions.extend(each.map(asked));
                }
            }
        }
    }
    for disk in Disk::ALL {
        let mine = tails.iter().filter(|tail| tail.disk == disk);
        if mine
            .clone()
            .any(|tail| set_len(&frontier.entry(tail).op).is_some())
        {
            let each = tails.iter().zip(0usize..);
            let growing =
                each.filter(|(tail, _)| tail.disk == disk && end_of(frontier, tail).is_some());
            questions.extend(growing.map(|(_, place)| Question {
                of: Of::End(place),
                disk,
                sectors: None,
                answers: 2,
            }));
            continue;
        }
        let mut ends: Vec<u64> = mine.filter_map(|tail| end_of(frontier, tail)).collect();
        ends.sort_unstable_by(|one, other| other.cmp(one));
        ends.dedup();
        if !ends.is_empty() {
            questions.push(Question {
                answers: ends.len() + 1,
                of: Of::Reach(ends),
                disk,
                sectors: None,
            });
        }
    }
    questions
}

/// The classes of all states in which the request at a place left something: content, or the length of the file.
fn with_newest(questions: &[Question], place: usize, end: Option<u64>) -> Vec<Vec<Option<usize>>> {
    let mut classes = Vec::new();
    let is_of = |question: &Question| match question.of {
        Of::Content(at) | Of::SetLen(at) => at == place,
        Of::End(_) | Of::Reach(_) => false,
    };
    // Those before are lost, this one is not, and those behind may be.
    let mut class = vec![None; questions.len()];
    let mut disk = None;
    for (index, question) in questions.iter().enumerate().filter(|(_, it)| is_of(it)) {
        for answer in (0..question.answers).filter(|answer| *answer != LOST) {
            let mut this = class.clone();
            this[index] = Some(answer);
            classes.push(this);
        }
        class[index] = Some(LOST);
        disk = Some(question.disk);
    }
    let reach = |question: &Question| match (&question.of, end) {
        (Of::Reach(ends), Some(end)) if Some(question.disk) == disk => {
            ends.iter().position(|it| *it == end)
        }
        (Of::End(other), Some(_)) if *other == place => Some(0),
        _ => None,
    };
    for (index, question) in questions.iter().enumerate() {
        if let Some(answer) = reach(question) {
            let mut this = class.clone();
            this[index] = Some(answer);
            classes.push(this);
        }
    }
    classes
}

fn tag(content: ContentHash, expectation: u128) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&content.0.to_le_bytes());
    bytes[16..].copy_from_slice(&expectation.to_le_bytes());
    xxh3_128(&bytes)
}
