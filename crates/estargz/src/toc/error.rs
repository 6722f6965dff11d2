//! Why a TOC cannot be used.

use crate::digest::Digest;

/// Why a TOC cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TocError {
    #[error("the TOC cannot be inflated: {0}")]
    Inflate(#[source] std::io::Error),
    #[error("{got} bytes were given for a TOC of {wanted}")]
    WrongRange { got: u64, wanted: u64 },
    #[error("the TOC's section does not begin with a tar entry stargz.index.json")]
    NotATocEntry,
    #[error("the TOC is over the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("the TOC's digest is {actual}, not {expected}")]
    Digest { expected: Digest, actual: Digest },
    #[error("the TOC is not the JSON of a TOC: {0}")]
    Json(#[source] serde_json::Error),
    #[error("TOC version {0} is not known")]
    Version(i64),
    #[error("{path:?} has no usable name")]
    Name { path: String },
    #[error("{path:?} lies below something that is no directory")]
    NotADirectory { path: String },
    #[error("{path:?}: the {field} is not base64")]
    Base64 { path: String, field: &'static str },
    #[error("{path:?}: a chunk stands behind something that is no unfinished file")]
    StrayChunk { path: String },
    #[error("{path:?}: the chunks do not cover the file")]
    Incomplete { path: String },
    #[error("{path:?}: a chunk begins at {got}, the one before ends at {expected}")]
    NotContiguous {
        path: String,
        got: u64,
        expected: u64,
    },
    #[error("{path:?}: a chunk reaches beyond the end of the file")]
    BeyondFile { path: String },
    #[error("{path:?}: a chunk at {offset} lies outside the blob's first {payload_end} bytes")]
    OutsideBlob {
        path: String,
        offset: u64,
        payload_end: u64,
    },
    #[error("{path:?}: chunks of the type {kind:?} are not known")]
    ChunkType { path: String, kind: String },
    #[error("{path:?}: no usable digest covers a chunk")]
    NoDigest { path: String },
}
