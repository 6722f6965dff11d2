//! Manifests of source images, each fetched once, because Docker Hub counts these requests.

use bytesize::ByteSize;
use moka::future::Cache;

use crate::flight::{Flight, Forgotten};
use crate::oci::route::Location;
use crate::oci::{Digest, Manifest, Reference};
use crate::registry::Error;

use super::access::{Admission, Reader};

type Key = (Reader, Location, Digest);

pub(crate) struct SourceManifests {
    known: Cache<Key, Manifest>,
    fetching: Flight<Key, Result<Manifest, Error>>,
}

impl SourceManifests {
    /// Caches at most `capacity` bytes of manifests in memory.
    pub(crate) fn new(capacity: ByteSize, forgotten: Forgotten) -> Self {
        let known = Cache::builder()
            .max_capacity(capacity.as_u64())
            .weigher(|_, manifest: &Manifest| u32::try_from(manifest.size()).unwrap_or(u32::MAX))
            .build();
        Self {
            known,
            fetching: Flight::while_awaited(forgotten),
        }
    }

    /// The manifest with this digest that the upstream sent to the reader, only from memory.
    pub(crate) async fn known(
        &self,
        reader: Reader,
        location: &Location,
        digest: &Digest,
    ) -> Option<Manifest> {
        let key = (reader, location.clone(), digest.clone());
        self.known.get(&key).await
    }

    /// The manifest with this digest. Cancel safe: a running fetch continues for a while, and its
    /// result is cached.
    pub(crate) async fn get(
        &self,
        admission: &Admission,
        location: &Location,
        digest: &Digest,
    ) -> Result<Manifest, Error> {
        let key = (admission.reader, location.clone(), digest.clone());
        if let Some(manifest) = self.known.get(&key).await {
            return Ok(manifest);
        }
        let (source, known) = (admission.source.clone(), self.known.clone());
        let fetched = self.fetching.join(key.clone(), move || async move {
            let (_, location, digest) = &key;
            let manifest = source
                .manifest(&location.repository, &Reference::Digest(digest.clone()))
                .await?;
            known.insert(key, manifest.clone()).await;
            // By itself, the cache shrinks to its capacity only after some dozen manifests, however
            // large they are.
            known.run_pending_tasks().await;
            Ok(manifest)
        });
        fetched
            .await
            .unwrap_or_else(|| Err(Error::Unavailable("fetch cancelled".to_owned())))
    }
}
