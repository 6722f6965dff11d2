//! Why a TOC cannot be used.

use crate::digest::Digest;

/// Why a TOC cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TocError {
    /// The bytes are not valid gzip or zstd.
    #[error("TOC cannot be inflated")]
    Inflate(#[source] std::io::Error),
    /// The bytes are not those of [`Footer::toc_range`](crate::Footer::toc_range).
    #[error("{got} bytes given for a TOC of {wanted} bytes")]
    WrongRange {
        /// Bytes that were given.
        got: u64,
        /// Bytes that are needed.
        wanted: u64,
    },
    /// The decompressed bytes are not a tar that begins with the TOC.
    #[error("TOC does not begin with a tar entry stargz.index.json")]
    NotATocEntry,
    /// The TOC exceeds one of the [`Limits`](crate::Limits).
    #[error("TOC exceeds the limit of {limit} {what}")]
    Limit {
        /// The kind of thing that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The TOC has another digest.
    #[error("TOC has the digest {actual}, not {expected}")]
    Digest {
        /// The expected digest.
        expected: Digest,
        /// The actual digest.
        actual: Digest,
    },
    /// The JSON is invalid.
    #[error("TOC cannot be parsed")]
    Json(#[source] serde_json::Error),
    /// The TOC has another version than 1.
    #[error("unknown TOC version {0}")]
    Version(i64),
    /// An entry has a name that is not a path.
    #[error("{path:?} is not a usable name")]
    Name {
        /// The path of the entry.
        path: String,
    },
    /// An entry is below another that is not a directory.
    #[error("{path:?} has entries below it but is not a directory")]
    NotADirectory {
        /// The path of the entry.
        path: String,
    },
    /// A field with base64 has other text.
    #[error("{path:?}: {field} is not base64")]
    Base64 {
        /// The path of the entry.
        path: String,
        /// The name of the field in the TOC.
        field: &'static str,
    },
    /// A chunk follows an entry that is not a file or is complete.
    #[error("{path:?}: chunk does not continue a file")]
    StrayChunk {
        /// The path of the entry.
        path: String,
    },
    /// The chunks of a file end before the file does.
    #[error("{path:?}: chunks do not cover the file")]
    Incomplete {
        /// The path of the entry.
        path: String,
    },
    /// A chunk does not begin where the previous one ends.
    #[error("{path:?}: chunk begins at {got}, the previous one ends at {expected}")]
    NotContiguous {
        /// The path of the entry.
        path: String,
        /// Where the chunk begins.
        got: u64,
        /// Where the previous chunk ends.
        expected: u64,
    },
    /// A chunk is longer than the rest of its file.
    #[error("{path:?}: chunk extends past the end of the file")]
    BeyondFile {
        /// The path of the entry.
        path: String,
    },
    /// A chunk refers to bytes outside the members of the blob.
    #[error("{path:?}: chunk at {offset} is outside the first {payload_end} bytes of the blob")]
    OutsideBlob {
        /// The path of the entry.
        path: String,
        /// The byte of the blob.
        offset: u64,
        /// The end of the part of the blob that chunks can be in.
        payload_end: u64,
    },
    /// A chunk has an unknown type.
    #[error("{path:?}: unknown chunk type {kind:?}")]
    ChunkType {
        /// The path of the entry.
        path: String,
        /// The type of the chunk.
        kind: String,
    },
    /// A chunk has no valid digest.
    #[error("{path:?}: chunk has no usable digest")]
    NoDigest {
        /// The path of the entry.
        path: String,
    },
}
