//! Short answers.

use axum::body::Bytes;
use axum::http::{Response, StatusCode, header};

pub(super) fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Bytes> {
    typed(status, "application/json", value.to_string().into())
}

pub(super) fn typed(status: StatusCode, media_type: &str, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let length = response.body().len().into();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type.parse().unwrap());
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length);
    response
}

/// Returns the distribution specification's error body.
pub(super) fn error(status: StatusCode, code: &str) -> Response<Bytes> {
    json(
        status,
        &serde_json::json!({"errors": [{"code": code, "message": "no", "detail": null}]}),
    )
}
