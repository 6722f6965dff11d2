//! Writes blobs: from a tar to a blob, in one pass.
//!
//! ```text
//! tar ▶ walk (source) ▶ members in batches (blob) ▶ pool ▶ in order ▶ out
//!            └ entries (toc_builder) ──────────── offsets, digests ┘ ▶ TOC, footer (tail)
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

/// The name of the TOC in a tar. An entry of a source with this name is never listed.
pub const TOC_NAME: &str = "stargz.index.json";

/// The landmark for prefetching: readers fetch everything before it first.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";

/// The landmark against prefetching: readers fetch nothing first.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// The content of a landmark.
pub const LANDMARK_CONTENT: &[u8] = &[0x0f];

/// The result of writing a blob: its digests, sizes and counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Digest of the blob.
    pub blob_digest: Digest,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Digest of the whole decompressed stream.
    pub diff_id: Digest,
    /// Bytes of the decompressed stream.
    pub uncompressed_size: u64,
    /// Digest of the source tar.
    pub source_diff_id: Digest,
    /// Bytes of the source tar.
    pub source_size: u64,
    /// Digest of the JSON of the TOC (annotation `containerd.io/snapshot/stargz/toc.digest`).
    pub toc_digest: Digest,
    /// The blob of the external TOC, with [`TocPlacement::External`].
    pub external_toc: Option<Vec<u8>>,
    /// `offset:compressed:raw:type` of the TOC frame (annotation
    /// `io.github.containers.zstd-chunked.manifest-position`).
    pub zstd_manifest_position: Option<String>,
    /// Digest of the compressed TOC (annotation
    /// `io.github.containers.zstd-chunked.manifest-checksum`).
    pub zstd_manifest_checksum: Option<Digest>,
    /// Entries of the TOC that are not continued chunks.
    pub entries: u64,
    /// Chunks of file content.
    pub chunks: u64,
}

/// Why a tar cannot be written as a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader of the source failed.
    #[error("source cannot be read")]
    Source(#[source] std::io::Error),
    /// The writer of the blob failed.
    #[error("blob cannot be written")]
    Output(#[source] std::io::Error),
    /// The source is not a tar.
    #[error("source is not a readable tar archive")]
    Tar(#[source] tar::Error),
    /// The source exceeds one of the [`Limits`].
    #[error("source exceeds the limit of {limit} {what}")]
    Limit {
        /// The kind of thing that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The options contradict themselves or are out of range.
    #[error("invalid options: {0}")]
    Options(&'static str),
    /// Readers would not agree about an entry.
    #[error("{path:?} cannot be listed: {reason}")]
    Path {
        /// The path of the entry.
        path: String,
        /// The reason.
        reason: &'static str,
    },
    /// The source has a sparse file, which a blob with an external TOC cannot have.
    #[error("sparse file cannot be listed in an external TOC")]
    SparseExternal,
    /// A worker thread panicked, or a compressor refused its input.
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

/// Writes the blob of `tar`, a plain tar archive, to `out`. The bytes depend only on the tar and
/// `options`.
///
/// An error of the source stops the work. No bytes of it stay in the pool.
///
/// # Errors
/// If the source fails, is not a tar or exceeds a limit, or if `out` fails. `out` then has a
/// useless prefix.
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
