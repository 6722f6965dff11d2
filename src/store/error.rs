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

/// How an object or a record differs from what was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    #[error("its bytes are gone")]
    Missing,
    #[error("it has another size than was put")]
    Size,
    #[error("its bytes have another digest")]
    Bytes,
    #[error("it is not the record that was written")]
    Record,
    #[error("it names objects that are not in the store")]
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
