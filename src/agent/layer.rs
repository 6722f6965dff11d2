//! Reads files of one layer: from the cache, else from the registry.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use estargz::toc::Node;
use estargz::{Chunk, Toc};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::fetch::{Blob, FetchError, Fetcher, Lookup, Reason, Traffic};
use super::report::Measure;
use super::tree::{Content, FileId, Tree};
use crate::registry::Peer;

/// Bytes fetched along with the first chunk of a reader, behind it and before it: together what 100 Mbit/s carry in a
/// round trip of 20 ms, so that asking again would take as long. A program jumps back and forth among the files of a
/// directory, which lie side by side.
const FIRST_WINDOW: u64 = 128 << 10;
/// Readers whose place is remembered: more than read one layer from end to end at once.
const MAX_READERS: usize = 8;
/// How many chunks a reader may skip and still count as going on.
const MAX_SKIP: u32 = 8;
/// Most chunks that are looked up at once for one read, and most that are fetched along with them on either side. Sixteen
/// of the smallest useful size make a block of the kernel's read-ahead; chunks of a byte are hostile.
const MAX_PIECES: usize = 64;
const MAX_BESIDE: usize = 1024;
/// Most bytes that are inflated of the end of a blob that came with its TOC: some times what it is long.
const MAX_KEPT: u64 = 16 << 20;

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
        Self {
            tree,
            blob,
            fetcher,
            traffic,
            readers,
            peer,
        }
    }

    /// The same, given by `peer`; by no Starlift server where there is none.
    #[must_use]
    pub fn given_by(self, peer: Option<Peer>) -> Self {
        Self {
            peer: OnceCell::new_with(Some(peer)),
            ..self
        }
    }

    /// The Starlift server that gives the layer, if it is one; asks where that is not known yet.
    pub async fn peer(&self) -> Option<Peer> {
        let Blob {
            source,
            repository,
            digest,
            ..
        } = &*self.blob;
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
        let end = offset.saturating_add(length).min(node.size());
        let mut content = BytesMut::new();
        let mut at = offset;
        while at < end {
            let pieces = pieces(self.tree.toc(), node, at..end);
            if let [piece] = pieces.as_slice()
                && piece.file_range() == (offset..end)
            {
                return self.held(piece);
            }
            at = pieces.last()?.file_range().end;
            for piece in &pieces {
                content.extend_from_slice(&self.held(piece)?);
            }
        }
        Some(content.freeze())
    }

    fn held(&self, piece: &Piece) -> Option<Bytes> {
        let Piece { chunk, part, .. } = piece;
        match &chunk.digest {
            Some(digest) => self.fetcher.cache().read(digest, chunk.size, part.clone()),
            None => Some(Bytes::from(vec![
                0;
                usize::try_from(part.end - part.start)
                    .ok()?
            ])),
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
        let end = offset.saturating_add(length).min(node.size());
        let mut content = BytesMut::new();
        let mut at = offset;
        while at < end {
            let pieces = pieces(self.tree.toc(), node, at..end);
            let Some(last) = pieces.last() else { break };
            at = last.file_range().end;
            for part in self.read_pieces(&pieces).await? {
                content.extend_from_slice(&part);
            }
        }
        Ok(content.freeze())
    }

    /// The parts of the chunks in their order.
    async fn read_pieces(&self, pieces: &[Piece]) -> Result<Vec<Bytes>, FetchError> {
        let mut parts: Vec<Option<Bytes>> = pieces.iter().map(|piece| self.held(piece)).collect();
        let missing = |parts: &[Option<Bytes>]| -> Vec<usize> {
            (0..pieces.len())
                .filter(|index| parts[*index].is_none())
                .collect()
        };
        let wanted = missing(&parts);
        if let (Some(first), Some(last)) = (wanted.first(), wanted.last()) {
            let chunks: Vec<Chunk> = wanted
                .iter()
                .map(|index| pieces[*index].chunk.clone())
                .collect();
            let beside = self.beside(pieces[*first].number, pieces[*last].number);
            let found = self
                .fetcher
                .fetch(&self.blob, &chunks, &beside, &self.traffic);
            collect(pieces, &mut parts, wanted.into_iter().zip(found)).await?;
        }
        // Let go, found damaged, or not readable for the moment.
        for index in missing(&parts) {
            parts[index] = self.held(&pieces[index]);
        }
        let fetch = |index: usize| {
            (
                index,
                self.fetcher
                    .fetch_anew(&self.blob, &pieces[index].chunk, &self.traffic),
            )
        };
        let found: Vec<(usize, Lookup)> = missing(&parts).into_iter().map(fetch).collect();
        collect(pieces, &mut parts, found.into_iter()).await?;
        parts
            .into_iter()
            .collect::<Option<_>>()
            .ok_or(FetchError::Aborted)
    }

    /// Where the chunks begin and end that hold these bytes of a file.
    pub fn chunks_at(&self, id: FileId, offset: u64, length: u64) -> Option<Range<u64>> {
        let Content::Chunks(node) = self.tree.content(id)? else {
            return None;
        };
        let end = offset.saturating_add(length).min(node.size());
        let (first, last) = (node.chunk_at(offset)?, node.chunk_at(end.checked_sub(1)?)?);
        Some(first.file_offset..last.file_offset + last.size)
    }

    pub(super) fn is_held(&self, chunk: &Chunk) -> bool {
        chunk
            .digest
            .is_none_or(|digest| self.fetcher.cache().holds(&digest))
    }

    /// Whether a file's first chunk is on this node.
    pub(super) fn begins_here(&self, id: FileId) -> bool {
        let Some(Content::Chunks(node)) = self.tree.content(id) else {
            return true;
        };
        node.chunks()
            .next()
            .is_none_or(|chunk| self.is_held(&chunk))
    }

    /// The chunks to fetch along with those from `first` to `last`: more and more for whoever reads on and on, those on
    /// both sides for whoever just came.
    fn beside(&self, first: u32, last: u32) -> Vec<Chunk> {
        let (window, mut chunks) = match self.expected(first) {
            Some(reader) => ((reader.window * 2).min(self.fetcher.max_run()), Vec::new()),
            None => (FIRST_WINDOW, self.before(first)),
        };
        let Some(end) = self.tree.toc().chunk(last).map(|chunk| chunk.range.end) else {
            return chunks;
        };
        let mut next = last.saturating_add(1);
        while let Some(chunk) = self.tree.toc().chunk(next)
            && chunk.range.end >= end
            && chunk.range.end - end <= window
            && chunks.len() < MAX_BESIDE
        {
            next += 1;
            if chunk.digest.is_some() {
                chunks.push(chunk);
            }
        }
        let mut readers = self.readers.lock();
        readers.push(Reader { next, window });
        let surplus = readers.len().saturating_sub(MAX_READERS);
        drop(readers.drain(..surplus));
        chunks
    }

    /// The reader that was expected to miss the chunk `first`; it is taken off the list.
    fn expected(&self, first: u32) -> Option<Reader> {
        let mut readers = self.readers.lock();
        let goes_on =
            |reader: &Reader| (reader.next..reader.next.saturating_add(MAX_SKIP)).contains(&first);
        readers
            .iter()
            .position(goes_on)
            .map(|index| readers.remove(index))
    }

    /// The chunks just before `first`, up to the nearest that is held.
    fn before(&self, first: u32) -> Vec<Chunk> {
        let toc = self.tree.toc();
        let Some(start) = toc.chunk(first).map(|chunk| chunk.range.start) else {
            return Vec::new();
        };
        let is_near = |chunk: &Chunk| {
            start
                .checked_sub(chunk.range.start)
                .is_some_and(|bytes| bytes <= FIRST_WINDOW)
        };
        let chunks = (0..first).rev().map_while(|number| toc.chunk(number));
        chunks
            .take_while(|chunk| is_near(chunk) && !self.is_held(chunk))
            .take(MAX_BESIDE / 2)
            .collect()
    }

    /// The file's only chunk, where it has no more than one: its cached copy is the whole file.
    pub fn only_chunk(&self, id: FileId) -> Option<Chunk> {
        let Content::Chunks(node) = self.tree.content(id)? else {
            return None;
        };
        let mut chunks = node.chunks();
        let first = chunks.next()?;
        (chunks.next().is_none() && first.size == node.size() && first.digest.is_some())
            .then_some(first)
    }

    /// Fetches the chunks with these numbers, as far as they are not held; waits until they are there.
    ///
    /// # Errors
    /// When one could not be had, after all the others arrived or did not.
    pub async fn hold(
        &self,
        numbers: impl Iterator<Item = u32>,
        reason: Reason,
    ) -> Result<(), FetchError> {
        let chunks = numbers
            .filter_map(|number| self.tree.toc().chunk(number))
            .collect();
        self.fetcher
            .fetch_ahead(&self.blob, chunks, reason, &self.traffic)
            .await
    }

    /// Keeps the chunks that lie in `bytes`, which begin at `start` of the blob; not those that would inflate to many times
    /// as much. Blocks.
    pub fn keep(&self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let toc = self.tree.toc();
        let count = u32::try_from(toc.chunk_count()).unwrap_or(u32::MAX);
        // From the blob's end backwards, until they no longer lie within.
        let numbers = (0..count).rev();
        let within = numbers
            .filter_map(|number| toc.chunk(number))
            .take_while(|chunk| chunk.digest.is_none() || chunk.range.start >= start);
        let mut inflated = 0;
        for chunk in within.filter(|chunk| chunk.range.end <= end) {
            let Some(digest) = chunk.digest else { continue };
            inflated += chunk.inner_offset + chunk.size;
            if inflated > MAX_KEPT {
                return;
            }
            let (from, to) = (chunk.range.start - start, chunk.range.end - start);
            let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else {
                continue;
            };
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

impl Piece {
    fn file_range(&self) -> Range<u64> {
        self.chunk.file_offset + self.part.start..self.chunk.file_offset + self.part.end
    }
}

/// The pieces that make up these bytes of a file, the first [`MAX_PIECES`] of them.
fn pieces(toc: &Toc, node: Node<'_>, bytes: Range<u64>) -> Vec<Piece> {
    let first = node.chunk_number_at(bytes.start);
    let numbers = first
        .into_iter()
        .flat_map(|first| first..node.chunk_numbers().end);
    let piece = |number| {
        let chunk = toc
            .chunk(number)
            .filter(|chunk| chunk.file_offset < bytes.end)?;
        let part = bytes.start.saturating_sub(chunk.file_offset)
            ..(bytes.end - chunk.file_offset).min(chunk.size);
        Some(Piece {
            number,
            chunk,
            part,
        })
    };
    numbers.map_while(piece).take(MAX_PIECES).collect()
}

/// Puts the parts of the chunks that are on their way into their places, each as soon as it is here: whole chunks are
/// held no longer than that.
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

/// The bytes from `offset` on, at most `length`.
fn cut(bytes: &[u8], offset: u64, length: u64) -> Bytes {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let end = usize::try_from(offset.saturating_add(length))
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    Bytes::copy_from_slice(&bytes[start..end])
}
