//! Reads manifests: our own from the store, others' from their upstream.

use crate::oci::media_type::manifest_kind;
use crate::oci::{Digest, Manifest};
use crate::registry;
use crate::transport::Source;

use super::app::App;
use super::documents::Documents;
use super::error::{ApiError, Subject};
use super::registry_request::RegistryRequest;

/// A manifest of our own making.
pub(crate) async fn stored(app: &App, digest: &Digest) -> Result<Option<Manifest>, ApiError> {
    let Some(object) = app.store.find(digest).await? else {
        return Ok(None);
    };
    let Some(media_type) = object
        .media_type
        .clone()
        .filter(|name| manifest_kind(name).is_some())
    else {
        return Ok(None);
    };
    let weight = app.documents.take(object.size).await?;
    let bytes = Documents::bind(app.store.read_all(&object).await?, weight);
    Ok(Some(Manifest {
        media_type,
        digest: digest.clone(),
        bytes,
    }))
}

/// A manifest of the upstream.
pub(crate) async fn source_manifest(
    app: &App,
    ask: &RegistryRequest,
    source: &Source,
    digest: &Digest,
) -> Result<Manifest, ApiError> {
    let manifest = app
        .source_manifests
        .get(source, &ask.location, digest)
        .await
        .map_err(|error| failure(&error, ask))?;
    weighed(app, manifest).await
}

/// A manifest of the upstream, which may be held by this answer only once it has left the cache.
pub(crate) async fn weighed(app: &App, manifest: Manifest) -> Result<Manifest, ApiError> {
    let bytes = app.documents.weigh(manifest.bytes).await?;
    Ok(Manifest { bytes, ..manifest })
}

pub(crate) fn source(app: &App, ask: &RegistryRequest) -> Result<Source, ApiError> {
    app.source(&ask.location.upstream)
        .map_err(|error| failure(&error, ask))
}

pub(crate) fn failure(error: &registry::Error, ask: &RegistryRequest) -> ApiError {
    ApiError::upstream(error, Subject::Manifest, ask.is_mirror)
}
