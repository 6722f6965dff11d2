//! The records: small JSON documents that make objects visible.

use std::sync::Arc;

use futures::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Damage, Error};
use super::key::{Generation, Key};
use super::{Object, Store, seal};
use crate::oci::{Descriptor, Digest, Platform};

/// What became of a source layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the source layer's bytes as the upstream holds them.
    pub source: Digest,
    pub outcome: LayerOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum LayerOutcome {
    Converted(ConvertedLayer),
    /// The layer is served as it is.
    PassedThrough {
        reason: String,
        /// Set where a configured limit is the reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Limit>,
    },
}

/// A configured limit, in bytes, that kept a layer from being converted: once it is raised another try is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    LayerSize(u64),
    UnpackedSize(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertedLayer {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
    pub uncompressed_size: u64,
    pub source_diff_id: Digest,
    pub source_size: u64,
    pub toc_digest: Digest,
    /// `gzip` or `zstd`.
    pub compression: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_toc: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_manifest_position: Option<String>,
    /// Digest of the compressed TOC frame's content (`io.github.containers.zstd-chunked.manifest-checksum`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_manifest_checksum: Option<Digest>,
}

/// The twin of an image manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the source manifest or index.
    pub source: Digest,
    /// Digest of the twin; equals `source` when nothing could be converted.
    pub twin: Digest,
    pub media_type: String,
    pub size: u64,
    /// The twin in the types of the other family, Docker's or OCI's, for clients that take no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<Descriptor>,
    /// For an index: the platforms whose children are converted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Every stored object the twin needs, itself included: what the sweep must keep.
    pub objects: Vec<Digest>,
    /// Why layers or children pass through, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_through: Vec<PassedThrough>,
    /// The limits that kept layers from being converted; for an index, layers of its converted platforms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// Set where the twin has files in front that are read first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// The order of files that a twin has, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Of its layers: it names the files and their order.
    pub generation: Generation,
    /// Seconds since 1970.
    pub since: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedThrough {
    pub digest: Digest,
    pub reason: String,
}

/// Where the object with a digest lies: its being there makes the object visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DigestRecord {
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    /// A [`Key`], as its path.
    pub(super) key: String,
}

impl DigestRecord {
    fn of(object: &Object) -> Self {
        Self {
            size: object.size,
            media_type: object.media_type.clone(),
            key: object.key.to_string(),
        }
    }
}

impl LayerOutcome {
    /// The limit that is the reason why the layer is served as it is.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::PassedThrough { limit, .. } => *limit,
            Self::Converted(_) => None,
        }
    }
}

impl ImageRecord {
    /// What the record takes in memory, in bytes.
    pub(super) fn weight(&self) -> usize {
        /// A digest's text and what holds it.
        const DIGEST: usize = 96;
        let reasons = self
            .passed_through
            .iter()
            .map(|passed| DIGEST + passed.reason.len());
        let translated = self.translated.as_ref().map_or(0, |_| 4 * DIGEST);
        (self.objects.len() + self.platforms.len() + self.limits.len() + 4) * DIGEST
            + translated
            + reasons.sum::<usize>()
    }
}

impl LayerRecord {
    /// The objects that a converted layer consists of.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Digest> {
        let converted = match &self.outcome {
            LayerOutcome::Converted(layer) => Some(layer),
            LayerOutcome::PassedThrough { .. } => None,
        };
        converted
            .into_iter()
            .flat_map(|layer| std::iter::once(&layer.digest).chain(layer.external_toc.as_ref()))
    }
}

impl Store {
    /// What became of the layer `source`; `None` too when the converted layer's bytes are gone.
    pub async fn layer(
        &self,
        generation: &Generation,
        source: &Digest,
    ) -> Result<Option<LayerRecord>, Error> {
        let key = Key::LayerRecord {
            generation: generation.clone(),
            source: source.clone(),
        };
        let Some(record) = self.record::<LayerRecord>(&key).await? else {
            return Ok(None);
        };
        // Marked before the look, for the sweep's sake: the caller is about to build an image on it.
        try_join_all(record.objects().map(|digest| self.mark_used(digest))).await?;
        let whole = self.all_visible(&key, record.objects()).await?;
        Ok(whole.then_some(record))
    }

    /// Commits a layer: from here on its digest is found.
    ///
    /// The layer's bytes (and its external TOC) must have been stored before; the error says when they were not.
    pub async fn put_layer(
        &self,
        generation: &Generation,
        record: &LayerRecord,
    ) -> Result<(), Error> {
        if let LayerOutcome::Converted(layer) = &record.outcome {
            let key = Key::Layer {
                generation: generation.clone(),
                source: record.source.clone(),
            };
            let object = Object {
                digest: layer.digest.clone(),
                size: layer.size,
                media_type: None,
                key,
            };
            self.make_visible(&object).await?;
            if let Some(toc) = &layer.external_toc
                && self.look_up(toc).await?.is_none()
            {
                return Err(Error::Gone(toc.clone()));
            }
        }
        let key = Key::LayerRecord {
            generation: generation.clone(),
            source: record.source.clone(),
        };
        self.put_record(&key, record).await
    }

    /// The twin of the image or index `source`; `None` too when an object it needs is gone.
    pub async fn image(
        &self,
        generation: &Generation,
        source: &Digest,
    ) -> Result<Option<ImageRecord>, Error> {
        let key = Key::ImageRecord {
            generation: generation.clone(),
            source: source.clone(),
        };
        if let Some(record) = self.inner.images.get(&key).await {
            return Ok(Some(record.as_ref().clone()));
        }
        let Some(record) = self.record::<ImageRecord>(&key).await? else {
            return Ok(None);
        };
        if !self.all_visible(&key, record.objects.iter()).await? {
            return Ok(None);
        }
        self.inner
            .images
            .insert(key, Arc::new(record.clone()))
            .await;
        Ok(Some(record))
    }

    /// Commits the twin of an image manifest or an index. Written last.
    ///
    /// Every object it names must be visible; the error says which is not.
    pub async fn put_image(
        &self,
        generation: &Generation,
        record: &ImageRecord,
    ) -> Result<(), Error> {
        let key = Key::ImageRecord {
            generation: generation.clone(),
            source: record.source.clone(),
        };
        self.put_record(&key, record).await?;
        // Looked at after the record is there, past the cache: a sweep that let an object go before it could see the
        // record is noticed here.
        let fresh = try_join_all(record.objects.iter().map(|digest| self.look_up(digest))).await?;
        if let Some((gone, _)) = record
            .objects
            .iter()
            .zip(&fresh)
            .find(|(_, object)| object.is_none())
        {
            self.inner.backend.delete(&key).await?;
            return Err(Error::Gone(gone.clone()));
        }
        self.inner
            .images
            .insert(key, Arc::new(record.clone()))
            .await;
        Ok(())
    }

    async fn all_visible(
        &self,
        key: &Key,
        digests: impl Iterator<Item = &Digest>,
    ) -> Result<bool, Error> {
        let digests: Vec<&Digest> = digests.collect();
        let found = try_join_all(digests.iter().map(|digest| self.locate(digest))).await?;
        let gone = digests
            .iter()
            .zip(&found)
            .find(|(_, object)| object.is_none());
        if let Some((digest, _)) = gone {
            tracing::warn!(record = %key, missing = %digest, "a record names an object that is not there");
        }
        Ok(gone.is_none())
    }

    /// Makes an object visible whose bytes were stored just now. The same bytes may be visible elsewhere: they may also
    /// have rotted there, so these count from here on.
    async fn make_visible(&self, object: &Object) -> Result<(), Error> {
        if self.digest_record(&object.digest).await?.is_some() {
            self.mark_used(&object.digest).await?;
        }
        let stored = self.inner.backend.head(&object.key).await?;
        if stored.is_none_or(|meta| meta.size != object.size) {
            return Err(Error::Gone(object.digest.clone()));
        }
        self.record_object(object).await
    }

    /// Writes the digest record of an object whose bytes are stored.
    pub(super) async fn record_object(&self, object: &Object) -> Result<(), Error> {
        self.put_record(
            &Key::DigestRecord(object.digest.clone()),
            &DigestRecord::of(object),
        )
        .await?;
        self.inner
            .objects
            .insert(object.digest.clone(), object.clone())
            .await;
        Ok(())
    }

    /// What the digest's record says, without a look at the object.
    pub(super) async fn digest_record(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        let key = Key::DigestRecord(digest.clone());
        let Some(DigestRecord {
            size,
            media_type,
            key: place,
        }) = self.record(&key).await?
        else {
            return Ok(None);
        };
        // The record is what was written, so its place is a key.
        let Ok(key) = place.parse() else {
            return Ok(None);
        };
        Ok(Some(Object {
            digest: digest.clone(),
            size,
            media_type,
            key,
        }))
    }

    /// Reads a record. One that is not what was written counts as none and is deleted: the work is done again and writes
    /// it anew.
    pub(super) async fn record<R: DeserializeOwned>(&self, key: &Key) -> Result<Option<R>, Error> {
        match self.inspect_record(key).await? {
            Some(Ok(record)) => Ok(Some(record)),
            None => Ok(None),
            Some(Err(damage)) => {
                self.forget_record(key, damage).await;
                Ok(None)
            }
        }
    }

    /// As [`record`](Self::record), and nothing is deleted.
    pub(super) async fn inspect_record<R: DeserializeOwned>(
        &self,
        key: &Key,
    ) -> Result<Option<Result<R, Damage>>, Error> {
        match self.inner.backend.get(key).await {
            Ok(found) => Ok(found.map(|found| seal::unseal(key, &found.bytes))),
            // It is larger than any record of ours.
            Err(Error::Record { .. }) => Ok(Some(Err(Damage::Record))),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put_record(&self, key: &Key, record: &impl Serialize) -> Result<(), Error> {
        self.inner.backend.put(key, seal::seal(key, record)?).await
    }
}

/// Whether the digest record in `bytes` shows this very object.
pub(super) fn names(key: &Key, bytes: &[u8], object: &Object) -> bool {
    seal::unseal::<DigestRecord>(key, bytes).is_ok_and(|record| record == DigestRecord::of(object))
}
