//! What the bytes of a blob depend on beside the tar.

use super::Error;
use crate::limits::Limits;

/// Where our own entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The source tar, unchanged to its last byte, and then what is ours.
    SourceFirst,
    /// The textbook order: landmark and TOC inside the archive.
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

/// Where the TOC goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TocPlacement {
    /// In the blob, before the footer.
    Inside,
    /// Beside the blob: the decompressed stream stays the source tar, so its diff-id stays too.
    External,
}

/// Which landmark the blob has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Landmark {
    /// We add `.no.prefetch.landmark`; landmarks in the source count for nothing.
    NoPrefetch,
    /// The source has its own, where [`reorder`](super::reorder()) put it.
    InSource,
}

/// Everything, beside the tar, that the bytes of a blob depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    pub layout: Layout,
    pub compression: Compression,
    /// Most bytes of a file in one chunk, up to [`MAX_CHUNK_SIZE`].
    pub chunk_size: u32,
    /// A member that is smaller takes in the next file too; 0 gives every chunk its own member.
    pub min_chunk_size: u32,
    pub toc: TocPlacement,
    pub landmark: Landmark,
    /// Bounds on the source and on its TOC.
    pub limits: Limits,
}

/// A chunk is compressed in one piece, so it must fit in memory a few times; readers refuse larger ones
/// ([`Limits`]).
pub const MAX_CHUNK_SIZE: u32 = 32 * 1024 * 1024;

const DEFAULT_CHUNK_SIZE: u32 = 4 * 1024 * 1024;

impl Default for Options {
    /// Smaller than the reference's blobs at about eight times its speed.
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
    /// The quickest gzip that is still small enough to serve.
    pub fn fast() -> Self {
        Self {
            compression: Compression::Gzip(1),
            ..Self::default()
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let is_level_known = match self.compression {
            Compression::Gzip(level) => (1..=12).contains(&level),
            Compression::Zstd(level) => (1..=19).contains(&level),
        };
        if !is_level_known {
            return Err(Error::Options("a compression level that does not exist"));
        }
        if self.chunk_size == 0 || self.chunk_size.max(self.min_chunk_size) > MAX_CHUNK_SIZE {
            return Err(Error::Options("chunks of a size we do not write"));
        }
        if self.toc == TocPlacement::External && matches!(self.compression, Compression::Zstd(_)) {
            return Err(Error::Options(
                "an external TOC for zstd:chunked, which has none",
            ));
        }
        Ok(())
    }
}
