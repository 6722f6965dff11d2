//! Why an upstream did not give what was asked.

use std::time::Duration;

use crate::oci::Digest;

/// Why an upstream did not give what was asked. Clones, because answers are shared by all who asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no upstream is called {0:?}, and it is not allowed to dial it")]
    UnknownUpstream(String),
    #[error("the upstream does not have it")]
    NotFound,
    #[error("the upstream wants credentials it accepts")]
    Unauthorized,
    #[error("the upstream denies access")]
    Denied,
    #[error("the upstream asks for fewer requests")]
    TooManyRequests { retry_after: Option<Duration> },
    #[error("the upstream does not answer as it should: {0}")]
    Unavailable(String),
    #[error("it is not allowed to dial {0}")]
    Refused(String),
    #[error("the bytes do not have the digest {expected}")]
    WrongDigest { expected: Digest },
    #[error("the answer is over the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the upstream's answer makes no sense: {0}")]
    Malformed(String),
    #[error("the range lies outside the blob of {} bytes", .size.map_or("unknown".to_owned(), |size| size.to_string()))]
    RangeNotSatisfiable { size: Option<u64> },
    #[error("the upstream {0:?} cannot be written to")]
    ReadOnly(String),
    #[error("the configuration of the upstreams: {0}")]
    Configuration(String),
}

impl Error {
    /// Whether the same request may well succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TooManyRequests { .. })
    }
}
