//! What is known of how images are used: which image a stack of layers is, and what was learned of it.
//!
//! Neither makes an object visible, and losing one loses time alone: it is learned again.

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

/// How often a merge is tried while others write the same knowledge: with the pauses some ten seconds.
const TRIES: u32 = 12;
/// The pause after the first try that failed; each further one is up to twice as long, and none longer than a second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An image as a node knows it, and as it is known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRecord {
    /// What its knowledge is kept under: the digest of the source image's configuration, or the stack's own where
    /// nobody checked that these layers belong to that configuration.
    pub config: Digest,
    /// Digest of the source image's manifest, whose record keeps this one.
    pub source: Digest,
    /// The layers of the stack, from the bottom to the top.
    pub layers: Vec<Digest>,
}

/// Changes what is known of an image. It may be run more than once, on what others made of it meanwhile.
pub type Merge = Arc<dyn Fn(&mut Knowledge) + Send + Sync>;

/// A secret of the store: what is hashed with it cannot be compared with other stores' hashes. Who can read the store
/// can read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(Bytes);

impl StackRecord {
    /// Whether the configuration is known to belong to the layers.
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
    /// The image with this stack of layers, if one was kept.
    pub async fn stack(&self, stack: &Stack) -> Result<Option<StackRecord>, Error> {
        let key = Key::StackRecord(stack.clone());
        let record = self.record::<StackRecord>(&key).await?;
        Ok(record.filter(|record| record.stack() == *stack))
    }

    /// Keeps which image the stack is. Images may have the same layers and other configurations: the first one counts
    /// whose configuration was verified.
    pub async fn put_stack(&self, record: &StackRecord) -> Result<(), Error> {
        let stack = record.stack();
        let there = self
            .stack(&stack)
            .await?
            .filter(|there| there.source != record.source);
        if there.is_some_and(|there| there.is_verified() || !record.is_verified()) {
            return Ok(());
        }
        // Written again when it is there: a sweep that is about to let it go sees that it is wanted.
        self.put_record(&Key::StackRecord(stack), record).await
    }

    /// What is known of the image with this source configuration; nothing at all where it was never learned of.
    pub async fn knowledge(&self, image: &Digest) -> Result<Knowledge, Error> {
        let found = self.record(&Key::Knowledge(image.clone())).await?;
        Ok(found.unwrap_or_else(|| Knowledge::new(image.clone())))
    }

    /// Merges into what is known of the image, beside other replicas that do the same; what came of it.
    ///
    /// # Errors
    /// [`Error::Contended`] when others were always faster; else the backend's.
    pub async fn learn(&self, image: &Digest, merge: &Merge) -> Result<Knowledge, Error> {
        let key = Key::Knowledge(image.clone());
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for _ in 0..TRIES {
            if let Some(knowledge) = self.merge_once(image, &key, merge).await? {
                return Ok(knowledge);
            }
            // Replicas that met once would meet again.
            let pause = backoff.pause().mul_f64(rand::random_range(0.5..1.0));
            tokio::time::sleep(pause).await;
        }
        Err(Error::Contended(key.to_string()))
    }

    /// One read, merge and write; `None` when another writer came between.
    async fn merge_once(
        &self,
        image: &Digest,
        key: &Key,
        merge: &Merge,
    ) -> Result<Option<Knowledge>, Error> {
        // A folder knows no conditional update.
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

    /// The store's salt, made by who is first to ask for it, and made anew when it is damaged: senders then count twice.
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

/// The salt as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct SaltRecord {
    salt: [u8; 32],
}

impl From<SaltRecord> for Salt {
    fn from(record: SaltRecord) -> Self {
        Self(Bytes::from_owner(record.salt))
    }
}

/// What `merge` makes of what was found, and as JSON. Megabytes at worst: on a thread that may take its time.
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
        // What is damaged is learned anew.
        let mut knowledge = known.unwrap_or_else(|| Knowledge::new(image));
        merge(&mut knowledge);
        seal::seal(&key, &knowledge).map(|json| (knowledge, json))
    });
    work.await.map_err(|ended| Error::Record {
        key: "profiles".to_owned(),
        reason: ended.to_string(),
    })?
}
