//! The read part of the distribution API.
//!
//! `/elsewhere/DIGEST` serves a blob without authentication, as a bucket behind a redirect does.

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode, header};
use starlift::oci::media_type::OCI_INDEX;

use super::Contents;
use super::answer::{empty, error, json, typed};

pub(super) fn respond(state: &Contents, parts: &Parts) -> Response<Bytes> {
    let path = parts.uri.path();
    if let Some(digest) = path.strip_prefix("/elsewhere/") {
        return blob(state, digest, parts);
    }
    let Some(path) = path.strip_prefix("/v2/") else {
        return empty(StatusCode::NOT_FOUND);
    };
    if path.is_empty() {
        return json(StatusCode::OK, &serde_json::json!({}));
    }
    if let Some(repository) = path.strip_suffix("/tags/list") {
        return tags(state, repository, parts);
    }
    for (kind, serve) in [
        ("/manifests/", manifest as fn(&Contents, &str, &str) -> _),
        ("/referrers/", referrers),
    ] {
        if let Some((repository, reference)) = path.rsplit_once(kind) {
            return serve(state, repository, reference);
        }
    }
    match path.rsplit_once("/blobs/") {
        Some((_, digest)) => blob(state, digest, parts),
        None => empty(StatusCode::NOT_FOUND),
    }
}

fn manifest(state: &Contents, repository: &str, reference: &str) -> Response<Bytes> {
    let Some((digest, media_type, bytes)) = state.manifest(repository, reference) else {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    };
    let mut response = typed(StatusCode::OK, &media_type, bytes);
    if !state.lacks.digest_header {
        response
            .headers_mut()
            .insert("docker-content-digest", digest.to_string().parse().unwrap());
    }
    response
}

fn blob(state: &Contents, digest: &str, parts: &Parts) -> Response<Bytes> {
    let Some(bytes) = digest
        .parse()
        .ok()
        .and_then(|digest| state.blobs.get(&digest))
    else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    };
    let total = bytes.len();
    let range = parts
        .headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let is_suffix = range.is_some_and(|range| range.starts_with("bytes=-"));
    let is_ignored = state.lacks.ranges || state.lacks.suffix_ranges && is_suffix;
    let Some(range) = range.filter(|_| !is_ignored) else {
        let mut response = typed(StatusCode::OK, "application/octet-stream", bytes.clone());
        response
            .headers_mut()
            .insert("docker-content-digest", digest.parse().unwrap());
        return response;
    };
    let Some((start, end)) = single_range(range, total) else {
        let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
        response.headers_mut().insert(
            header::CONTENT_RANGE,
            format!("bytes */{total}").parse().unwrap(),
        );
        return response;
    };
    let mut response = typed(
        StatusCode::PARTIAL_CONTENT,
        "application/octet-stream",
        bytes.slice(start..end),
    );
    let content_range = format!("bytes {start}-{}/{total}", end - 1);
    response
        .headers_mut()
        .insert(header::CONTENT_RANGE, content_range.parse().unwrap());
    response
}

/// Parses the half-open range of a header. `None` if it cannot be satisfied.
fn single_range(header: &str, total: usize) -> Option<(usize, usize)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first, last) {
        ("", suffix) => (total.saturating_sub(suffix.parse().ok()?), total),
        (first, "") => (first.parse().ok()?, total),
        (first, last) => (
            first.parse().ok()?,
            last.parse::<usize>().ok()?.checked_add(1)?.min(total),
        ),
    };
    (start < end).then_some((start, end))
}

fn tags(state: &Contents, repository: &str, parts: &Parts) -> Response<Bytes> {
    let query: std::collections::HashMap<_, _> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let last = query.get("last").cloned().unwrap_or_default();
    let all = state
        .tags
        .keys()
        .filter(|(name, tag)| name == repository && *tag > last)
        .map(|(_, tag)| tag.clone());
    let mut tags: Vec<String> = all.collect();
    let n = query
        .get("n")
        .and_then(|n| n.parse().ok())
        .unwrap_or(usize::MAX);
    let more = tags.len() > n;
    tags.truncate(n);
    let mut response = json(
        StatusCode::OK,
        &serde_json::json!({"name": repository, "tags": tags}),
    );
    if let (true, Some(last)) = (more, tags.last()) {
        let link = format!(r#"</v2/{repository}/tags/list?n={n}&last={last}>; rel="next""#);
        response
            .headers_mut()
            .insert(header::LINK, link.parse().unwrap());
    }
    response
}

fn referrers(state: &Contents, repository: &str, digest: &str) -> Response<Bytes> {
    if state.lacks.referrers {
        return empty(StatusCode::NOT_FOUND);
    }
    let mut found = Vec::new();
    for ((name, referrer), (media_type, bytes)) in &state.manifests {
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else {
            continue;
        };
        if name == repository && document["subject"]["digest"] == digest {
            let mut descriptor = serde_json::json!({
                "mediaType": media_type,
                "digest": referrer.to_string(),
                "size": bytes.len(),
                "artifactType": document["artifactType"],
            });
            if let Some(annotations) = document.get("annotations") {
                descriptor["annotations"] = annotations.clone();
            }
            found.push(descriptor);
        }
    }
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
    typed(StatusCode::OK, OCI_INDEX, index.to_string().into())
}
