//! Copies a converted image from the store to its destination.
//!
//! ```text
//! store ─┐                            ┌ OCI layout
//!        ├▶ ImageBundle ▶ Destination ┼ docker archive
//! source ┘ (unchanged objects)        └ registry
//! ```

mod archive;
mod layout;

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;

use super::bundle::{Bytes, ImageBundle, ImageReader};
use super::endpoint::Endpoint;
use super::entries::toc_reference;
use super::location::Location;
use crate::failure::Failure;
use crate::oci::{Artifact, Descriptor, Digest, ImageName, Manifest, Reference};
use crate::registry;

/// The destination of a converted image. Nothing of the image is visible before all of it is
/// written.
#[derive(Debug)]
pub(crate) enum Destination {
    Layout(layout::Layout),
    Archive(archive::Archive),
    Registry {
        endpoint: Endpoint,
        reference: Reference,
    },
}

impl Destination {
    /// Prepares to write to `location`.
    pub(crate) fn open(
        config: &registry::Config,
        location: &Location,
        plain_http: bool,
    ) -> Result<Self, Failure> {
        match location {
            Location::Layout(image) => {
                layout::Layout::open(&image.dir, image.tag.as_ref()).map(Self::Layout)
            }
            Location::Archive(image) => {
                archive::Archive::create(&image.file, image.reference.as_deref()).map(Self::Archive)
            }
            Location::Registry(image) => {
                let endpoint = Endpoint::open(config, location, plain_http)?;
                Ok(Self::Registry {
                    endpoint,
                    reference: pushed_reference(image)?,
                })
            }
        }
    }

    /// Puts an artifact that refers to the image with the digest `subject`, which exists.
    pub(crate) async fn attach(
        mut self,
        artifact: &Artifact,
        subject: &Digest,
    ) -> Result<(), Failure> {
        for (blob, bytes) in &artifact.blobs {
            if !self.has(blob).await {
                let bytes = bytes.clone();
                self.put_blob(
                    blob,
                    futures::stream::once(async move { Ok(bytes) }).boxed(),
                )
                .await?;
            }
        }
        let context = format!("attaching {} to {subject}", artifact.manifest.digest);
        match self {
            Self::Layout(mut layout) => {
                layout.put_manifest(&artifact.manifest)?;
                layout.commit_referrer(artifact.listed())
            }
            Self::Registry { endpoint, .. } => {
                let Endpoint {
                    source, repository, ..
                } = &endpoint;
                let listed = artifact.listed();
                source
                    .push_referrer(repository, subject, &artifact.manifest, &listed)
                    .await
                    .map_err(Failure::when(context))
            }
            Self::Archive(_) => Err(Failure::new("an archive holds an image alone")),
        }
    }

    /// Whether only a single image fits, not an index.
    pub(crate) fn takes_one_image(location: &Location) -> bool {
        matches!(location, Location::Archive(_))
    }

    /// Whether the destination holds artifacts that refer to an image.
    pub(crate) fn takes_referrers(location: &Location) -> bool {
        !matches!(location, Location::Archive(_))
    }

    /// Returns the folder beside which temporary files may lie so that they are on the
    /// destination's file system.
    pub(crate) fn folder(location: &Location) -> Option<&Path> {
        match location {
            Location::Layout(image) => image.dir.parent(),
            Location::Archive(image) => image.file.parent(),
            Location::Registry(_) => None,
        }
    }

    /// Whether the destination holds the blob already.
    async fn has(&self, blob: &Descriptor) -> bool {
        match self {
            Self::Layout(layout) => layout.has(blob),
            Self::Archive(_) => false,
            Self::Registry { endpoint, .. } => endpoint
                .source
                .blob_size(&endpoint.repository, &blob.digest)
                .await
                .is_ok_and(|size| size == blob.size),
        }
    }

    async fn put_blob(&mut self, blob: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
        match self {
            Self::Layout(layout) => layout.put_blob(blob, bytes).await,
            Self::Archive(archive) => archive.put_blob(blob, bytes).await,
            Self::Registry { endpoint, .. } => push_blob(endpoint, blob, bytes).await,
        }
    }

    /// Puts the blob by a second name for its file. Returns whether that was possible.
    fn link(&self, blob: &Descriptor, file: &Path) -> bool {
        match self {
            Self::Layout(layout) => layout.link(blob, file).is_ok(),
            Self::Archive(_) | Self::Registry { .. } => false,
        }
    }

    /// Puts a manifest that the root, put last, refers to.
    async fn put_child(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        match self {
            Self::Layout(layout) => layout.put_manifest(manifest),
            Self::Archive(archive) => archive.put_manifest(manifest),
            Self::Registry { endpoint, .. } => {
                push_manifest(
                    endpoint,
                    &Reference::Digest(manifest.digest.clone()),
                    manifest,
                )
                .await
            }
        }
    }

    /// Whether the destination is an OCI layout, in which readers do not expect Docker's types.
    pub(crate) fn is_layout(location: &Location) -> bool {
        matches!(location, Location::Layout(_) | Location::Archive(_))
    }

    /// Puts the root manifest and makes everything visible. The image of its external TOCs is named
    /// after it.
    async fn commit(self, root: &Manifest, tocs: Option<&Manifest>) -> Result<(), Failure> {
        match self {
            Self::Layout(layout) => layout.commit(root, tocs),
            Self::Archive(archive) => archive.commit(root, tocs),
            Self::Registry {
                endpoint,
                reference,
            } => {
                if let Some(tocs) = tocs {
                    push_manifest(&endpoint, &toc_reference(Some(&reference))?, tocs).await?;
                }
                push_manifest(&endpoint, &reference, root).await
            }
        }
    }
}

impl ImageBundle {
    /// Copies everything to `destination`, the root last, and `tocs` beside it.
    pub(crate) async fn deliver(
        &self,
        reader: ImageReader<'_>,
        mut destination: Destination,
        tocs: Option<&Self>,
        counter: &ProgressBar,
    ) -> Result<(), Failure> {
        for blob in self
            .blobs
            .iter()
            .chain(tocs.iter().flat_map(|tocs| &tocs.blobs))
        {
            let blob = &reader.sized(blob).await?;
            if destination.has(blob).await {
                continue;
            }
            let file = reader.scratch_file(blob).await?;
            if file.is_some_and(|file| destination.link(blob, &file)) {
                counter.inc(blob.size);
            } else {
                let counted = counter.clone();
                let bytes = reader
                    .blob(blob)
                    .await?
                    .inspect_ok(move |piece| counted.inc(piece.len() as u64))
                    .boxed();
                destination.put_blob(blob, bytes).await?;
            }
        }
        for child in &self.children {
            destination.put_child(child).await?;
        }
        destination
            .commit(&self.root, tocs.map(|tocs| &tocs.root))
            .await
    }
}

/// Returns the tag to push to. A location without a tag, or with a digest, is an error.
fn pushed_reference(image: &ImageName) -> Result<Reference, Failure> {
    match (&image.tag, &image.digest) {
        (Some(tag), None) => Ok(Reference::Tag(tag.clone())),
        _ => Err(Failure::new(
            "the destination is named by a tag: its digest follows from the conversion",
        )),
    }
}

async fn push_blob(endpoint: &Endpoint, blob: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
    let bytes = bytes
        .map(|piece| piece.map_err(std::io::Error::other))
        .boxed();
    let context = format!("pushing {}", blob.digest);
    endpoint
        .source
        .push_blob(&endpoint.repository, &blob.digest, blob.size, bytes)
        .await
        .map_err(Failure::when(context))
}

async fn push_manifest(
    endpoint: &Endpoint,
    reference: &Reference,
    manifest: &Manifest,
) -> Result<(), Failure> {
    let context = format!("pushing the manifest {}", manifest.digest);
    endpoint
        .source
        .push_manifest(&endpoint.repository, reference, manifest)
        .await
        .map_err(Failure::when(context))
}
