//! When objects were last asked for: what the retention goes by.

use bytes::Bytes;

use super::Store;
use super::error::Error;
use super::key::Key;
use crate::oci::Digest;

impl Store {
    /// Notes in the background that the object was asked for.
    ///
    /// A note that cannot be written is lost: the object then seems unused for a little longer than it was.
    pub(super) fn note_use(&self, digest: &Digest) {
        if !self.counts_uses() || self.inner.noted.contains_key(digest) {
            return;
        }
        let (store, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            if let Err(error) = store.mark_used(&digest).await {
                tracing::debug!(%digest, %error, "the use of an object was not noted");
            }
        });
    }

    /// Notes that the object is about to be built upon, at most once in `USE_NOTED_FOR` and process.
    pub(super) async fn mark_used(&self, digest: &Digest) -> Result<(), Error> {
        if !self.counts_uses()
            || !self
                .inner
                .noted
                .entry(digest.clone())
                .or_insert(())
                .await
                .is_fresh()
        {
            return Ok(());
        }
        let Ok(_permit) = self.inner.notes.acquire().await else {
            return Ok(());
        };
        let marked = self
            .inner
            .backend
            .put(&Key::Used(digest.clone()), Bytes::new())
            .await;
        if marked.is_err() {
            self.inner.noted.invalidate(digest).await;
        }
        marked
    }

    fn counts_uses(&self) -> bool {
        let retention = &self.inner.config.retention;
        retention.max_age.is_some() || retention.max_size.is_some()
    }
}
