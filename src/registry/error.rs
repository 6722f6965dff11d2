//! Errors of requests to upstreams.

use std::time::Duration;

use crate::oci::Digest;
use crate::oci::document::DocumentError;

/// An error of a request to an upstream. It can be cloned, because concurrent requests share one
/// answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("unknown upstream {0:?}, and dialling it is not allowed")]
    UnknownUpstream(String),
    #[error("upstream does not have it")]
    NotFound,
    #[error("credentials missing or not accepted by the upstream")]
    Unauthorized,
    #[error("access denied by the upstream")]
    Denied,
    #[error("too many requests for the upstream")]
    TooManyRequests { retry_after: Option<Duration> },
    #[error("upstream unavailable: {0}")]
    Unavailable(String),
    #[error("dialling {0} is not allowed")]
    Refused(String),
    #[error("the bytes do not have the digest {expected}")]
    WrongDigest { expected: Digest },
    #[error("the answer is over the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("invalid answer of the upstream: {0}")]
    Malformed(String),
    #[error("range outside the blob of {} bytes", .size.map_or("unknown".to_owned(), |size| size.to_string()))]
    RangeNotSatisfiable { size: Option<u64> },
    #[error("upstream {0:?} cannot be written to")]
    ReadOnly(String),
    #[error("configuration of the upstreams: {0}")]
    Configuration(String),
}

/// The most bytes of a foreign text that an error repeats: enough to recognise a host or a message.
const MAX_EXCERPT: usize = 200;

/// Returns a foreign text, cut and escaped, for errors, and from there for logs, records and pages.
pub(crate) fn excerpt(text: &str) -> String {
    let start = text
        .get(..text.floor_char_boundary(MAX_EXCERPT))
        .unwrap_or_default();
    let mut safe: String = start
        .chars()
        .flat_map(|letter| {
            let is_plain = !letter.is_control() && (letter.is_ascii() || letter.is_alphanumeric());
            if is_plain {
                letter.to_string()
            } else {
                letter.escape_default().to_string()
            }
            .chars()
            .collect::<Vec<_>>()
        })
        .collect();
    if start.len() < text.len() {
        safe.push('…');
    }
    safe
}

impl From<DocumentError> for Error {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::WrongDigest { expected } => Self::WrongDigest { expected },
            DocumentError::NoManifest(reason) => Self::Malformed(reason),
        }
    }
}

impl Error {
    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TooManyRequests { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_texts_are_cut_and_escaped() {
        assert_eq!(excerpt("plain <text>, ünicode"), "plain <text>, ünicode");
        assert_eq!(
            excerpt("a\nb\u{1b}[2J\u{202e}c"),
            "a\\nb\\u{1b}[2J\\u{202e}c"
        );
        let long = excerpt(&"é".repeat(MAX_EXCERPT));
        assert!(
            long.ends_with('…') && long.len() <= MAX_EXCERPT + 3,
            "{long}"
        );
    }
}
