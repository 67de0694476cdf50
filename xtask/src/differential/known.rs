//! Bugs of QEMU's that histories run into, each with its entry in docs/FINDINGS.md. A history that ends in one is
//! counted as such, and compared no further.

use std::ops::Range;
use std::process::Output;

use super::history::Step;

/// A bug of QEMU's that a history ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A disk is not made larger with places for its new part where its file is longer than it takes.
    RefusesLongFile,
    /// The new part of a disk shows what stood in freed clusters, or behind the end that it had once.
    ShowsOldContent,
}

impl Known {
    /// The bug that explains why QEMU ended a step with an error and this program did not.
    pub(super) fn of_refusal(step: &Step, theirs: &Output, ours: &Output) -> Option<Self> {
        let says = String::from_utf8_lossy(&theirs.stderr);
        let refused = says.contains("Cannot use preallocation for shrinking files");
        (matches!(step, Step::Grow { .. }) && refused && ours.status.success())
            .then_some(Self::RefusesLongFile)
    }

    /// The bug that explains why two disks differ. `added` are the parts that QEMU added to the second: where the disks differ the second has something there, and the first zeroes.
    pub(super) fn of_contents(right: &[u8], suspect: &[u8], added: &[Range<u64>]) -> Option<Self> {
        if right.len() != suspect.len() {
            return None;
        }
        let mut differing = (0..)
            .zip(right.iter().zip(suspect))
            .filter(|(_, (a, b))| a != b);
        let explained = |(at, (right, _)): (u64, (&u8, &u8))| {
            *right == 0 && added.iter().any(|range| range.contains(&at))
        };
        (right != suspect && differing.all(explained)).then_some(Self::ShowsOldContent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_shows_in_an_added_part_is_explained() {
        let right = [7, 7, 0, 0];
        let added = [2..3, 3..4];
        let of = |suspect: &[u8]| Known::of_contents(&right, suspect, &added);
        assert_eq!(of(&[7, 7, 0, 9]), Some(Known::ShowsOldContent));
        assert_eq!(of(&right), None);
        assert_eq!(of(&[7, 8, 0, 9]), None);
        assert_eq!(of(&[7, 7, 0]), None);
        assert_eq!(
            Known::of_contents(&[7, 7, 1, 0], &[7, 7, 9, 0], &added),
            None
        );
    }
}
