//! Parts of a blob as one answer: a single range, or `multipart/byteranges` (RFC 9110, section
//! 14.6).
//!
//! ```text
//! requested parts ▶ plan: reads (near parts together)
//! each read's stream ▶ Slicer ▶ part headers and part bytes
//! ```
//! Nothing here reads. It plans the reads and cuts their bytes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::oci::media_type::OCTET_STREAM;
use crate::oci::range::content_range;

/// Parts with a smaller gap are read together, because another request costs more than these bytes.
const NEAR: u64 = 32 << 10;

/// The most unused bytes that are read, as a multiple of the body: the client bears a share of the
/// work that it causes.
const SPARE: u64 = 3;

/// The approximate length of the header before each part.
const PART_HEADER: u64 = 100;

/// A part and its header in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    range: Range<u64>,
    header: Bytes,
}

/// One read of the blob and the parts it holds, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) range: Range<u64>,
    parts: Vec<Part>,
}

/// A whole answer body: the reads for it, its length and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) reads: Vec<Read>,
    pub(crate) trailer: Bytes,
    pub(crate) length: u64,
    pub(crate) content_type: Cow<'static, str>,
}

impl Layout {
    /// The body for one part: its bare bytes.
    pub(crate) fn single(range: Range<u64>) -> Self {
        let length = range.end - range.start;
        let part = Part {
            range: range.clone(),
            header: Bytes::new(),
        };
        Self {
            reads: vec![Read {
                range,
                parts: vec![part],
            }],
            trailer: Bytes::new(),
            length,
            content_type: OCTET_STREAM.into(),
        }
    }

    /// The body for several parts of a blob of `size` bytes, with at most `max_reads` reads. `None`
    /// if so few reads would cover far more than the body holds.
    pub(crate) fn multipart(
        parts: Vec<Range<u64>>,
        size: u64,
        boundary: &str,
        max_reads: usize,
    ) -> Option<Self> {
        let groups = group(parts, max_reads)?;
        let trailer = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let mut length = trailer.len() as u64;
        let mut is_first = true;
        let mut reads = Vec::with_capacity(groups.len());
        for group in groups {
            let (Some(first), Some(last)) = (group.first(), group.last()) else {
                continue;
            };
            let range = first.start..last.end;
            let parts: Vec<Part> = group
                .into_iter()
                .map(|range| {
                    let break_before = if std::mem::take(&mut is_first) { "" } else { "\r\n" };
                    let content_range = content_range(&range, size);
                    let header = Bytes::from(format!(
                        "{break_before}--{boundary}\r\nContent-Type: {OCTET_STREAM}\r\nContent-Range: \
                         {content_range}\r\n\r\n"
                    ));
                    Part { range, header }
                })
                .collect();
            length += parts
                .iter()
                .map(|part| part.header.len() as u64 + part.range.end - part.range.start)
                .sum::<u64>();
            reads.push(Read { range, parts });
        }
        Some(Self {
            reads,
            trailer,
            length,
            content_type: format!("multipart/byteranges; boundary={boundary}").into(),
        })
    }
}

impl Layout {
    /// Fills `body`, which has the layout's length, with the whole body. `read` fills a part's bytes
    /// from the blob's offset, and returns whether it could; if not, there is no body.
    pub(crate) fn fill(
        &self,
        mut body: &mut [u8],
        mut read: impl FnMut(&mut [u8], u64) -> bool,
    ) -> Option<()> {
        for part in self.reads.iter().flat_map(|read| &read.parts) {
            let length = usize::try_from(part.range.end - part.range.start).ok()?;
            let (header, behind) = body.split_at_mut_checked(part.header.len())?;
            let (bytes, behind) = behind.split_at_mut_checked(length)?;
            header.copy_from_slice(&part.header);
            if !read(bytes, part.range.start) {
                return None;
            }
            body = behind;
        }
        if body.len() != self.trailer.len() {
            return None;
        }
        body.copy_from_slice(&self.trailer);
        Some(())
    }
}

/// Groups parts that are read together: near ones, as long as the gaps between them stay in
/// proportion to the body. If the requested order needs too many reads, the parts are sorted, and
/// far ones are joined within the same bound. `None` if there are still too many reads.
fn group(mut parts: Vec<Range<u64>>, max_reads: usize) -> Option<Vec<Vec<Range<u64>>>> {
    let body: u64 = parts
        .iter()
        .map(|part| part.end - part.start + PART_HEADER)
        .sum();
    let spare = body.saturating_mul(SPARE);
    let groups = join(&parts, spare, usize::MAX);
    if groups.len() <= max_reads {
        return Some(groups);
    }
    parts.sort_by_key(|part| part.start);
    let groups = join(&parts, spare, max_reads);
    (groups.len() <= max_reads).then_some(groups)
}

/// Joins parts over the smallest gaps first, over at most `spare` bytes of gaps: near ones, and far
/// ones as long as there are more than `max_reads` groups.
fn join(parts: &[Range<u64>], mut spare: u64, max_reads: usize) -> Vec<Vec<Range<u64>>> {
    let gap = |(at, pair): (usize, &[Range<u64>])| {
        Some((pair[1].start.checked_sub(pair[0].end)?, at + 1))
    };
    let mut gaps: Vec<(u64, usize)> = parts.windows(2).enumerate().filter_map(gap).collect();
    gaps.sort_unstable();
    let mut is_joined = vec![false; parts.len()];
    let mut groups = parts.len();
    for (gap, at) in gaps {
        let is_wanted = gap <= NEAR || groups > max_reads;
        if !is_wanted || gap > spare {
            break;
        }
        spare -= gap;
        groups -= 1;
        is_joined[at] = true;
    }
    let mut joined: Vec<Vec<Range<u64>>> = Vec::with_capacity(groups);
    for (part, is_joined) in parts.iter().zip(is_joined) {
        match joined.last_mut().filter(|_| is_joined) {
            Some(group) => group.push(part.clone()),
            None => joined.push(vec![part.clone()]),
        }
    }
    joined
}

/// Cuts the bytes of one read into its parts, each after its header.
#[derive(Debug)]
pub(crate) struct Slicer {
    at: u64,
    parts: VecDeque<Part>,
    is_inside: bool,
}

impl Slicer {
    pub(crate) fn new(read: &Read) -> Self {
        Self {
            at: read.range.start,
            parts: read.parts.iter().cloned().collect(),
            is_inside: false,
        }
    }

    /// The pieces of `bytes` that belong into the body. `bytes` follow those of the earlier calls.
    pub(crate) fn push(&mut self, mut bytes: Bytes) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Some(part) = self.parts.front() {
            let gap = cut(&mut bytes, part.range.start.saturating_sub(self.at));
            self.at += gap.len() as u64;
            if bytes.is_empty() {
                break;
            }
            if !std::mem::replace(&mut self.is_inside, true) && !part.header.is_empty() {
                out.push(part.header.clone());
            }
            let piece = cut(&mut bytes, part.range.end - self.at);
            self.at += piece.len() as u64;
            out.push(piece);
            if self.at == part.range.end {
                self.parts.pop_front();
                self.is_inside = false;
            }
        }
        out
    }
}

/// Splits up to `length` bytes off the front.
fn cut(bytes: &mut Bytes, length: u64) -> Bytes {
    let length = usize::try_from(length)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    bytes.split_to(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to_usize(at: u64) -> usize {
        usize::try_from(at).unwrap()
    }

    fn body(layout: &Layout, blob: &[u8], piece: usize) -> Vec<u8> {
        let mut body = Vec::new();
        for read in &layout.reads {
            let mut slicer = Slicer::new(read);
            let bytes = &blob[to_usize(read.range.start)..to_usize(read.range.end)];
            for chunk in bytes.chunks(piece) {
                slicer
                    .push(Bytes::copy_from_slice(chunk))
                    .iter()
                    .for_each(|out| body.extend_from_slice(out));
            }
        }
        body.extend_from_slice(&layout.trailer);
        body
    }

    /// Parses a multipart body as a client does: offset and bytes of each part.
    fn read_back(body: &[u8], boundary: &str) -> Vec<(u64, Vec<u8>)> {
        let delimiter = format!("--{boundary}\r\n").into_bytes();
        let mut parts = Vec::new();
        let mut rest = body;
        while let Some(inner) = rest.strip_prefix(delimiter.as_slice()) {
            let head_end = inner
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
                .unwrap();
            let head = std::str::from_utf8(&inner[..head_end]).unwrap();
            let range = head
                .split("Content-Range: bytes ")
                .nth(1)
                .unwrap()
                .split('/')
                .next()
                .unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let length = usize::try_from(last - first + 1).unwrap();
            parts.push((first, inner[head_end + 4..head_end + 4 + length].to_vec()));
            rest = inner[head_end + 4 + length..]
                .strip_prefix(b"\r\n")
                .unwrap();
        }
        assert_eq!(rest, format!("--{boundary}--\r\n").as_bytes());
        parts
    }

    #[test]
    fn near_parts_are_read_together_and_far_ones_separately() {
        let far = NEAR * 10;
        let layout = Layout::multipart(vec![0..1, 10..20, far..far + 1], far * 2, "b", 8).unwrap();
        let reads: Vec<_> = layout.reads.iter().map(|read| read.range.clone()).collect();
        assert_eq!(reads, [0..20, far..far + 1]);
    }

    #[test]
    fn there_are_never_more_reads_than_allowed() {
        let parts: Vec<_> = (0..100_u64)
            .rev()
            .map(|at| at * NEAR * 4..at * NEAR * 4 + NEAR * 2)
            .collect();
        let layout = Layout::multipart(parts, NEAR * 400, "b", 3).unwrap();
        assert!(layout.reads.len() <= 3);
        assert_eq!(
            layout
                .reads
                .iter()
                .map(|read| read.parts.len())
                .sum::<usize>(),
            100
        );
    }

    #[test]
    fn bytes_read_stay_in_proportion_to_bytes_sent() {
        for gap in [1, 500, NEAR - 1, NEAR * 10] {
            for count in [2, 40, 1000_u64] {
                let parts: Vec<_> = (0..count)
                    .map(|at| at * (gap + 1)..at * (gap + 1) + 1)
                    .collect();
                let Some(layout) = Layout::multipart(parts, count * (gap + 1), "b", 32) else {
                    continue;
                };
                let read: u64 = layout
                    .reads
                    .iter()
                    .map(|read| read.range.end - read.range.start)
                    .sum();
                assert!(
                    read <= 4 * layout.length,
                    "{count} parts with gaps of {gap}: {read} for {}",
                    layout.length
                );
            }
        }
        let far: Vec<_> = (0..40_u64)
            .map(|at| at * NEAR * 9..at * NEAR * 9 + 1)
            .collect();
        assert_eq!(Layout::multipart(far.clone(), NEAR * 400, "b", 32), None);
        assert_eq!(
            Layout::multipart(far, NEAR * 400, "b", 40)
                .unwrap()
                .reads
                .len(),
            40
        );
    }

    proptest! {
        #[test]
        fn a_client_gets_the_parts_it_asked_for(
            cuts in prop::collection::btree_set(0_u64..500, 4..20),
            is_reversed in any::<bool>(),
            piece in 1_usize..64,
            max_reads in 10_usize..20,
        ) {
            let blob: Vec<u8> = (0..500_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut parts: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            if is_reversed {
                parts.reverse();
            }
            let layout = Layout::multipart(parts.clone(), 500, "b:-0", max_reads).unwrap();
            let body = body(&layout, &blob, piece);
            prop_assert_eq!(body.len() as u64, layout.length);
            let mut copied = vec![0; body.len()];
            let filled = layout.fill(&mut copied, |buffer, offset| {
                let bytes = &blob[to_usize(offset)..];
                buffer.copy_from_slice(&bytes[..buffer.len()]);
                true
            });
            prop_assert_eq!((filled, &copied), (Some(()), &body));
            let absent = layout.fill(&mut copied, |_, offset| offset != parts[1].start);
            prop_assert_eq!(absent, None);
            let mut expected: Vec<_> = parts
                .iter()
                .map(|part| (part.start, blob[to_usize(part.start)..to_usize(part.end)].to_vec()))
                .collect();
            let mut read = read_back(&body, "b:-0");
            expected.sort();
            read.sort();
            prop_assert_eq!(read, expected);
        }
    }
}
