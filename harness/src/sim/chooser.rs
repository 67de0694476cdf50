//! Who decides what happens next: the one source of nondeterminism of a run.

use std::collections::BTreeMap;

use super::executor::TaskId;
use crate::prng::Prng;

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task that was woken goes on.
    Run(TaskId),
    /// A device request in flight completes.
    Complete {
        /// Its place among those in flight, oldest first.
        place: usize,
        /// Which it is, as long as it is in flight.
        request: RequestKey,
    },
    /// The next operation is handed to the image.
    Submit,
}

/// A request of one of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKey {
    /// The disk's place among the disks.
    pub disk: usize,
    /// The request's number on it.
    pub request: usize,
}

/// Decides among the steps that are possible.
///
/// The steps come in a fixed order: runnable tasks oldest first, then requests in flight oldest
/// first, then the submission. The first is the plainest: whoever always takes it runs one operation
/// after another, each to its end.
pub trait Chooser {
    /// The index into `enabled` of the step to take. There are at least two to choose from.
    fn choose(&mut self, enabled: &[Step]) -> usize;
}

/// Always the plainest step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl Chooser for Fifo {
    fn choose(&mut self, _: &[Step]) -> usize {
        0
    }
}

/// Any step, with a taste of its own for each kind: drawn once, so that some schedules pile
/// operations up and others let requests linger.
#[derive(Debug)]
pub struct Random {
    prng: Prng,
    run_weight: u64,
    complete_weight: u64,
    submit_weight: u64,
}

impl Random {
    /// A chooser that draws from `prng`.
    pub fn new(mut prng: Prng) -> Self {
        const TASTES: [u64; 4] = [1, 3, 10, 40];
        Self {
            run_weight: *prng.pick(&TASTES),
            complete_weight: *prng.pick(&TASTES),
            submit_weight: *prng.pick(&TASTES),
            prng,
        }
    }
}

impl Chooser for Random {
    fn choose(&mut self, enabled: &[Step]) -> usize {
        let weights: Vec<u64> = enabled
            .iter()
            .map(|step| match step {
                Step::Run(_) => self.run_weight,
                Step::Complete { .. } => self.complete_weight,
                Step::Submit => self.submit_weight,
            })
            .collect();
        self.prng.weighted(&weights)
    }
}

/// Probabilistic concurrency testing: everybody who can take a step has a priority, drawn when they are first seen, and
/// the highest goes on; at a few moments, drawn too, whoever is the highest falls below everybody. A schedule that
/// needs so many orderings to go wrong is met with a probability that does not vanish with the length of the run, which
/// a walk of fair coins cannot say. (Burckhardt and others, "A Randomized Scheduler with Probabilistic Guarantees of
/// Finding Bugs", ASPLOS 2010.)
#[derive(Debug)]
pub struct Pct {
    prng: Prng,
    priorities: BTreeMap<Actor, u64>,
    /// The choices at which the highest falls, the last one first.
    falls: Vec<u64>,
    taken: u64,
}

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Actor {
    Task(TaskId),
    Request(RequestKey),
    Guest,
}

impl Actor {
    fn of(step: Step) -> Self {
        match step {
            Step::Run(task) => Self::Task(task),
            Step::Complete { request, .. } => Self::Request(request),
            Step::Submit => Self::Guest,
        }
    }
}

impl Pct {
    /// One step in so many, about, is a choice that a run has.
    const SPANS: [u64; 4] = [8, 32, 128, 512];
    /// Priorities that are drawn are above those of whoever has fallen.
    const DRAWN: u64 = 1 << 32;

    /// A chooser that draws from `prng`, for orderings of that depth: the number of falls and one.
    pub fn new(mut prng: Prng, depth: u32) -> Self {
        let span = *prng.pick(&Self::SPANS);
        let mut falls: Vec<u64> = (1..depth).map(|_| prng.below(span)).collect();
        falls.sort_unstable_by(|one, other| other.cmp(one));
        Self {
            prng,
            priorities: BTreeMap::new(),
            falls,
            taken: 0,
        }
    }

    fn highest(&mut self, enabled: &[Step]) -> usize {
        let Self {
            prng, priorities, ..
        } = self;
        let mut priority = |step: &Step| {
            let drawn = priorities.entry(Actor::of(*step));
            *drawn.or_insert_with(|| Self::DRAWN + prng.below(Self::DRAWN))
        };
        let highest = (0..enabled.len()).max_by_key(|index| priority(&enabled[*index]));
        highest.expect("there are at least two steps to choose from")
    }
}

impl Chooser for Pct {
    fn choose(&mut self, enabled: &[Step]) -> usize {
        while self.falls.last() == Some(&self.taken) {
            self.falls.pop();
            let fallen = Actor::of(enabled[self.highest(enabled)]);
            let below = u64::try_from(self.falls.len()).expect("a few falls");
            self.priorities.insert(fallen, below);
        }
        self.taken += 1;
        self.highest(enabled)
    }
}

/// The choices of an earlier run; then the plainest step.
///
/// A choice is taken modulo the number of steps, so that a list still means something after the
/// workload was made smaller.
#[derive(Clone, Debug)]
pub struct Replay {
    choices: Vec<u32>,
    next: usize,
}

impl Replay {
    /// A chooser that takes `choices` in order.
    pub fn new(choices: Vec<u32>) -> Self {
        Self { choices, next: 0 }
    }
}

impl Chooser for Replay {
    fn choose(&mut self, enabled: &[Step]) -> usize {
        let Some(&choice) = self.choices.get(self.next) else {
            return 0;
        };
        self.next += 1;
        usize::try_from(choice).unwrap_or(0) % enabled.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Step = Step::Complete {
        place: 0,
        request: RequestKey {
            disk: 0,
            request: 0,
        },
    };
    const STEPS: [Step; 4] = [
        Step::Run(TaskId(0)),
        Step::Run(TaskId(3)),
        COMPLETE,
        Step::Submit,
    ];

    #[test]
    fn replay_wraps_choices_and_ends_as_fifo() {
        let mut replay = Replay::new(vec![2, 7]);
        let taken: Vec<usize> = (0..4).map(|_| replay.choose(&STEPS)).collect();
        assert_eq!(taken, [2, 3, 0, 0]);
    }

    #[test]
    fn pct_keeps_to_the_highest_until_it_falls() {
        for seed in 0..64 {
            let mut pct = Pct::new(Prng::from_seed(seed), 1);
            let first = pct.choose(&STEPS);
            assert!(
                (0..100).all(|_| pct.choose(&STEPS) == first),
                "nobody falls at depth 1"
            );
            let mut pct = Pct::new(Prng::from_seed(seed), 3);
            let taken: Vec<usize> = (0..600).map(|_| pct.choose(&STEPS)).collect();
            let changes = taken.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(changes <= 2, "{changes} changes at depth 3");
        }
    }

    #[test]
    fn pct_reaches_every_step_and_every_order_of_two_falls() {
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..4000 {
            let mut pct = Pct::new(Prng::from_seed(seed), 3);
            let mut taken: Vec<usize> = (0..600).map(|_| pct.choose(&STEPS)).collect();
            taken.dedup();
            orders.insert(taken);
        }
        // Three of four steps in any order, two falls apart.
        assert_eq!(orders.iter().filter(|order| order.len() == 3).count(), 24);
    }

    #[test]
    fn random_reaches_every_step() {
        let mut seen = [false; 4];
        let mut random = Random::new(Prng::from_seed(1));
        for _ in 0..1000 {
            seen[random.choose(&STEPS)] = true;
        }
        assert_eq!(seen, [true; 4]);
    }
}
