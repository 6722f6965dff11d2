//! The errors of the store.

use std::ops::Range;

use crate::oci::Digest;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{what} failed in the store")]
    Backend {
        what: String,
        #[source]
        source: object_store::Error,
    },
    #[error("{what} failed in the store's folder")]
    Folder {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("record {key} cannot be read: {reason}")]
    Record { key: String, reason: String },
    /// The object was found by a look-up and deleted before it was read. The next look-up does not
    /// find it.
    #[error("{0} is no longer in the store")]
    Gone(Digest),
    #[error("{digest} in the store is damaged: {reason}")]
    Damaged { digest: Digest, reason: String },
    /// `store.retention.max_size` is reached, and nothing may be deleted for the object.
    #[error("{bytes} bytes do not fit into the store: store.retention.max_size is {max_size}")]
    Full {
        bytes: u64,
        max_size: bytesize::ByteSize,
    },
    #[error("bytes {range:?} are outside of {digest}")]
    OutOfBounds { digest: Digest, range: Range<u64> },
    #[error("{0} was changed by other writers at every attempt")]
    Contended(String),
    #[error("part of the upload lost: {0}")]
    Upload(String),
    #[error("invalid store configuration: {0}")]
    Config(String),
}

impl Error {
    /// Whether a damaged or missing object was forgotten, so that a retry makes it again.
    pub fn is_forgotten(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Damaged { .. })
    }
}

/// How an object or a record differs from the one that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    #[error("bytes missing")]
    Missing,
    #[error("size differs")]
    Size,
    #[error("bytes have another digest")]
    Bytes,
    #[error("record differs from the written one")]
    Record,
    #[error("record names missing objects")]
    Dangling,
}

impl Damage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Size => "size",
            Self::Bytes => "bytes",
            Self::Record => "record",
            Self::Dangling => "dangling",
        }
    }
}
