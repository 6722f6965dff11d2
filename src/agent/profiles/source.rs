//! The source of an image's profile: the Starlift server that served the image, or a profile in the
//! registry that refers to the image.

use bytes::Bytes;

use super::{API, Key};
use crate::oci::manifest::{ImageManifest, Index};
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Manifest, Platform, Reference, Repository};
use crate::profile::{MAX_PROFILE_BYTES, Stack, Workload, artifact};
use crate::registry::{Error, Peer};
use crate::transport::Source;

#[derive(Debug, Clone)]
pub(in crate::agent) enum ProfileSource {
    Server(Peer),
    /// Takes a request for the manifest, one more for an index, and three for the profile.
    Referrers {
        source: Source,
        repository: Repository,
        reference: Reference,
    },
}

impl ProfileSource {
    /// Returns the source's name, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Server(peer) => peer.host(),
            Self::Referrers { source, .. } => source.name().to_owned(),
        }
    }

    /// Returns the profile's document.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no profile, other errors if it cannot be fetched.
    pub(super) async fn profile(&self, key: &Key) -> Result<Bytes, Error> {
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
                // The tag may have moved since the layers were mounted.
                if stack_of(&image).as_ref() != Some(&key.stack) {
                    return Err(Error::NotFound);
                }
                referring(source, repository, &image, &key.workload).await
            }
        }
    }
}

/// Returns the manifest of the image. If the reference names an index, the manifest for this
/// machine's platform.
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

/// Returns the newest profile of the workload that refers to the image, or else that of the default
/// workload.
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
