//! Profiles that were recorded by hand and refer to an upstream's image.

use futures::TryStreamExt as _;

use crate::oci::route::Location;
use crate::oci::{Digest, Reference};
use crate::profile::{Profile, Workload, artifact};
use crate::upstream;

use super::app::App;
use super::error::Chain;

/// The profile of the default workload that refers to an image; a failure is told in the log.
pub(super) async fn find(app: &App, location: &Location, image: &Digest) -> Option<Profile> {
    let found = match read(app, location, image).await {
        Ok(document) => document.map(|bytes| Profile::parse(&bytes)),
        Err(error) => {
            tracing::info!(%image, error = %Chain(&error), "whether a profile refers to it is not known");
            return None;
        }
    };
    found.and_then(|parsed| {
        parsed.inspect_err(|error| tracing::warn!(%image, %error, "the profile that refers to it is left alone")).ok()
    })
}

async fn read(app: &App, location: &Location, image: &Digest) -> Result<Option<Vec<u8>>, upstream::Error> {
    let source = app.source(&location.upstream)?;
    let repository = &location.repository;
    let referrers = source.referrers(repository, image).await?;
    let newest = artifact::newest(&referrers);
    let of_default = |referrer: &&&_| artifact::workload_of(referrer) == Some(Workload::default());
    let Some(referrer) = newest.iter().find(of_default) else { return Ok(None) };
    let manifest = source.manifest(repository, &Reference::Digest(referrer.digest.clone())).await?;
    let Some(document) = artifact::document_of(&manifest) else { return Ok(None) };
    let body = source.blob(repository, &document.digest, None).await?;
    if body.blob_size != document.size {
        return Ok(None);
    }
    let pieces: Vec<_> = body.stream.try_collect().await?;
    Ok(Some(pieces.concat()))
}
