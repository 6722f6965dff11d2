//! The write part of the distribution API: uploads in one piece or in several, and manifests.

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode, header};
use starlift::oci::Digest;

use super::Contents;
use super::answer::{empty, error};

pub(super) fn respond(state: &mut Contents, parts: &Parts, body: Bytes) -> Response<Bytes> {
    let Some(path) = parts.uri.path().strip_prefix("/v2/") else {
        return empty(StatusCode::NOT_FOUND);
    };
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        return manifest(state, repository, reference, parts, body);
    }
    let Some((repository, upload)) = path.rsplit_once("/blobs/uploads/") else {
        return empty(StatusCode::NOT_FOUND);
    };
    if parts.method == "POST" {
        state.next_upload += 1;
        let name = format!("upload-{}", state.next_upload);
        state.uploads.insert(name.clone(), Vec::new());
        return going_on(repository, &name);
    }
    let Some(mut held) = state.uploads.remove(upload) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    };
    if parts.method == "PATCH" {
        held.extend_from_slice(&body);
        state.uploads.insert(upload.to_owned(), held);
        return going_on(repository, upload);
    }
    if state.lacks.monolithic_upload && !body.is_empty() {
        return error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID");
    }
    held.extend_from_slice(&body);
    finish(state, repository, parts, held.into())
}

fn going_on(repository: &str, upload: &str) -> Response<Bytes> {
    let mut response = empty(StatusCode::ACCEPTED);
    let location = format!("/v2/{repository}/blobs/uploads/{upload}?_state=kept");
    response
        .headers_mut()
        .insert(header::LOCATION, location.parse().unwrap());
    response
}

fn finish(state: &mut Contents, repository: &str, parts: &Parts, bytes: Bytes) -> Response<Bytes> {
    let mut query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let wanted = query
        .find(|(name, _)| name == "digest")
        .and_then(|(_, value)| value.parse::<Digest>().ok());
    let digest = Digest::sha256_of(&bytes);
    if wanted.as_ref() != Some(&digest) {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
    let location = format!("/v2/{repository}/blobs/{digest}");
    state.blobs.insert(digest, bytes);
    let mut response = empty(StatusCode::CREATED);
    response
        .headers_mut()
        .insert(header::LOCATION, location.parse().unwrap());
    response
}

fn manifest(
    state: &mut Contents,
    repository: &str,
    reference: &str,
    parts: &Parts,
    body: Bytes,
) -> Response<Bytes> {
    let digest = Digest::sha256_of(&body);
    if reference
        .parse::<Digest>()
        .is_ok_and(|wanted| wanted != digest)
    {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
    };
    let layers = document["layers"].as_array().cloned().unwrap_or_default();
    let names = layers
        .iter()
        .chain([&document["config"]])
        .filter_map(|descriptor| descriptor["digest"].as_str());
    for name in names {
        if !name
            .parse()
            .is_ok_and(|digest| state.blobs.contains_key(&digest))
        {
            return error(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN");
        }
    }
    let media_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    state.manifests.insert(
        (repository.to_owned(), digest.clone()),
        (media_type.to_owned(), body),
    );
    if !reference.contains(':') {
        state.tags.insert(
            (repository.to_owned(), reference.to_owned()),
            digest.clone(),
        );
    }
    let mut response = empty(StatusCode::CREATED);
    let location = format!("/v2/{repository}/manifests/{digest}");
    response
        .headers_mut()
        .insert(header::LOCATION, location.parse().unwrap());
    response
        .headers_mut()
        .insert("docker-content-digest", digest.to_string().parse().unwrap());
    response
}
