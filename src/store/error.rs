//! Why the store cannot do it.

use std::ops::Range;

use crate::oci::Digest;

/// Why the store cannot do it.
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
    #[error("the record {key} cannot be read: {reason}")]
    Record { key: String, reason: String },
    /// The object was there when it was looked up; the next look finds that it is not.
    #[error("{0} is no longer in the store")]
    Gone(Digest),
    #[error("{digest} in the store is damaged: {reason}")]
    Damaged { digest: Digest, reason: String },
    /// `store.retention.max_size` is reached, and nothing may go for it.
    #[error("{bytes} bytes do not fit into the store: store.retention.max_size is {max_size}")]
    Full {
        bytes: u64,
        max_size: bytesize::ByteSize,
    },
    #[error("the bytes {range:?} do not lie within {digest}")]
    OutOfBounds { digest: Digest, range: Range<u64> },
    #[error("others wrote {0} whenever it was tried")]
    Contended(String),
    #[error("a part of the upload was lost: {0}")]
    Upload(String),
    #[error("the store's configuration: {0}")]
    Config(String),
}

impl Error {
    /// Whether something was found damaged or gone, and forgotten: the same again makes it anew.
    pub fn is_forgotten(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Damaged { .. })
    }
}
