//! The crash states of a recording that are worth judging, cheap and telling ones first.
//!
//! First every cut is visited by prefixes and single requests. Then the costlier levels take turns,
//! so that a budget that ends early has seen something of each.

use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::record::{Recording, Tick};

use super::cuts::Plan;
use super::dedupe::Visited;
use super::durability::Frontier;
use super::filter::{Filter, Place, Sight};
use super::footprint::Footprint;
use super::forecast::Forecast;
use super::recipe::{Draw, Kitchen, Recipe};
use super::state::{CrashState, Level, Survivors};

/// How much to explore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The most states to hand out.
    pub states: u64,
    /// Every subset is visited where there are at most two to the power of this.
    pub every_parts: u32,
    /// Sampled subsets a cut, where there are more.
    pub samples: u32,
    /// Random masks for each torn request and cut.
    pub torn_masks: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            states: u64::MAX,
            every_parts: 6,
            samples: 16,
            torn_masks: 2,
        }
    }
}

/// How much was explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Cuts that were visited, if only to find that nothing is new there.
    pub cuts: u64,
    /// Survivors that were tried.
    pub generated: u64,
    /// States that differed, by content or by what may be expected of them.
    pub distinct: u64,
    /// Of those, states that others stood for.
    pub spared: u64,
    /// Of those, states that others stood for and that were handed out all the same.
    pub audited: u64,
    /// Requests behind the settled part of a cut, as often as they were looked at: once for each state, and some more for
    /// each cut.
    pub tails: u64,
}

/// An iterator of the distinct crash states of a recording.
pub struct Explorer<'a> {
    contract: Contract,
    budget: Budget,
    cuts: Plan<'a>,
    /// What is known of each cut that was opened: every level comes by.
    known: Vec<Option<Rc<Known>>>,
    tails: u64,
    keys: Vec<Option<u128>>,
    visited: Visited,
    draw: Option<Box<Draw<'a>>>,
    expectation: Box<dyn FnMut(Tick) -> u128 + 'a>,
    passes: Vec<Pass>,
    turn: usize,
    handed_out: u64,
    filter: Option<Filter>,
}

/// A way through all cuts by some levels.
struct Pass {
    levels: &'static [Level],
    /// The next cut to open.
    next: usize,
    open: Option<Open>,
}

/// A cut while a pass is at it.
struct Open {
    cut: usize,
    known: Rc<Known>,
    plan: std::vec::IntoIter<(Level, Recipe)>,
    survivors: Survivors,
}

/// What is known of a cut before any of its states is built.
struct Known {
    kitchen: Kitchen,
    forecast: Forecast,
    place: Option<Rc<Place>>,
}

impl Known {
    /// What the filter wants to see of a state, which is built only where it must; `None` where states of this cut cannot
    /// be told by sectors.
    fn sight(&self, frontier: &Frontier<'_>, survivors: &Survivors) -> Option<Sight> {
        let at = Rc::clone(self.place.as_ref()?);
        let built = || {
            let state = CrashState::at(frontier, survivors.clone(), Level::Given);
            Forecast::difference_of(&state, &at)
        };
        let forecast = self.forecast.difference(frontier, survivors);
        // To build a state costs more than to leave it out, so one forecast in sixty-four is held to its word.
        assert!(
            forecast
                .as_ref()
                .is_none_or(|it| !it.is_sample() || *it == built()),
            "the forecast is of this state"
        );
        Some(Sight {
            cut: frontier.cut(),
            difference: forecast.unwrap_or_else(built),
            at,
        })
    }
}

/// What is known of a cut with a longer tail is found out anew by each pass: with as many cuts as that it would fill the
/// memory, and to clear it takes longer.
const MOST_KEPT: u64 = 256;

/// To find out what is known of a cut is as much as to look at so many of its states.
const LOOKS_AT_A_CUT: u64 = 16;

fn tail_len(frontier: &Frontier<'_>) -> u64 {
    u64::try_from(frontier.tail().len()).expect("requests can be counted")
}

const FIRST: &[Level] = &[Level::Prefix, Level::Single];
const THEN: [&[Level]; 5] = [
    &[Level::Pair],
    &[Level::Without],
    &[Level::Every],
    &[Level::Sampled],
    &[Level::Torn],
];

impl<'a> Explorer<'a> {
    /// The states of a recording that `contract` allows. `promises` are the moments at which the
    /// guest was promised something: acknowledged flushes, above all.
    pub fn new(
        recording: &'a Recording,
        contract: Contract,
        budget: Budget,
        promises: &[Tick],
    ) -> Self {
        let cuts = match contract {
            Contract::Liar => Plan::of_lies(recording, promises),
            Contract::Perfect
            | Contract::Prefix
            | Contract::Epoch
            | Contract::EpochTorn
            | Contract::EpochTornGarbage => Plan::new(recording, promises),
        };
        // What disks destroy is new in no state of the cheap levels: all levels take turns from the start.
        let levels = if contract.destroys() { &THEN[..] } else { &[] };
        let passes = std::iter::once(FIRST).chain(levels.iter().copied());
        Self {
            contract,
            budget,
            known: vec![None; cuts.len()],
            tails: 0,
            keys: vec![None; cuts.len()],
            cuts,
            visited: Visited::default(),
            draw: None,
            expectation: Box::new(|_| 0),
            passes: passes.map(Pass::new).collect(),
            turn: 0,
            handed_out: 0,
            filter: None,
        }
    }

    /// The same, sampling with a function that draws any number below its argument. Without one
    /// nothing is sampled.
    #[must_use]
    pub fn with_draw(mut self, draw: impl FnMut(u64) -> u64 + 'a) -> Self {
        self.draw = Some(Box::new(draw));
        self
    }

    /// The same, with a key for what may be expected at each cut, as [`Visited`] wants it. Without
    /// one the same is expected everywhere.
    #[must_use]
    pub fn with_expectation(mut self, expectation: impl FnMut(Tick) -> u128 + 'a) -> Self {
        self.expectation = Box::new(expectation);
        self
    }

    /// The same without states that differ from one that passed only where its judgement read nothing.
    /// [`Self::learn`] wants to know what each read that is handed out.
    #[must_use]
    pub fn with_filter(mut self) -> Self {
        self.filter = Some(Filter::default());
        self
    }

    /// Takes note of what judging the state read that was handed out last; `None` where it did not pass. Whether the filter
    /// is right about it: it may be one that would have been left out, but for a look at whether that holds.
    pub fn learn(&mut self, footprint: Option<Footprint>) -> bool {
        let filter = self.filter.as_mut();
        filter.is_none_or(|filter| filter.learn(footprint))
    }

    /// How much was explored so far.
    pub fn explored(&self) -> Explored {
        let visited = self.keys.iter().flatten().count();
        Explored {
            cuts: u64::try_from(visited).expect("cuts can be counted"),
            generated: self.visited.generated(),
            distinct: self.visited.distinct(),
            spared: self.filter.as_ref().map_or(0, |filter| filter.spared),
            audited: self.filter.as_ref().map_or(0, |filter| filter.audited),
            tails: self.tails,
        }
    }

    /// The next new state of a pass, or `None` at its end.
    fn advance(&mut self, pass: &mut Pass) -> Option<CrashState> {
        loop {
            if pass.open.is_none() {
                pass.open = Some(self.open(pass)?);
            }
            let state = pass.open.as_mut().and_then(|open| self.next_at(open));
            if state.is_some() {
                return state;
            }
            pass.open = None;
        }
    }

    /// What is known of a cut, for as long as it is worth its memory.
    fn known(&mut self, index: usize) -> Rc<Known> {
        if let Some(known) = &self.known[index] {
            return Rc::clone(known);
        }
        let cut = self.cuts.at(index);
        let known = Rc::new(Known {
            kitchen: Kitchen::new(cut, self.contract),
            forecast: Forecast::of(&cut.frontier),
            place: Place::of(index, &cut.frontier).map(Rc::new),
        });
        self.tails += LOOKS_AT_A_CUT * tail_len(&cut.frontier);
        if tail_len(&cut.frontier) <= MOST_KEPT {
            self.known[index] = Some(Rc::clone(&known));
        }
        known
    }

    /// Opens the next cut that has anything for a pass.
    fn open(&mut self, pass: &mut Pass) -> Option<Open> {
        while pass.next < self.cuts.len() {
            let index = pass.next;
            pass.next += 1;
            let known = self.known(index);
            let recipes = |level: Level| {
                let plan = known.kitchen.plan(level, &self.budget, self.draw.is_some());
                plan.into_iter().map(move |recipe| (level, recipe))
            };
            let plan: Vec<(Level, Recipe)> =
                pass.levels.iter().copied().flat_map(recipes).collect();
            if !plan.is_empty() {
                return Some(Open {
                    cut: index,
                    plan: plan.into_iter(),
                    survivors: Survivors::default(),
                    known,
                });
            }
        }
        None
    }

    /// The next new state at an open cut.
    fn next_at(&mut self, open: &mut Open) -> Option<CrashState> {
        let frontier = &self.cuts.at(open.cut).frontier;
        let cut = frontier.cut();
        let key = *self.keys[open.cut].get_or_insert_with(|| (self.expectation)(cut));
        let mut undrawn = |_: u64| unreachable!("without a draw function nothing is sampled");
        for (level, recipe) in open.plan.by_ref() {
            let draw: &mut Draw<'_> = match &mut self.draw {
                Some(draw) => &mut **draw,
                None => &mut undrawn,
            };
            if !open
                .known
                .kitchen
                .prepare(recipe, &mut open.survivors, draw)
            {
                continue;
            }
            self.tails += tail_len(frontier);
            let hash = open.known.forecast.hash(frontier, &open.survivors);
            if self.visited.first_visit(hash, key, cut) {
                let lets_through = self.filter.as_mut().is_none_or(|filter| {
                    let Some(sight) = open.known.sight(frontier, &open.survivors) else {
                        filter.look_away();
                        return true;
                    };
                    filter.lets_through(hash, sight, key)
                });
                if lets_through {
                    let state = CrashState::at(frontier, open.survivors.clone(), level);
                    assert_eq!(state.hash, hash, "the forecast is of this state");
                    return Some(state);
                }
                let spared = self.filter.as_ref().map_or(0, |filter| filter.spared);
                if is_spent(&self.budget, self.handed_out, spared) {
                    return None;
                }
            }
        }
        None
    }
}

impl Iterator for Explorer<'_> {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        loop {
            let spared = self.filter.as_ref().map_or(0, |filter| filter.spared);
            if self.passes.is_empty() || is_spent(&self.budget, self.handed_out, spared) {
                return None;
            }
            let mut passes = std::mem::take(&mut self.passes);
            let turn = self.turn % passes.len();
            let state = self.advance(&mut passes[turn]);
            self.passes = passes;
            if state.is_some() {
                self.handed_out += 1;
                self.turn = turn + 1;
                return state;
            }
            let ended = self.passes.remove(turn);
            self.turn = turn;
            if ended.levels == FIRST && !self.contract.destroys() {
                self.passes = THEN.into_iter().map(Pass::new).collect();
            }
        }
    }
}

/// Whether a budget is used up. To leave a state out costs little, and not nothing.
fn is_spent(budget: &Budget, handed_out: u64, spared: u64) -> bool {
    const SPARED_FOR_ONE: u64 = 16;
    handed_out + spared / SPARED_FOR_ONE >= budget.states
}

impl Pass {
    fn new(levels: &'static [Level]) -> Self {
        Self {
            levels,
            next: 0,
            open: None,
        }
    }
}
