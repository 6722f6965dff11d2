//! The last use of objects, on which the retention depends.

use bytes::Bytes;

use super::Store;
use super::error::Error;
use super::key::Key;
use crate::oci::Digest;

impl Store {
    /// Notes in the background that the object was used.
    ///
    /// A note that cannot be written is lost. The object then seems unused for a little longer than
    /// it is.
    pub(super) fn note_use(&self, digest: &Digest) {
        if !self.counts_uses() || self.inner.noted.contains_key(digest) {
            return;
        }
        let (store, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            if let Err(error) = store.mark_used(&digest).await {
                tracing::debug!(%digest, %error, "use of the object not noted");
            }
        });
    }

    /// Notes that the caller is about to build on the object, at most once per `USE_NOTED_FOR` and
    /// process.
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
