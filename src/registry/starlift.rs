//! How a Starlift server is known among hosts, and what it is told with a read.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, SERVER};

/// How the `Server` header of our own server begins.
const PRODUCT: &str = "starlift/";
/// What a read is for, told to Starlift alone: it learns from what is read, not from what is fetched ahead.
pub(super) const PURPOSE_HEADER: HeaderName = HeaderName::from_static("starlift-purpose");

/// What bytes are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Something waits for them.
    Read,
    /// Something will read them soon, it is thought.
    Prefetch,
    /// So that they are here.
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

/// Whether an answer says that it is Starlift's.
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
