//! Groups the chunks of a profile into requests.
//!
//! The chunk that is read first begins the next request, and other wanted chunks beside it in the
//! blob come along. So files arrive in the order of the profile, and files that lie together arrive
//! with one request.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::agent::layer::fetch::MAX_GAP;

/// Most bytes of one request, unless a single chunk is larger: chunks that come along must not
/// delay chunks that are read sooner.
const MAX_RUN: u64 = 1 << 20;

/// A chunk to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedChunk {
    /// The place of its file in the profile.
    pub(super) file: u32,
    /// Its number in its layer.
    pub(super) number: u32,
    /// Its range in the blob.
    pub(super) range: Range<u64>,
}

/// Chunks of one layer for one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The place of the layer in its image.
    pub(super) layer: u32,
    /// In the order of the blob.
    pub(super) chunks: Vec<QueuedChunk>,
}

/// Layer, offset in its blob, number of the chunk: several chunks may lie in one member.
type Place = (u32, u64, u32);
/// File in the profile, layer, number of the chunk.
type Rank = (u32, u32, u32);

/// The chunks that have not been requested yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    by_place: BTreeMap<Place, QueuedChunk>,
    by_rank: BTreeMap<Rank, Place>,
}

impl Run {
    pub(super) fn bytes(&self) -> u64 {
        let end = self
            .chunks
            .iter()
            .map(|chunk| chunk.range.end)
            .max()
            .unwrap_or_default();
        self.chunks
            .first()
            .map_or(0, |first| end - first.range.start)
    }
}

impl Queue {
    pub(super) fn add(&mut self, layer: u32, chunks: impl IntoIterator<Item = QueuedChunk>) {
        for chunk in chunks {
            let place = (layer, chunk.range.start, chunk.number);
            self.by_rank
                .insert((chunk.file, layer, chunk.number), place);
            self.by_place.insert(place, chunk);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Drops the queued chunks of a layer.
    pub(super) fn forget(&mut self, layer: u32) {
        self.by_place.retain(|(of, _, _), _| *of != layer);
        self.by_rank.retain(|(_, of, _), _| *of != layer);
    }

    /// Returns the next request.
    pub(super) fn next(&mut self) -> Option<Run> {
        let (_, &first) = self.by_rank.first_key_value()?;
        let layer = first.0;
        let chunk = self.take(first)?;
        let mut range = chunk.range.clone();
        let mut chunks = vec![chunk];
        while let Some(next) = self.behind(first, &range) {
            let Some(chunk) = self.take(next) else { break };
            range.end = range.end.max(chunk.range.end);
            chunks.push(chunk);
        }
        while let Some(next) = self.before(first, &range) {
            let Some(chunk) = self.take(next) else { break };
            range.start = range.start.min(chunk.range.start);
            chunks.push(chunk);
        }
        chunks.sort_by_key(|chunk| (chunk.range.start, chunk.number));
        Some(Run { layer, chunks })
    }

    fn take(&mut self, place: Place) -> Option<QueuedChunk> {
        let chunk = self.by_place.remove(&place)?;
        self.by_rank.remove(&(chunk.file, place.0, chunk.number));
        Some(chunk)
    }

    fn behind(&self, first: Place, range: &Range<u64>) -> Option<Place> {
        let (place, chunk) = self.by_place.range(first..(first.0 + 1, 0, 0)).next()?;
        let is_near = place.1 <= range.end.saturating_add(MAX_GAP);
        (is_near && chunk.range.end.saturating_sub(range.start) <= MAX_RUN).then_some(*place)
    }

    fn before(&self, first: Place, range: &Range<u64>) -> Option<Place> {
        let (place, chunk) = self.by_place.range((first.0, 0, 0)..first).next_back()?;
        let is_near = chunk.range.end.saturating_add(MAX_GAP) >= range.start;
        (is_near && range.end.saturating_sub(place.1) <= MAX_RUN).then_some(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(file: u32, number: u32, range: Range<u64>) -> QueuedChunk {
        QueuedChunk {
            file,
            number,
            range,
        }
    }

    /// Returns the layer and the chunk numbers of each request.
    fn requests(queue: &mut Queue) -> Vec<(u32, Vec<u32>)> {
        std::iter::from_fn(|| queue.next())
            .map(|run| {
                (
                    run.layer,
                    run.chunks.iter().map(|chunk| chunk.number).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_chunk_that_is_read_first_comes_first_with_its_neighbours() {
        let mut queue = Queue::default();
        let far = 10 * MAX_GAP;
        queue.add(
            0,
            [
                chunk(3, 0, 0..10),
                chunk(1, 1, 10..20),
                chunk(4, 2, 20..30),
                chunk(0, 9, far..far + 10),
            ],
        );
        queue.add(1, [chunk(2, 0, 0..10)]);
        assert_eq!(
            requests(&mut queue),
            [(0, vec![9]), (0, vec![0, 1, 2]), (1, vec![0])]
        );
    }

    #[test]
    fn requests_stay_below_the_maximum() {
        let mut queue = Queue::default();
        let part = MAX_RUN / 4;
        let chunks =
            (0..10).map(|at| chunk(at, at, u64::from(at) * part..u64::from(at + 1) * part));
        queue.add(0, chunks);
        queue.add(0, [chunk(20, 20, 100 * MAX_RUN..105 * MAX_RUN)]);
        assert_eq!(
            requests(&mut queue),
            [
                (0, vec![0, 1, 2, 3]),
                (0, vec![4, 5, 6, 7]),
                (0, vec![8, 9]),
                (0, vec![20])
            ],
            "only a single larger chunk exceeds it"
        );
    }

    #[test]
    fn a_short_gap_is_fetched_along_and_a_long_one_is_not() {
        let mut queue = Queue::default();
        let far = 20 + 2 * MAX_GAP;
        queue.add(
            0,
            [
                chunk(0, 0, 0..10),
                chunk(1, 1, 10 + MAX_GAP..20 + MAX_GAP),
                chunk(2, 2, far + 1..far + 2),
            ],
        );
        assert_eq!(requests(&mut queue), [(0, vec![0, 1]), (0, vec![2])]);
    }

    #[test]
    fn chunks_of_one_member_share_a_request_and_a_removed_layer_has_none() {
        let mut queue = Queue::default();
        queue.add(
            0,
            [chunk(0, 0, 0..10), chunk(1, 1, 0..10), chunk(2, 2, 0..10)],
        );
        queue.add(1, [chunk(0, 0, 0..10)]);
        queue.forget(1);
        let run = queue.next().unwrap();
        assert_eq!((run.bytes(), run.chunks.len()), (10, 3));
        assert_eq!(queue.next(), None);
    }
}
