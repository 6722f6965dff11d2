//! The source of an image's profile: the Starlift server that served the image, or a profile in the
//! registry that refers to the image.

use bytes::Bytes;

use super::{API, Key};
use crate::aside::aside;
use crate::oci::manifest::MAX_DESCRIPTORS;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Descriptor, Manifest, Platform, Reference, Repository, stream};
use crate::profile::{MAX_PROFILE_BYTES, Stack, Workload, artifact};
use crate::registry::{Error, Peer};
use crate::transport::Source;

#[derive(Debug, Clone)]
pub(crate) enum ProfileSource {
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
                let (bytes, manifest) = (image.bytes.len(), image.clone());
                let stack = aside(bytes, move || stack_of(&manifest)).await;
                if stack.as_ref() != Some(&key.stack) {
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
    let child = aside(manifest.bytes.len(), move || child_for_here(&manifest)).await;
    let child = child
        .map_err(|error| Error::Malformed(error.to_string()))?
        .ok_or(Error::NotFound)?;
    source
        .manifest(repository, &Reference::Digest(child.digest))
        .await
}

/// Returns the first child of an index that is for this machine's platform.
fn child_for_here(index: &Manifest) -> Result<Option<Descriptor>, serde_json::Error> {
    let here = Platform::of_this_machine();
    let mut found = None;
    stream::for_each_descriptor(&index.bytes, "manifests", |child| {
        let platform = child.platform.as_ref();
        if platform.is_some_and(|own| here.matches(&own.to_platform())) {
            found.get_or_insert(child);
        }
    })?;
    Ok(found)
}

fn stack_of(image: &Manifest) -> Option<Stack> {
    let mut layers = Vec::new();
    stream::for_each_descriptor(&image.bytes, "layers", |layer| {
        if layers.len() <= MAX_DESCRIPTORS {
            layers.push(layer.digest);
        }
    })
    .ok()?;
    (layers.len() <= MAX_DESCRIPTORS).then(|| Stack::of(&layers))
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
