//! The image that holds a converted image's external TOCs.

use bytes::Bytes;
use serde_json::Value;

use super::converter::{Converter, Shared};
use super::error::Error;
use crate::oci::annotations::SOURCE_DIGEST;
use crate::oci::manifest::ImageManifest;
use crate::oci::media_type::{self, ManifestKind};
use crate::oci::{Digest, Manifest, Repository};
use crate::rewrite::image;
use crate::store::{Holder, ImageRecord, LayerOutcome};
use crate::transport::Source;

impl Converter {
    /// Returns the external TOCs of a converted image as the image that stargz-snapshotter looks up
    /// under `TAG-esgztoc`, with its objects readable in the store, under the name of the
    /// repository that was shown to hold the image. `None` when no converted layer has an external
    /// TOC, or when the repository was not shown to hold the image.
    pub async fn toc_image(
        &self,
        source: &Source,
        repository: &Repository,
        converted: &ImageRecord,
    ) -> Result<Option<Manifest>, Error> {
        if !self.shared.is_shown(source, repository, converted).await? {
            return Ok(None);
        }
        let mut tocs = Vec::new();
        let mut seen = Vec::new();
        for digest in &converted.objects {
            // Manifests and layers look alike in the record. Only the manifests of converted images
            // are documents.
            let Some(object) = self.shared.store.find(digest).await? else {
                continue;
            };
            let is_image = object
                .media_type
                .as_deref()
                .and_then(media_type::manifest_kind)
                == Some(ManifestKind::Image);
            if !is_image || digest == &converted.source {
                continue;
            }
            let bytes = self.shared.store.read_all(&object).await?;
            for (layer, toc) in self.shared.external_tocs(&bytes).await? {
                let Some(object) = self.shared.store.find(&toc).await? else {
                    continue;
                };
                if !seen.contains(&layer) {
                    seen.push(layer.clone());
                    tocs.push((layer, toc, object.size));
                }
            }
        }
        if tocs.is_empty() {
            return Ok(None);
        }
        let (config, manifest) = image::toc_image(&tocs)?;
        let config = self
            .shared
            .store
            .put(media_type::OCI_CONFIG, config)
            .await?;
        self.shared
            .store
            .put(&manifest.media_type, manifest.bytes.clone())
            .await?;
        let made = [config.digest, manifest.digest.clone()];
        // The caller's record may lack objects that were kept since it was read. Two concurrent
        // calls may undo each other's change; the next call for the image keeps the objects again.
        if let Some(mut record) = self
            .shared
            .store
            .image(&self.shared.generation, &converted.source)
            .await?
        {
            self.shared.keep_with(&mut record, &made).await?;
        }
        let holder = Holder::repository(source.name(), repository);
        self.shared
            .store
            .link_all(&holder, &made, &converted.source)
            .await?;
        Ok(Some(manifest))
    }
}

impl Shared {
    /// Returns each layer of a converted image that has an external TOC, with the TOC's digest.
    async fn external_tocs(&self, manifest: &Bytes) -> Result<Vec<(Digest, Digest)>, Error> {
        let Ok(manifest) = serde_json::from_slice::<ImageManifest>(manifest) else {
            return Ok(Vec::new());
        };
        let mut tocs = Vec::new();
        for layer in &manifest.layers {
            let source = layer.annotations.get(SOURCE_DIGEST).and_then(Value::as_str);
            let Some(source) = source.and_then(|text| text.parse().ok()) else {
                continue;
            };
            let record = self.store.layer(&self.generation, &source).await?;
            if let Some(LayerOutcome::Converted(converted)) = record.map(|record| record.outcome) {
                tocs.extend(converted.external_toc.map(|toc| (converted.digest, toc)));
            }
        }
        Ok(tocs)
    }
}
