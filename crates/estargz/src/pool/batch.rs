//! A run of members: filled by a writer, compressed by a worker, written by the writer.

use std::ops::Range;
use std::sync::Arc;

use super::encoder::{Encoder, Failed};
use super::{Budget, Shared};
use crate::digest::Digest;

/// Bytes reserved from the budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    bytes: usize,
}

/// Members before they are compressed.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Longer than the filled part, because a reused buffer is not zeroed again.
    data: Vec<u8>,
    filled: usize,
    /// Where each member but the last ends in `data`.
    member_ends: Vec<usize>,
    chunks: Vec<Range<usize>>,
    room: usize,
    reservation: Reservation,
}

/// Members as in the blob.
#[derive(Debug)]
pub(crate) struct Compressed {
    /// The members, then old bytes of a reused buffer.
    buffer: Vec<u8>,
    ends: Vec<usize>,
    digests: Vec<Digest>,
    _reservation: Reservation,
}

impl Reservation {
    pub(super) fn try_take(shared: &Arc<Shared>, room: usize) -> Option<Self> {
        let bytes = cost(&shared.budget, room);
        shared.budget.try_take(bytes).then(|| Self {
            shared: Arc::clone(shared),
            bytes,
        })
    }

    pub(super) fn take(shared: &Arc<Shared>, room: usize) -> Self {
        let bytes = cost(&shared.budget, room);
        shared.budget.take(bytes);
        Self {
            shared: Arc::clone(shared),
            bytes,
        }
    }
}

/// A batch is in memory twice while it is compressed.
fn cost(budget: &Budget, room: usize) -> usize {
    room.saturating_mul(2).min(budget.limit)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.budget.give_back(self.bytes);
    }
}

impl Batch {
    pub(super) fn new(mut data: Vec<u8>, room: usize, reservation: Reservation) -> Self {
        lengthen(&mut data, 0, with_slack(room));
        Self {
            data,
            filled: 0,
            member_ends: Vec::new(),
            chunks: Vec::new(),
            room,
            reservation,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Bytes that still fit into the reservation.
    pub(crate) fn room(&self) -> usize {
        self.room.saturating_sub(self.filled)
    }

    /// Bytes in the member being filled.
    pub(crate) fn member_len(&self) -> usize {
        self.filled - self.member_ends.last().copied().unwrap_or(0)
    }

    /// The number of the member being filled.
    pub(crate) fn member(&self) -> usize {
        self.member_ends.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.extend(bytes.len()).copy_from_slice(bytes);
    }

    /// Returns `size` more bytes to be filled in place. They have arbitrary content.
    pub(crate) fn extend(&mut self, size: usize) -> &mut [u8] {
        let start = self.filled;
        lengthen(&mut self.data, start, start + size);
        self.filled += size;
        &mut self.data[start..self.filled]
    }

    /// Marks the last `size` bytes as a chunk. Returns the number of its digest.
    pub(crate) fn add_chunk(&mut self, size: usize) -> usize {
        self.chunks.push(self.filled - size..self.filled);
        self.chunks.len() - 1
    }

    /// Ends the member being filled, unless it is empty.
    pub(crate) fn end_member(&mut self) {
        if self.member_len() > 0 {
            self.member_ends.push(self.filled);
        }
    }

    /// Compresses into `out`, whose content is overwritten. Returns the buffer of the input too.
    pub(super) fn compress(
        mut self,
        encoder: &mut Encoder,
        mut out: Vec<u8>,
    ) -> Result<(Compressed, Vec<u8>), Failed> {
        self.end_member();
        let digests = self
            .chunks
            .iter()
            .map(|range| Digest::of(&self.data[range.clone()]))
            .collect();
        let mut ends = Vec::with_capacity(self.member_ends.len());
        lengthen(&mut out, 0, with_slack(self.filled));
        let (mut start, mut used) = (0, 0);
        for end in &self.member_ends {
            used += encoder.encode(&self.data[start..*end], &mut out, used)?;
            ends.push(used);
            start = *end;
        }
        let compressed = Compressed {
            buffer: out,
            ends,
            digests,
            _reservation: self.reservation,
        };
        Ok((compressed, self.data))
    }
}

impl Compressed {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.ends.last().copied().unwrap_or(0)]
    }

    /// Returns where the member begins within [`bytes`](Self::bytes).
    pub(crate) fn member_start(&self, member: usize) -> usize {
        member
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn digest(&self, chunk: usize) -> Option<Digest> {
        self.digests.get(chunk).copied()
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// The length of a buffer for `bytes` of content, compressed or not: incompressible content grows a
/// little.
fn with_slack(bytes: usize) -> usize {
    bytes + bytes / 64 + 4096
}

/// Makes `buffer` at least `length` bytes long, keeping the first `kept`.
///
/// The zero pages of a new buffer cost memory only once they are written.
pub(super) fn lengthen(buffer: &mut Vec<u8>, kept: usize, length: usize) {
    if buffer.len() >= length {
        return;
    }
    if kept == 0 {
        *buffer = vec![0; length];
    } else {
        buffer.resize(length, 0);
    }
}
