//! Making a failing input small. Knows nothing of images.

use std::ops::Range;

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
    /// Why the search ended.
    pub end: End,
}

/// Why a search for a smaller input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing simpler fails.
    Smallest,
    /// It reached its limit; there may be something simpler.
    Limit,
}

/// How long a search may go on: until one of them is used up, or a little longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Variants that are tried.
    pub attempts: usize,
    /// Work that trying them takes, in whatever unit the caller counts.
    pub work: u64,
}

/// What came of trying some variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried<T> {
    /// The index of the first that fails and that variant, which may have been made simpler still.
    pub failing: Option<(usize, T)>,
    /// The work that it took to know, which depends on nothing but the variants.
    pub work: u64,
}

/// Tries variants.
pub type Try<'a, T> = dyn FnMut(&[T]) -> Tried<T> + 'a;

/// Variants are handed out so many at a time, so that they can be tried side by side.
const BATCH: usize = 8;

/// The smallest input that can be reached from `input`, which fails, by simplifications after each of
/// which it still fails, within limits that no clock sets: the result depends on nothing but the arguments.
pub fn minimise<T: Shrink>(input: T, limits: Limits, attempt: &mut Try<'_, T>) -> Minimised<T> {
    let mut best = input;
    let (mut attempts, mut work) = (0, 0);
    let mut variants = best.simpler();
    let mut next = 0;
    // Variants in a row that passed: once it is all of them, nothing simpler fails.
    let mut passed = 0;
    while passed < variants.len() && attempts < limits.attempts && work < limits.work {
        let end = variants.len().min(next + BATCH);
        let tried = attempt(&variants[next..end]);
        work += tried.work;
        if let Some((index, failing)) = tried.failing {
            attempts += index + 1;
            best = failing;
            variants = best.simpler();
            passed = 0;
            // Go on at the same place: what is before it passed just now.
            next += index;
        } else {
            attempts += end - next;
            passed += end - next;
            next = end;
        }
        if next >= variants.len() {
            next = 0;
        }
    }
    Minimised {
        end: if passed < variants.len() {
            End::Limit
        } else {
            End::Smallest
        },
        input: best,
        attempts,
    }
}

/// Stretches of a list of so many items: first halves, then quarters, down to single items; later stretches first, since
/// what comes last depends on what came before.
pub fn stretches(count: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut stretch = count.div_ceil(2);
    while stretch > 0 {
        let starts: Vec<usize> = (0..count).step_by(stretch).collect();
        let starts = starts.into_iter().rev();
        ranges.extend(starts.map(|start| start..(start + stretch).min(count)));
        stretch = if stretch == 1 { 0 } else { stretch.div_ceil(2) };
    }
    ranges
}

/// The items without those of a stretch.
pub fn without<T: Clone>(items: &[T], stretch: &Range<usize>) -> Vec<T> {
    [&items[..stretch.start], &items[stretch.end..]].concat()
}

/// Lists without one stretch of `items`, in the order of [`stretches`].
pub fn without_stretches<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let stretches = stretches(items.len()).into_iter();
    stretches.map(|stretch| without(items, &stretch)).collect()
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

    /// Each variant is a unit of work.
    fn minimised(input: Numbers, limits: Limits) -> Minimised<Numbers> {
        minimise(input, limits, &mut |variants| {
            let index = variants.iter().position(holds_30_before_7);
            Tried {
                failing: index.map(|index| (index, variants[index].clone())),
                work: u64::try_from(index.map_or(variants.len(), |index| index + 1)).unwrap(),
            }
        })
    }

    const WIDE: Limits = Limits {
        attempts: 10_000,
        work: 10_000,
    };

    #[test]
    fn the_smallest_failing_input_is_found() {
        let input = Numbers((0..60).chain(0..20).collect());
        let minimised = minimised(input, WIDE);
        assert_eq!(minimised.input, Numbers(vec![30, 7]));
        assert_eq!(minimised.end, End::Smallest);
    }

    #[test]
    fn a_limit_ends_the_search() {
        let input = Numbers((0..60).chain(0..20).collect());
        let few = [
            Limits {
                attempts: 5,
                ..WIDE
            },
            Limits { work: 5, ..WIDE },
        ];
        for limits in few {
            let minimised = minimised(input.clone(), limits);
            assert!(minimised.attempts < 5 + BATCH);
            assert!(holds_30_before_7(&minimised.input));
            assert!(minimised.input.0.len() < input.0.len());
            assert_eq!(minimised.end, End::Limit);
        }
    }

    #[test]
    fn nothing_is_tried_where_nothing_is_simpler() {
        assert_eq!(minimised(Numbers(vec![]), WIDE).attempts, 0);
    }

    #[test]
    fn stretches_cover_every_item() {
        assert_eq!(
            without_stretches(&[1, 2, 3]),
            [vec![1, 2], vec![3], vec![1, 2], vec![1, 3], vec![2, 3]]
        );
    }
}
