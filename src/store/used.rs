//! When objects were last asked for: what the retention goes by.

use super::Store;
use super::key::Key;
use crate::oci::Digest;

impl Store {
    /// Notes in the background that the object was asked for, at most once per `USE_NOTED_FOR` and process.
    ///
    /// A note that cannot be written is lost: the object then seems unused for a little longer than it was.
    pub(super) fn note_use(&self, digest: &Digest) {
        let retention = &self.inner.config.retention;
        if (retention.max_age.is_none() && retention.max_size.is_none()) || self.inner.noted.contains_key(digest) {
            return;
        }
        let (store, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            if !store.inner.noted.entry(digest.clone()).or_insert(()).await.is_fresh() {
                return;
            }
            let Ok(_permit) = store.inner.notes.acquire().await else { return };
            if let Err(error) = store.inner.backend.put(&Key::Used(digest.clone()), bytes::Bytes::new()).await {
                tracing::debug!(%digest, %error, "the use of an object was not noted");
            }
        });
    }
}
