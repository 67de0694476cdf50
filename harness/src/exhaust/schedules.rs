//! Every schedule of a workload that leaves the plainest one so many times at most.
//!
//! The plainest step is always the first; taking another is a deviation. A schedule is told by its choices up to the
//! last deviation, and its successors deviate once more behind that: so each comes up once, and what was possible at
//! each choice is known from the run before.

/// How operations overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// So many operations are in flight at most.
    pub requests: usize,
    /// How often a schedule deviates from the plainest at most.
    pub deviations: u32,
}

impl Overlap {
    /// One operation after the other.
    pub const NONE: Self = Self {
        requests: 1,
        deviations: 0,
    };

    /// As many deviations as there are choices: every schedule.
    pub const ALL: u32 = u32::MAX;
}

/// The schedules of a workload that are still to be run.
#[derive(Clone, Debug)]
pub(super) struct Schedules {
    deviations: u32,
    todo: Vec<Vec<u32>>,
}

impl Schedules {
    pub(super) fn of(overlap: Overlap) -> Self {
        Self {
            deviations: overlap.deviations,
            todo: vec![Vec::new()],
        }
    }

    /// The choices of the next one: these, and then the plainest.
    pub(super) fn next(&mut self) -> Option<Vec<u32>> {
        self.todo.pop()
    }

    /// Takes note of what came of the schedule that began with these choices: all its choices, and how many steps there
    /// were to choose from at each.
    pub(super) fn ran(&mut self, begun: &[u32], choices: &[u32], widths: &[u32]) {
        let deviations = begun.iter().filter(|choice| **choice != 0).count();
        if u32::try_from(deviations).is_ok_and(|deviations| deviations >= self.deviations) {
            return;
        }
        // The last to be put there is the next, so that the earliest deviation comes first.
        for at in (begun.len()..choices.len()).rev() {
            for other in (1..widths[at]).rev() {
                let mut next = choices[..at].to_vec();
                next.push(other);
                self.todo.push(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A run of five choices among three steps each, but for the third, which is among two.
    fn run(begun: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let widths = vec![3, 3, 2, 3, 3];
        let mut choices = begun.to_vec();
        choices.resize(widths.len(), 0);
        (choices, widths)
    }

    #[test]
    fn each_schedule_of_so_many_deviations_comes_up_once() {
        for (deviations, expected) in [(0, 1), (1, 1 + 9), (2, 1 + 9 + 32), (5, 3 * 3 * 2 * 3 * 3)]
        {
            let mut schedules = Schedules::of(Overlap {
                requests: 2,
                deviations,
            });
            let (mut seen, mut count) = (BTreeSet::new(), 0);
            while let Some(begun) = schedules.next() {
                let (choices, widths) = run(&begun);
                schedules.ran(&begun, &choices, &widths);
                seen.insert(choices);
                count += 1;
            }
            assert_eq!(
                (seen.len(), count),
                (expected, expected),
                "{deviations} deviations"
            );
        }
    }
}
