//! Why there is no converted image, in texts that any client may read.

use std::fmt;

use serde::{Serialize, Serializer};

use super::error::Error;
use crate::registry;

/// A closed set of plain sentences, so that no name, address, path or foreign text leaks. The log
/// has the full cause, beside the digest of the source or the number of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    UnknownUpstream,
    NotFound,
    Denied,
    Refused,
    TooManyRequests,
    Upstream,
    Bytes,
    Store,
    Slow,
    Busy,
    BrokenOff,
    Internal,
}

impl Reason {
    fn sentence(self) -> &'static str {
        match self {
            Self::UnknownUpstream => "no such upstream is configured or allowed",
            Self::NotFound => "the upstream does not have it",
            Self::Denied => "the upstream denies access",
            Self::Refused => "this server may not dial that address",
            Self::TooManyRequests => "the upstream asks for fewer requests",
            Self::Upstream => "the upstream does not answer as it should",
            Self::Bytes => "the upstream's bytes are not what they are said to be",
            Self::Store => "the store does not answer as it should",
            Self::Slow => "the upstream is too slow",
            Self::Busy => "too many conversions at once",
            Self::BrokenOff => "the conversion broke off",
            Self::Internal => "internal error; the log has more",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.sentence())
    }
}

impl From<&registry::Error> for Reason {
    fn from(error: &registry::Error) -> Self {
        use registry::Error;
        match error {
            Error::UnknownUpstream(_) => Self::UnknownUpstream,
            Error::NotFound => Self::NotFound,
            Error::Unauthorized | Error::Denied => Self::Denied,
            Error::Refused(_) => Self::Refused,
            Error::TooManyRequests { .. } => Self::TooManyRequests,
            Error::WrongDigest { .. } | Error::TooLarge { .. } | Error::Malformed(_) => Self::Bytes,
            _ => Self::Upstream,
        }
    }
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        match error {
            Error::Upstream(error) => error.into(),
            Error::Store(_) => Self::Store,
            Error::Layer { source, .. } | Error::Children(source) => source.as_ref().into(),
            Error::BrokenOff => Self::BrokenOff,
            Error::Slow { .. } | Error::Overdue { .. } => Self::Slow,
            Error::Busy(_) => Self::Busy,
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::oci::Digest;
    use crate::store;

    #[test]
    fn a_reason_contains_no_internal_detail() {
        let secret = "/srv/secret, 10.1.2.3";
        let store = Error::Store(store::Error::Config(secret.to_owned()));
        let upstream = Error::Upstream(registry::Error::Unavailable(secret.to_owned()));
        let refused = Error::Upstream(registry::Error::Refused(secret.to_owned()));
        let layer = Error::Layer {
            digest: Digest::sha256_of(b""),
            source: Arc::new(refused),
        };
        let cases = [
            (store, Reason::Store),
            (upstream, Reason::Upstream),
            (layer, Reason::Refused),
        ];
        for (error, expected) in cases {
            let reason = Reason::from(&error);
            assert_eq!(reason, expected);
            assert!(!serde_json::to_string(&reason).unwrap().contains("secret"));
        }
    }
}
