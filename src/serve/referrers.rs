//! Referrers of a digest: the upstream's, which also count for the converted image, and the
//! converted image of a source image.

use std::collections::HashMap;

use axum::response::Response;
use bytes::Bytes;
use http::header::WARNING;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::aside::aside;
use crate::convert;
use crate::learn;
use crate::oci::annotations::SOURCE_DIGEST;
use crate::oci::artifact::kind_of;
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
const ADDED_BYTES: u64 = 8 << 10;
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(crate) async fn answer(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let (mut referrers, is_complete) = match stored(app, ask, digest).await? {
        Some(converted) => of_converted(app, ask, &converted).await?,
        None => (of_source(app, ask, digest).await?, true),
    };
    let filter = ask
        .query("artifactType")
        .filter(|wanted| !wanted.is_empty());
    if let Some(wanted) = filter {
        referrers.retain(|referrer| kind_of(referrer) == Some(wanted));
    }
    let mut response = listed(app, &mut referrers).await?;
    if filter.is_some() {
        response.headers_mut().insert(
            OCI_FILTERS_APPLIED,
            HeaderValue::from_static("artifactType"),
        );
    }
    if !is_complete {
        let warning = HeaderValue::from_static("299 starlift \"without the upstream's referrers\"");
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

/// The referrers of a converted image, and whether the upstream's are among them. If the upstream
/// does not answer, signed statements are listed all the same: nodes may need them for a pull that
/// needs nothing else of the upstream.
async fn of_converted(
    app: &App,
    ask: &RegistryRequest,
    converted: &Manifest,
) -> Result<(Referrers, bool), ApiError> {
    let (mut referrers, mut is_complete) = (Referrers::default(), true);
    if let Some(source) = source_digest(&converted.bytes).await {
        let statements = our_statements(app, ask, &converted.digest, &source).await;
        match of_upstream(ask, &source).await {
            Ok(found) => referrers = found,
            Err(error) if statements.is_empty() => return Err(error),
            Err(_logged_by_the_client) => is_complete = false,
        }
        referrers.extend(statements);
    }
    referrers.extend(our_profile(app, ask, converted).await);
    Ok((referrers, is_complete))
}

async fn of_source(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Referrers, ApiError> {
    let mut referrers = of_upstream(ask, digest).await?;
    referrers.extend(our_converted(app, ask, digest).await);
    if let Some(source_manifest) = app
        .source_manifests
        .known(ask.admission.reader, &ask.location, digest)
        .await
    {
        referrers.extend(our_profile(app, ask, &source_manifest).await);
    }
    Ok(referrers)
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

/// The signed statements on a converted image, listed as its referrers. They are read under the same
/// rule as the image.
async fn our_statements(
    app: &App,
    ask: &RegistryRequest,
    converted: &Digest,
    source: &Digest,
) -> Vec<Descriptor> {
    match listed_statements(app, ask, converted, source).await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "statements on image not read");
            Vec::new()
        }
    }
}

async fn listed_statements(
    app: &App,
    ask: &RegistryRequest,
    converted: &Digest,
    source: &Digest,
) -> Result<Vec<Descriptor>, convert::Error> {
    let mut listed = Vec::new();
    for statement in app.converter.statements(converted, source).await? {
        app.store
            .link_all(&ask.holder, &statement.objects, source)
            .await?;
        listed.push(statement.listed);
    }
    Ok(listed)
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
