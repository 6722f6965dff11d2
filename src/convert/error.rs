//! Why an image was not converted. Another attempt may succeed after each of these errors; a
//! permanent reason is a pass-through, not an error.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::Full;
use crate::oci::Digest;
use crate::provenance::{KeyError, SigningError};
use crate::registry;
use crate::shares::SLOW_FOR;
use crate::store;

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Upstream(#[from] registry::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("layer {digest} not converted")]
    Layer {
        digest: Digest,
        #[source]
        source: Arc<Error>,
    },
    #[error("no image of the index converted")]
    Children(#[source] Arc<Error>),
    #[error("converted layer cannot be written")]
    Write(#[from] estargz::write::Error),
    #[error("converted document cannot be serialized")]
    Document(#[from] serde_json::Error),
    #[error("the conversion broke off")]
    BrokenOff,
    #[error("too many conversions are waiting")]
    Busy(#[from] Full),
    #[error("the upstream gives less than {rate} bytes in a second")]
    Slow { rate: u64 },
    #[error("the upstream did not give all of it within {}", humantime::format_duration(*.within))]
    Overdue { within: Duration },
    #[error("another process holds the lease on the layer {0} for too long")]
    Lease(Digest),
    #[error("no statement on the converted image")]
    Signing(#[from] SigningError),
    #[error("convert.signing_key: {0}")]
    SigningKey(#[from] KeyError),
    #[error("invalid conversion configuration: {0}")]
    Config(String),
}

impl Error {
    /// How long another attempt is known to be useless.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Slow { .. } | Self::Overdue { .. } => Some(SLOW_FOR),
            Self::Upstream(registry::Error::TooManyRequests { retry_after }) => *retry_after,
            Self::Layer { source, .. } | Self::Children(source) => source.retry_after(),
            _ => None,
        }
    }

    /// Whether the upstream did not keep the pace.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::Slow { .. } | Self::Overdue { .. })
    }

    /// Whether an object in the store was found damaged or missing. Its record is then deleted, and
    /// the next attempt makes the object again.
    pub(super) fn is_forgotten(&self) -> bool {
        match self {
            Self::Store(error) => error.is_forgotten(),
            Self::Layer { source, .. } | Self::Children(source) => source.is_forgotten(),
            _ => false,
        }
    }

    /// Returns the store's error if the store has no room for the image.
    pub(super) fn full(&self) -> Option<&store::Error> {
        match self {
            Self::Store(error @ store::Error::Full { .. }) => Some(error),
            Self::Layer { source, .. } | Self::Children(source) => source.full(),
            _ => None,
        }
    }
}
