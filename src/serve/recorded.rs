//! Profiles that were recorded by hand and refer to an upstream's image.

use bytes::Bytes;

use crate::oci::Digest;
use crate::oci::route::Location;
use crate::profile::{Profile, Workload, artifact};
use crate::registry;

use super::app::App;
use super::error::Chain;

/// The profile of the default workload that refers to an image. A failure is only logged.
pub(super) async fn find(app: &App, location: &Location, image: &Digest) -> Option<Profile> {
    let found = match read(app, location, image).await {
        Ok(document) => document.map(|bytes| Profile::parse(&bytes)),
        Err(error) => {
            tracing::info!(%image, error = %Chain(&error), "referrers not read");
            return None;
        }
    };
    found.and_then(|parsed| {
        parsed
            .inspect_err(|error| tracing::warn!(%image, %error, "profile of referrer ignored"))
            .ok()
    })
}

async fn read(
    app: &App,
    location: &Location,
    image: &Digest,
) -> Result<Option<Bytes>, registry::Error> {
    let source = app.source(&location.upstream)?;
    let repository = &location.repository;
    let referrers = source.referrers(repository, image).await?;
    let Some(referrer) = artifact::of_workload(&referrers, &Workload::default()) else {
        return Ok(None);
    };
    source
        .document(repository, &referrer.digest, artifact::document_of)
        .await
}
