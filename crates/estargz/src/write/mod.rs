//! From a tar to a blob, in one pass.
//!
//! ```text
//! tar ▶ walk (source) ▶ members in batches (blob) ▶ pool ▶ in order ▶ out
//!            └ entries (listing) ──────────────── offsets, digests ┘ ▶ TOC, footer (tail)
//! ```

mod blob;
mod entry_builder;
mod links;
mod options;
mod path_states;
mod reorder;
mod source;
mod sparse;
mod tail;
mod toc_builder;
mod writer;

use std::io::{Read, Write};

pub use options::{Compression, Landmark, Layout, MAX_CHUNK_SIZE, Options, TocPlacement};
pub use reorder::{Reordered, reorder};
pub use writer::Writer;

use crate::digest::Digest;
pub use crate::limits::Limits;
use crate::pool::{Failed, Pool};
use crate::tar;

/// The name of the TOC in a tar; an entry of a source that has it is never listed.
pub const TOC_NAME: &str = "stargz.index.json";

/// Says that what stands before it is worth fetching first.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";

/// Says that nothing is worth fetching first.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// What a landmark holds.
pub const LANDMARK_CONTENT: &[u8] = &[0x0f];

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
    /// Digest of the compressed TOC (annotation `io.github.containers.zstd-chunked.manifest-checksum`).
    pub zstd_manifest_checksum: Option<Digest>,
    /// Entries of the TOC that are not continued chunks.
    pub entries: u64,
    /// Chunks of file content.
    pub chunks: u64,
}

/// Why a tar cannot become a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("source cannot be read")]
    Source(#[source] std::io::Error),
    #[error("blob cannot be written")]
    Output(#[source] std::io::Error),
    #[error("source is not a readable tar archive")]
    Tar(#[source] tar::Error),
    #[error("source exceeds the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("invalid options: {0}")]
    Options(&'static str),
    #[error("{path:?} cannot be listed: {reason}")]
    Path { path: String, reason: &'static str },
    #[error("sparse file cannot be listed in an external TOC")]
    SparseExternal,
    #[error("worker thread failed to compress a member")]
    Worker,
}

impl From<tar::Error> for Error {
    fn from(error: tar::Error) -> Self {
        match error {
            tar::Error::Read(error) => Self::Source(error),
            tar::Error::Limit { what, limit } => Self::Limit { what, limit },
            other => Self::Tar(other),
        }
    }
}

impl From<Failed> for Error {
    fn from(_: Failed) -> Self {
        Self::Worker
    }
}

/// Writes the blob of `tar`, a plain tar archive, to `out`. The bytes depend on the tar and `options` alone.
///
/// A source that returns an error stops the work; nothing of it stays in the pool.
///
/// # Errors
/// When the source fails, is no tar or is over a limit, and when `out` fails: `out` then holds a useless prefix.
pub fn write<R: Read, W: Write>(
    tar: R,
    out: W,
    options: &Options,
    pool: &Pool,
) -> Result<Written, Error> {
    options.check()?;
    let mut blob = blob::Blob::new(out, options, pool);
    let source = source::copy(tar, options, &mut blob)?;
    tail::finish(blob, &source, options)
}
