//! The parts of a file's content that were read.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The most parts of one file. A file with more is read nearly everywhere.
const MAX_EXTENTS: usize = 256;

/// Parts of a file's content, as ranges in ascending order with gaps between them. Without a range,
/// the file was opened and it is unknown how much of it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Sorts the ranges, merges adjacent ones and drops empty ones. If there are too many, the
    /// nearest are merged.
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<_> = ranges
            .into_iter()
            .filter(|range| range.start < range.end)
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined = joined(ranges, 0);
        if joined.len() > MAX_EXTENTS {
            let mut gaps: Vec<u64> = joined
                .windows(2)
                .map(|pair| pair[1].start - pair[0].end)
                .collect();
            gaps.sort_unstable();
            joined = self::joined(joined, gaps[gaps.len() - MAX_EXTENTS]);
        }
        Self(joined)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of heap memory that it takes.
    pub(super) fn weight(&self) -> usize {
        self.0.len() * size_of::<Range<u64>>()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// The bytes that are in this or in `other`.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.iter().chain(other.iter()))
    }

    /// The bytes that more than half of `all`, by weight, agree on.
    pub(super) fn agreed<'a>(all: impl IntoIterator<Item = (&'a Self, f64)>) -> Self {
        let mut edges = Vec::new();
        let mut total = 0.0;
        for (extents, weight) in all {
            total += weight;
            edges.extend(
                extents
                    .0
                    .iter()
                    .flat_map(|range| [(range.start, weight), (range.end, -weight)]),
            );
        }
        edges.sort_unstable_by_key(|(at, _)| *at);
        let (mut agreed, mut weight, mut from) = (Vec::new(), 0.0, 0);
        for (at, change) in edges {
            if weight * 2.0 > total {
                agreed.push(from..at);
            }
            weight += change;
            from = at;
        }
        Self::new(agreed)
    }
}

/// Sorted ranges, with those merged that are at most `gap` apart.
fn joined(ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end)
            }
            _ => joined.push(range),
        }
    }
    joined
}

impl From<Vec<(u64, u64)>> for Extents {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        Self::new(pairs.into_iter().map(|(start, end)| start..end))
    }
}

impl From<Extents> for Vec<(u64, u64)> {
    fn from(extents: Extents) -> Self {
        extents
            .0
            .into_iter()
            .map(|range| (range.start, range.end))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents(pairs: &[(u64, u64)]) -> Extents {
        pairs.to_vec().into()
    }

    #[test]
    fn ranges_are_sorted_and_merged() {
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "a client may send such ranges"
        )]
        let odd = [8..9, 4..6, 7..3, 0..2, 5..7, 2..2];
        assert_eq!(Extents::new(odd), extents(&[(0, 2), (4, 7), (8, 9)]));
        assert_eq!(
            extents(&[(0, 4)]).union(&extents(&[(4, 6), (9, 10)])),
            extents(&[(0, 6), (9, 10)])
        );
    }

    #[test]
    fn the_nearest_of_too_many_ranges_are_merged() {
        let many = Extents::new((0..1000u64).map(|at| at * at..at * at + 1));
        assert!(many.0.len() <= MAX_EXTENTS);
        assert_eq!(
            (
                many.0.first().map(|range| range.start),
                many.0.last().map(|range| range.end)
            ),
            (Some(0), Some(998_002))
        );
        assert!(
            many.0
                .last()
                .is_some_and(|range| range.end - range.start == 1),
            "the widest gaps stay"
        );
        assert!(
            Extents::new((0..100_000).map(|at| at * 2..at * 2 + 1))
                .0
                .len()
                <= MAX_EXTENTS,
            "even if all gaps are equal"
        );
    }

    #[test]
    fn a_byte_needs_the_agreement_of_more_than_half() {
        let (one, two, three) = (
            extents(&[(0, 10)]),
            extents(&[(5, 20)]),
            extents(&[(0, 7), (18, 1000)]),
        );
        assert_eq!(
            Extents::agreed([(&one, 1.0), (&two, 1.0), (&three, 1.0)]),
            extents(&[(0, 10), (18, 20)])
        );
        assert_eq!(Extents::agreed([(&one, 1.0)]), one);
        assert_eq!(
            Extents::agreed([(&one, 1.0), (&two, 1.0)]),
            extents(&[(5, 10)])
        );
    }

    proptest! {
        #[test]
        fn extents_contain_exactly_the_given_bytes(pairs in proptest::collection::vec((0u64..200, 0u64..200), 0..40)) {
            let extents = extents(&pairs);
            for at in 0..200 {
                let given = pairs.iter().any(|(start, end)| (*start..*end).contains(&at));
                prop_assert_eq!(extents.iter().any(|range| range.contains(&at)), given);
            }
            prop_assert!(extents.0.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
