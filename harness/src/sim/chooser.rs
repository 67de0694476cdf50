//! Who decides what happens next: the one source of nondeterminism of a run.

use super::executor::TaskId;
use crate::prng::Prng;

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task that was woken goes on.
    Run(TaskId),
    /// A device request in flight completes; its place among those in flight, oldest first.
    Complete(usize),
    /// The next operation is handed to the image.
    Submit,
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
                Step::Complete(_) => self.complete_weight,
                Step::Submit => self.submit_weight,
            })
            .collect();
        self.prng.weighted(&weights)
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

    const STEPS: [Step; 4] = [
        Step::Run(TaskId(0)),
        Step::Run(TaskId(3)),
        Step::Complete(0),
        Step::Submit,
    ];

    #[test]
    fn replay_wraps_choices_and_ends_as_fifo() {
        let mut replay = Replay::new(vec![2, 7]);
        let taken: Vec<usize> = (0..4).map(|_| replay.choose(&STEPS)).collect();
        assert_eq!(taken, [2, 3, 0, 0]);
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
