//! Reads files of one layer, from its data file or else from the registry.

#[expect(
    unreachable_pub,
    reason = "the models compile these files into a library of their own"
)]
pub mod data;
pub(crate) mod fetch;
pub(crate) mod measure;
pub(crate) mod opening;
mod read_ahead;
pub(crate) mod spec;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use estargz::Chunk;
use estargz::toc::{Node, NodeId};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::OnceCell;

use self::data::{LayerData, Piece};
use self::fetch::{Blob, FetchError, Fetcher, Lookup, Reason, Traffic, Transfer};
use self::measure::Measure;
use self::read_ahead::{Missed, ReadAhead};
use self::tree::{Content, FileId, Tree};
use crate::registry::Peer;

/// Most chunks that are looked up at once for one read, and most that are fetched along with them
/// on either side. Sixteen chunks of the smallest useful size make a block of the kernel's
/// read-ahead. Chunks of one byte are hostile.
const MAX_PIECES: usize = 64;
const MAX_BESIDE: usize = 1024;
/// Most bytes that are inflated from the end of a blob that came with its TOC: a few times the
/// length of that end.
const MAX_KEPT: u64 = 16 << 20;

/// A layer: its tree, and the source of its files' content.
#[derive(Debug)]
pub(crate) struct Layer {
    transfer: Transfer,
    fetcher: Fetcher,
    read_ahead: ReadAhead,
    peer: OnceCell<Option<Peer>>,
}

impl Layer {
    pub(crate) fn new(data: Arc<LayerData>, blob: Blob, fetcher: Fetcher) -> Self {
        let (blob, traffic) = (Arc::new(blob), Arc::default());
        Self {
            transfer: Transfer {
                blob,
                data,
                traffic,
            },
            fetcher,
            read_ahead: ReadAhead::default(),
            peer: OnceCell::new(),
        }
    }

    /// Returns the layer with its origin known: the Starlift server `peer`, or another registry if
    /// `None`.
    #[must_use]
    pub(crate) fn given_by(self, peer: Option<Peer>) -> Self {
        Self {
            peer: OnceCell::new_with(Some(peer)),
            ..self
        }
    }

    /// Returns the Starlift server that serves the layer, or `None` if another registry does. Asks
    /// the registry if that is not known yet.
    pub(crate) async fn peer(&self) -> Option<Peer> {
        let Blob {
            source,
            repository,
            digest,
            ..
        } = self.blob();
        let locate = || async {
            source
                .locate(repository, digest)
                .await
                .map(|(_, peer)| peer)
        };
        self.peer
            .get_or_try_init(locate)
            .await
            .ok()
            .cloned()
            .flatten()
    }

    pub(crate) fn tree(&self) -> &Tree {
        self.data().tree()
    }

    /// Returns the data file, which all mounts of the layer share.
    pub(crate) fn data(&self) -> &Arc<LayerData> {
        &self.transfer.data
    }

    pub(crate) fn blob(&self) -> &Blob {
        &self.transfer.blob
    }

    pub(crate) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.transfer.traffic
    }

    /// From now on, the parts of files that are read are known, and prefetched.
    pub(crate) fn foresee_parts(&self) {
        self.read_ahead.foresee();
    }

    /// Returns bytes of a regular file, fewer at its end, if they are all on this node. Returns
    /// `None` also if there is no regular file with this ID. Blocks on the disk at most.
    pub(crate) fn read_held(&self, id: FileId, offset: u64, length: u64) -> Option<Bytes> {
        match self.tree().content(id)? {
            Content::Bytes(bytes) => Some(cut(bytes, offset, length)),
            Content::Chunks(node) => self.read_data_held(self.place(node, offset, length)),
        }
    }

    /// Returns bytes of a regular file, fewer at its end. Fetches the missing ones first.
    ///
    /// Cancel safe: bytes in transit arrive all the same.
    ///
    /// # Errors
    /// If the registry does not return the chunks' bytes.
    pub(crate) async fn read(
        &self,
        id: FileId,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, FetchError> {
        match self.tree().content(id) {
            Some(Content::Chunks(node)) => self.read_data(self.place(node, offset, length)).await,
            Some(Content::Bytes(bytes)) => Ok(cut(bytes, offset, length)),
            None => Ok(Bytes::new()),
        }
    }

    /// Returns the place of bytes of a file in the data file, fewer at the file's end.
    fn place(&self, node: Node<'_>, offset: u64, length: u64) -> Range<u64> {
        let end = offset.saturating_add(length).min(node.size());
        match self.data().places().of_file(node) {
            Some(place) if offset < end => place + offset..place + end,
            _ => 0..0,
        }
    }

    /// Returns bytes of the data file, if they are all on this node. Padding and holes are zeros.
    /// Blocks on the disk at most.
    pub(crate) fn read_data_held(&self, bytes: Range<u64>) -> Option<Bytes> {
        if let Some(content) = self.data().read(bytes.clone()) {
            return Some(content);
        }
        let mut content = BytesMut::new();
        for piece in self.pieces(bytes.clone()) {
            let part = self.held(&piece)?;
            content.resize(length(bytes.start..piece.place), 0);
            content.extend_from_slice(&part);
        }
        content.resize(length(bytes), 0);
        Some(content.freeze())
    }

    fn pieces(&self, bytes: Range<u64>) -> impl Iterator<Item = Piece> {
        self.data().places().pieces(self.tree().toc(), bytes)
    }

    fn held(&self, piece: &Piece) -> Option<Bytes> {
        let (number, part) = (piece.number, piece.part.clone());
        self.fetcher.store().read_chunk(self.data(), number, part)
    }

    /// Returns bytes of the data file. Fetches the missing ones first. Padding and holes are zeros.
    ///
    /// Cancel safe: bytes in transit arrive all the same.
    ///
    /// # Errors
    /// If the registry does not return the chunks' bytes.
    pub(crate) async fn read_data(&self, bytes: Range<u64>) -> Result<Bytes, FetchError> {
        let mut content = BytesMut::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let pieces: Vec<Piece> = self.pieces(at..bytes.end).take(MAX_PIECES).collect();
            for (piece, part) in pieces.iter().zip(self.read_pieces(&pieces).await?) {
                content.resize(length(bytes.start..piece.place), 0);
                content.extend_from_slice(&part);
            }
            at = match pieces.last() {
                Some(last) => last.place + (last.part.end - last.part.start),
                None => bytes.end,
            };
        }
        content.resize(length(bytes), 0);
        Ok(content.freeze())
    }

    /// Returns the parts of the chunks, in order.
    async fn read_pieces(&self, pieces: &[Piece]) -> Result<Vec<Bytes>, FetchError> {
        let mut parts: Vec<Option<Bytes>> = pieces.iter().map(|piece| self.held(piece)).collect();
        let missing = |parts: &[Option<Bytes>]| -> Vec<usize> {
            (0..pieces.len())
                .filter(|index| parts[*index].is_none())
                .collect()
        };
        let wanted = missing(&parts);
        if let (Some(first), Some(last)) = (wanted.first(), wanted.last()) {
            let numbers: Vec<u32> = wanted.iter().map(|index| pieces[*index].number).collect();
            let beside = self.beside(pieces[*first].number, pieces[*last].number);
            let found = self.fetcher.fetch(&self.transfer, &numbers, &beside);
            collect(pieces, &mut parts, wanted.into_iter().zip(found)).await?;
        }
        // Evicted, found damaged, or not readable at the moment.
        for index in missing(&parts) {
            parts[index] = self.held(&pieces[index]);
        }
        let fetch = |index: usize| {
            let number = pieces[index].number;
            (index, self.fetcher.fetch_anew(&self.transfer, number))
        };
        let found: Vec<(usize, Lookup)> = missing(&parts).into_iter().map(fetch).collect();
        collect(pieces, &mut parts, found.into_iter()).await?;
        parts
            .into_iter()
            .collect::<Option<_>>()
            .ok_or(FetchError::Aborted)
    }

    /// Returns the range of the file that is covered by the chunks that hold these bytes.
    pub(crate) fn chunks_at(&self, id: FileId, offset: u64, length: u64) -> Option<Range<u64>> {
        let Content::Chunks(node) = self.tree().content(id)? else {
            return None;
        };
        let end = offset.saturating_add(length).min(node.size());
        let (first, last) = (node.chunk_at(offset)?, node.chunk_at(end.checked_sub(1)?)?);
        Some(first.file_offset..last.file_offset + last.size)
    }

    /// Returns the files that have content in these bytes of the data file, each with the range of
    /// the file that is covered by the chunks that hold them.
    pub(crate) fn files_at(&self, bytes: Range<u64>) -> Vec<(FileId, Range<u64>)> {
        let mut files: Vec<(FileId, Range<u64>)> = Vec::new();
        for piece in self.pieces(bytes) {
            let chunk = self.tree().toc().chunk(piece.number);
            let owner = self.data().places().file_with(piece.number);
            let (Some(NodeId(id)), Some(chunk)) = (owner, chunk) else {
                continue;
            };
            let id = FileId(id);
            let end = chunk.file_offset + chunk.size;
            match files.last_mut() {
                Some((last, part)) if *last == id => part.end = end,
                _ => files.push((id, chunk.file_offset..end)),
            }
        }
        files
    }

    /// Whether a chunk is on this node.
    pub(crate) fn is_held(&self, number: u32) -> bool {
        self.fetcher.store().has(self.data(), number)
    }

    /// Whether a file's first chunk is on this node.
    pub(crate) fn has_first_chunk(&self, id: FileId) -> bool {
        let Some(Content::Chunks(node)) = self.tree().content(id) else {
            return true;
        };
        let mut numbers = node.chunk_numbers();
        numbers.next().is_none_or(|first| self.is_held(first))
    }

    /// Returns the numbers of the chunks to fetch along with the chunks `first` to `last`.
    fn beside(&self, first: u32, last: u32) -> Vec<u32> {
        let toc = self.tree().toc();
        let file = self.data().places().file_with(first);
        let missed = file.and_then(|file| {
            let size = toc.node(file)?.size();
            Some(Missed { file, size })
        });
        let most = self.fetcher.max_run();
        let around = self.read_ahead.around(first, missed, most);
        let mut chunks = match around.before {
            0 => Vec::new(),
            before => self.before(first, before),
        };
        let Some(end) = toc.chunk(last).map(|chunk| chunk.range.end) else {
            return chunks;
        };
        let mut next = last.saturating_add(1);
        while let Some(chunk) = toc.chunk(next)
            && chunk.range.end >= end
            && chunk.range.end - end <= around.after
            && chunks.len() < MAX_BESIDE
        {
            if chunk.digest.is_some() {
                chunks.push(next);
            }
            next += 1;
        }
        self.read_ahead.expect(next, around.after);
        chunks
    }

    /// Returns the numbers of the chunks in the `window` bytes before `first`, up to the nearest one
    /// that is on this node.
    fn before(&self, first: u32, window: u64) -> Vec<u32> {
        let toc = self.tree().toc();
        let Some(start) = toc.chunk(first).map(|chunk| chunk.range.start) else {
            return Vec::new();
        };
        let is_near = |chunk: &Chunk| {
            start
                .checked_sub(chunk.range.start)
                .is_some_and(|bytes| bytes <= window)
        };
        let is_wanted = |number: &u32| {
            toc.chunk(*number).is_some_and(|chunk| is_near(&chunk)) && !self.is_held(*number)
        };
        let numbers = (0..first).rev().take_while(is_wanted);
        numbers.take(MAX_BESIDE / 2).collect()
    }

    /// Fetches the chunks with these numbers that are not on this node, and waits for them.
    ///
    /// # Errors
    /// If a chunk could not be fetched. Returned only after all the others have arrived or failed.
    pub(crate) async fn hold(
        &self,
        numbers: impl Iterator<Item = u32>,
        reason: Reason,
    ) -> Result<(), FetchError> {
        let numbers = numbers.collect();
        self.fetcher.prefetch(&self.transfer, numbers, reason).await
    }

    /// Stores the chunks that lie in `bytes`, which begin at offset `start` of the blob, except
    /// those that would inflate to many times their size. Blocking.
    pub(crate) fn keep(&self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let toc = self.tree().toc();
        let count = u32::try_from(toc.chunk_count()).unwrap_or(u32::MAX);
        // From the blob's end backwards, until the chunks begin before `start`.
        let numbers = (0..count).rev();
        let within = numbers
            .filter_map(|number| Some((number, toc.chunk(number)?)))
            .take_while(|(_, chunk)| chunk.digest.is_none() || chunk.range.start >= start);
        let mut inflated = 0;
        for (number, chunk) in within {
            if chunk.digest.is_none() || chunk.range.end > end {
                continue;
            }
            inflated += chunk.inner_offset + chunk.size;
            if inflated > MAX_KEPT {
                return;
            }
            let (from, to) = (chunk.range.start - start, chunk.range.end - start);
            let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else {
                continue;
            };
            // A chunk that does not decode is fetched when it is read, and reported then.
            if let Ok(content) = chunk.decode(&bytes[from..to]) {
                let store = self.fetcher.store();
                store.put(self.data(), number, &Bytes::from(content));
            }
        }
    }

    /// Returns the size of the files' content, and how much of it is on this node's disk.
    pub(crate) fn measure(&self) -> Measure {
        let (bytes, held_bytes) = self.data().content_bytes();
        let (_, held_chunks) = self.data().chunk_counts();
        Measure {
            bytes,
            held_bytes,
            held_chunks,
        }
    }
}

/// Copies the parts of the pending chunks to their places, each as soon as its chunk arrives, so
/// that no whole chunk stays in memory longer than that.
async fn collect(
    pieces: &[Piece],
    parts: &mut [Option<Bytes>],
    found: impl Iterator<Item = (usize, Lookup)>,
) -> Result<(), FetchError> {
    let pending = found.filter_map(|(index, lookup)| match lookup {
        Lookup::Pending(pending) => Some(async move { (index, pending.await) }),
        Lookup::Held => None,
    });
    let mut pending: FuturesUnordered<_> = pending.collect();
    while let Some((index, content)) = pending.next().await {
        let part = &pieces[index].part;
        parts[index] = Some(cut(content?.bytes(), part.start, part.end - part.start));
    }
    Ok(())
}

/// Copies the bytes from `offset` on, at most `length`.
fn cut(bytes: &[u8], offset: u64, length: u64) -> Bytes {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let end = usize::try_from(offset.saturating_add(length))
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    Bytes::copy_from_slice(&bytes[start..end])
}

fn length(bytes: Range<u64>) -> usize {
    usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX)
}
