//! The differences that verification finds.

use crate::digest::Digest;

/// One difference between the TOC or the expected digests of a blob and its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// A digest differs from the expected one.
    #[error("digest of {what} is {actual}, not {expected}")]
    Digest {
        /// The bytes that the digest is of.
        what: &'static str,
        /// The expected digest.
        expected: Digest,
        /// The actual digest.
        actual: Digest,
    },
    /// The decompressed blob is shorter than the expected source.
    #[error("expected size of the source is {size} bytes, the decompressed blob has only {stream}")]
    SourceSize {
        /// The expected size.
        size: u64,
        /// Bytes of the decompressed blob.
        stream: u64,
    },
    /// The blob cannot be decompressed, or its tar cannot be read.
    #[error("decompressed blob cannot be read past byte {at}: {reason}")]
    Stream {
        /// The byte of the decompressed blob.
        at: u64,
        /// The reason.
        reason: String,
    },
    /// An entry is only in the tar.
    #[error("{path:?} is in the tar but not in the TOC")]
    NotInToc {
        /// The path of the entry.
        path: String,
    },
    /// An entry is only in the TOC.
    #[error("{path:?} is in the TOC but not in the tar")]
    NotInTar {
        /// The path of the entry.
        path: String,
    },
    /// A field of an entry differs.
    #[error("{path:?}: {field} is {tar} in the tar and {toc} in the TOC")]
    Field {
        /// The path of the entry.
        path: String,
        /// The name of the field in the TOC.
        field: &'static str,
        /// The value in the tar.
        tar: String,
        /// The value in the TOC.
        toc: String,
    },
    /// The content of a file differs.
    #[error("{path:?} has different content in the tar and in the TOC")]
    Content {
        /// The path of the entry.
        path: String,
    },
    /// A hard link refers to different files.
    #[error("{path:?} is a hard link to different files in the tar and in the TOC")]
    Links {
        /// The path of the entry.
        path: String,
    },
    /// The content of a file has another digest than in the TOC.
    #[error("{path:?}: digest of the content is {actual}, the TOC has {expected}")]
    FileDigest {
        /// The path of the entry.
        path: String,
        /// The digest in the TOC.
        expected: String,
        /// The actual digest.
        actual: Digest,
    },
    /// The content of a chunk has another digest than in the TOC.
    #[error("{path:?}: digest of the chunk at {file_offset} is {actual}, the TOC has {expected}")]
    ChunkDigest {
        /// The path of the entry.
        path: String,
        /// The byte of the file where the chunk begins.
        file_offset: u64,
        /// The digest in the TOC.
        expected: String,
        /// The actual digest.
        actual: Digest,
    },
    /// A chunk is not where the TOC places it.
    #[error(
        "{path:?}: chunk at {file_offset} is not at byte {offset} of the blob, where the TOC places it"
    )]
    ChunkPlace {
        /// The path of the entry.
        path: String,
        /// The byte of the file where the chunk begins.
        file_offset: u64,
        /// The byte of the blob where the TOC places it.
        offset: u64,
    },
    /// A landmark has the wrong content.
    #[error("{path:?} is not a landmark: its content is not the byte 0x0f")]
    Landmark {
        /// The path of the entry.
        path: String,
    },
    /// The TOC is not where the footer places it.
    #[error(
        "no entry stargz.index.json begins at byte {offset} of the blob, where the footer places the TOC"
    )]
    TocPlace {
        /// The byte of the blob where the footer places it.
        offset: u64,
    },
    /// The footer is not the last member.
    #[error("last member does not begin at the footer, byte {offset} of the blob")]
    FooterPlace {
        /// The byte of the blob where the footer begins.
        offset: u64,
    },
}
