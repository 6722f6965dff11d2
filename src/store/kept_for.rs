//! The bytes of converted layers that are stored for somebody: an account has a link to each.
//!
//! A sweep deletes links to what it has deleted, so that the bytes of an account shrink with the
//! store. They are counted from a listing that is used for a minute, and from what this process
//! stored since: replicas over the same bucket see each other's within that time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt as _;

use super::Store;
use super::error::Error;
use super::key::Key;
use super::links::Holder;
use crate::oci::Digest;

/// How long a listing is used.
pub(super) const COUNTED_FOR: Duration = Duration::from_secs(60);
/// The accounts whose bytes are remembered.
pub(super) const ACCOUNTS: u64 = 10_000;
/// Records that are read at the same time.
const READS_AT_ONCE: usize = 16;

impl Store {
    /// Records that the layer of `size` bytes is stored for `account`.
    pub async fn keep_for(&self, account: &Holder, layer: &Digest, size: u64) -> Result<(), Error> {
        let is_new = !self.is_linked(account, layer).await?;
        self.link(account, layer, None).await?;
        if is_new && let Some(bytes) = self.inner.kept_for.get(account.id()).await {
            bytes.fetch_add(size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The bytes of the layers that are stored for `account`.
    pub async fn bytes_kept_for(&self, account: &Holder) -> Result<u64, Error> {
        let counted = self.inner.kept_for.get(account.id()).await;
        let bytes = match counted {
            Some(bytes) => bytes,
            None => {
                let bytes = Arc::new(AtomicU64::new(self.count_kept_for(account).await?));
                let id = account.id().clone();
                self.inner.kept_for.insert(id, Arc::clone(&bytes)).await;
                bytes
            }
        };
        Ok(bytes.load(Ordering::Relaxed))
    }

    async fn count_kept_for(&self, account: &Holder) -> Result<u64, Error> {
        self.inner
            .backend
            .list(&account.links())
            .try_filter_map(async |listed| {
                Ok(match listed.key {
                    Key::Link { digest, .. } => Some(digest),
                    _ => None,
                })
            })
            .map_ok(|digest| async move {
                let object = self.locate(&digest).await?;
                Ok(object.map_or(0, |object| object.size))
            })
            .try_buffer_unordered(READS_AT_ONCE)
            .try_fold(0_u64, async |sum, size| Ok(sum.saturating_add(size)))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Config, Object};

    #[tokio::test]
    async fn layers_count_once_for_their_account_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            location: dir.path().to_str().unwrap().to_owned(),
            ..Config::default()
        };
        let store = Store::open(&config).await.unwrap();
        let (a, b) = (
            Holder::account("identity user:a"),
            Holder::account("identity user:b"),
        );
        let mut objects: Vec<Object> = Vec::new();
        for bytes in ["one", "three"] {
            objects.push(store.put("text/plain", bytes.into()).await.unwrap());
        }
        assert_eq!(store.bytes_kept_for(&a).await.unwrap(), 0);
        for object in &objects {
            for _ in 0..2 {
                store
                    .keep_for(&a, &object.digest, object.size)
                    .await
                    .unwrap();
            }
        }
        assert_eq!(store.bytes_kept_for(&a).await.unwrap(), 8);
        let again = Store::open(&config).await.unwrap();
        assert_eq!(again.bytes_kept_for(&a).await.unwrap(), 8);
        assert_eq!(again.bytes_kept_for(&b).await.unwrap(), 0);
        // An upstream of the same name holds nothing by it.
        let upstream = Holder::upstream("identity user:a");
        assert!(
            !store
                .is_linked(&upstream, &objects[0].digest)
                .await
                .unwrap()
        );
    }
}
