//! Pulls an image's documents from the registry into containerd's content store, and writes the
//! image's record.

use std::collections::{BTreeSet, HashMap};

use prost_types::FieldMask;
use tonic::Code;

use super::content::{self, Bytestream};
use super::labels::Labels;
use super::media_type::Role;
use super::session::{Session, refused};
use crate::containerd::services::images::v1::{
    CreateImageRequest, Image as Record, UpdateImageRequest,
};
use crate::containerd::types::Descriptor as Target;
use crate::failure::Failure;
use crate::oci::annotations::DISTRIBUTION_SOURCE;
use crate::oci::manifest::{ImageConfig, ImageManifest, MAX_CONFIG_BYTES};
use crate::oci::media_type::{DOCKER_CONFIG, OCI_CONFIG};
use crate::oci::{Descriptor, Digest, ImageName, Manifest, Platform, Reference};
use crate::transport::document::parse;
use crate::transport::platform::child_of;
use crate::transport::{Endpoint, ImageReader};

/// Deepest nesting of indexes. No known image nests them deeper than two.
const MAX_INDEXES: usize = 4;

/// An image of one platform, and the indexes that lead to it.
#[derive(Debug)]
pub(crate) struct Image {
    /// The indexes from the named one on. Each refers to the next, and the last to the manifest.
    indexes: Vec<Manifest>,
    document: Manifest,
    manifest: ImageManifest,
    config_bytes: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Image {
    /// Reads the documents of the image at `endpoint` for the platform `wanted`.
    pub(crate) async fn read(endpoint: &Endpoint, wanted: &Platform) -> Result<Self, Failure> {
        let mut indexes = Vec::new();
        let mut document = endpoint.manifest().await?;
        while Role::of(&document.media_type) == Role::Index {
            if indexes.len() == MAX_INDEXES {
                return Err(Failure::new("image indexes are nested too deep"));
            }
            let child = child_of(&document, wanted)?;
            indexes.push(std::mem::replace(
                &mut document,
                read(endpoint, &child).await?,
            ));
        }
        if Role::of(&document.media_type) != Role::Manifest {
            return Err(Failure::new(format!(
                "{} is not an image but {:?}",
                document.digest, document.media_type
            )));
        }
        let manifest: ImageManifest = parse(&document)?;
        let config_bytes = configuration(endpoint, &manifest.config).await?;
        let what = format!("image configuration {}", manifest.config.digest);
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(Failure::when(what.clone()))?;
        // An artifact's configuration may be anything. Parsed as an image's, it has no layers.
        let config_type = manifest.config.media_type.as_str();
        if !matches!(config_type, DOCKER_CONFIG | OCI_CONFIG) && config.rootfs.diff_ids.is_empty() {
            return Err(Failure::new(format!("{what} has the type {config_type:?}")));
        }
        let image = Self {
            indexes,
            document,
            manifest,
            config_bytes,
            diff_ids: config.rootfs.diff_ids,
        };
        let (layers, diff_ids) = (image.layers().count(), image.diff_ids.len());
        if layers == diff_ids {
            Ok(image)
        } else {
            Err(Failure::new(format!(
                "the image has {layers} layers, but {diff_ids} diff-ids"
            )))
        }
    }

    /// Returns the named document: an index, or the image's manifest.
    pub(crate) fn target(&self) -> &Manifest {
        self.indexes.first().unwrap_or(&self.document)
    }

    /// Returns the digest of the image's manifest.
    pub(crate) fn digest(&self) -> &Digest {
        &self.document.digest
    }

    pub(crate) fn config(&self) -> &Digest {
        &self.manifest.config.digest
    }

    /// Returns the layers that are unpacked, bottom first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifest
            .layers
            .iter()
            .filter(|layer| Role::of(&layer.media_type) == Role::Layer)
    }

    /// Returns the blobs in the manifest's list of layers that are not layers and are not unpacked.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifest
            .layers
            .iter()
            .filter(|layer| Role::of(&layer.media_type) != Role::Layer)
    }

    /// Writes the documents into containerd's content store, each with labels for its children.
    pub(crate) async fn keep(&self, session: &Session, name: &ImageName) -> Result<(), Failure> {
        let children = self.indexes.iter().skip(1).chain([&self.document]);
        for (index, child) in self.indexes.iter().zip(children) {
            keep(
                session,
                name,
                &index.descriptor(),
                &index.bytes,
                [child.descriptor()].iter(),
            )
            .await?;
        }
        let children = std::iter::once(&self.manifest.config).chain(&self.manifest.layers);
        keep(
            session,
            name,
            &self.document.descriptor(),
            &self.document.bytes,
            children,
        )
        .await?;
        keep(
            session,
            name,
            &self.manifest.config,
            &self.config_bytes,
            [].iter(),
        )
        .await
    }

    /// Creates the image's record, or points the existing record at this image. Its other labels
    /// stay.
    pub(crate) async fn record(
        &self,
        session: &Session,
        name: &str,
        labels: Labels,
    ) -> Result<(), Failure> {
        let root = self.target();
        let target = Target {
            media_type: root.media_type.clone(),
            digest: root.digest.to_string(),
            size: i64::try_from(root.size()).map_err(Failure::from_error)?,
            annotations: HashMap::new(),
        };
        let paths = labels
            .keys()
            .map(|key| format!("labels.{key}"))
            .chain(["target".to_owned()])
            .collect();
        let record = Record {
            name: name.to_owned(),
            labels,
            target: Some(target),
            ..Record::default()
        };
        let what = || refused(format!("writing the record of the image {name}"));
        let created = session
            .images()
            .create(CreateImageRequest {
                image: Some(record.clone()),
            })
            .await;
        match created {
            Err(status) if status.code() == Code::AlreadyExists => {
                let update_mask = Some(FieldMask { paths });
                let request = UpdateImageRequest {
                    image: Some(record),
                    update_mask,
                };
                session
                    .images()
                    .update(request)
                    .await
                    .map_err(what())
                    .map(drop)
            }
            created => created.map_err(what()).map(drop),
        }
    }
}

/// Adds the repository to the label that lists the sources of a blob (`remotes/docker/handler.go`).
pub(crate) async fn note_source(
    session: &Session,
    name: &ImageName,
    digest: &Digest,
) -> Result<(), Failure> {
    let host = name
        .host
        .rsplit_once(':')
        .map_or(name.host.as_str(), |(host, _port)| host);
    let key = format!("{DISTRIBUTION_SOURCE}.{host}");
    let known = content::labels(session, digest)
        .await?
        .remove(&key)
        .unwrap_or_default();
    let mut repositories: BTreeSet<&str> =
        known.split(',').filter(|known| !known.is_empty()).collect();
    repositories.insert(name.repository.as_str());
    let value = repositories.into_iter().collect::<Vec<_>>().join(",");
    // If the list would exceed the limit of a label, the label stays as it is.
    if key.len() + value.len() > super::labels::MAX_LABEL_BYTES {
        return Ok(());
    }
    content::label(session, digest, [(key, value)].into()).await
}

async fn keep(
    session: &Session,
    name: &ImageName,
    blob: &Descriptor,
    bytes: &[u8],
    children: impl Iterator<Item = &Descriptor>,
) -> Result<(), Failure> {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    content::put(session, blob, async |offset| Ok(rest(bytes, offset))).await?;
    content::label(session, &blob.digest, references(children)).await?;
    note_source(session, name, &blob.digest).await
}

fn rest(mut bytes: bytes::Bytes, offset: u64) -> Bytestream {
    use futures::StreamExt as _;
    let skipped = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    futures::stream::iter([Ok(bytes.split_off(skipped))]).boxed()
}

/// Returns the labels by which a parent keeps its `children` from being garbage collected.
fn references<'a>(children: impl Iterator<Item = &'a Descriptor>) -> Labels {
    let mut counts = HashMap::new();
    let mut labels = Labels::new();
    for child in children {
        let label = Role::of(&child.media_type).reference_label();
        let count = counts.entry(label).or_insert(0);
        let key = if label.ends_with('.') || *count > 0 {
            format!("{label}{count}")
        } else {
            label.to_owned()
        };
        labels.insert(key, child.digest.to_string());
        *count += 1;
    }
    labels
}

async fn read(endpoint: &Endpoint, child: &Descriptor) -> Result<Manifest, Failure> {
    let reference = Reference::Digest(child.digest.clone());
    let what = format!("reading the manifest {}", child.digest);
    endpoint
        .source
        .manifest(&endpoint.repository, &reference)
        .await
        .map_err(Failure::when(what))
}

async fn configuration(endpoint: &Endpoint, config: &Descriptor) -> Result<Vec<u8>, Failure> {
    if config.size > MAX_CONFIG_BYTES {
        return Err(Failure::new(format!(
            "image configuration longer than {MAX_CONFIG_BYTES} bytes"
        )));
    }
    ImageReader {
        store: None,
        endpoint,
    }
    .bytes(config)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_labels_match_containerd() {
        let child = |media_type: &str, of: &str| Descriptor {
            media_type: media_type.to_owned(),
            ..Manifest::new(String::new(), of.to_owned().into()).descriptor()
        };
        let children = [
            child("application/vnd.oci.image.config.v1+json", "config"),
            child("application/vnd.oci.image.layer.v1.tar+gzip", "one"),
            child("application/vnd.in-toto+json", "other"),
            child("application/vnd.docker.image.rootfs.diff.tar.gzip", "two"),
        ];
        let labels = references(children.iter());
        let digest = |number: usize| children[number].digest.to_string();
        let expected = [
            ("containerd.io/gc.ref.content.config", digest(0)),
            ("containerd.io/gc.ref.content.l.0", digest(1)),
            ("containerd.io/gc.ref.content.0", digest(2)),
            ("containerd.io/gc.ref.content.l.1", digest(3)),
        ];
        assert_eq!(
            labels,
            expected.map(|(key, value)| (key.to_owned(), value)).into()
        );
    }
}
