//! Sets of sectors, as ascending ranges that do not touch.

use std::ops::Range;

/// The ranges of `sectors`, which come in any order, merged where they touch, clipped to `end`.
pub fn merge(mut sectors: Vec<Range<u64>>, end: u64) -> Vec<Range<u64>> {
    // Mostly a few ascending sequences, one behind the other, which the stable sort merges.
    sectors.sort_by_key(|range| range.start);
    let mut merged = Vec::with_capacity(sectors.len());
    for range in sectors {
        append(&mut merged, range.start..range.end.min(end));
    }
    merged
}

/// The ranges of two sequences, each of which comes in order of where its ranges start, merged where they touch, clipped to
/// `end`.
pub fn union(
    one: impl IntoIterator<Item = Range<u64>>,
    other: impl IntoIterator<Item = Range<u64>>,
    end: u64,
) -> Vec<Range<u64>> {
    /// Few sets of a crash state have more.
    const ROOM: usize = 16;
    let (mut one, mut other) = (one.into_iter().peekable(), other.into_iter().peekable());
    let mut merged = Vec::with_capacity(ROOM);
    loop {
        let next = match (one.peek(), other.peek()) {
            (Some(here), Some(there)) if there.start < here.start => other.next(),
            (Some(_), _) => one.next(),
            (None, _) => other.next(),
        };
        match next {
            Some(range) => append(&mut merged, range.start..range.end.min(end)),
            None => return merged,
        }
    }
}

/// Adds a range that starts before none of those that are there, and to the last of them where the two touch.
pub fn append(merged: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    match merged.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => merged.push(range),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0u64..60, 0u64..6).prop_map(|(start, len)| start..start + len);
        prop::collection::vec(range, 0..8)
    }

    fn members<'a>(ranges: impl IntoIterator<Item = &'a Range<u64>>) -> Vec<u64> {
        let mut members: Vec<u64> = ranges.into_iter().cloned().flatten().collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    #[test]
    fn ranges_merge_where_they_touch() {
        assert_eq!(
            merge(vec![5..7, 0..2, 2..3, 6..20, 9..9], 10),
            [0..3, 5..10]
        );
    }

    proptest! {
        #[test]
        fn ranges_are_merged_where_they_touch(mut one in ranges(), mut other in ranges(), end in 0u64..70) {
            let all: Vec<Range<u64>> = one.iter().chain(&other).cloned().collect();
            let expected: Vec<u64> =
                members(&all).into_iter().filter(|sector| *sector < end).collect();
            let merged = merge(all, end);
            prop_assert_eq!(members(&merged), expected);
            prop_assert!(merged.windows(2).all(|pair| pair[0].end < pair[1].start));
            one.sort_by_key(|range| range.start);
            other.sort_by_key(|range| range.start);
            prop_assert_eq!(union(one, other, end), merged);
        }
    }
}
