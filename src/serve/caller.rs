//! The parts of a request by which its sender is known.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::request::Parts;
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

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}
