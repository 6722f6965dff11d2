//! The bytes of a data file that are freed with chunks: whole blocks that hold nothing else.

use std::ops::Range;

use estargz::Toc;

use super::chunks::Chunks;
use super::places::{BLOCK, Places};

/// Most chunks on either side that are looked at for a block that chunks share. Chunks of a few
/// bytes are hostile; their blocks are freed with the layer.
const MAX_NEIGHBOURS: u32 = 64;

/// Returns the bytes to free for chunks that are absent, in order and apart from each other.
/// `numbers` are sorted.
pub(super) fn ranges(
    toc: &Toc,
    places: &Places,
    chunks: &Chunks,
    numbers: &[u32],
) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let freed = numbers
        .iter()
        .filter_map(|number| blocks(toc, places, chunks, *number));
    let mut freed: Vec<_> = freed.collect();
    freed.sort_unstable_by_key(|range| range.start);
    for range in freed {
        match ranges.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => ranges.push(range),
        }
    }
    ranges
}

/// Returns the blocks that hold this chunk and no chunk that is present.
fn blocks(toc: &Toc, places: &Places, chunks: &Chunks, number: u32) -> Option<Range<u64>> {
    let Range { start, end } = places.of_chunk(toc, number)?;
    let first = start / BLOCK * BLOCK;
    let from = if is_free_before(toc, chunks, number, start - first) {
        first
    } else {
        first + BLOCK
    };
    let last = end.next_multiple_of(BLOCK);
    let to = if is_free_after(toc, chunks, number, last - end) {
        last
    } else {
        last - BLOCK
    };
    (from < to).then_some(from..to)
}

/// Whether the `bytes` before a chunk, all of its file, are absent.
fn is_free_before(toc: &Toc, chunks: &Chunks, number: u32, bytes: u64) -> bool {
    let mut left = bytes;
    for before in (0..number).rev().take(MAX_NEIGHBOURS as usize) {
        if left == 0 {
            return true;
        }
        if chunks.holds(before) {
            return false;
        }
        left = left.saturating_sub(toc.chunk(before).map_or(0, |chunk| chunk.size));
    }
    left == 0
}

/// Whether the `bytes` after a chunk are absent, or padding.
fn is_free_after(toc: &Toc, chunks: &Chunks, number: u32, bytes: u64) -> bool {
    let mut left = bytes;
    for after in (number + 1..chunks.len()).take(MAX_NEIGHBOURS as usize) {
        let Some(chunk) = toc.chunk(after) else {
            return true;
        };
        // The next file begins on a block of its own.
        if left == 0 || chunk.file_offset == 0 {
            return true;
        }
        if chunks.holds(after) {
            return false;
        }
        left = left.saturating_sub(chunk.size);
    }
    left == 0 || number + 1 + MAX_NEIGHBOURS >= chunks.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layer::data::chunks::Presence;
    use crate::agent::layer::data::map::State;
    use crate::agent::layer::data::tests::tree_with;

    /// Returns the ranges that are freed with the chunks `gone` of a file of 3 × 6000 bytes and one
    /// of 100, while the chunks `held` are present.
    fn freed(gone: &[u32], held: &[u32]) -> Vec<(u64, u64)> {
        let tree = tree_with(&[("a", 18_000), ("b", 100)], 6000);
        let places = Places::new(tree.toc()).unwrap();
        let chunks = Chunks::absent(4);
        for number in held {
            chunks.set(*number, Presence::checked(State::Written), 1);
        }
        let ranges = ranges(tree.toc(), &places, &chunks, gone);
        ranges
            .into_iter()
            .map(|range| (range.start, range.end))
            .collect()
    }

    #[test]
    fn blocks_that_a_present_chunk_shares_stay() {
        assert_eq!(freed(&[0, 1, 2, 3], &[]), [(0, 24_576)], "the whole file");
        assert_eq!(freed(&[0], &[1, 2, 3]), [(0, 4096)]);
        assert!(freed(&[1], &[0, 2, 3]).is_empty());
        assert_eq!(
            freed(&[1], &[2]),
            [(4096, 8192)],
            "the one before is absent"
        );
        assert_eq!(
            freed(&[2], &[0, 1, 3]),
            [(12_288, 20_480)],
            "padding goes too"
        );
        assert_eq!(freed(&[3], &[0, 1, 2]), [(20_480, 24_576)]);
        assert_eq!(freed(&[0, 3], &[1, 2]), [(0, 4096), (20_480, 24_576)]);
    }
}
