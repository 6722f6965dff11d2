//! A streaming walk over a tar archive that returns every source byte.
//!
//! Headers are interpreted as Go's `archive/tar` does, because container runtimes unpack with that.
//! For example, a pax global header changes no entry. [`build`] makes the headers that the writer
//! adds. Payloads are streamed; only headers and sparse maps are held in memory, each under a named
//! limit.
//!
//! This module is not part of the stable interface.

pub mod build;
mod header;
mod name;
pub(crate) mod number;
mod pax;
mod sparse;
mod unfold;
mod walker;

pub use header::Header;
pub use name::{clean, lossy};
pub use sparse::{Segment, SparseMap};
pub(crate) use unfold::Unfold;
pub use walker::Walker;

/// A tar archive is a sequence of blocks of this many bytes.
pub const BLOCK: usize = 512;

/// Two zero blocks end an archive.
pub const END_MARKER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Most bytes of one pax, long name or long link extension. Go's reader has the same limit.
pub const MAX_EXTENSION_BYTES: u64 = 1024 * 1024;

/// Most bytes of all header blocks of one entry, so that a chain of extensions ends.
pub const MAX_HEADER_BYTES: usize = 16 * 1024 * 1024;

/// Most data segments of one sparse file.
pub const MAX_SPARSE_SEGMENTS: usize = 262_144;

/// Most bytes of a path or a link target: the limit of Linux system calls.
pub const MAX_PATH_BYTES: usize = 4096;

/// Most components of a path.
pub const MAX_PATH_DEPTH: usize = 1024;

/// Why a byte stream cannot be read as a tar archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader of the archive failed.
    #[error("archive cannot be read")]
    Read(#[source] std::io::Error),
    /// The archive ends within an entry.
    #[error("archive ends within an entry, at byte {at}")]
    Truncated {
        /// The byte of the archive.
        at: u64,
    },
    /// A header is malformed.
    #[error("header has {what}, before byte {at}")]
    Header {
        /// The defect, as a noun phrase.
        what: &'static str,
        /// The byte of the archive.
        at: u64,
    },
    /// An entry has a type that layers do not have.
    #[error("entry type {kind:#04x} does not belong in a container layer, before byte {at}")]
    Kind {
        /// The type flag.
        kind: u8,
        /// The byte of the archive.
        at: u64,
    },
    /// An entry exceeds a limit.
    #[error("entry exceeds the limit of {limit} {what}")]
    Limit {
        /// The kind of thing that is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Bytes from `size` to the next block boundary.
pub fn padding(size: u64) -> usize {
    const BLOCK_BYTES: u64 = BLOCK as u64;
    usize::try_from((BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES).unwrap_or(0)
}
