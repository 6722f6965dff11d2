//! Signs converted images, if a key is configured: which source image each was made from.
//!
//! An image is signed when its record is written. One that was converted without the key is signed
//! when its statements are requested, without another conversion.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::converter::{Converter, Shared};
use super::documents::off_worker;
use super::error::Error;
use crate::oci::{Digest, Manifest};
use crate::provenance;
use crate::store::{ImageRecord, StoredStatement};
use crate::telemetry::log;

impl Converter {
    /// Returns the statements on the image `converted`, which was made from `source`. Signs it
    /// first, if the key is new and the image is the current one of its source.
    ///
    /// # Errors
    /// The store's error. That an image cannot be signed is only logged.
    pub async fn statements(
        &self,
        converted: &Digest,
        source: &Digest,
    ) -> Result<Vec<StoredStatement>, Error> {
        let (shared, found) = (&self.shared, self.shared.store.statements(converted).await?);
        if shared.is_signed(&found) {
            return Ok(found);
        }
        let record = shared.store.image(&shared.generation, source).await?;
        let is_current = |record: &ImageRecord| documents(record).any(|made| made == converted);
        let Some(record) = record.filter(is_current) else {
            return Ok(found);
        };
        shared.sign(&record).await;
        Ok(shared.store.statements(converted).await?)
    }
}

impl Shared {
    /// Stores the record of an image, and the statements on it.
    pub(super) async fn put_image(&self, record: &ImageRecord) -> Result<(), Error> {
        self.store.put_image(&self.generation, record).await?;
        self.sign(record).await;
        Ok(())
    }

    /// Signs the record's converted image in both families of media types, unless that was done.
    /// Without a statement the image is served all the same.
    pub(super) async fn sign(&self, record: &ImageRecord) {
        if record.converted == record.source {
            return;
        }
        for converted in documents(record) {
            if let Err(error) = self.sign_document(converted, &record.source).await {
                let error = log::chain(&error);
                tracing::warn!(source = %record.source, %converted, error, "converted image not signed");
            }
        }
    }

    async fn sign_document(&self, converted: &Digest, source: &Digest) -> Result<(), Error> {
        let Some(key) = &self.signing_key else {
            return Ok(());
        };
        if self.is_signed(&self.store.statements(converted).await?) {
            return Ok(());
        }
        let Some(object) = self.store.find(converted).await? else {
            return Ok(());
        };
        let bytes = self.store.read_all(&object).await?;
        let manifest = Manifest::new(object.media_type.unwrap_or_default(), bytes);
        let (key, id, source) = (Arc::clone(key), key.id().to_string(), source.clone());
        let made = off_worker(manifest.bytes.len(), move || {
            provenance::sign(&key, &manifest, &source)
        });
        let artifact = made.await??;
        let listed = artifact.listed();
        let manifest = artifact.manifest;
        let blobs = artifact.blobs.map(|(blob, bytes)| (blob.media_type, bytes));
        let objects = blobs
            .into_iter()
            .chain([(manifest.media_type, manifest.bytes)]);
        let stored = objects.map(|(media_type, bytes)| self.put_object(media_type, bytes));
        let statement = StoredStatement {
            key: id,
            listed,
            objects: try_join_all(stored).await?,
        };
        Ok(self.store.put_statement(converted, statement).await?)
    }

    async fn put_object(&self, media_type: String, bytes: Bytes) -> Result<Digest, Error> {
        Ok(self.store.put(&media_type, bytes).await?.digest)
    }

    /// Whether one of the statements is by the configured key, or none is configured.
    fn is_signed(&self, statements: &[StoredStatement]) -> bool {
        self.signing_key.as_ref().is_none_or(|key| {
            let mut keys = statements.iter().map(|statement| &statement.key);
            keys.any(|signed| signed == key.id().as_str())
        })
    }
}

/// The converted image of a record, in both families of media types.
fn documents(record: &ImageRecord) -> impl Iterator<Item = &Digest> {
    let translated = record.translated.as_ref();
    std::iter::once(&record.converted).chain(translated.map(|translated| &translated.digest))
}
