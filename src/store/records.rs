//! The records: small JSON documents that make objects visible.

use std::sync::Arc;

use futures::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Damage, Error};
use super::key::{Generation, Key};
use super::origin::Origin;
use super::{Object, Store, seal};
use crate::oci::{Descriptor, Digest, Platform};

/// The result of the conversion of a source layer.
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
    /// The layer is served unchanged.
    PassedThrough {
        reason: String,
        /// Set if a configured limit is the reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Limit>,
    },
}

/// A configured limit, in bytes, that prevented the conversion of a layer. Once it is raised
/// another attempt is worthwhile.
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
    /// Digest of the compressed TOC frame's content
    /// (`io.github.containers.zstd-chunked.manifest-checksum`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_manifest_checksum: Option<Digest>,
}

/// The converted image of an image manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the source manifest or index.
    pub source: Digest,
    /// Digest of the converted image. Equals `source` if nothing could be converted.
    pub converted: Digest,
    pub media_type: String,
    pub size: u64,
    /// The converted image in the other family's types, Docker's or OCI's, for clients that accept
    /// no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<Descriptor>,
    /// For an index: the platforms whose children are converted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Every stored object that the converted image needs, itself included. The sweep must keep
    /// them.
    pub objects: Vec<Digest>,
    /// Why layers or children are passed through, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_through: Vec<PassedThrough>,
    /// The limits that prevented the conversion of layers. For an index: of layers of its converted
    /// platforms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// Set if the converted layers begin with the files that are read first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Where the image came from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The order of files in a converted image, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The generation of its layers, which names the files and their order.
    pub generation: Generation,
    /// Seconds since 1970.
    pub since: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedThrough {
    pub digest: Digest,
    pub reason: String,
}

/// The record that names the key of the object with a digest. Its existence makes the object
/// visible.
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
    /// The limit that prevented the conversion of the layer, if a limit did.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::PassedThrough { limit, .. } => *limit,
            Self::Converted(_) => None,
        }
    }
}

impl ImageRecord {
    /// The size of the record in memory, in bytes.
    pub(super) fn weight(&self) -> usize {
        /// A digest's text and its container.
        const DIGEST: usize = 96;
        let reasons = self
            .passed_through
            .iter()
            .map(|passed| DIGEST + passed.reason.len());
        let translated = self.translated.as_ref().map_or(0, |_| 4 * DIGEST);
        let origin = self.origin.as_ref().map_or(0, Origin::weight);
        (self.objects.len() + self.platforms.len() + self.limits.len() + 4) * DIGEST
            + translated
            + origin
            + reasons.sum::<usize>()
    }
}

impl LayerRecord {
    /// The objects of a converted layer.
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
    /// The result of the conversion of the layer `source`. Also `None` if the converted layer's
    /// bytes are missing.
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
        // Marked before the look-up, so that the sweep does not delete it in between: the caller is
        // about to build an image on it.
        try_join_all(record.objects().map(|digest| self.mark_used(digest))).await?;
        let whole = self.all_visible(&key, record.objects()).await?;
        Ok(whole.then_some(record))
    }

    /// Commits a layer: from now on its digest is found.
    ///
    /// The layer's bytes (and its external TOC) must already be stored. Otherwise the error is
    /// [`Error::Gone`].
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

    /// The converted image of the image or index `source`. Also `None` if one of its objects is
    /// missing.
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

    /// Commits the converted image of an image manifest or an index. Written last.
    ///
    /// Every object it names must be visible. The error names the first that is not.
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
        // Looked up without the cache, and only after the record is written. A sweep that deleted
        // an object before it could see the record is detected here.
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

    /// Makes an object visible whose bytes were just stored. The same bytes may be visible under
    /// another key and may be corrupted there, so the new ones count from now on.
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

    /// The object that the digest's record names, without a check of the object.
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
        // The record is intact, so its place is a key.
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

    /// Reads a record. A damaged one counts as missing and is deleted: the work is done again and
    /// writes a new record.
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

    /// As [`record`](Self::record), but deletes nothing.
    pub(super) async fn inspect_record<R: DeserializeOwned>(
        &self,
        key: &Key,
    ) -> Result<Option<Result<R, Damage>>, Error> {
        match self.inner.backend.get(key).await {
            Ok(found) => Ok(found.map(|found| seal::unseal(key, &found.bytes))),
            // It is larger than any record of the store.
            Err(Error::Record { .. }) => Ok(Some(Err(Damage::Record))),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put_record(&self, key: &Key, record: &impl Serialize) -> Result<(), Error> {
        self.inner.backend.put(key, seal::seal(key, record)?).await
    }
}

/// Whether the digest record in `bytes` describes exactly this object.
pub(super) fn names(key: &Key, bytes: &[u8], object: &Object) -> bool {
    seal::unseal::<DigestRecord>(key, bytes).is_ok_and(|record| record == DigestRecord::of(object))
}
