//! Reads files of one layer: from the cache, else from the registry.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use estargz::toc::Node;
use estargz::{Chunk, Toc};
use tokio::sync::OnceCell;

use super::fetch::{Blob, FetchError, Fetcher, Reason, Traffic, Wanted};
use super::report::Measure;
use super::tree::{Content, FileId, Tree};
use crate::upstream::Peer;

/// Bytes fetched along with the first chunk of a reader, behind it and before it: together what 100 Mbit/s carry in a
/// round trip of 20 ms, so that asking again would take as long. A program jumps back and forth among the files of a
/// directory, which lie side by side.
const FIRST_WINDOW: u64 = 128 << 10;
/// Readers whose place is remembered: more than read one layer from end to end at once.
const MAX_READERS: usize = 8;
/// How many chunks a reader may skip and still count as going on.
const MAX_SKIP: u32 = 8;

/// A layer: its tree, and how to get what is in its files.
#[derive(Debug)]
pub struct Layer {
    tree: Arc<Tree>,
    blob: Arc<Blob>,
    fetcher: Fetcher,
    traffic: Arc<Traffic>,
    readers: Mutex<Vec<Reader>>,
    peer: OnceCell<Option<Peer>>,
}

/// Where something that reads from end to end will go on, and how much is fetched ahead of it.
#[derive(Debug, Clone, Copy)]
struct Reader {
    next: u32,
    window: u64,
}

/// A piece of a file that lies in one chunk.
struct Piece {
    number: u32,
    chunk: Chunk,
    /// What of the chunk's content is wanted.
    part: Range<u64>,
}

impl Layer {
    pub fn new(tree: Arc<Tree>, blob: Blob, fetcher: Fetcher) -> Self {
        let blob = Arc::new(blob);
        let (traffic, readers, peer) = (Arc::default(), Mutex::default(), OnceCell::new());
        Self { tree, blob, fetcher, traffic, readers, peer }
    }

    /// The same, given by `peer`; by no Starlift server where there is none.
    #[must_use]
    pub fn given_by(self, peer: Option<Peer>) -> Self {
        Self { peer: OnceCell::new_with(Some(peer)), ..self }
    }

    /// The Starlift server that gives the layer, if it is one; asks where that is not known yet.
    pub async fn peer(&self) -> Option<Peer> {
        let Blob { source, repository, digest, .. } = &*self.blob;
        let locate = || async { source.locate(repository, digest).await.map(|(_, peer)| peer) };
        self.peer.get_or_try_init(locate).await.ok().cloned().flatten()
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The tree, for another layer that is the same.
    pub fn shared_tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Bytes of a regular file, fewer at its end, if they are all on this node. Blocks on the disk at most; `None`
    /// also where there is no such file.
    pub fn read_held(&self, id: FileId, offset: u64, length: u64) -> Option<Bytes> {
        let node = match self.tree.content(id)? {
            Content::Bytes(bytes) => return Some(cut(bytes, offset, length)),
            Content::Chunks(node) => node,
        };
        let pieces = pieces(self.tree.toc(), node, offset, length);
        if let [piece] = pieces.as_slice() {
            return self.held(piece);
        }
        let mut content = BytesMut::new();
        for piece in &pieces {
            content.extend_from_slice(&self.held(piece)?);
        }
        Some(content.freeze())
    }

    fn held(&self, piece: &Piece) -> Option<Bytes> {
        let Piece { chunk, part, .. } = piece;
        match &chunk.digest {
            Some(digest) => self.fetcher.cache().read(digest, chunk.size, part.clone()),
            None => Some(Bytes::from(vec![0; usize::try_from(part.end - part.start).ok()?])),
        }
    }

    /// Bytes of a regular file, fewer at its end; those that are not held are fetched first.
    ///
    /// Cancel safe: what is on its way arrives all the same.
    ///
    /// # Errors
    /// When the registry does not give the chunks' bytes.
    pub async fn read(&self, id: FileId, offset: u64, length: u64) -> Result<Bytes, FetchError> {
        let node = match self.tree.content(id) {
            Some(Content::Chunks(node)) => node,
            Some(Content::Bytes(bytes)) => return Ok(cut(bytes, offset, length)),
            None => return Ok(Bytes::new()),
        };
        let pieces = pieces(self.tree.toc(), node, offset, length);
        let missing: Vec<&Piece> = pieces.iter().filter(|piece| !self.is_held(&piece.chunk)).collect();
        let mut chunks: Vec<Chunk> = missing.iter().map(|piece| piece.chunk.clone()).collect();
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            chunks.extend(self.beside(first.number, last.number));
        }
        let mut landings = self.fetcher.fetch(&self.blob, &chunks, Reason::Read, &self.traffic).into_iter();
        let mut content = BytesMut::new();
        for piece in &pieces {
            let was_missing = missing.iter().any(|missing| missing.number == piece.number);
            let landing = if was_missing { landings.next() } else { None };
            content.extend_from_slice(&self.landed(piece, landing).await?);
        }
        Ok(content.freeze())
    }

    /// Where the chunks begin and end that hold these bytes of a file.
    pub fn chunks_at(&self, id: FileId, offset: u64, length: u64) -> Option<Range<u64>> {
        let Content::Chunks(node) = self.tree.content(id)? else { return None };
        let pieces = pieces(self.tree.toc(), node, offset, length);
        let (first, last) = (pieces.first()?, pieces.last()?);
        Some(first.chunk.file_offset..last.chunk.file_offset + last.chunk.size)
    }

    pub(super) fn is_held(&self, chunk: &Chunk) -> bool {
        chunk.digest.is_none_or(|digest| self.fetcher.cache().holds(&digest))
    }

    /// Whether a file's first chunk is on this node.
    pub(super) fn begins_here(&self, id: FileId) -> bool {
        let Some(Content::Chunks(node)) = self.tree.content(id) else { return true };
        node.chunks().next().is_none_or(|chunk| self.is_held(&chunk))
    }

    async fn landed(&self, piece: &Piece, landing: Option<Wanted>) -> Result<Bytes, FetchError> {
        let part = |content: &Bytes| cut(content, piece.part.start, piece.part.end - piece.part.start);
        if let Some(Wanted::Landing(landing)) = landing {
            return landing.await.map(|content| part(&content));
        }
        if let Some(held) = self.held(piece) {
            return Ok(held);
        }
        // Let go, or found damaged, since it was looked for.
        let chunk = std::slice::from_ref(&piece.chunk);
        match self.fetcher.fetch(&self.blob, chunk, Reason::Read, &self.traffic).pop() {
            Some(Wanted::Landing(landing)) => landing.await.map(|content| part(&content)),
            _ => self.held(piece).ok_or(FetchError::Aborted),
        }
    }

    /// The chunks to fetch along with those from `first` to `last`: more and more for whoever reads on and on, those on
    /// both sides for whoever just came.
    fn beside(&self, first: u32, last: u32) -> Vec<Chunk> {
        let (window, mut chunks) = match self.expected(first) {
            Some(reader) => ((reader.window * 2).min(self.fetcher.max_run()), Vec::new()),
            None => (FIRST_WINDOW, self.before(first)),
        };
        let Some(end) = self.tree.toc().chunk(last).map(|chunk| chunk.range.end) else { return chunks };
        let mut next = last.saturating_add(1);
        while let Some(chunk) = self.tree.toc().chunk(next)
            && chunk.range.end >= end
            && chunk.range.end - end <= window
        {
            next += 1;
            if chunk.digest.is_some() {
                chunks.push(chunk);
            }
        }
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push(Reader { next, window });
        let surplus = readers.len().saturating_sub(MAX_READERS);
        drop(readers.drain(..surplus));
        chunks
    }

    /// The reader that was expected to miss the chunk `first`; it is taken off the list.
    fn expected(&self, first: u32) -> Option<Reader> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |reader: &Reader| (reader.next..reader.next.saturating_add(MAX_SKIP)).contains(&first);
        readers.iter().position(goes_on).map(|index| readers.remove(index))
    }

    /// The chunks just before `first`, up to the nearest that is held.
    fn before(&self, first: u32) -> Vec<Chunk> {
        let toc = self.tree.toc();
        let Some(start) = toc.chunk(first).map(|chunk| chunk.range.start) else { return Vec::new() };
        let is_near = |chunk: &Chunk| start.checked_sub(chunk.range.start).is_some_and(|bytes| bytes <= FIRST_WINDOW);
        let chunks = (0..first).rev().map_while(|number| toc.chunk(number));
        chunks.take_while(|chunk| is_near(chunk) && !self.is_held(chunk)).collect()
    }

    /// The file's only chunk, where it has no more than one: its cached copy is the whole file.
    pub fn only_chunk(&self, id: FileId) -> Option<Chunk> {
        let Content::Chunks(node) = self.tree.content(id)? else { return None };
        let mut chunks = node.chunks();
        let first = chunks.next()?;
        (chunks.next().is_none() && first.size == node.size() && first.digest.is_some()).then_some(first)
    }

    /// Sends for the chunks with these numbers, as far as they are not held; waits until they are there.
    ///
    /// # Errors
    /// When one could not be had, after all the others arrived or did not.
    pub async fn hold(&self, numbers: Range<u32>, reason: Reason) -> Result<(), FetchError> {
        self.hold_all(numbers, reason).await
    }

    /// The same of chunks that do not follow each other.
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub async fn hold_all(&self, numbers: impl Iterator<Item = u32>, reason: Reason) -> Result<(), FetchError> {
        let chunks: Vec<Chunk> =
            numbers.filter_map(|number| self.tree.toc().chunk(number)).filter(|chunk| chunk.digest.is_some()).collect();
        let mut outcome = Ok(());
        for wanted in self.fetcher.fetch(&self.blob, &chunks, reason, &self.traffic) {
            if let Wanted::Landing(landing) = wanted {
                outcome = outcome.and(landing.await.map(drop));
            }
        }
        outcome
    }

    /// Keeps the chunks that lie in `bytes`, which begin at `start` of the blob. Blocks.
    pub fn keep(&self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let toc = self.tree.toc();
        let count = u32::try_from(toc.chunk_count()).unwrap_or(u32::MAX);
        // From the blob's end backwards, until they no longer lie within.
        let numbers = (0..count).rev();
        let within = numbers
            .filter_map(|number| toc.chunk(number))
            .take_while(|chunk| chunk.digest.is_none() || chunk.range.start >= start);
        for chunk in within.filter(|chunk| chunk.range.end <= end) {
            let Some(digest) = chunk.digest else { continue };
            let (from, to) = (chunk.range.start - start, chunk.range.end - start);
            let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else { continue };
            // What does not decode is fetched when it is read, and reported then.
            if let Ok(content) = chunk.decode(&bytes[from..to]) {
                self.fetcher.cache().put(digest, &Bytes::from(content));
            }
        }
    }

    /// What the files hold, and what of that is on this node's disk.
    pub fn measure(&self) -> Measure {
        let toc = self.tree.toc();
        let count = u32::try_from(toc.chunk_count()).unwrap_or(u32::MAX);
        let mut measure = Measure::default();
        for chunk in (0..count).filter_map(|number| toc.chunk(number)) {
            let Some(digest) = chunk.digest else { continue };
            measure.bytes += chunk.size;
            if self.fetcher.cache().keeps(&digest) {
                measure.held_bytes += chunk.size;
                measure.held_chunks += 1;
            }
        }
        measure
    }
}

/// The pieces that make up these bytes of a file.
fn pieces(toc: &Toc, node: Node<'_>, offset: u64, length: u64) -> Vec<Piece> {
    let end = offset.saturating_add(length).min(node.size());
    let first = node.chunk_number_at(offset);
    let numbers = first.into_iter().flat_map(|first| first..node.chunk_numbers().end);
    let piece = |number| {
        let chunk = toc.chunk(number).filter(|chunk| chunk.file_offset < end)?;
        let part = offset.saturating_sub(chunk.file_offset)..(end - chunk.file_offset).min(chunk.size);
        Some(Piece { number, chunk, part })
    };
    numbers.map_while(piece).collect()
}

/// The bytes from `offset` on, at most `length`.
fn cut(bytes: &[u8], offset: u64, length: u64) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let end = usize::try_from(offset.saturating_add(length)).unwrap_or(usize::MAX).min(bytes.len());
    Bytes::copy_from_slice(&bytes[start..end])
}
