//! Referrers of a digest: the upstream's, which also count for the converted image, and the
//! converted image of a source image.

use std::collections::HashMap;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::aside::aside;
use crate::learn;
use crate::oci::annotations::SOURCE_DIGEST;
use crate::oci::manifest::Index;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Manifest};
use crate::registry::{self, Referrers};

use super::app::App;
use super::error::{ApiError, Chain, Subject};
use super::reading::{readable_record, stored};
use super::registry_request::RegistryRequest;
use super::response;

/// The artifact type under which an image's converted image is listed.
const CONVERTED: &str = "application/vnd.dev.starlift.converted-image.v1";
/// The text of the descriptors that are added here, and of the list around them, in bytes.
const ADDED_BYTES: u64 = 4 << 10;
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(crate) async fn answer(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let mut referrers = match stored(app, ask, digest).await? {
        Some(converted) => {
            let mut referrers = match source_digest(&converted.bytes).await {
                Some(source) => of_upstream(ask, &source).await?,
                None => Referrers::default(),
            };
            referrers.extend(our_profile(app, ask, &converted).await);
            referrers
        }
        None => {
            let mut referrers = of_upstream(ask, digest).await?;
            referrers.extend(our_converted(app, ask, digest).await);
            if let Some(source_manifest) = app
                .source_manifests
                .known(ask.admission.reader, &ask.location, digest)
                .await
            {
                referrers.extend(our_profile(app, ask, &source_manifest).await);
            }
            referrers
        }
    };
    let filter = ask
        .query("artifactType")
        .filter(|wanted| !wanted.is_empty());
    if let Some(wanted) = filter {
        referrers.retain(|referrer| artifact_type(referrer) == Some(wanted));
    }
    let mut response = listed(app, &mut referrers).await?;
    if filter.is_some() {
        response.headers_mut().insert(
            OCI_FILTERS_APPLIED,
            HeaderValue::from_static("artifactType"),
        );
    }
    Ok(response)
}

/// The upstream's list. An unknown repository or digest has an empty list.
async fn of_upstream(ask: &RegistryRequest, digest: &Digest) -> Result<Referrers, ApiError> {
    let fail =
        |error: registry::Error| ApiError::upstream(&error, Subject::Repository, ask.is_mirror);
    match ask
        .admission
        .source
        .referrers(&ask.location.repository, digest)
        .await
    {
        Ok(referrers) => Ok(referrers),
        Err(registry::Error::NotFound) => Ok(Referrers::default()),
        Err(error) => Err(fail(error)),
    }
}

/// The converted image of a source image, listed as its referrer.
async fn our_converted(app: &App, ask: &RegistryRequest, source: &Digest) -> Option<Descriptor> {
    let record = match readable_record(app, ask, source).await {
        Ok(record) => record.filter(|record| record.converted != record.source)?,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "image record not read");
            return None;
        }
    };
    let annotations = json!({ SOURCE_DIGEST: source.to_string() });
    Some(Descriptor {
        media_type: record.media_type,
        digest: record.converted,
        size: record.size,
        urls: Vec::new(),
        annotations: annotations.as_object().cloned().unwrap_or_default(),
        platform: None,
        rest: Map::from_iter([("artifactType".to_owned(), Value::from(CONVERTED))]),
    })
}

/// The profile of the image, listed as its referrer, if it may be read under the name in the
/// request.
async fn our_profile(app: &App, ask: &RegistryRequest, image: &Manifest) -> Option<Descriptor> {
    if !app.config.profiles.enabled {
        return None;
    }
    match listed_profile(app, ask, image).await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "profile of image not read");
            None
        }
    }
}

async fn listed_profile(
    app: &App,
    ask: &RegistryRequest,
    image: &Manifest,
) -> Result<Option<Descriptor>, learn::Error> {
    if !app.store.is_linked(&ask.holder, &image.digest).await? {
        return Ok(None);
    }
    let Some(artifact) = app.profiles.artifact(image).await? else {
        return Ok(None);
    };
    app.store
        .link_all(&ask.holder, &artifact.objects, &image.digest)
        .await?;
    Ok(Some(artifact.listed))
}

/// The source digest that a converted image names.
pub(super) async fn source_digest(converted: &Bytes) -> Option<Digest> {
    /// The only field of the manifest that is needed. The rest must not become a tree in memory.
    #[derive(Deserialize)]
    struct Annotated {
        annotations: Option<HashMap<String, String>>,
    }
    let bytes = converted.clone();
    let document = aside(converted.len(), move || {
        serde_json::from_slice::<Annotated>(&bytes).ok()
    })
    .await?;
    document.annotations?.get(SOURCE_DIGEST)?.parse().ok()
}

fn artifact_type(referrer: &Descriptor) -> Option<&str> {
    referrer.rest.get("artifactType").and_then(Value::as_str)
}

/// The answer with all of `referrers`, which are left empty.
async fn listed(app: &App, referrers: &mut Referrers) -> Result<Response, ApiError> {
    let size = referrers.weight() + ADDED_BYTES;
    let index = Index {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: std::mem::take(&mut **referrers).into(),
        rest: Map::new(),
    };
    let bytes = app.documents.json(size, index).await?;
    Ok(response::document(StatusCode::OK, OCI_INDEX, bytes))
}
