//! The ways to come by the next run, and how much each is worth at present.
//!
//! At first nearly every drawn workload shows something new, and a neighbour of an earlier one shows less. Later it may be the
//! other way round, and for each way another time. So each way is taken about as often as it has lately paid: by what
//! was new, for each crash state that was judged. None is ever given up.

use crate::prng::Prng;

/// How a run is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Drawn anew.
    Drawn,
    /// The workload of a kept run, changed a little.
    Neighbour,
    /// The workload of a kept run, under a schedule that is changed a little.
    Schedule,
    /// A kept run, and the crash states around one of its own.
    Toggle,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Drawn, Self::Neighbour, Self::Schedule, Self::Toggle];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drawn => "drawn",
            Self::Neighbour => "neighbour",
            Self::Schedule => "schedule",
            Self::Toggle => "toggle",
        }
    }

    /// The place in [`Self::ALL`].
    fn place(self) -> usize {
        match self {
            Self::Drawn => 0,
            Self::Neighbour => 1,
            Self::Schedule => 2,
            Self::Toggle => 3,
        }
    }

    /// In a thousand: what a way is taken to be worth of which not enough is known. While drawn workloads show something
    /// new every time, to go on from them is to go where one has nearly been.
    fn untried(self) -> u64 {
        match self {
            Self::Drawn => 1000,
            Self::Neighbour | Self::Schedule | Self::Toggle => 50,
        }
    }

    /// In a thousand: what a way is worth at least, beside the best.
    fn least(self) -> u64 {
        match self {
            // Nothing but a drawn workload leads away from what is known.
            Self::Drawn => 250,
            Self::Neighbour | Self::Schedule | Self::Toggle => 50,
        }
    }
}

/// What came of a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Yield {
    /// Runs.
    pub runs: u64,
    /// Of them, those that showed something new.
    pub kept: u64,
    /// What they cost, and what was new, of late: what is long ago counts less.
    pub late: Late,
}

/// What lately came of a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// What it cost, in crash states.
    pub cost: u64,
    /// What was new.
    pub gain: u64,
}

/// What came of each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Yields([Yield; 4]);

/// What a way has cost that was tried enough to be judged by what it yields.
const TRIED: u64 = 4_000;
/// Of so much, half is forgotten.
const LONG_AGO: u64 = 40_000;
/// What a run costs besides its states.
const RUN_COST: u64 = 20;

impl Yields {
    /// What came of a way.
    pub fn of(&self, way: Way) -> Yield {
        self.0[way.place()]
    }

    /// The same, as it was written down.
    pub fn set(&mut self, way: Way, yielded: Yield) {
        self.0[way.place()] = yielded;
    }

    /// Takes note of a run that judged so many states, and of what was new about it.
    pub fn learn(&mut self, way: Way, states: u64, gain: u64) {
        let Yield { runs, kept, late } = &mut self.0[way.place()];
        *runs += 1;
        *kept += u64::from(gain > 0);
        late.cost += states.saturating_add(RUN_COST);
        late.gain += gain;
        if late.cost > LONG_AGO {
            late.cost /= 2;
            late.gain /= 2;
        }
    }

    /// In a thousand: what each way is worth beside the best.
    fn weights(&self) -> [u64; 4] {
        const SCALE: u64 = 1 << 20;
        let rate = |late: Late| late.gain.saturating_mul(SCALE) / late.cost.max(1);
        let tried = self.0.iter().filter(|it| it.late.cost >= TRIED);
        let best = tried.map(|it| rate(it.late)).max().unwrap_or(0);
        Way::ALL.map(|way| {
            let late = self.of(way).late;
            if late.cost < TRIED || best == 0 {
                return way.untried();
            }
            (rate(late).saturating_mul(1000) / best).clamp(way.least(), 1000)
        })
    }

    /// The way to take next.
    pub fn choose(&self, draw: &mut Prng) -> Way {
        Way::ALL[draw.weighted(&self.weights())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pays_is_done_more_often_and_nothing_is_given_up() {
        let mut yields = Yields::default();
        for _ in 0..200 {
            yields.learn(Way::Drawn, 100, 1);
            yields.learn(Way::Neighbour, 100, 4);
            yields.learn(Way::Schedule, 100, 0);
            yields.learn(Way::Toggle, 100, 2);
        }
        assert_eq!(yields.weights(), [250, 1000, 50, 500]);
        let mut draw = Prng::from_seed(1);
        let mut taken = [0; 4];
        for _ in 0..1800 {
            taken[yields.choose(&mut draw).place()] += 1;
        }
        assert!(taken[1] > 800 && taken[2] > 20, "{taken:?}");
        // Times change.
        for _ in 0..2000 {
            yields.learn(Way::Drawn, 100, 1);
            yields.learn(Way::Neighbour, 100, 0);
        }
        assert_eq!(yields.weights()[..2], [500, 50]);
    }

    #[test]
    fn what_was_never_tried_is_tried() {
        let mut yields = Yields::default();
        assert_eq!(yields.weights(), [1000, 50, 50, 50]);
        for _ in 0..100 {
            yields.learn(Way::Drawn, 100, 1);
            yields.learn(Way::Toggle, 100, 2);
        }
        assert_eq!(yields.weights(), [500, 50, 50, 1000]);
    }
}
