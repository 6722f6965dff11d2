//! Recognises a Starlift server among hosts, and names the purpose of reads for it.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, SERVER};

/// The beginning of a Starlift server's `Server` header.
const PRODUCT: &str = "starlift/";
/// The purpose of a read, sent only to Starlift servers: they learn from reads, not from
/// prefetches.
pub(super) const PURPOSE_HEADER: HeaderName = HeaderName::from_static("starlift-purpose");

/// The purpose of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A reader waits for the bytes.
    Read,
    /// The bytes are expected to be read soon.
    Prefetch,
    /// The bytes complete the local copy.
    Background,
}

impl Purpose {
    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Read => "read",
            Self::Prefetch => "prefetch",
            Self::Background => "background",
        })
    }
}

/// Whether an answer comes from a Starlift server, by its `Server` header.
pub(super) fn is_starlift(headers: &HeaderMap) -> bool {
    headers
        .get(SERVER)
        .is_some_and(|server| server.as_bytes().starts_with(PRODUCT.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_starlift_is_starlift() {
        let says = |server: &'static str| {
            is_starlift(&HeaderMap::from_iter([(
                SERVER,
                HeaderValue::from_static(server),
            )]))
        };
        assert!(says("starlift/0.1.0"));
        assert!(
            !["nginx", "starlift", "notstarlift/1", ""]
                .into_iter()
                .any(says)
        );
        assert!(!is_starlift(&HeaderMap::new()));
    }
}
