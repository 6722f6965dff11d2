//! Infers the files that a client read from the ranges of a layer that it requested.
//!
//! stargz-snapshotter requests the missing parts of a file in blocks of `chunk_size` bytes of the
//! blob (50,000 by default), up to 2 MiB from the chunk that is read (`fs/remote/blob.go`,
//! `estargz.fileReader`). So
//! ```text
//! blob    │ a │  b  │      c       │d│ e │ f │
//! blocks  ├────────┼────────┼────────┼────────┤
//! ```
//! a request of several blocks is for the one file that touches the first and the last of them,
//! here `c`. A request for one block may be for any file in it, here `a` or `d` to `f`. The client
//! then holds the other files of that block too, and never requests them. All of them count,
//! because a client that prefetches one of them gets the others in the same request. If a better
//! source names one of them, the others do not count.
//!
//! Other clients request exactly the members they need, one by one or several as one range. Ranges
//! without a common block are therefore taken literally: all files whose bytes were received were
//! read.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use estargz::Toc;
use estargz::toc::{Kind, NodeId};

use crate::profile::{Extents, FileUse};

/// A common divisor of all borders below this is not a client's block.
const SMALLEST_BLOCK: u64 = 4096;
/// The block of stargz-snapshotter (`fs/remote/resolver.go`, `defaultChunkSize`).
const STOCK_BLOCK: u64 = 50_000;

/// A request for ranges of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeRequest {
    /// The time since the session began.
    pub(super) after: Duration,
    pub(super) parts: Vec<Range<u64>>,
}

/// The files of a layer in the order of their bytes.
struct Files {
    spans: Vec<Span>,
    payload_end: u64,
}

/// The position of a file in the blob.
struct Span {
    path: String,
    range: Range<u64>,
    /// Each chunk's range in the blob, and in the file.
    chunks: Vec<(Range<u64>, Range<u64>)>,
}

/// Returns the block that all borders of the requests are multiples of; 1 when there is none.
/// `size` is the size of the blob, whose last block may be cut off.
pub(super) fn block_of<'a>(asked: impl IntoIterator<Item = (&'a RangeRequest, u64)>) -> u64 {
    let borders = asked.into_iter().flat_map(|(asked, size)| {
        let inner = move |border: &u64| *border != size;
        asked
            .parts
            .iter()
            .flat_map(|part| [part.start, part.end])
            .filter(inner)
    });
    let common = borders.fold(0, gcd);
    match common {
        0 => STOCK_BLOCK,
        common if common % STOCK_BLOCK == 0 => STOCK_BLOCK,
        common if common < SMALLEST_BLOCK => 1,
        common => common,
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

/// Returns the files of layer number `layer` that the requests were for, in order. `is_likely`
/// returns whether a file is known to be used.
pub(super) fn files(
    toc: &Toc,
    layer: u32,
    block: u64,
    asked: &[RangeRequest],
    is_likely: impl Fn(&str) -> bool,
) -> Vec<FileUse> {
    let files = Files::of(toc);
    let mut held = Held::default();
    let mut used: BTreeMap<usize, FileUse> = BTreeMap::new();
    for RangeRequest { after, parts } in asked {
        let mut news = Vec::new();
        for part in parts {
            news.extend(held.missing(part));
            held.add(part.clone());
        }
        // A client may request ranges in any order, and repeatedly.
        news.sort_unstable_by_key(|part: &Range<u64>| part.start);
        for (place, extents) in files.meant(&news, block, &held, &is_likely) {
            let path = files.spans[place].path.clone();
            let file = FileUse {
                layer,
                path,
                extents: Extents::default(),
                after: *after,
            };
            let known = used.entry(place).or_insert(file);
            known.extents = known.extents.union(&extents);
        }
    }
    let mut used: Vec<_> = used.into_values().collect();
    used.sort_by_key(|file| file.after);
    used
}

/// Returns how many files with content the layer has.
pub(super) fn count(toc: &Toc) -> usize {
    (0..)
        .map_while(|number| toc.node(NodeId(number)))
        .filter(|node| node.size() > 0)
        .count()
}

impl Files {
    fn of(toc: &Toc) -> Self {
        let mut seen: HashSet<NodeId> = HashSet::new();
        let mut spans = Vec::new();
        for entry in toc.entries() {
            let Ok(path) = String::from_utf8(entry.path) else {
                continue;
            };
            if entry.node.kind() != Kind::File || !seen.insert(entry.node.id()) {
                continue;
            }
            let held = entry.node.chunks().filter(|chunk| !chunk.range.is_empty());
            let chunks: Vec<_> = held
                .map(|chunk| {
                    (
                        chunk.range,
                        chunk.file_offset..chunk.file_offset + chunk.size,
                    )
                })
                .collect();
            let start = chunks.iter().map(|(range, _)| range.start).min();
            let end = chunks.iter().map(|(range, _)| range.end).max();
            if let (Some(start), Some(end)) = (start, end) {
                spans.push(Span {
                    path,
                    range: start..end,
                    chunks,
                });
            }
        }
        spans.sort_by_key(|span| (span.range.start, span.range.end));
        let payload_end = spans
            .iter()
            .map(|span| span.range.end)
            .max()
            .unwrap_or_default();
        Self { spans, payload_end }
    }

    /// Returns the files that a request was for, each with its received parts. `news` are the bytes
    /// that were not held before.
    fn meant(
        &self,
        news: &[Range<u64>],
        block: u64,
        held: &Held,
        is_likely: impl Fn(&str) -> bool,
    ) -> Vec<(usize, Extents)> {
        let (Some(first), Some(last)) = (news.first(), news.last()) else {
            return Vec::new();
        };
        // A request for the footer and the TOC, and the few file bytes in the same block.
        if first.start >= self.payload_end / block * block {
            return Vec::new();
        }
        let touched = || self.touching(&(first.start..last.end));
        let came = |place: usize| (place, self.spans[place].came(held));
        let is_one_block = last.end - first.start <= block;
        if block > 1 && !is_one_block {
            let in_front = first.start..(first.start + block).min(first.end);
            let behind = ((last.end - 1) / block * block).max(last.start)..last.end;
            let spans = |place: &usize| {
                self.spans[*place].touches(&in_front) && self.spans[*place].touches(&behind)
            };
            // A sweep over many files is for none of them.
            return touched().filter(spans).map(came).collect();
        }
        let is_whole = |place: &usize| self.spans[*place].has_a_chunk(held, news);
        let meant: Vec<usize> = touched().filter(is_whole).collect();
        let likely: Vec<usize> = meant
            .iter()
            .copied()
            .filter(|place| is_likely(&self.spans[*place].path))
            .collect();
        let meant = if likely.is_empty() || block == 1 {
            meant
        } else {
            likely
        };
        meant.into_iter().map(came).collect()
    }

    /// Returns the files with bytes in `range`.
    fn touching<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = usize> + use<'a> {
        let end = self
            .spans
            .partition_point(|span| span.range.start < range.end);
        let range = range.clone();
        // Files do not overlap, except when many share a member, and then they begin together.
        let first = self.spans[..end].partition_point(|span| span.range.end <= range.start);
        (first..end).filter(move |place| self.spans[*place].touches(&range))
    }
}

impl Span {
    fn touches(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }

    /// Whether a chunk is held now that was not held before `news` arrived.
    fn has_a_chunk(&self, held: &Held, news: &[Range<u64>]) -> bool {
        self.chunks.iter().any(|(range, _)| {
            held.has(range)
                && news
                    .iter()
                    .any(|news| news.start < range.end && range.start < news.end)
        })
    }

    /// Returns the parts of the file that are held in whole chunks.
    fn came(&self, held: &Held) -> Extents {
        let chunks = self.chunks.iter().filter(|(range, _)| held.has(range));
        Extents::new(chunks.map(|(_, content)| content.clone()))
    }
}

/// The bytes of a blob that a client holds.
#[derive(Debug, Default)]
struct Held(BTreeMap<u64, u64>);

impl Held {
    fn add(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((known_start, known_end)) = self
            .0
            .range(..=end)
            .next_back()
            .map(|(start, end)| (*start, *end))
        {
            if known_end < start {
                break;
            }
            (start, end) = (start.min(known_start), end.max(known_end));
            self.0.remove(&known_start);
        }
        self.0.insert(start, end);
    }

    fn has(&self, range: &Range<u64>) -> bool {
        self.0
            .range(..=range.start)
            .next_back()
            .is_some_and(|(_, end)| *end >= range.end)
    }

    /// Returns the parts of `range` that are not held.
    fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back();
        let within = self.0.range((
            std::ops::Bound::Excluded(range.start),
            std::ops::Bound::Excluded(range.end),
        ));
        for (start, end) in before.into_iter().chain(within) {
            if *start > at {
                missing.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use estargz::UnverifiedToc;
    use estargz::footer::{self, Footer};
    use estargz::pool::Pool;
    use estargz::toc::Limits;
    use estargz::write::{Options, write};
    use proptest::prelude::*;

    use super::*;

    /// Bytes that do not compress, so that a file takes its size in the blob.
    fn content(length: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    /// A layer of these files, and the blob's size.
    fn layer(files: &[(&str, usize)]) -> (Toc, u64) {
        let mut tar = Vec::new();
        for (seed, (name, length)) in (0u32..).zip(files) {
            let mut header = [0u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..108].copy_from_slice(b"0000644\0");
            header[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
            header[156] = b'0';
            header[257..265].copy_from_slice(b"ustar\x0000");
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            tar.extend_from_slice(&header);
            tar.extend(content(*length, seed));
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        let options = Options::default().with_chunk_size(1 << 20);
        let mut blob = Vec::new();
        let pool = Pool::new(NonZeroUsize::MIN, 64 << 20);
        let written = write(tar.as_slice(), &mut blob, &options, &pool).unwrap();
        let size = blob.len() as u64;
        let within = |range: Range<u64>| {
            &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        };
        let footer = Footer::parse(within(footer::tail_range(size)), size).unwrap();
        let section = within(footer.toc_range().unwrap());
        let toc = UnverifiedToc::parse(section, &footer, &Limits::default()).unwrap();
        (toc.verify(&written.toc_digest).unwrap(), size)
    }

    /// The requests of stargz-snapshotter when these files are read one after the other.
    fn stock(toc: &Toc, size: u64, read: &[&str]) -> Vec<RangeRequest> {
        let tail = size.saturating_sub(200) / STOCK_BLOCK * STOCK_BLOCK..size;
        let mut held = Held::default();
        held.add(tail.clone());
        let mut asked = vec![RangeRequest {
            after: Duration::ZERO,
            parts: vec![tail],
        }];
        for (at, path) in (1..).zip(read) {
            for chunk in toc.lookup(path).unwrap().chunks() {
                let end = chunk.range.end.div_ceil(STOCK_BLOCK) * STOCK_BLOCK;
                let parts =
                    held.missing(&(chunk.range.start / STOCK_BLOCK * STOCK_BLOCK..end.min(size)));
                parts.iter().for_each(|part| held.add(part.clone()));
                if !parts.is_empty() {
                    asked.push(RangeRequest {
                        after: Duration::from_secs(at),
                        parts,
                    });
                }
            }
        }
        asked
    }

    fn traced(files: &[(&str, usize)], read: &[&str], likely: &[&str]) -> Vec<String> {
        let (toc, size) = layer(files);
        let asked = stock(&toc, size, read);
        assert_eq!(
            block_of(asked.iter().map(|asked| (asked, size))),
            STOCK_BLOCK
        );
        let used = super::files(&toc, 0, STOCK_BLOCK, &asked, |path| likely.contains(&path));
        used.into_iter().map(|file| file.path).collect()
    }

    const FILES: [(&str, usize); 8] = [
        ("small1", 9_000),
        ("small2", 9_000),
        ("large1", 170_000),
        ("small3", 9_000),
        ("small4", 9_000),
        ("large2", 2_500_000),
        ("small5", 9_000),
        ("last", 300_000),
    ];

    #[test]
    fn a_request_of_several_blocks_is_for_the_one_file_that_has_them() {
        assert_eq!(
            traced(&FILES, &["large2", "large1"], &[]),
            ["large2", "large1"]
        );
    }

    #[test]
    fn a_request_for_one_block_is_for_any_file_in_it_unless_more_is_known() {
        assert_eq!(traced(&FILES, &["small1"], &[]), ["small1", "small2"]);
        assert_eq!(
            traced(&FILES, &["small1"], &["small2", "large1"]),
            ["small2"]
        );
    }

    #[test]
    fn the_received_parts_of_a_file_are_whole_chunks() {
        let (toc, size) = layer(&FILES);
        let second = toc.lookup("large2").unwrap().chunks().nth(1).unwrap();
        let start = second.range.start / STOCK_BLOCK * STOCK_BLOCK;
        let part = start..second.range.end.div_ceil(STOCK_BLOCK) * STOCK_BLOCK;
        let asked = [RangeRequest {
            after: Duration::ZERO,
            parts: vec![part],
        }];
        let used = super::files(
            &toc,
            3,
            block_of(asked.iter().map(|asked| (asked, size))),
            &asked,
            |_| false,
        );
        let [file] = &used[..] else {
            panic!("{used:?}")
        };
        assert_eq!((file.layer, file.path.as_str()), (3, "large2"));
        assert_eq!(file.extents, Extents::new(Some(1 << 20..2 << 20)));
    }

    #[test]
    fn a_sweep_and_a_read_of_the_toc_are_for_no_file() {
        let (toc, size) = layer(&FILES);
        let sweep = [0..1_000_000, 1_000_000..size];
        let asked = sweep.map(|part| RangeRequest {
            after: Duration::ZERO,
            parts: vec![part],
        });
        assert_eq!(super::files(&toc, 0, STOCK_BLOCK, &asked, |_| true), []);
    }

    #[test]
    fn ranges_without_blocks_name_the_files_whose_bytes_were_received() {
        let (toc, size) = layer(&FILES);
        let range = |path: &str| toc.lookup(path).unwrap().chunks().next().unwrap().range;
        let parts = [range("small1").start..range("small2").end, range("small5")];
        let asked = parts.map(|part| RangeRequest {
            after: Duration::ZERO,
            parts: vec![part],
        });
        let block = block_of(asked.iter().map(|asked| (asked, size)));
        assert_eq!(block, 1);
        let used = super::files(&toc, 0, block, &asked, |_| false);
        let used: Vec<_> = used.into_iter().map(|file| file.path).collect();
        assert_eq!(used, ["small1", "small2", "small5"]);
    }

    #[test]
    fn parts_may_come_in_any_order_and_overlap() {
        let (toc, size) = layer(&FILES[..3]);
        let asked = |parts: &[Range<u64>]| {
            vec![RangeRequest {
                after: Duration::ZERO,
                parts: parts.to_vec(),
            }]
        };
        for block in [1, STOCK_BLOCK] {
            let whole = super::files(
                &toc,
                0,
                block,
                &asked(&[0..size / 2, size / 2..size]),
                |_| false,
            );
            let mixed = [size / 4 * 3..size, size / 4..size, 0..size / 2];
            assert_eq!(
                super::files(&toc, 0, block, &asked(&mixed), |_| false),
                whole
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_ranges_name_only_files_of_the_layer(parts in proptest::collection::vec((0u64..4_000_000, 0u64..4_000_000), 0..40)) {
            let (toc, size) = layer(&FILES[..3]);
            let asked: Vec<_> = parts
                .chunks(3)
                .map(|parts| {
                    let parts = parts.iter().map(|(start, length)| *start..start + length + 1).collect();
                    RangeRequest { after: Duration::ZERO, parts }
                })
                .collect();
            for block in [1, STOCK_BLOCK, block_of(asked.iter().map(|asked| (asked, size)))] {
                for file in super::files(&toc, 0, block, &asked, |_| false) {
                    prop_assert!(toc.lookup(&file.path).is_some());
                }
            }
        }

        #[test]
        fn the_held_ranges_are_those_that_were_added(ranges in proptest::collection::vec((0u64..60, 1u64..20), 0..12), asked in (0u64..60, 1u64..30)) {
            let mut held = Held::default();
            let mut naive = [false; 100];
            for (start, length) in ranges {
                held.add(start..start + length);
                (start..start + length).for_each(|at| naive[usize::try_from(at).unwrap()] = true);
            }
            let asked = asked.0..asked.0 + asked.1;
            let missing: Vec<u64> = held.missing(&asked).into_iter().flatten().collect();
            let expected: Vec<u64> = asked.clone().filter(|at| !naive[usize::try_from(*at).unwrap()]).collect();
            prop_assert_eq!(held.has(&asked), expected.is_empty());
            prop_assert_eq!(missing, expected);
        }
    }
}
