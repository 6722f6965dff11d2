//! Why a TOC cannot be used.

use crate::digest::Digest;

/// Why a TOC cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TocError {
    #[error("TOC cannot be inflated")]
    Inflate(#[source] std::io::Error),
    #[error("{got} bytes given for a TOC of {wanted} bytes")]
    WrongRange { got: u64, wanted: u64 },
    #[error("TOC does not begin with a tar entry stargz.index.json")]
    NotATocEntry,
    #[error("TOC exceeds the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("TOC has the digest {actual}, not {expected}")]
    Digest { expected: Digest, actual: Digest },
    #[error("TOC cannot be parsed")]
    Json(#[source] serde_json::Error),
    #[error("unknown TOC version {0}")]
    Version(i64),
    #[error("{path:?} is not a usable name")]
    Name { path: String },
    #[error("{path:?} has entries below it but is not a directory")]
    NotADirectory { path: String },
    #[error("{path:?}: {field} is not base64")]
    Base64 { path: String, field: &'static str },
    #[error("{path:?}: chunk does not continue a file")]
    StrayChunk { path: String },
    #[error("{path:?}: chunks do not cover the file")]
    Incomplete { path: String },
    #[error("{path:?}: chunk begins at {got}, the previous one ends at {expected}")]
    NotContiguous {
        path: String,
        got: u64,
        expected: u64,
    },
    #[error("{path:?}: chunk extends past the end of the file")]
    BeyondFile { path: String },
    #[error("{path:?}: chunk at {offset} is outside the first {payload_end} bytes of the blob")]
    OutsideBlob {
        path: String,
        offset: u64,
        payload_end: u64,
    },
    #[error("{path:?}: unknown chunk type {kind:?}")]
    ChunkType { path: String, kind: String },
    #[error("{path:?}: chunk has no usable digest")]
    NoDigest { path: String },
}
