//! The body of a request, with limits for length and time. Its memory is reserved before it is
//! read.

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use tokio::time::timeout;

use crate::budget::Weight;

use super::app::App;
use super::error::{ApiError, refused};

/// A whole body and its weight.
#[derive(Debug)]
pub(crate) struct Weighed {
    pub(crate) bytes: Bytes,
    _weight: Weight,
}

/// Reads a body of at most `limit` bytes, within the time that a client has for its headers.
pub(crate) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Weighed, ApiError> {
    let too_long = || {
        refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("it is over {limit} bytes"),
        )
    };
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    // A Vec that doubles and is then moved takes for a moment up to three times the body's length.
    let weight = app
        .bodies
        .try_take(length.unwrap_or(limit) as u64 * 3)
        .map_err(|full| ApiError::full(&full))?;
    match timeout(app.config.header_timeout, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(Weighed {
            bytes,
            _weight: weight,
        }),
        // A client that leaves in the middle does not receive this answer.
        Ok(Err(_)) => Err(too_long()),
        Err(_) => Err(refused(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come in time",
        )),
    }
}
