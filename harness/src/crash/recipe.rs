//! Which survivors to try at a cut, level by level.
//!
//! A plan is a list of small recipes; [`Kitchen::prepare`] turns one into survivors. The contract
//! decides which requests are free to be lost at all.

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use blkdebug::mask::{SectorMask, Shape};

use super::Class;
use super::cuts::{Cut, Scope};
use super::durability::{Standing, Tail, Trust};
use super::explore::Budget;
use super::state::{Fate, Length, Level, Part, Survivors};

/// With more free requests than this, pairs are left to sampling.
const MOST_FOR_PAIRS: usize = 48;
/// So many of a level's recipes are tried at one cut of a disk that lies: nearly everything is volatile there, and the
/// states of one cut are mostly those of its neighbours.
const MOST_FOR_LIES: usize = 4;

/// What becomes of the requests that a recipe does not speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Kept,
    Lost,
}

/// How to tear a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Shape(Shape),
    Drawn,
}

/// One choice of survivors. Numbers are places among the free requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipe {
    /// The first so many survive.
    Prefix(usize),
    /// Of a disk's completed requests the first so many survive, and nothing in flight; of the other disks
    /// nothing or everything.
    Completed(Disk, usize, Rest),
    /// All of one disk survives, and nothing of the others.
    OnlyDisk(Disk),
    /// Nothing of one disk survives, and all of the others.
    AllButDisk(Disk),
    /// One survives.
    Only(usize),
    /// One is lost.
    AllBut(usize),
    /// Two survive.
    OnlyTwo(usize, usize),
    /// Two are lost.
    AllButTwo(usize, usize),
    /// Every content survives, and of a disk's lengths those up to this many bytes.
    LengthsTo(Disk, u64),
    /// Every content survives, and no length.
    NoLengths,
    /// No content survives, and every length.
    OnlyLengths,
    /// Nothing survives but the length of one.
    OnlyLengthOf(usize),
    /// One leaves garbage.
    Garbage(usize, Rest),
    /// The first so many survive, and of these one is lost.
    Without(usize, usize),
    /// The same for a drawn pair.
    WithoutDrawn,
    /// The survivors of this number, if each request is a digit.
    Number(u64),
    /// A sampled subset.
    Sample,
    /// One is torn.
    Tear(usize, How, Rest),
    /// One has garbage in these sectors, and the others as asked.
    Spoil(usize, How, Rest),
    /// Some are torn, some lost.
    TearSample,
}

/// The draw function that an explorer was given: any number below its argument, which is not 0.
pub(super) type Draw<'d> = dyn FnMut(u64) -> u64 + 'd;

/// What the levels need to know of a cut.
#[derive(Debug)]
pub(super) struct Kitchen {
    contract: Contract,
    slots: Vec<Slot>,
    /// Places among the survivors of those that may be lost.
    free: Vec<usize>,
    /// The place among the free of the request that must leave something.
    newest: Option<usize>,
    every: Scope,
    trust: Trust,
}

/// A volatile request.
#[derive(Debug)]
struct Slot {
    disk: Disk,
    in_flight: bool,
    class: Class,
    sectors: usize,
    advisory: bool,
    lost: Part,
    whole: Part,
    /// Where it ends, in bytes, or would set the length.
    end: u64,
}

impl Kitchen {
    pub(super) fn new(cut: &Cut<'_>, contract: Contract) -> Self {
        let frontier = &cut.frontier;
        let slots: Vec<Slot> = frontier
            .volatile()
            .map(|tail| Slot::of(tail, frontier.entry(tail).op.offset()))
            .collect();
        let free: Vec<usize> = (0..slots.len())
            .filter(|place| is_torn_apart(contract) || slots[*place].in_flight)
            .collect();
        let newest = match cut.scope {
            Scope::Newest(id) => free
                .iter()
                .position(|place| slots[*place].lost.request == id),
            Scope::Full | Scope::Shallow => None,
        };
        Self {
            contract,
            slots,
            free,
            newest,
            every: cut.scope,
            trust: frontier.trust(),
        }
    }

    /// The recipes of a level at this cut.
    pub(super) fn plan(&self, level: Level, budget: &Budget, draws: bool) -> Vec<Recipe> {
        let mut plan = self.plan_all(level, budget, draws);
        if self.contract == Contract::Liar && plan.len() > MOST_FOR_LIES {
            // Not the first so many at every cut.
            let step = plan.len().div_ceil(MOST_FOR_LIES);
            let offset = self.slots.len() % step;
            plan = plan.into_iter().skip(offset).step_by(step).collect();
        }
        plan
    }

    fn plan_all(&self, level: Level, budget: &Budget, draws: bool) -> Vec<Recipe> {
        let deep = self.every != Scope::Shallow;
        match level {
            Level::Prefix => self.prefixes(),
            Level::Single => self.singles(),
            Level::Pair if deep => self.pairs(),
            Level::Without if deep => self.withouts(budget, draws),
            Level::Every if deep => self.numbers(budget),
            Level::Sampled if deep && draws => self.samples(budget),
            Level::Torn if deep && self.contract >= Contract::EpochTorn => {
                self.tears(budget, draws)
            }
            Level::Pair
            | Level::Without
            | Level::Every
            | Level::Sampled
            | Level::Torn
            | Level::Given => Vec::new(),
        }
    }

    fn prefixes(&self) -> Vec<Recipe> {
        let n = self.free.len();
        let mut plan = vec![Recipe::Prefix(n)];
        if self.newest.is_none() {
            plan.extend((0..n).map(Recipe::Prefix));
            if self.contract == Contract::Prefix {
                plan.extend(self.completed());
            }
        }
        plan.extend(self.whole_disks());
        if is_torn_apart(self.contract) && self.places().any(|place| self.slots[place].has_length())
        {
            plan.extend([Recipe::NoLengths, Recipe::OnlyLengths]);
        }
        plan
    }

    /// The prefixes of each disk's ordered cache.
    fn completed(&self) -> Vec<Recipe> {
        let disks = self.disks(|slot| !slot.in_flight);
        let several = disks.len() > 1;
        let mut plan = Vec::new();
        for disk in disks {
            let mine = |slot: &&Slot| slot.disk == disk && !slot.in_flight;
            let count = self.slots.iter().filter(mine).count();
            plan.extend((0..count).map(|count| Recipe::Completed(disk, count, Rest::Lost)));
            if several {
                plan.extend((0..count).map(|count| Recipe::Completed(disk, count, Rest::Kept)));
            }
        }
        plan
    }

    /// Where several disks have something to lose: all of one, and all but one.
    fn whole_disks(&self) -> Vec<Recipe> {
        let disks = self.disks(|_| true);
        if disks.len() < 2 || !is_torn_apart(self.contract) {
            return Vec::new();
        }
        let newest = self.newest.map(|newest| self.slots[self.free[newest]].disk);
        let only = disks
            .iter()
            .copied()
            .filter(|disk| newest.is_none_or(|newest| newest == *disk));
        let but = disks.iter().copied().filter(|disk| newest != Some(*disk));
        only.map(Recipe::OnlyDisk)
            .chain(but.map(Recipe::AllButDisk))
            .collect()
    }

    /// The disks that have such requests.
    fn disks(&self, such: impl Fn(&Slot) -> bool) -> Vec<Disk> {
        let has = |disk: &Disk| {
            self.slots
                .iter()
                .any(|slot| slot.disk == *disk && such(slot))
        };
        Disk::ALL.into_iter().filter(has).collect()
    }

    fn singles(&self) -> Vec<Recipe> {
        let n = self.free.len();
        let mut plan = Vec::new();
        for k in 0..n {
            if self.newest.is_none_or(|newest| newest == k) {
                plan.push(Recipe::Only(k));
            }
            if self.newest != Some(k) {
                plan.push(Recipe::AllBut(k));
            }
        }
        if !is_torn_apart(self.contract) {
            return plan;
        }
        for (k, place) in self.places().enumerate() {
            let slot = &self.slots[place];
            let alone = self.newest.is_none_or(|newest| newest == k);
            if slot.has_length() {
                plan.push(Recipe::LengthsTo(slot.disk, slot.end));
                plan.extend(alone.then_some(Recipe::OnlyLengthOf(k)));
            }
            if self.may_spoil(slot) {
                plan.push(Recipe::Garbage(k, Rest::Kept));
                plan.extend(alone.then_some(Recipe::Garbage(k, Rest::Lost)));
            }
        }
        plan
    }

    fn pairs(&self) -> Vec<Recipe> {
        let n = self.free.len();
        if n > MOST_FOR_PAIRS {
            return Vec::new();
        }
        let pairs = (0..n).flat_map(|b| (0..b).map(move |a| (a, b)));
        let mut plan = Vec::new();
        for (a, b) in pairs {
            let has_newest = self.newest.is_some_and(|newest| newest == a || newest == b);
            if self.newest.is_none() || has_newest {
                plan.push(Recipe::OnlyTwo(a, b));
            }
            if !has_newest {
                plan.push(Recipe::AllButTwo(a, b));
            }
        }
        plan
    }

    /// Prefixes without one of their requests. Where the newest must be left, the prefix is everything, and lacking
    /// one is for [`Self::singles`]; so it is with the last of a prefix.
    fn withouts(&self, budget: &Budget, draws: bool) -> Vec<Recipe> {
        let n = self.free.len();
        if self.newest.is_some() || n < 3 {
            return Vec::new();
        }
        if n > MOST_FOR_PAIRS {
            let drawn = if draws { budget.samples } else { 0 };
            return (0..drawn).map(|_| Recipe::WithoutDrawn).collect();
        }
        (2..n)
            .flat_map(|count| (0..count - 1).map(move |lost| Recipe::Without(count, lost)))
            .collect()
    }

    /// Whether a request may leave garbage.
    fn may_spoil(&self, slot: &Slot) -> bool {
        slot.advisory || self.contract.destroys() && slot.sectors > 0
    }

    fn numbers(&self, budget: &Budget) -> Vec<Recipe> {
        match self.combinations(budget) {
            Some(combinations) => (0..combinations).map(Recipe::Number).collect(),
            None => Vec::new(),
        }
    }

    fn samples(&self, budget: &Budget) -> Vec<Recipe> {
        if self.free.len() < 3 || self.combinations(budget).is_some() {
            return Vec::new();
        }
        (0..budget.samples).map(|_| Recipe::Sample).collect()
    }

    fn tears(&self, budget: &Budget, draws: bool) -> Vec<Recipe> {
        let mut plan = Vec::new();
        let drawn = if draws { budget.torn_masks } else { 0 };
        for (k, place) in self.places().enumerate() {
            if self.slots[place].sectors < 2 {
                continue;
            }
            let hows = Shape::ALL
                .into_iter()
                .map(How::Shape)
                .chain((0..drawn).map(|_| How::Drawn));
            for how in hows {
                plan.push(Recipe::Tear(k, how, Rest::Kept));
                if self.newest.is_none_or(|newest| newest == k) {
                    plan.push(Recipe::Tear(k, how, Rest::Lost));
                }
            }
            if self.contract.destroys() {
                let shapes = Shape::ALL.into_iter().map(How::Shape);
                plan.extend(shapes.map(|how| Recipe::Spoil(k, how, Rest::Kept)));
            }
        }
        if draws && !plan.is_empty() {
            plan.extend((0..budget.samples).map(|_| Recipe::TearSample));
        }
        plan
    }

    /// How many survivors there are, requests whole, or `None` where that exceeds the budget.
    fn combinations(&self, budget: &Budget) -> Option<u64> {
        let most = 1_u64.checked_shl(budget.every_parts).unwrap_or(u64::MAX);
        self.places()
            .try_fold(1_u64, |product, place| {
                product.checked_mul(self.radix(&self.slots[place]))
            })
            .filter(|combinations| *combinations <= most)
    }

    fn radix(&self, slot: &Slot) -> u64 {
        if is_torn_apart(self.contract) {
            self.content_radix(slot) * slot.length_radix()
        } else {
            2
        }
    }

    fn content_radix(&self, slot: &Slot) -> u64 {
        match (slot.sectors, self.may_spoil(slot)) {
            (0, _) => 1,
            (_, false) => 2,
            (_, true) => 3,
        }
    }

    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.free.iter().copied()
    }

    /// Fills in the survivors of a recipe. `false` where the newest request would leave nothing,
    /// which an earlier cut has seen.
    pub(super) fn prepare(
        &self,
        recipe: Recipe,
        survivors: &mut Survivors,
        draw: &mut Draw<'_>,
    ) -> bool {
        if survivors.parts().len() != self.slots.len() {
            let whole = self.slots.iter().map(|slot| slot.whole.clone());
            *survivors = Survivors::from_parts(whole.collect()).with_trust(self.trust);
        }
        let parts = survivors.parts_mut();
        for (part, slot) in parts.iter_mut().zip(&self.slots) {
            part.clone_from(&slot.whole);
        }
        self.fill(recipe, parts, draw);
        self.newest
            .is_none_or(|newest| !parts[self.free[newest]].is_lost())
    }

    fn fill(&self, recipe: Recipe, parts: &mut [Part], draw: &mut Draw<'_>) {
        match recipe {
            Recipe::Prefix(count) => self.keep(parts, |k| k < count),
            Recipe::Completed(disk, count, rest) => {
                let mut mine = 0;
                for (place, slot) in self.slots.iter().enumerate() {
                    let kept = if slot.disk != disk {
                        rest == Rest::Kept
                    } else if slot.in_flight {
                        false
                    } else {
                        mine += 1;
                        mine <= count
                    };
                    if !kept {
                        parts[place].clone_from(&slot.lost);
                    }
                }
            }
            Recipe::OnlyDisk(disk) => self.keep(parts, |k| self.disk_of(k) == disk),
            Recipe::AllButDisk(disk) => self.keep(parts, |k| self.disk_of(k) != disk),
            Recipe::Only(a) => self.keep(parts, |k| k == a),
            Recipe::AllBut(a) => self.keep(parts, |k| k != a),
            Recipe::OnlyTwo(a, b) => self.keep(parts, |k| k == a || k == b),
            Recipe::AllButTwo(a, b) => self.keep(parts, |k| k != a && k != b),
            Recipe::LengthsTo(disk, bytes) => {
                self.lengths(parts, |slot| slot.disk != disk || slot.end <= bytes);
            }
            Recipe::NoLengths => self.lengths(parts, |_| false),
            Recipe::OnlyLengths => {
                self.keep(parts, |_| false);
                self.lengths(parts, |_| true);
            }
            Recipe::OnlyLengthOf(a) => {
                self.keep(parts, |_| false);
                parts[self.free[a]].length = Length::Kept;
            }
            Recipe::Garbage(a, rest) => {
                self.keep(parts, |k| k == a || rest == Rest::Kept);
                parts[self.free[a]].content = self.slots[self.free[a]].garbage();
            }
            Recipe::Without(count, lost) => self.keep(parts, |k| k < count && k != lost),
            Recipe::WithoutDrawn => {
                let count = 2 + below(draw, self.free.len() - 1);
                let lost = below(draw, count - 1);
                self.keep(parts, |k| k < count && k != lost);
            }
            Recipe::Number(number) => self.digits(parts, number),
            Recipe::Sample => self.sample(parts, draw),
            Recipe::Tear(a, how, rest) => {
                self.keep(parts, |k| k == a || rest == Rest::Kept);
                parts[self.free[a]].content = self.slots[self.free[a]].torn(how, draw);
            }
            Recipe::Spoil(a, how, rest) => {
                self.keep(parts, |k| k == a || rest == Rest::Kept);
                parts[self.free[a]].content = self.slots[self.free[a]].spoilt(how, draw);
            }
            Recipe::TearSample => self.tear_sample(parts, draw),
        }
    }

    /// The disk of a free request.
    fn disk_of(&self, k: usize) -> Disk {
        self.slots[self.free[k]].disk
    }

    fn keep(&self, parts: &mut [Part], kept: impl Fn(usize) -> bool) {
        for (k, place) in self.places().enumerate() {
            if !kept(k) {
                parts[place].clone_from(&self.slots[place].lost);
            }
        }
    }

    fn lengths(&self, parts: &mut [Part], kept: impl Fn(&Slot) -> bool) {
        for place in self.places() {
            let slot = &self.slots[place];
            if slot.has_length() {
                parts[place].length = if kept(slot) {
                    Length::Kept
                } else {
                    Length::Lost
                };
            }
        }
    }

    fn digits(&self, parts: &mut [Part], mut number: u64) {
        for place in self.places() {
            let slot = &self.slots[place];
            let radix = self.radix(slot);
            let digit = number % radix;
            number /= radix;
            if !is_torn_apart(self.contract) {
                if digit == 0 {
                    parts[place].clone_from(&slot.lost);
                }
                continue;
            }
            let content = digit % self.content_radix(slot);
            parts[place].content = match content {
                0 if slot.sectors > 0 => Fate::Lost,
                2 => slot.garbage(),
                _ => Fate::Whole,
            };
            if slot.has_length() {
                let lost = digit / self.content_radix(slot) == 0;
                parts[place].length = if lost { Length::Lost } else { Length::Kept };
                if slot.sectors == 0 && lost {
                    parts[place].content = Fate::Lost;
                }
            }
        }
    }

    fn sample(&self, parts: &mut [Part], draw: &mut Draw<'_>) {
        if !(draw(3) > 0 && self.split_classes(parts, draw)) {
            self.sample_size(parts, draw);
        }
        if let Some(newest) = self.newest {
            let place = self.free[newest];
            parts[place].clone_from(&self.slots[place].whole);
        }
        if is_torn_apart(self.contract) {
            self.sample_lengths(parts, draw);
        }
    }

    /// Keeps one class of one disk, drops another, and tosses a coin for the rest. `false` where there is
    /// but one class.
    fn split_classes(&self, parts: &mut [Part], draw: &mut Draw<'_>) -> bool {
        let class_of = |slot: &Slot| (slot.disk, slot.class);
        let mut classes: Vec<(Disk, Class)> = self
            .places()
            .map(|place| class_of(&self.slots[place]))
            .collect();
        classes.sort_unstable();
        classes.dedup();
        if classes.len() < 2 {
            return false;
        }
        let kept = classes.swap_remove(below(draw, classes.len()));
        let dropped = classes[below(draw, classes.len())];
        for place in self.places() {
            let slot = &self.slots[place];
            let class = class_of(slot);
            let lost = class == dropped || class != kept && draw(2) == 0;
            if lost {
                parts[place].clone_from(&slot.lost);
            }
        }
        true
    }

    /// Drops a number of requests, each number as likely as any other.
    fn sample_size(&self, parts: &mut [Part], draw: &mut Draw<'_>) {
        let mut places = self.free.clone();
        let dropped = below(draw, places.len() + 1);
        for index in 0..dropped {
            let other = index + below(draw, places.len() - index);
            places.swap(index, other);
            parts[places[index]].clone_from(&self.slots[places[index]].lost);
        }
    }

    fn sample_lengths(&self, parts: &mut [Part], draw: &mut Draw<'_>) {
        let ends: Vec<(Disk, u64)> = self
            .places()
            .filter(|place| self.slots[*place].has_length())
            .map(|place| (self.slots[place].disk, self.slots[place].end))
            .collect();
        if !ends.is_empty() {
            match draw(4) {
                0 => self.lengths(parts, |_| true),
                1 => {
                    let (disk, bytes) = ends[below(draw, ends.len())];
                    self.lengths(parts, |slot| slot.disk != disk || slot.end <= bytes);
                }
                _ => {}
            }
        }
        for place in self.places() {
            if self.slots[place].advisory && draw(3) == 0 {
                parts[place].content = self.slots[place].garbage();
            }
        }
    }

    fn tear_sample(&self, parts: &mut [Part], draw: &mut Draw<'_>) {
        for (k, place) in self.places().enumerate() {
            let slot = &self.slots[place];
            match draw(4) {
                0 if self.newest != Some(k) => parts[place].clone_from(&slot.lost),
                0 | 1 => {}
                2 if self.contract.destroys() && slot.sectors > 0 => {
                    parts[place].content = slot.spoilt(How::Drawn, draw);
                }
                _ if slot.sectors < 2 => {}
                _ => {
                    let shape = usize::try_from(draw(16))
                        .ok()
                        .and_then(|n| Shape::ALL.get(n));
                    let how = shape.map_or(How::Drawn, |shape| How::Shape(*shape));
                    parts[place].content = slot.torn(how, draw);
                }
            }
        }
        self.sample_lengths(parts, draw);
    }
}

impl Slot {
    fn of(tail: &Tail, offset: u64) -> Self {
        let sectors = tail.sector_count();
        let end = if sectors == 0 {
            offset
        } else {
            tail.sectors.end * engine::device::SECTOR_BYTES
        };
        Self {
            disk: tail.disk,
            in_flight: tail.standing == Standing::InFlight,
            class: tail.class,
            sectors,
            advisory: tail.advisory,
            lost: Part::lost(tail),
            whole: Part::whole(tail),
            end,
        }
    }

    fn has_length(&self) -> bool {
        self.whole.length == Length::Kept
    }

    fn length_radix(&self) -> u64 {
        if self.has_length() { 2 } else { 1 }
    }

    fn garbage(&self) -> Fate {
        Fate::Scattered {
            asked: SectorMask::none(self.sectors),
            garbage: SectorMask::from_fn(self.sectors, |_| true),
        }
    }

    /// Garbage in some sectors; the others as asked, or where that is drawn as before.
    fn spoilt(&self, how: How, draw: &mut Draw<'_>) -> Fate {
        let garbage = match how {
            How::Shape(shape) => SectorMask::of_shape(shape, self.sectors),
            How::Drawn => SectorMask::from_fn(self.sectors, |_| draw(2) == 0),
        };
        let asked = SectorMask::from_fn(self.sectors, |sector| {
            !garbage.contains(sector) && (how != How::Drawn || draw(2) == 0)
        });
        Fate::Scattered { asked, garbage }
    }

    fn torn(&self, how: How, draw: &mut Draw<'_>) -> Fate {
        let drawn = |draw: &mut Draw<'_>| SectorMask::from_fn(self.sectors, |_| draw(2) == 0);
        match how {
            How::Shape(shape) => Fate::Torn(SectorMask::of_shape(shape, self.sectors)),
            How::Drawn if self.advisory => Fate::Scattered {
                asked: drawn(draw),
                garbage: drawn(draw),
            },
            How::Drawn => Fate::Torn(drawn(draw)),
        }
    }
}

/// Whether the contract lets completed requests go one by one, and lengths apart from contents.
fn is_torn_apart(contract: Contract) -> bool {
    contract >= Contract::Epoch
}

fn below(draw: &mut Draw<'_>, len: usize) -> usize {
    let bound = u64::try_from(len).expect("a length fits 64 bits");
    usize::try_from(draw(bound)).expect("less than a length")
}
