//! Headers that manifests and blobs share.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::oci::Digest;

pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");

/// For objects that are requested by digest, which never change.
pub(crate) const IMMUTABLE: HeaderValue =
    HeaderValue::from_static("public, max-age=31536000, immutable");

/// Headers of an answer, those of every answer included, so that the map is allocated once.
const HEADERS: usize = 16;

/// An answer that carries `digest` as content digest and entity tag.
pub(crate) fn of_digest(status: StatusCode, digest: &Digest) -> Response {
    let mut response = with_status(status);
    let headers = response.headers_mut();
    set(headers, DOCKER_CONTENT_DIGEST, &digest.to_string());
    set(headers, ETAG, &entity_tag(digest));
    response
}

/// Sets the length and the type of the body.
pub(crate) fn describe(response: &mut Response, media_type: &str, length: u64) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    set(headers, CONTENT_TYPE, media_type);
}

pub(crate) fn cache(response: &mut Response, control: HeaderValue) {
    response.headers_mut().insert(CACHE_CONTROL, control);
}

/// Sets a header. A value that is not valid in a header, which may come from an upstream, is left
/// out.
pub(crate) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let Ok(bytes) = serde_json::to_vec(value) else {
        // Only maps whose keys are not strings fail, and no answer has them.
        return with_status(StatusCode::INTERNAL_SERVER_ERROR);
    };
    document(status, "application/json", bytes.into())
}

/// An answer with this document.
pub(crate) fn document(status: StatusCode, media_type: &str, bytes: Bytes) -> Response {
    let mut response = with_status(status);
    describe(&mut response, media_type, bytes.len() as u64);
    *response.body_mut() = Body::from(bytes);
    response
}

fn with_status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
    response
}

fn entity_tag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether `If-None-Match` shows that the client already has this digest.
pub(crate) fn is_known_to_client(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(IF_NONE_MATCH) {
        return false;
    }
    let tag = entity_tag(digest);
    let lines = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|candidate| {
            candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == tag
        })
}

/// Whether ranges may be answered: `If-Range` is absent or names this digest. There are no dates to
/// compare with.
pub(crate) fn is_range_wanted(headers: &HeaderMap, digest: &Digest) -> bool {
    headers
        .get(IF_RANGE)
        .is_none_or(|value| value.as_bytes() == entity_tag(digest).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knows(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, value.parse().unwrap());
        is_known_to_client(&headers, &Digest::sha256_of(b"x"))
    }

    #[test]
    fn if_none_match_compares_weakly_and_accepts_lists() {
        let digest = Digest::sha256_of(b"x");
        assert!(knows("*"));
        assert!(knows(&format!("\"{digest}\"")));
        assert!(knows(&format!("\"a\", W/\"{digest}\"")));
        assert!(!knows(&digest.to_string()));
        assert!(!knows("\"a\""));
    }

    #[test]
    fn if_range_compares_strongly() {
        let digest = Digest::sha256_of(b"x");
        let mut headers = HeaderMap::new();
        assert!(is_range_wanted(&headers, &digest));
        for (value, is_wanted) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), false),
        ] {
            headers.insert(IF_RANGE, value.parse().unwrap());
            assert_eq!(is_range_wanted(&headers, &digest), is_wanted, "{value}");
        }
        headers.insert(IF_RANGE, "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
        assert!(!is_range_wanted(&headers, &digest));
    }
}
