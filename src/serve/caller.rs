//! The parts of a request by which its sender is known.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Uri};

use super::access::ClientCertificate;

/// The parts of a request by which its sender is known.
pub(crate) struct Caller {
    pub(crate) headers: HeaderMap,
    pub(crate) uri: Uri,
    pub(crate) certificate: Option<ClientCertificate>,
}

impl Caller {
    pub(crate) fn of(parts: &Parts) -> Self {
        Self {
            headers: parts.headers.clone(),
            uri: parts.uri.clone(),
            certificate: parts.extensions.get().cloned(),
        }
    }
}

/// Returns `host[:port]` as the client names this server. [The guard](super::guard) has checked it.
pub(crate) fn named_host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let header = headers.get(HOST).and_then(|host| host.to_str().ok());
    // Over HTTP/2 the target names the host.
    header.or_else(|| uri.authority().map(Authority::as_str))
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}
