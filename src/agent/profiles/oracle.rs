//! Who knows what an image's containers read: the Starlift server that gave it, or a profile that refers to it wherever
//! it lies.

use bytes::Bytes;

use super::{API, Key};
use crate::oci::manifest::{ImageManifest, Index};
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Manifest, Platform, Reference, Repository};
use crate::profile::{MAX_PROFILE_BYTES, Stack, Workload, artifact};
use crate::registry::{Error, Peer};
use crate::transport::Source;

#[derive(Debug, Clone)]
pub(in crate::agent) enum Oracle {
    Server(Peer),
    /// Takes a request for the manifest, one more for an index, and three for the profile.
    Referrers {
        source: Source,
        repository: Repository,
        reference: Reference,
    },
}

impl Oracle {
    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Server(peer) => peer.host(),
            Self::Referrers { source, .. } => source.name().to_owned(),
        }
    }

    /// The profile's document.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none; others when it cannot be had.
    pub(super) async fn ask(&self, key: &Key) -> Result<Bytes, Error> {
        match self {
            Self::Server(peer) => {
                let workload = String::from(key.workload.clone());
                let path = format!("{API}/{}", key.stack);
                peer.get(
                    &path,
                    &[("workload", workload.as_str())],
                    MAX_PROFILE_BYTES as u64,
                )
                .await
            }
            Self::Referrers {
                source,
                repository,
                reference,
            } => {
                let image = image(source, repository, reference).await?;
                // The tag may have moved on since the layers were mounted.
                if stack_of(&image).as_ref() != Some(&key.stack) {
                    return Err(Error::NotFound);
                }
                referring(source, repository, &image, &key.workload).await
            }
        }
    }
}

/// The manifest of the image, that of this machine's platform among several.
async fn image(
    source: &Source,
    repository: &Repository,
    reference: &Reference,
) -> Result<Manifest, Error> {
    let manifest = source.manifest(repository, reference).await?;
    if manifest_kind(&manifest.media_type) != Some(ManifestKind::Index) {
        return Ok(manifest);
    }
    let index: Index = serde_json::from_slice(&manifest.bytes)
        .map_err(|error| Error::Malformed(error.to_string()))?;
    let here = Platform::of_this_machine();
    let fits = |platform: Platform| here.matches(&platform);
    let child = index.manifests.into_iter().find(|child| {
        child
            .platform
            .as_ref()
            .is_some_and(|own| fits(own.to_platform()))
    });
    let child = child.ok_or(Error::NotFound)?;
    source
        .manifest(repository, &Reference::Digest(child.digest))
        .await
}

fn stack_of(image: &Manifest) -> Option<Stack> {
    let image: ImageManifest = serde_json::from_slice(&image.bytes).ok()?;
    Some(Stack::of(image.layers.iter().map(|layer| &layer.digest)))
}

/// The newest profile of the workload that refers to the image; that of the default workload where there is no other.
async fn referring(
    source: &Source,
    repository: &Repository,
    image: &Manifest,
    workload: &Workload,
) -> Result<Bytes, Error> {
    let referrers = source.referrers(repository, &image.digest).await?;
    let referrer = artifact::of_workload(&referrers, workload).ok_or(Error::NotFound)?;
    source
        .document(repository, &referrer.digest, artifact::document_of)
        .await?
        .ok_or(Error::NotFound)
}
