//! The TOCs of the layers in the store, and the content of single files in them.
//!
//! ```text
//! stored blob ─ layers::open, with the record's digest ▶ Toc ─ chunk ▶ content
//! ```
//! Used for questions about stored layers after their conversion. The conversion itself reads no
//! TOC.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use estargz::chunk::ChunkError;
use estargz::toc::{Limits, Node};
use estargz::{Chunk, Toc};
use futures::TryStreamExt as _;
use moka::future::Cache;

use crate::budget::{Budget, Full};
use crate::layers::open::{OpenError, Opening, Tail, TocDigest, tail_range};
use crate::oci::Digest;
use crate::store::records::ConvertedLayer;
use crate::store::{self, Key, LayerOutcome, Object, Store};

/// The memory for TOCs, in bytes: room for the TOCs of some twenty layers of ten thousand files.
const TOC_BYTES: u64 = 64 << 20;
/// The memory of a node in a packed TOC, in bytes, its name and other texts included.
const BYTES_OF_NODE: usize = 160;
/// The memory of a chunk in a packed TOC, in bytes.
const BYTES_OF_CHUNK: usize = 80;

/// The memory for TOCs that are being read, compressed and unpacked: one of the largest, or many of
/// the usual size.
const READING_BYTES: u64 = 256 << 20;
/// The memory that a byte of a compressed TOC needs while it is read: six bytes of JSON, and as
/// much again once it is packed.
const BYTES_OF_SECTION_BYTE: u64 = 12;
/// How long a read of a TOC waits for memory.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// A reader of single files in stored layers. Clones share its cache.
#[derive(Debug, Clone)]
pub struct Tocs {
    store: Store,
    tocs: Cache<Digest, Arc<Toc>>,
    reading: Budget,
}

/// Why a stored layer cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{0} is not in the store")]
    Absent(Digest),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("unreadable chunk")]
    Chunk(#[from] ChunkError),
    #[error("too many TOCs are being read")]
    Busy(#[from] Full),
    #[error("reading was interrupted")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// Why a stored layer has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("stored layer {digest} cannot be read")]
    Unreadable {
        digest: Digest,
        #[source]
        source: Arc<Unreadable>,
    },
}

impl Tocs {
    /// Creates a reader of the layers in `store`.
    pub fn new(store: Store) -> Self {
        let weight = |_: &Digest, toc: &Arc<Toc>| {
            let bytes = toc.len() * BYTES_OF_NODE + toc.chunk_count() * BYTES_OF_CHUNK;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let tocs = Cache::builder()
            .max_capacity(TOC_BYTES)
            .weigher(weight)
            .build();
        Self {
            store,
            tocs,
            reading: Budget::new("TOCs being read", READING_BYTES),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the record of the converted layer whose blob has this digest; `None` for any other
    /// digest.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn layer(&self, blob: &Digest) -> Result<Option<ConvertedLayer>, Error> {
        let Some(Object {
            key: Key::Layer { generation, source },
            ..
        }) = self.store.find(blob).await?
        else {
            return Ok(None);
        };
        Ok(
            match self
                .store
                .layer(&generation, &source)
                .await?
                .map(|record| record.outcome)
            {
                Some(LayerOutcome::Converted(layer)) if layer.digest == *blob => Some(layer),
                _ => None,
            },
        )
    }

    /// Returns the TOC of a converted layer. Concurrent calls share one read, and the result is
    /// cached.
    ///
    /// # Errors
    /// When the layer is not in the store, or its TOC does not have the digest in the record.
    pub async fn toc(&self, layer: &ConvertedLayer) -> Result<Arc<Toc>, Error> {
        let entry = self.tocs.entry(layer.digest.clone());
        let toc = entry.or_try_insert_with(self.open(layer)).await;
        let toc = toc.map_err(|source| self.unreadable(layer, source))?;
        if toc.is_fresh() {
            // By itself, the cache shrinks to its capacity only after some dozen TOCs, however
            // large they are.
            self.tocs.run_pending_tasks().await;
        }
        Ok(toc.into_value())
    }

    /// Returns the content of a chunk of the layer, verified against the digest in the TOC.
    ///
    /// # Errors
    /// When the store fails, or the blob's bytes do not match the digest.
    pub async fn chunk(&self, layer: &ConvertedLayer, chunk: Chunk) -> Result<Vec<u8>, Error> {
        self.decoded(layer, chunk)
            .await
            .map_err(|source| self.unreadable(layer, source))
    }

    /// Returns the bytes `range` of a regular file of the layer, or fewer if the file ends before.
    ///
    /// Whole chunks are read and held in memory, so the caller must bound the range.
    ///
    /// # Errors
    /// As [`chunk`](Self::chunk).
    pub async fn read(
        &self,
        layer: &ConvertedLayer,
        file: Node<'_>,
        range: Range<u64>,
    ) -> Result<Vec<u8>, Error> {
        let range = range.start..range.end.min(file.size());
        let mut content = Vec::new();
        for chunk in file.chunks() {
            let whole = chunk.file_offset..chunk.file_offset + chunk.size;
            if whole.end <= range.start || whole.start >= range.end {
                continue;
            }
            let bytes = self.chunk(layer, chunk).await?;
            let within = |offset: u64| usize::try_from(offset - whole.start).unwrap_or(usize::MAX);
            let wanted = within(range.start.max(whole.start))..within(range.end.min(whole.end));
            content.extend_from_slice(bytes.get(wanted).unwrap_or_default());
        }
        Ok(content)
    }

    async fn open(&self, layer: &ConvertedLayer) -> Result<Arc<Toc>, Unreadable> {
        let object = self.find(&layer.digest).await?;
        let tail = self.bytes(&object, tail_range(object.size)).await?;
        let opening = Opening::new(&Tail::new(object.size, tail), Limits::default())?;
        let external = match &layer.external_toc {
            Some(toc) => Some(self.find(toc).await?),
            None => None,
        };
        let external = external.as_ref().map(|toc| (toc, toc.size));
        let (blob, range) = opening.section(&object, external)?;
        let weight = (range.end - range.start)
            .saturating_mul(BYTES_OF_SECTION_BYTE)
            .min(READING_BYTES);
        let _weight = self.reading.take_within(weight, READ_WITHIN).await?;
        let section = self.bytes(blob, range).await?;
        let expected = TocDigest::Json(layer.toc_digest.clone());
        let parse = move || opening.verified(&section, &expected);
        Ok(Arc::new(tokio::task::spawn_blocking(parse).await??))
    }

    async fn decoded(&self, layer: &ConvertedLayer, chunk: Chunk) -> Result<Vec<u8>, Unreadable> {
        let object = self.find(&layer.digest).await?;
        let member = self.bytes(&object, chunk.range.clone()).await?;
        Ok(tokio::task::spawn_blocking(move || chunk.decode(&member)).await??)
    }

    /// Returns the failure to read a layer. Invalid bytes are a sign of damage, so the whole layer
    /// is then checked.
    fn unreadable(&self, layer: &ConvertedLayer, source: impl Into<Arc<Unreadable>>) -> Error {
        let source = source.into();
        if matches!(
            *source,
            Unreadable::Open(OpenError::Footer(_) | OpenError::Toc(_)) | Unreadable::Chunk(_)
        ) {
            self.store.suspect(&layer.digest);
        }
        Error::Unreadable {
            digest: layer.digest.clone(),
            source,
        }
    }

    async fn find(&self, digest: &Digest) -> Result<Object, Unreadable> {
        self.store
            .find(digest)
            .await?
            .ok_or_else(|| Unreadable::Absent(digest.clone()))
    }

    async fn bytes(&self, object: &Object, range: Range<u64>) -> Result<Bytes, Unreadable> {
        let mut pieces: Vec<Bytes> = self.store.read(object, range).await?.try_collect().await?;
        match pieces.pop() {
            Some(whole) if pieces.is_empty() => Ok(whole),
            last => Ok(pieces
                .into_iter()
                .chain(last)
                .collect::<Vec<_>>()
                .concat()
                .into()),
        }
    }
}
