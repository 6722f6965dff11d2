//! Reads manifests: our own from the store, others' from their upstream.

use crate::convert;
use crate::oci::media_type::manifest_kind;
use crate::oci::{Digest, Manifest};
use crate::registry;
use crate::store::{Held, ImageRecord, Link, Object};

use super::app::App;
use super::documents::Documents;
use super::error::{ApiError, Subject};
use super::registry_request::RegistryRequest;

/// An object of our own making, as the request may see it.
pub(crate) enum Readable {
    Object(Object),
    /// The store has it, but not to be read under the name in the request.
    UnderOtherNames,
    Missing,
}

/// The object of our own making with this digest.
pub(crate) async fn readable(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Readable, ApiError> {
    Ok(match app.store.held(&ask.holder, digest).await? {
        Held::Linked(object, link) if is_still_readable(app, ask, &link).await => {
            Readable::Object(object)
        }
        Held::Linked(..) | Held::NotLinked => Readable::UnderOtherNames,
        Held::Missing => Readable::Missing,
    })
}

/// Whether the upstream still lets the request's reader have the image that was shown with the
/// link.
async fn is_still_readable(app: &App, ask: &RegistryRequest, link: &Link) -> bool {
    let Some(image) = &link.image else {
        return true;
    };
    let (admission, location) = (&ask.admission, &ask.location);
    app.access
        .may_still_read(admission, &ask.holder, location, image)
        .await
}

/// The failure of a request for a digest, after the upstream failed to answer it.
///
/// A failed store must not look like a 404. The content of an image that another name holds is
/// denied.
pub(crate) fn after_upstream(failure: ApiError, stored: Result<bool, ApiError>) -> ApiError {
    match stored {
        Ok(true) => ApiError::other_name(),
        Err(failed) if failure.is_not_found() => failed,
        Ok(false) | Err(_) => failure,
    }
}

/// Whether the store has the digest, but not to be read under the name in the request.
pub(crate) async fn is_under_other_names(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<bool, ApiError> {
    let readable = readable(app, ask, digest).await?;
    Ok(matches!(readable, Readable::UnderOtherNames))
}

/// A manifest of our own making that may be read under the name in the request.
pub(crate) async fn stored(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Option<Manifest>, ApiError> {
    let Readable::Object(object) = readable(app, ask, digest).await? else {
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

/// The record of the image converted from `source`, if the upstream has shown in this repository
/// that it holds the image. Its word that a tag has this digest is no proof.
pub(crate) async fn readable_record(
    app: &App,
    ask: &RegistryRequest,
    source: &Digest,
) -> Result<Option<ImageRecord>, convert::Error> {
    let Some(record) = app.converter.lookup(source).await? else {
        return Ok(None);
    };
    // An image that passes through is read from the upstream.
    let is_readable =
        record.converted == record.source || app.store.is_shown(&ask.holder, &record).await?;
    Ok(is_readable.then_some(record))
}

/// A manifest of the upstream.
pub(crate) async fn source_manifest(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Manifest, ApiError> {
    let manifest = app
        .source_manifests
        .get(&ask.admission, &ask.location, digest)
        .await
        .map_err(|error| failure(&error, ask))?;
    weighed(app, manifest).await
}

/// A manifest of the upstream, which may be held by this answer only once it has left the cache.
pub(crate) async fn weighed(app: &App, manifest: Manifest) -> Result<Manifest, ApiError> {
    let bytes = app.documents.weigh(manifest.bytes).await?;
    Ok(Manifest { bytes, ..manifest })
}

pub(crate) fn failure(error: &registry::Error, ask: &RegistryRequest) -> ApiError {
    ApiError::upstream(error, Subject::Manifest, ask.is_mirror)
}
