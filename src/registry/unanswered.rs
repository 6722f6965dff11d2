//! Requests that got no answer.

use super::dial::PrivateName;
use super::error::{Error, excerpt};
use crate::telemetry::log::chain;

/// Returns the error for a request that got no answer, or for a body that broke off. It names no
/// URL, because URLs can contain secrets.
pub(super) fn transport(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(private) = inner.downcast_ref::<PrivateName>() {
            return Error::Refused(private.0.clone());
        }
        cause = inner.source();
    }
    // Certificates and servers contribute to these texts.
    Error::Unavailable(excerpt(&chain(&error)))
}
