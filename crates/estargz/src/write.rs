//! From a tar to a blob.

use std::io::{Read, Write};

use crate::digest::Digest;
use crate::pool::Pool;

/// Where our own entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The source tar, unchanged to its end-of-archive marker, and then what is ours.
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

/// Everything, beside the tar, that the bytes of a blob depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    pub layout: Layout,
    pub compression: Compression,
    /// Most bytes of a file in one chunk.
    pub chunk_size: u32,
    /// Files smaller than this share a member; 0 gives every file its own.
    pub min_chunk_size: u32,
    pub toc: TocPlacement,
    pub limits: Limits,
}

/// What a source tar may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    pub max_toc_bytes: u64,
    pub max_entries: u64,
    pub max_source_bytes: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub blob_digest: Digest,
    pub blob_size: u64,
    /// Digest of the whole decompressed stream.
    pub diff_id: Digest,
    pub uncompressed_size: u64,
    /// Digest and length of the source tar, the stream's prefix.
    pub source_diff_id: Digest,
    pub source_size: u64,
    pub toc_digest: Digest,
    /// The external TOC blob, when asked for.
    pub external_toc: Option<Vec<u8>>,
    /// `offset:compressed:raw:type` of the TOC frame (annotation `io.github.containers.zstd-chunked.manifest-position`).
    pub zstd_manifest_position: Option<String>,
    pub entries: u64,
    pub chunks: u64,
}

/// Why a tar cannot become a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the source cannot be read: {0}")]
    Source(#[source] std::io::Error),
    #[error("the blob cannot be written: {0}")]
    Output(#[source] std::io::Error),
    #[error("the source is no tar archive we can read: {0}")]
    Tar(String),
    #[error("the source is over the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
}

/// Writes the blob of `tar` to `out`. The bytes depend on the tar and `options` alone.
pub fn write<R: Read, W: Write>(_tar: R, _out: W, _options: &Options, _pool: &Pool) -> Result<Written, Error> {
    unimplemented!()
}
