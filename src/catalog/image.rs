//! One image: its layers or its platforms, and why something in it was not converted.

use std::collections::HashMap;

use super::list::Entry;
use super::{Catalog, Error};
use crate::aside::aside;
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, SOURCE_DIGEST, TOC_DIGEST, ZSTD_CHECKSUM};
use crate::oci::manifest::{ImageManifest, Index};
use crate::oci::{Descriptor, Digest, Manifest};
use crate::store::ImageRecord;
use crate::store::records::Limit;

/// The most layers or children that are shown.
const MAX_SHOWN: usize = 256;
/// The most reasons that are shown beside those of shown layers and children.
const MAX_REASONS: usize = 16;

/// A stored image.
#[derive(Debug, Clone)]
pub struct Image {
    pub entry: Entry,
    pub content: Content,
    /// The number of layers or children, of which the first are in `content`.
    pub total: usize,
    /// Why parts that are not in `content` stayed as they were, or the image itself.
    pub reasons: Vec<(Digest, String)>,
    /// Limits of the configuration that prevented the conversion of layers.
    pub limits: Vec<Limit>,
    /// Whether files that are read first are at the front of its layers.
    pub is_ordered: bool,
}

#[derive(Debug, Clone)]
pub enum Content {
    /// From the bottom to the top.
    Layers(Vec<Layer>),
    /// The children of an index.
    Platforms(Vec<Part>),
    /// The store has no manifest of it, because nothing was converted.
    Absent,
}

/// A layer of a converted image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest and size of the layer as it is served.
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    /// The layer that it was made from, if it was converted.
    pub source: Option<Digest>,
    pub source_size: Option<u64>,
    pub is_lazy: bool,
    /// Why it stayed as it was.
    pub reason: Option<String>,
}

/// A child of an index.
#[derive(Debug, Clone)]
pub struct Part {
    /// `linux/arm64`
    pub platform: Option<String>,
    pub digest: Digest,
    /// The image, if it is in the list.
    pub image: Option<Digest>,
    pub size: Option<u64>,
    pub reason: Option<String>,
}

impl Catalog {
    /// Returns the image that was converted from `source`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn image(&self, source: &Digest) -> Result<Option<Image>, Error> {
        let (store, generation) = (&self.shared.store, &self.shared.generation);
        let Some(record) = store.look_at_image(generation, source).await? else {
            return Ok(None);
        };
        let entry = Entry::of(&record, 0);
        let manifest = self.manifest(&record).await?;
        let (content, total) = match manifest {
            Some(manifest) if entry.is_index => self.platforms(manifest, &record).await?,
            Some(manifest) => layers(manifest, &record).await,
            None => (Content::Absent, 0),
        };
        let is_shown = |digest: &Digest| match &content {
            Content::Layers(layers) => layers.iter().any(|layer| layer.digest == *digest),
            Content::Platforms(parts) => parts.iter().any(|part| part.digest == *digest),
            Content::Absent => false,
        };
        let reasons = record.passed_through.iter();
        let reasons = reasons.filter(|passed| !is_shown(&passed.digest));
        let reasons = reasons.map(|passed| (passed.digest.clone(), passed.reason.clone()));
        Ok(Some(Image {
            reasons: reasons.take(MAX_REASONS).collect(),
            limits: record.limits,
            is_ordered: record.order.is_some(),
            entry,
            content,
            total,
        }))
    }

    /// Reads the converted manifest, if the store has it.
    pub(super) async fn manifest(&self, record: &ImageRecord) -> Result<Option<Manifest>, Error> {
        self.stored_manifest(&record.converted, &record.media_type)
            .await
    }

    pub(super) async fn stored_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, Error> {
        let store = &self.shared.store;
        let Some(object) = store.look_at_object(digest).await? else {
            return Ok(None);
        };
        let media_type = object
            .media_type
            .as_deref()
            .unwrap_or(media_type)
            .to_owned();
        let bytes = store.read_all(&object).await?;
        Ok(Some(Manifest {
            media_type,
            digest: digest.clone(),
            bytes,
        }))
    }

    async fn platforms(
        &self,
        manifest: Manifest,
        record: &ImageRecord,
    ) -> Result<(Content, usize), Error> {
        let reasons = reasons(record);
        let listing = self.listing().await?;
        let len = manifest.bytes.len();
        let index = aside(len, move || {
            serde_json::from_slice::<Index>(&manifest.bytes).ok()
        })
        .await;
        let Some(index) = index else {
            return Ok((Content::Absent, 0));
        };
        let part = |child: &Descriptor| {
            let entry = listing.of_converted(&child.digest);
            Part {
                platform: child
                    .platform
                    .as_ref()
                    .map(|of| of.to_platform().to_string()),
                digest: child.digest.clone(),
                image: entry.map(|entry| entry.source.clone()),
                size: entry.and_then(|entry| entry.size),
                reason: reasons.get(&child.digest).cloned(),
            }
        };
        let parts = index.manifests.iter().take(MAX_SHOWN).map(part).collect();
        Ok((Content::Platforms(parts), index.manifests.iter().count()))
    }
}

async fn layers(manifest: Manifest, record: &ImageRecord) -> (Content, usize) {
    let reasons = reasons(record);
    let sources = record.origin.iter().flat_map(|origin| &origin.sources);
    let sizes: HashMap<Digest, u64> = sources
        .map(|source| (source.digest.clone(), source.size))
        .collect();
    let len = manifest.bytes.len();
    let read = move || serde_json::from_slice::<ImageManifest>(&manifest.bytes).ok();
    let Some(image) = aside(len, read).await else {
        return (Content::Absent, 0);
    };
    let layer = |layer: &Descriptor| {
        let source = layer.annotations.get(SOURCE_DIGEST);
        let source = source.and_then(|text| text.as_str()?.parse::<Digest>().ok());
        let is_lazy = [TOC_DIGEST, ZSTD_CHECKSUM, OLDER_ZSTD_CHECKSUM]
            .iter()
            .any(|key| layer.annotations.contains_key(*key));
        Layer {
            source_size: sizes.get(source.as_ref().unwrap_or(&layer.digest)).copied(),
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            is_lazy,
            reason: reasons.get(&layer.digest).cloned(),
            source,
        }
    };
    let layers = image.layers.iter().take(MAX_SHOWN).map(layer).collect();
    (Content::Layers(layers), image.layers.len())
}

fn reasons(record: &ImageRecord) -> HashMap<Digest, String> {
    let passed = record.passed_through.iter();
    passed
        .map(|passed| (passed.digest.clone(), passed.reason.clone()))
        .collect()
}
