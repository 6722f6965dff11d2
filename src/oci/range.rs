//! Byte ranges of requests and answers (RFC 9110, section 14).
//!
//! Parses a client's ranges and selects the parts of an object. Nothing here reads the object.

use std::ops::Range;

/// One range of a `Range` header, before the object's length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last`, both included, or `first-`.
    From { first: u64, last: Option<u64> },
    /// `-length`: the last `length` bytes.
    Suffix(u64),
}

/// The meaning of a `Range` header for an object of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// These parts, none of them empty, no two of them adjacent.
    Parts(Vec<Range<u64>>),
    /// No range lies within the object: status 416.
    Unsatisfiable,
}

/// The ranges of a header value. `None` if the value is malformed or of another unit, so that the
/// header must be ignored.
pub fn parse(header: &str) -> Option<Vec<RangeSpec>> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let specs: Option<Vec<_>> = set
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parse_spec)
        .collect();
    specs.filter(|specs| !specs.is_empty())
}

fn parse_spec(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.split_once('-')?;
    if first.is_empty() {
        return number(last).map(RangeSpec::Suffix);
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(RangeSpec::From { first, last: None });
    }
    let last = number(last)?;
    (first <= last).then_some(RangeSpec::From {
        first,
        last: Some(last),
    })
}

/// Only digits: `u64::from_str` would also accept a sign. A number that does not fit means "to the
/// end".
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The parts of an object of `size` bytes that `specs` select, in the requested order.
///
/// Parts that overlap or touch are merged, as RFC 9110 section 15.3.7.2 allows. The answer is never
/// longer than the object.
pub fn select(specs: &[RangeSpec], size: u64) -> Selection {
    let parts: Vec<Range<u64>> = specs
        .iter()
        .filter_map(|spec| resolve(*spec, size))
        .collect();
    if parts.is_empty() {
        return Selection::Unsatisfiable;
    }
    Selection::Parts(if parts.len() == 1 {
        parts
    } else {
        merge(parts)
    })
}

fn resolve(spec: RangeSpec, size: u64) -> Option<Range<u64>> {
    let range = match spec {
        RangeSpec::From { first, last: None } => first..size,
        RangeSpec::From {
            first,
            last: Some(last),
        } => first..last.saturating_add(1).min(size),
        RangeSpec::Suffix(length) => size.saturating_sub(length)..size,
    };
    (range.start < range.end).then_some(range)
}

/// Merges overlapping and adjacent parts. A merged part takes the place of its earliest member.
fn merge(parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<(usize, Range<u64>)> = parts.into_iter().enumerate().collect();
    sorted.sort_by_key(|(_, part)| part.start);
    let mut merged: Vec<(usize, Range<u64>)> = Vec::with_capacity(sorted.len());
    for (place, part) in sorted {
        match merged.last_mut() {
            Some((first_place, last)) if part.start <= last.end => {
                last.end = last.end.max(part.end);
                *first_place = place.min(*first_place);
            }
            _ => merged.push((place, part)),
        }
    }
    merged.sort_by_key(|(place, _)| *place);
    merged.into_iter().map(|(_, part)| part).collect()
}

/// A `Content-Range` value for a part.
pub fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1))
}

/// A `Content-Range` value for 416.
pub fn unsatisfied_range(size: u64) -> String {
    format!("bytes */{size}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(header: &str, size: u64) -> Option<Selection> {
        parse(header).map(|specs| select(&specs, size))
    }

    #[test]
    fn every_form_of_a_range_is_read() {
        let cases = [
            ("bytes=0-1", &[(0, 2)][..]),
            ("bytes=5-", &[(5, 10)][..]),
            ("bytes=-3", &[(7, 10)][..]),
            ("bytes=-30", &[(0, 10)][..]),
            ("bytes=8-99", &[(8, 10)][..]),
            ("Bytes= 0-0 , 4-5,", &[(0, 1), (4, 6)][..]),
            ("bytes=6-7,0-1", &[(6, 8), (0, 2)][..]),
            ("bytes=0-3,2-5,6-7", &[(0, 8)][..]),
            ("bytes=0-1,50-60", &[(0, 2)][..]),
            ("bytes=0-99999999999999999999999", &[(0, 10)][..]),
        ];
        for (header, expected) in cases {
            let expected = expected.iter().map(|&(start, end)| start..end).collect();
            assert_eq!(
                parts(header, 10),
                Some(Selection::Parts(expected)),
                "{header}"
            );
        }
    }

    #[test]
    fn a_malformed_range_header_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=+1-2",
            "bytes=-",
            "lines=0-1",
        ] {
            assert_eq!(parse(header), None, "{header}");
        }
    }

    #[test]
    fn ranges_outside_the_object_cannot_be_satisfied() {
        for (header, size) in [
            ("bytes=10-", 10),
            ("bytes=10-20,30-", 10),
            ("bytes=-0", 10),
            ("bytes=0-", 0),
        ] {
            assert_eq!(
                parts(header, size),
                Some(Selection::Unsatisfiable),
                "{header} of {size}"
            );
        }
    }

    proptest! {
        #[test]
        fn selected_bytes_equal_those_of_a_naive_reader(
            size in 0_u64..200,
            specs in prop::collection::vec((0_u64..250, prop::option::of(0_u64..100), any::<bool>()), 1..8),
        ) {
            let specs: Vec<RangeSpec> = specs
                .into_iter()
                .map(|(first, more, is_suffix)| if is_suffix {
                    RangeSpec::Suffix(first)
                } else {
                    RangeSpec::From { first, last: more.map(|more| first + more) }
                })
                .collect();
            let wanted: Vec<u64> = (0..size)
                .filter(|&at| specs.iter().any(|spec| match *spec {
                    RangeSpec::From { first, last } => at >= first && last.is_none_or(|last| at <= last),
                    RangeSpec::Suffix(length) => at + length >= size,
                }))
                .collect();
            let mut selected: Vec<u64> = match select(&specs, size) {
                Selection::Parts(parts) => parts.into_iter().flatten().collect(),
                Selection::Unsatisfiable => Vec::new(),
            };
            selected.sort_unstable();
            prop_assert_eq!(selected, wanted);
        }
    }
}
