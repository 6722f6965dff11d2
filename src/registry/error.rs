//! Why an upstream did not give what was asked.

use std::time::Duration;

use crate::oci::Digest;
use crate::oci::document::DocumentError;

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

/// As much of a text of others as an error repeats: enough to recognise a host or a message.
const MAX_EXCERPT: usize = 200;

/// A text of others, cut and escaped: what goes into our errors, and from there into logs, records and pages.
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
    /// Whether the same request may well succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TooManyRequests { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_are_cut_and_escaped() {
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
