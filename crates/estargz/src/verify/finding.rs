//! What can be wrong with a blob.

use crate::digest::Digest;

/// One difference between what a blob says of itself and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    #[error("digest of {what} is {actual}, not {expected}")]
    Digest {
        what: &'static str,
        expected: Digest,
        actual: Digest,
    },
    #[error("expected size of the source is {size} bytes, the decompressed blob has only {stream}")]
    SourceSize { size: u64, stream: u64 },
    #[error("decompressed blob cannot be read past byte {at}: {reason}")]
    Stream { at: u64, reason: String },
    #[error("{path:?} is in the tar but not in the TOC")]
    NotInToc { path: String },
    #[error("{path:?} is in the TOC but not in the tar")]
    NotInTar { path: String },
    #[error("{path:?}: {field} is {tar} in the tar and {toc} in the TOC")]
    Field {
        path: String,
        field: &'static str,
        tar: String,
        toc: String,
    },
    #[error("{path:?} has different content in the tar and in the TOC")]
    Content { path: String },
    #[error("{path:?} is a hard link to different files in the tar and in the TOC")]
    Links { path: String },
    #[error("{path:?}: digest of the content is {actual}, the TOC has {expected}")]
    FileDigest {
        path: String,
        expected: String,
        actual: Digest,
    },
    #[error("{path:?}: digest of the chunk at {file_offset} is {actual}, the TOC has {expected}")]
    ChunkDigest {
        path: String,
        file_offset: u64,
        expected: String,
        actual: Digest,
    },
    #[error(
        "{path:?}: chunk at {file_offset} is not at byte {offset} of the blob, where the TOC places it"
    )]
    ChunkPlace {
        path: String,
        file_offset: u64,
        offset: u64,
    },
    #[error("{path:?} is not a landmark: its content is not the byte 0x0f")]
    Landmark { path: String },
    #[error(
        "no entry stargz.index.json begins at byte {offset} of the blob, where the footer places the TOC"
    )]
    TocPlace { offset: u64 },
    #[error("last member does not begin at the footer, byte {offset} of the blob")]
    FooterPlace { offset: u64 },
}
