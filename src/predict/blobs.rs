//! The blobs of the image that is predicted. Bytes are requested from the parent, then inflated and
//! verified here.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use estargz::{Chunk, Limits, Toc};
use serde::{Deserialize, Serialize};

use super::fuel::{End, Fuel};
use crate::layers::open::{Opening, Tail, TocDigest, tail_range};
use crate::telemetry::log::chain;

/// The longest piece of a blob: enough for the largest members, and for the TOC of a million files.
pub(super) const MAX_PIECE: u64 = 32 << 20;
/// The longest TOC that is inflated: some 400,000 files.
const MAX_TOC: u64 = 128 << 20;
/// The largest chunk that is inflated. Starlift's converter makes no larger ones.
const MAX_CHUNK: u64 = 64 << 20;

/// An image whose start is to be predicted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    /// The image's configuration, as stored.
    pub(super) configuration: String,
    /// Bottom first. Layers without a record are `None` and are not read.
    pub(super) layers: Vec<Option<Layer>>,
}

/// A layer: the facts that are needed to read its blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) size: u64,
    pub(super) toc_digest: TocDigest,
    /// The size of its external TOC, if it has one.
    pub(super) external_toc: Option<u64>,
}

/// A blob of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Blob {
    Layer(u32),
    ExternalToc(u32),
}

/// A byte range of a blob, to be requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) blob: Blob,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Piece {
    fn new(blob: Blob, range: Range<u64>) -> Self {
        let Range { start, end } = range;
        Self { blob, start, end }
    }

    pub(super) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// A function that returns the requested pieces, in their order.
pub(super) type Read<'a> = dyn FnMut(&[Piece]) -> io::Result<Vec<Bytes>> + 'a;

/// A reader of an image's blobs.
pub(super) struct Blobs<'a> {
    read: Box<Read<'a>>,
    fuel: Fuel,
    /// The first failure.
    broken: Option<String>,
}

impl std::fmt::Debug for Blobs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs")
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl<'a> Blobs<'a> {
    pub(super) fn new(read: Box<Read<'a>>, fuel: Fuel) -> Self {
        Self {
            read,
            fuel,
            broken: None,
        }
    }

    /// The failure that ended the fuel, if bytes were missing or wrong.
    pub(super) fn broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    /// Returns the TOC of a layer.
    pub(super) fn toc(&mut self, number: u32, layer: &Layer) -> Option<Toc> {
        let opened = self.open(number, layer);
        opened
            .map_err(|error| self.breaks(format!("layer {number}: {}", chain(&error))))
            .ok()
    }

    /// Returns the contents of chunks, for each of which [`Self::may_inflate`] was true. They are
    /// empty once something failed.
    pub(super) fn chunks(&mut self, chunks: &[(u32, Chunk)]) -> Vec<Vec<u8>> {
        let piece =
            |(layer, chunk): &(u32, Chunk)| Piece::new(Blob::Layer(*layer), chunk.range.clone());
        let pieces: Vec<Piece> = chunks.iter().map(piece).collect();
        let decoded = self.pieces(&pieces).and_then(|members| {
            let pairs = chunks.iter().zip(members);
            pairs
                .map(|((_, chunk), member)| chunk.decode(&member).map_err(io::Error::other))
                .collect()
        });
        decoded.unwrap_or_else(|error: io::Error| {
            self.breaks(chain(&error));
            vec![Vec::new(); chunks.len()]
        })
    }

    /// Whether a chunk may be inflated. If so, its cost is taken from the fuel.
    pub(super) fn may_inflate(&self, chunk: &Chunk) -> bool {
        let fetched = chunk.range.end.saturating_sub(chunk.range.start);
        let fits = chunk.size <= MAX_CHUNK && fetched <= MAX_PIECE;
        fits && self.fuel.inflate(
            chunk
                .size
                .saturating_add(chunk.inner_offset)
                .saturating_add(fetched),
        )
    }

    fn open(&mut self, number: u32, layer: &Layer) -> io::Result<Toc> {
        let blob = Blob::Layer(number);
        let tail = self.piece(Piece::new(blob, tail_range(layer.size)))?;
        let limits = Limits::default()
            .with_max_compressed_bytes(MAX_PIECE)
            .with_max_json_bytes(MAX_TOC);
        let opening = Opening::new(&Tail::new(layer.size, tail), limits);
        let opening = opening.map_err(io::Error::other)?;
        let external = layer.external_toc;
        let external = external.map(|size| (Blob::ExternalToc(number), size));
        let (blob, range) = opening.section(blob, external).map_err(io::Error::other)?;
        let section = self.piece(Piece::new(blob, range))?;
        let toc = opening.verified(&section, &layer.toc_digest);
        toc.map_err(io::Error::other)
    }

    fn piece(&mut self, piece: Piece) -> io::Result<Bytes> {
        self.pieces(&[piece])?
            .pop()
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn pieces(&mut self, pieces: &[Piece]) -> io::Result<Vec<Bytes>> {
        if let Some(piece) = pieces.iter().find(|piece| piece.len() > MAX_PIECE) {
            return Err(io::Error::other(format!(
                "piece of {} bytes, over {MAX_PIECE}",
                piece.len()
            )));
        }
        let read = (self.read)(pieces)?;
        let are_whole = read
            .iter()
            .zip(pieces)
            .all(|(bytes, piece)| bytes.len() as u64 == piece.len());
        let all = read.len() == pieces.len() && are_whole;
        all.then_some(read)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn breaks(&mut self, why: String) {
        self.fuel.end(End::Broken);
        self.broken.get_or_insert(why);
    }
}
