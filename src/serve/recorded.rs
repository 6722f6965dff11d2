//! Profiles that were recorded by hand and refer to an upstream's image.

use bytes::Bytes;

use crate::oci::{Digest, Repository};
use crate::profile::{Profile, Workload, artifact};
use crate::registry;
use crate::transport::Source;

use super::error::Chain;

/// The profile of the default workload that refers to an image. A failure is only logged.
pub(super) async fn find(
    source: &Source,
    repository: &Repository,
    image: &Digest,
) -> Option<Profile> {
    let found = match read(source, repository, image).await {
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
    source: &Source,
    repository: &Repository,
    image: &Digest,
) -> Result<Option<Bytes>, registry::Error> {
    let referrers = source.referrers(repository, image).await?;
    let Some(referrer) = artifact::of_workload(&referrers, &Workload::default()) else {
        return Ok(None);
    };
    source
        .document(repository, &referrer.digest, artifact::document_of)
        .await
}
