//! Everything that the bytes of a blob depend on, apart from the tar.

use super::Error;
use crate::limits::Limits;

/// Where the entries that the writer adds are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The decompressed blob begins with the source tar, unchanged to its last byte. The added
    /// entries follow its end marker, where extractors have stopped.
    SourceFirst,
    /// The layout of the reference implementation: landmark and TOC are entries of the archive.
    Classic,
}

/// The compression of every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// eStargz: gzip members made by libdeflate at this level, 1 to 12.
    Gzip(u8),
    /// zstd:chunked: zstd frames at this level, 1 to 19.
    Zstd(u8),
}

/// Where the TOC is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TocPlacement {
    /// In the blob, before the footer.
    Inside,
    /// In a separate blob. The decompressed stream stays the source tar, so its diff-id stays too.
    External,
}

/// The landmark of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Landmark {
    /// The writer adds `.no.prefetch.landmark` and ignores the landmarks of the source.
    NoPrefetch,
    /// The source has its own landmark, where [`reorder`](super::reorder()) put it.
    InSource,
}

/// Everything that the bytes of a blob depend on, apart from the tar.
///
/// ```
/// use estargz::write::{Compression, Options};
///
/// let options = Options::default()
///     .with_compression(Compression::Zstd(3))
///     .with_chunk_size(1 << 20);
/// assert_eq!(options.min_chunk_size, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Options {
    /// Where the entries that the writer adds are placed.
    pub layout: Layout,
    /// The compression of every member.
    pub compression: Compression,
    /// Most bytes of a file in one chunk, up to [`MAX_CHUNK_SIZE`].
    pub chunk_size: u32,
    /// A member that is smaller also takes in the next file; 0 gives every chunk its own member.
    pub min_chunk_size: u32,
    /// Where the TOC is placed.
    pub toc: TocPlacement,
    /// The landmark of the blob.
    pub landmark: Landmark,
    /// Bounds on the source and on its TOC.
    pub limits: Limits,
}

/// The largest chunk. A chunk is compressed in one piece, so it must fit in memory a few times;
/// readers refuse larger ones ([`Limits::max_chunk_bytes`]).
pub const MAX_CHUNK_SIZE: u32 = 32 * 1024 * 1024;

const DEFAULT_CHUNK_SIZE: u32 = 4 * 1024 * 1024;

impl Default for Options {
    /// Gzip at level 6: smaller than the blobs of the reference implementation at about eight times
    /// its speed.
    fn default() -> Self {
        Self {
            layout: Layout::SourceFirst,
            compression: Compression::Gzip(6),
            chunk_size: DEFAULT_CHUNK_SIZE,
            min_chunk_size: 0,
            toc: TocPlacement::Inside,
            landmark: Landmark::NoPrefetch,
            limits: Limits::default(),
        }
    }
}

impl Options {
    /// The defaults with gzip at level 1, the quickest that is still small enough to serve.
    pub fn fast() -> Self {
        Self::default().with_compression(Compression::Gzip(1))
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn with_layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets [`compression`](Self::compression).
    #[must_use]
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets [`chunk_size`](Self::chunk_size).
    #[must_use]
    pub fn with_chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets [`min_chunk_size`](Self::min_chunk_size).
    #[must_use]
    pub fn with_min_chunk_size(mut self, bytes: u32) -> Self {
        self.min_chunk_size = bytes;
        self
    }

    /// Sets [`toc`](Self::toc).
    #[must_use]
    pub fn with_toc(mut self, placement: TocPlacement) -> Self {
        self.toc = placement;
        self
    }

    /// Sets [`landmark`](Self::landmark).
    #[must_use]
    pub fn with_landmark(mut self, landmark: Landmark) -> Self {
        self.landmark = landmark;
        self
    }

    /// Sets [`limits`](Self::limits).
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let is_level_known = match self.compression {
            Compression::Gzip(level) => (1..=12).contains(&level),
            Compression::Zstd(level) => (1..=19).contains(&level),
        };
        if !is_level_known {
            return Err(Error::Options("unknown compression level"));
        }
        if self.chunk_size == 0 || self.chunk_size.max(self.min_chunk_size) > MAX_CHUNK_SIZE {
            return Err(Error::Options("chunk size is zero or over the maximum"));
        }
        if self.toc == TocPlacement::External && matches!(self.compression, Compression::Zstd(_)) {
            return Err(Error::Options("zstd:chunked has no external TOC"));
        }
        Ok(())
    }
}
