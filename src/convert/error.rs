//! Why an image has no twin. Every one of these is worth another try: what is not is a pass-through, and no error.

use std::sync::Arc;
use std::time::Duration;

use super::shares::SLOW_FOR;
use crate::budget::Full;
use crate::oci::Digest;
use crate::registry;
use crate::store;

/// Why an image has no twin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Upstream(#[from] registry::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the layer {digest} is not converted")]
    Layer {
        digest: Digest,
        #[source]
        source: Arc<Error>,
    },
    #[error("no image of the index is converted")]
    Children(#[source] Arc<Error>),
    #[error("the converted layer cannot be written")]
    Write(#[from] estargz::write::Error),
    #[error("a document of ours cannot be written")]
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
    #[error("the conversion's configuration: {0}")]
    Config(String),
}

impl Error {
    /// How long there is no point in another try.
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

    /// Whether something in the store was found damaged or gone: it is forgotten, and the same again makes it anew.
    pub(super) fn is_forgotten(&self) -> bool {
        match self {
            Self::Store(error) => error.is_forgotten(),
            Self::Layer { source, .. } | Self::Children(source) => source.is_forgotten(),
            _ => false,
        }
    }

    /// Why the store has no room for it, if that is what is wrong.
    pub(super) fn full(&self) -> Option<&store::Error> {
        match self {
            Self::Store(error @ store::Error::Full { .. }) => Some(error),
            Self::Layer { source, .. } | Self::Children(source) => source.full(),
            _ => None,
        }
    }
}
