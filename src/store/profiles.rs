//! The use of images: which image a list of layers belongs to, and its profile data.
//!
//! Neither makes an object visible. Losing one only loses time, because it is learned again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::PutMode;
use serde::{Deserialize, Serialize};

use super::backend::Versioned;
use super::error::Error;
use super::key::Key;
use super::{Store, damage, seal};
use crate::backoff::Backoff;
use crate::oci::Digest;
use crate::profile::{Knowledge, Stack};

/// The number of attempts at a merge while others write the same knowledge: with the pauses some
/// ten seconds.
const TRIES: u32 = 12;
/// The pause after the first failed attempt. Each further one is up to twice as long, and none
/// longer than a second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An image, identified by its list of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRecord {
    /// The key of its knowledge: the digest of the source image's configuration, or the digest of
    /// the list of layers if nobody has verified that these layers belong to that configuration.
    pub config: Digest,
    /// Digest of the source image's manifest. The sweep keeps this record as long as that image's
    /// record.
    pub source: Digest,
    /// The layers, from the bottom to the top.
    pub layers: Vec<Digest>,
}

/// Changes the knowledge of an image. May run more than once, on a version that others have changed
/// meanwhile.
pub type Merge = Arc<dyn Fn(&mut Knowledge) + Send + Sync>;

/// A secret of the store. A hash with it cannot be compared with hashes of other stores. Every
/// reader of the store can read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(Bytes);

impl StackRecord {
    /// Whether the configuration is verified to belong to the layers.
    pub fn is_verified(&self) -> bool {
        self.config != self.stack().0
    }

    pub fn stack(&self) -> Stack {
        Stack::of(&self.layers)
    }
}

impl Salt {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

impl Store {
    /// The image with this list of layers, if it is recorded.
    pub async fn stack(&self, stack: &Stack) -> Result<Option<StackRecord>, Error> {
        let key = Key::StackRecord(stack.clone());
        let record = self.record::<StackRecord>(&key).await?;
        Ok(record.filter(|record| record.stack() == *stack))
    }

    /// Records the image of a list of layers. Images may have the same layers and different
    /// configurations: the first one with a verified configuration counts.
    pub async fn put_stack(&self, record: &StackRecord) -> Result<(), Error> {
        let stack = record.stack();
        let there = self
            .stack(&stack)
            .await?
            .filter(|there| there.source != record.source);
        if there.is_some_and(|there| there.is_verified() || !record.is_verified()) {
            return Ok(());
        }
        // Written again even if it exists, so that a sweep that is about to delete it sees the use.
        self.put_record(&Key::StackRecord(stack), record).await
    }

    /// The knowledge of the image with this source configuration, which is empty if nothing was
    /// learned.
    pub async fn knowledge(&self, image: &Digest) -> Result<Knowledge, Error> {
        let found = self.record(&Key::Knowledge(image.clone())).await?;
        Ok(found.unwrap_or_else(|| Knowledge::new(image.clone())))
    }

    /// Merges into the knowledge of the image, concurrently with other replicas. Returns the
    /// result.
    ///
    /// # Errors
    /// [`Error::Contended`] if others were always faster, or the backend's error.
    pub async fn learn(&self, image: &Digest, merge: &Merge) -> Result<Knowledge, Error> {
        let key = Key::Knowledge(image.clone());
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for _ in 0..TRIES {
            if let Some(knowledge) = self.merge_once(image, &key, merge).await? {
                return Ok(knowledge);
            }
            // The random pause keeps replicas that collided from colliding again.
            let pause = backoff.pause().mul_f64(rand::random_range(0.5..1.0));
            tokio::time::sleep(pause).await;
        }
        Err(Error::Contended(key.to_string()))
    }

    /// One read, merge and write. `None` if another writer was faster.
    async fn merge_once(
        &self,
        image: &Digest,
        key: &Key,
        merge: &Merge,
    ) -> Result<Option<Knowledge>, Error> {
        // A folder has no conditional updates.
        let _lock = match self.inner.backend.root() {
            Some(_) => match self.lease(&key.to_string()).await? {
                Some(lock) => Some(lock),
                None => return Ok(None),
            },
            None => None,
        };
        let found = self.inner.backend.get(key).await?;
        let mode = match &found {
            _ if self.inner.backend.root().is_some() => PutMode::Overwrite,
            Some(found) => PutMode::Update(found.version.clone()),
            None => PutMode::Create,
        };
        let (knowledge, json) = merged(image, found, Arc::clone(merge)).await?;
        match self.inner.backend.put_if(key, json, mode).await {
            Ok(_) => Ok(Some(knowledge)),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotFound { .. },
            ) => Ok(None),
            Err(source) => Err(Error::Backend {
                what: format!("writing {key}"),
                source,
            }),
        }
    }

    /// The store's salt, created by the first caller, and created again if it is damaged. Senders
    /// then count twice.
    pub async fn salt(&self) -> Result<Salt, Error> {
        if let Some(salt) = self.record::<SaltRecord>(&Key::Salt).await? {
            return Ok(salt.into());
        }
        let made = seal::seal(
            &Key::Salt,
            &SaltRecord {
                salt: rand::random(),
            },
        )?;
        match self
            .inner
            .backend
            .put_if(&Key::Salt, made, PutMode::Create)
            .await
        {
            Ok(_)
            | Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => {}
            Err(source) => {
                return Err(Error::Backend {
                    what: format!("writing {}", Key::Salt),
                    source,
                });
            }
        }
        match self.record::<SaltRecord>(&Key::Salt).await? {
            Some(salt) => Ok(salt.into()),
            None => Err(Error::Contended(Key::Salt.to_string())),
        }
    }
}

/// The salt as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct SaltRecord {
    salt: [u8; 32],
}

impl From<SaltRecord> for Salt {
    fn from(record: SaltRecord) -> Self {
        Self(Bytes::from_owner(record.salt))
    }
}

/// Returns the result of `merge`, and its JSON. Megabytes at worst, so it runs on a blocking
/// thread.
async fn merged(
    image: &Digest,
    found: Option<Versioned>,
    merge: Merge,
) -> Result<(Knowledge, Bytes), Error> {
    let image = image.clone();
    let work = tokio::task::spawn_blocking(move || {
        let key = Key::Knowledge(image.clone());
        let known = found.and_then(|found| {
            seal::unseal::<Knowledge>(&key, &found.bytes)
                .inspect_err(|damage| damage::report(&key, *damage))
                .ok()
        });
        // Damaged knowledge is learned again.
        let mut knowledge = known.unwrap_or_else(|| Knowledge::new(image));
        merge(&mut knowledge);
        seal::seal(&key, &knowledge).map(|json| (knowledge, json))
    });
    work.await.map_err(|ended| Error::Record {
        key: "profiles".to_owned(),
        reason: ended.to_string(),
    })?
}
