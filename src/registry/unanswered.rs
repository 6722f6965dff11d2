//! Requests that got no answer.

use super::dial::PrivateName;
use super::error::{Error, excerpt};
use crate::telemetry::log::chain;

/// What became of a request that got no answer, or of a body that broke off. Names no URL: they can hold secrets.
pub(super) fn transport(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(private) = inner.downcast_ref::<PrivateName>() {
            return Error::Refused(private.0.clone());
        }
        cause = inner.source();
    }
    // Certificates and servers have a say in these texts.
    Error::Unavailable(excerpt(&chain(&error)))
}
