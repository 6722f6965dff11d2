//! Links: which upstream, and which of its repositories, was shown to hold a digest. An object is
//! read under a name only if a link joins the two.
//!
//! ```text
//! bytes of a source layer came from an upstream ▶ upstream ─ layer
//! the repository has the layer too              ▶ repository ─ layer
//! every layer and document of an image is shown ▶ repository ─ objects, then the source's digest
//! ```
//! A link gives no bytes and makes nothing visible. Losing one only costs another look at the
//! upstream.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::key::Key;
use super::{ImageRecord, Object, Store};
use crate::oci::{Digest, Repository};

/// Links that are written, and read, at the same time.
const WRITES_AT_ONCE: usize = 16;
const READS_AT_ONCE: usize = 16;

/// An upstream, one repository of it, or an account, as the owner of links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    upstream: String,
    repository: Option<Repository>,
    id: Digest,
}

impl Holder {
    /// The upstream, whichever repository it keeps the bytes in.
    pub fn upstream(name: &str) -> Self {
        Self::new(name, None)
    }

    /// A repository of the upstream `name`.
    pub fn repository(name: &str, repository: &Repository) -> Self {
        Self::new(name, Some(repository.clone()))
    }

    /// The one for whom layers are stored, by a name. It reads nothing by its links: they only count.
    pub fn account(name: &str) -> Self {
        Self {
            upstream: name.to_owned(),
            repository: None,
            // No upstream's name is empty.
            id: Digest::sha256_of(format!("\n\n{name}").as_bytes()),
        }
    }

    fn new(name: &str, repository: Option<Repository>) -> Self {
        // No repository has an empty name, and no name has a line feed.
        let path = repository.as_ref().map_or("", Repository::as_str);
        let id = Digest::sha256_of(format!("{name}\n{path}").as_bytes());
        Self {
            upstream: name.to_owned(),
            repository,
            id,
        }
    }

    /// The hash of the name.
    pub fn id(&self) -> &Digest {
        &self.id
    }

    /// The place of all its links.
    pub(super) fn links(&self) -> String {
        format!("links/{}/{}", self.id.algorithm().name(), self.id.hex())
    }

    fn link(&self, digest: &Digest) -> Key {
        Key::Link {
            holder: self.id.clone(),
            digest: digest.clone(),
        }
    }
}

/// A link that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The source manifest with which the digest was shown: a client that may read it may read the
    /// digest.
    pub image: Option<Digest>,
}

/// The content of a link. The names are for people, because the key has their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkRecord {
    upstream: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Digest>,
}

/// An object as the owner of links sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    Linked(Object, Link),
    /// The store has the object, and the holder was not shown to have it.
    NotLinked,
    Missing,
}

impl Store {
    /// Whether `holder` was shown to hold `digest`. From memory, or a single read of the store.
    pub async fn is_linked(&self, holder: &Holder, digest: &Digest) -> Result<bool, Error> {
        Ok(self.link_of(holder, digest).await?.is_some())
    }

    /// Whether `holder` was shown to hold all that the record's converted image is made of. A link
    /// that was lost makes it false, so that the image is shown again.
    pub async fn is_shown(&self, holder: &Holder, record: &ImageRecord) -> Result<bool, Error> {
        if !self.is_linked(holder, &record.converted).await? {
            return Ok(false);
        }
        let key = (holder.id.clone(), record.converted.clone());
        if self.inner.shown.contains_key(&key) {
            return Ok(true);
        }
        let parts: Vec<Digest> = record
            .objects
            .iter()
            .chain([&record.source])
            .cloned()
            .collect();
        let mut linked = stream::iter(parts)
            .map(|digest| async move { self.is_linked(holder, &digest).await })
            .buffer_unordered(READS_AT_ONCE);
        while let Some(is_linked) = linked.try_next().await? {
            if !is_linked {
                return Ok(false);
            }
        }
        self.inner.shown.insert(key, ()).await;
        Ok(true)
    }

    /// The object with this digest, if it is visible and `holder` was shown to hold it. Only then
    /// it counts as a use.
    pub async fn held(&self, holder: &Holder, digest: &Digest) -> Result<Held, Error> {
        let Some(object) = self.locate(digest).await? else {
            return Ok(Held::Missing);
        };
        let Some(link) = self.link_of(holder, digest).await? else {
            return Ok(Held::NotLinked);
        };
        self.note_use(digest);
        Ok(Held::Linked(object, link))
    }

    /// The link between `holder` and `digest`, if there is one.
    pub async fn link_of(&self, holder: &Holder, digest: &Digest) -> Result<Option<Link>, Error> {
        let key = (holder.id.clone(), digest.clone());
        if let Some(link) = self.inner.linked.get(&key).await {
            return Ok(Some(link));
        }
        let key_of_link = holder.link(digest);
        let read = Box::pin(self.record::<LinkRecord>(&key_of_link));
        let Some(record) = read.await? else {
            return Ok(None);
        };
        let link = Link {
            image: record.image,
        };
        self.inner.linked.insert(key, link.clone()).await;
        Ok(Some(link))
    }

    /// Links `holder` to `digest`, shown with the source manifest `image`, unless it is linked
    /// already.
    pub async fn link(
        &self,
        holder: &Holder,
        digest: &Digest,
        image: Option<&Digest>,
    ) -> Result<(), Error> {
        if self.is_linked(holder, digest).await? {
            return Ok(());
        }
        let record = LinkRecord {
            upstream: holder.upstream.clone(),
            repository: holder.repository.as_ref().map(ToString::to_string),
            image: image.cloned(),
        };
        self.put_record(&holder.link(digest), &record).await?;
        let key = (holder.id.clone(), digest.clone());
        let link = Link {
            image: record.image,
        };
        self.inner.linked.insert(key, link).await;
        Ok(())
    }

    /// Links `holder` to all of `digests`, some at once.
    pub async fn link_all(
        &self,
        holder: &Holder,
        digests: &[Digest],
        image: &Digest,
    ) -> Result<(), Error> {
        stream::iter(digests.to_vec())
            .map(|digest| async move { self.link(holder, &digest, Some(image)).await })
            .buffer_unordered(WRITES_AT_ONCE)
            .try_collect()
            .await
    }

    /// Removes a link from memory, after it was deleted.
    pub(super) async fn forget_link(&self, holder: &Digest, digest: &Digest) {
        let key = (holder.clone(), digest.clone());
        self.inner.linked.invalidate(&key).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn a_link_joins_one_repository_of_one_upstream_with_one_digest() {
        let store = Store::in_memory();
        let (one, other) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        let app = Holder::repository("a.example", &repository("team/app"));
        store.link(&app, &one, Some(&other)).await.unwrap();
        store.inner.linked.invalidate_all();
        let link = store.link_of(&app, &one).await.unwrap();
        assert_eq!(link.unwrap().image, Some(other.clone()));
        for (holder, digest) in [
            (app, &other),
            (Holder::repository("a.example", &repository("team")), &one),
            (
                Holder::repository("b.example", &repository("team/app")),
                &one,
            ),
            (Holder::upstream("a.example"), &one),
        ] {
            assert!(
                !store.is_linked(&holder, digest).await.unwrap(),
                "{holder:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_link_under_another_key_does_not_count() {
        let store = Store::in_memory();
        let digest = Digest::sha256_of(b"1");
        let (own, foreign) = (Holder::upstream("a.example"), Holder::upstream("b.example"));
        store.link(&own, &digest, None).await.unwrap();
        let found = store.inner.backend.get(&own.link(&digest)).await.unwrap();
        let bytes = found.unwrap().bytes;
        store
            .inner
            .backend
            .put(&foreign.link(&digest), bytes)
            .await
            .unwrap();
        assert!(!store.is_linked(&foreign, &digest).await.unwrap());
    }
}
