//! Making a failing input small. Knows nothing of images.

/// Something that has simpler neighbours.
pub trait Shrink: Sized {
    /// Simpler variants of this, boldest first. A variant of a variant is never this again.
    fn simpler(&self) -> Vec<Self>;
}

/// What [`minimise`] arrived at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minimised<T> {
    /// The smallest input found that still fails.
    pub input: T,
    /// How many variants were tried.
    pub attempts: usize,
}

/// The smallest input that can be reached from `input`, which fails, by simplifications after each of
/// which it still fails. At most `budget` variants are tried, so that the result depends on nothing
/// but the arguments.
pub fn minimise<T: Shrink>(
    input: T,
    budget: usize,
    mut fails: impl FnMut(&T) -> bool,
) -> Minimised<T> {
    let mut best = input;
    let mut attempts = 0;
    let mut variants = best.simpler();
    let mut next = 0;
    // Variants in a row that passed: once it is all of them, nothing simpler fails.
    let mut passed = 0;
    while passed < variants.len() && attempts < budget {
        attempts += 1;
        if fails(&variants[next]) {
            best = variants.swap_remove(next);
            variants = best.simpler();
            passed = 0;
            // Go on at the same place: what is before it passed just now.
            next = if next < variants.len() { next } else { 0 };
        } else {
            passed += 1;
            next = (next + 1) % variants.len();
        }
    }
    Minimised {
        input: best,
        attempts,
    }
}

/// Lists without one stretch of `items`: first halves, then quarters, down to single items; later
/// stretches first, since what comes last depends on what came before.
pub fn without_stretches<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let mut lists = Vec::new();
    let mut stretch = items.len().div_ceil(2);
    while stretch > 0 {
        let starts: Vec<usize> = (0..items.len()).step_by(stretch).collect();
        for start in starts.into_iter().rev() {
            let end = (start + stretch).min(items.len());
            lists.push([&items[..start], &items[end..]].concat());
        }
        stretch = if stretch == 1 { 0 } else { stretch.div_ceil(2) };
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Numbers(Vec<u32>);

    impl Shrink for Numbers {
        fn simpler(&self) -> Vec<Self> {
            let shorter = without_stretches(&self.0).into_iter().map(Numbers);
            let smaller = (0..self.0.len()).filter(|&at| self.0[at] > 0).map(|at| {
                let mut numbers = self.0.clone();
                numbers[at] -= 1;
                Numbers(numbers)
            });
            shorter.chain(smaller).collect()
        }
    }

    fn holds_30_before_7(numbers: &Numbers) -> bool {
        let first = numbers.0.iter().position(|&number| number >= 30);
        first.is_some_and(|first| numbers.0[first..].contains(&7))
    }

    #[test]
    fn the_smallest_failing_input_is_found() {
        let input = Numbers((0..60).chain(0..20).collect());
        let minimised = minimise(input, 10_000, holds_30_before_7);
        assert_eq!(minimised.input, Numbers(vec![30, 7]));
    }

    #[test]
    fn the_budget_ends_the_search() {
        let input = Numbers((0..60).chain(0..20).collect());
        let minimised = minimise(input.clone(), 5, holds_30_before_7);
        assert_eq!(minimised.attempts, 5);
        assert!(holds_30_before_7(&minimised.input));
        assert!(minimised.input.0.len() < input.0.len());
    }

    #[test]
    fn nothing_is_tried_where_nothing_is_simpler() {
        assert_eq!(minimise(Numbers(vec![]), 10, |_| true).attempts, 0);
    }

    #[test]
    fn stretches_cover_every_item() {
        assert_eq!(
            without_stretches(&[1, 2, 3]),
            [vec![1, 2], vec![3], vec![1, 2], vec![1, 3], vec![2, 3]]
        );
    }
}
