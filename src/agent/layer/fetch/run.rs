//! Groups chunks into requests.

use std::collections::VecDeque;
use std::ops::Range;

use estargz::Chunk;

use super::pending::PendingChunk;

/// Most bytes between two chunks that are fetched along with them instead of being skipped: about
/// the cost of a round trip.
pub(crate) const MAX_GAP: u64 = 64 << 10;
/// Most chunks of a run, and most inflated bytes of a run for each byte of the longest request
/// (unless a single chunk has more). Chunks may lie in the same bytes, as many as a TOC lists.
const MAX_CHUNKS: usize = 4096;
const MAX_INFLATION: u64 = 8;

/// Neighbours in a blob, fetched with one request.
#[derive(Debug)]
pub(super) struct ChunkRun<T> {
    pub(super) range: Range<u64>,
    pub(super) chunks: VecDeque<T>,
    inflated: u64,
}

impl<T: AsRef<Chunk>> ChunkRun<T> {
    fn new(chunk: T) -> Self {
        let (range, inflated) = (chunk.as_ref().range.clone(), inflated(chunk.as_ref()));
        Self {
            range,
            chunks: VecDeque::from([chunk]),
            inflated,
        }
    }

    fn takes(&self, chunk: &Chunk, max: u64) -> bool {
        let Range { start, end } = chunk.range;
        start <= self.range.end.saturating_add(MAX_GAP)
            && end.max(self.range.end) - self.range.start <= max
            && self.chunks.len() < MAX_CHUNKS
            && self.inflated.saturating_add(inflated(chunk)) <= max.saturating_mul(MAX_INFLATION)
    }

    fn push(&mut self, chunk: T) {
        self.range.end = self.range.end.max(chunk.as_ref().range.end);
        self.inflated = self.inflated.saturating_add(inflated(chunk.as_ref()));
        self.chunks.push_back(chunk);
    }

    /// Returns the memory that decoding the largest of the chunks takes.
    pub(super) fn decoding_bytes(&self) -> u64 {
        self.chunks
            .iter()
            .map(|chunk| chunk.as_ref().decoding_bytes())
            .max()
            .unwrap_or_default()
    }
}

/// Returns the bytes that are inflated for a chunk.
fn inflated(chunk: &Chunk) -> u64 {
    chunk.inner_offset.saturating_add(chunk.size)
}

/// Groups neighbours into runs of up to `max` bytes of the blob.
pub(super) fn runs<T: AsRef<Chunk>>(mut chunks: Vec<T>, max: u64) -> Vec<ChunkRun<T>> {
    chunks.sort_by_key(|chunk| (chunk.as_ref().range.start, chunk.as_ref().range.end));
    let mut runs: Vec<ChunkRun<T>> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some(run) if run.takes(chunk.as_ref(), max) => run.push(chunk),
            _ => runs.push(ChunkRun::new(chunk)),
        }
    }
    runs
}

impl AsRef<Chunk> for PendingChunk {
    fn as_ref(&self) -> &Chunk {
        &self.chunk
    }
}

#[cfg(test)]
mod tests {
    use estargz::Digest;
    use estargz::codec::Codec;

    use super::*;

    #[derive(Debug)]
    struct MissingChunk(Chunk);

    impl AsRef<Chunk> for MissingChunk {
        fn as_ref(&self) -> &Chunk {
            &self.0
        }
    }

    fn chunk(range: &Range<u64>, size: u64) -> MissingChunk {
        let digest = Some(Digest::of(format!("{range:?}").as_bytes()));
        let range = range.clone();
        MissingChunk(Chunk {
            range,
            inner_offset: 0,
            file_offset: 0,
            size,
            digest,
            codec: Codec::Gzip,
        })
    }

    /// Returns the start and end of each run.
    fn requests(ranges: &[Range<u64>], max: u64) -> Vec<(u64, u64)> {
        let chunks = ranges.iter().map(|range| chunk(range, 1)).collect();
        runs(chunks, max)
            .into_iter()
            .map(|run| (run.range.start, run.range.end))
            .collect()
    }

    #[test]
    fn neighbours_are_requested_together() {
        assert_eq!(requests(&[20..30, 0..10, 10..20], 100), [(0, 30)]);
        let near = [0..10, 10 + MAX_GAP..20 + MAX_GAP];
        assert_eq!(requests(&near, 1 << 20), [(0, 20 + MAX_GAP)]);
        let far = [0..10, 11 + MAX_GAP..20 + MAX_GAP];
        assert_eq!(
            requests(&far, 1 << 20),
            [(0, 10), (11 + MAX_GAP, 20 + MAX_GAP)]
        );
        assert_eq!(
            requests(&[0..60, 60..100, 100..200], 100),
            [(0, 100), (100, 200)]
        );
        assert_eq!(
            requests(&[0..500, 500..510], 100),
            [(0, 500), (500, 510)],
            "one chunk may be larger"
        );
        assert_eq!(
            requests(&[0..50, 0..50, 0..50], 100),
            [(0, 50)],
            "chunks may share a member"
        );
    }

    #[test]
    fn chunks_in_the_same_bytes_make_runs_of_limited_size() {
        let same = |size| (0..20).map(|_| chunk(&(0..50), size)).collect::<Vec<_>>();
        let counts = |chunks| {
            runs(chunks, 100)
                .iter()
                .map(|run| run.chunks.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(same(1)), [20]);
        assert_eq!(counts(same(200)), [4, 4, 4, 4, 4]);
        assert_eq!(counts(same(100_000)), [1; 20], "one chunk may be larger");
        let many = (0..2 * MAX_CHUNKS).map(|_| chunk(&(0..50), 0)).collect();
        assert_eq!(counts(many), [MAX_CHUNKS; 2]);
    }

    #[test]
    fn a_run_weighs_as_much_as_its_largest_chunk() {
        let chunks = vec![
            chunk(&(0..10), 30),
            chunk(&(10..30), 70),
            chunk(&(30..50), 5),
        ];
        assert_eq!(runs(chunks, 100)[0].decoding_bytes(), 90);
    }
}
