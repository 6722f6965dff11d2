//! What can be wrong with a blob.

use crate::digest::Digest;

/// One difference between what a blob says of itself and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    #[error("the digest of {what} is {actual}, not {expected}")]
    Digest {
        what: &'static str,
        expected: Digest,
        actual: Digest,
    },
    #[error("the source is said to be {size} bytes long, all there are is {stream}")]
    SourceSize { size: u64, stream: u64 },
    #[error("the stream cannot be read on from byte {at}: {reason}")]
    Stream { at: u64, reason: String },
    #[error("{path:?} is in the tar and not in the TOC")]
    NotInToc { path: String },
    #[error("{path:?} is in the TOC and not in the tar")]
    NotInTar { path: String },
    #[error("{path:?}: {field} is {tar} in the tar and {toc} in the TOC")]
    Field {
        path: String,
        field: &'static str,
        tar: String,
        toc: String,
    },
    #[error("{path:?} has other content in the tar than in the TOC")]
    Content { path: String },
    #[error("{path:?} is a hard link to something else in the tar than in the TOC")]
    Links { path: String },
    #[error("{path:?}: the digest of the content is {actual}, the TOC says {expected}")]
    FileDigest {
        path: String,
        expected: String,
        actual: Digest,
    },
    #[error(
        "{path:?}: the digest of the chunk at {file_offset} is {actual}, the TOC says {expected}"
    )]
    ChunkDigest {
        path: String,
        file_offset: u64,
        expected: String,
        actual: Digest,
    },
    #[error(
        "{path:?}: the chunk at {file_offset} is not where the TOC says, byte {offset} of the blob"
    )]
    ChunkPlace {
        path: String,
        file_offset: u64,
        offset: u64,
    },
    #[error("{path:?} is no landmark: it is not one byte 0x0f")]
    Landmark { path: String },
    #[error(
        "no entry stargz.index.json begins at byte {offset} of the blob, where the footer says"
    )]
    TocPlace { offset: u64 },
    #[error("the last member does not begin at the footer, byte {offset} of the blob")]
    FooterPlace { offset: u64 },
}
