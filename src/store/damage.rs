//! Objects and records that are no longer what was put: found on the way to a reader, forgotten, made again at the next
//! ask.
//!
//! ```text
//! look-up, read, TOC ▶ is it what was put? ▶ no: count it, delete the record that shows it ▶ the next ask finds nothing
//! ```
//! The bytes themselves stay until they are written again or swept: no record shows them.

use std::ops::Range;
use std::time::Duration;

use futures::TryStreamExt as _;

use super::backend::Body;
use super::error::{Damage, Error};
use super::key::Key;
use super::{Object, Store, seal};
use crate::oci::Digest;
use crate::telemetry::metrics;

/// How many layers wait at most to be checked because somebody reads ranges of them.
const CHECKS_WAITING: usize = 1024;
/// How long a layer that was checked in whole counts as whole: rot takes days, and a check reads all of it.
pub(super) const CHECKED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The places of those who wait for a check, and the one of who is checked.
#[derive(Debug)]
pub(super) struct Checks {
    waiting: tokio::sync::Semaphore,
    running: tokio::sync::Semaphore,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            waiting: tokio::sync::Semaphore::new(CHECKS_WAITING),
            running: tokio::sync::Semaphore::new(1),
        }
    }
}

/// Counts and logs a find.
pub(super) fn report(key: &Key, damage: Damage) {
    metrics()
        .store_damaged
        .get_or_create(&[("object", key.kind()), ("damage", damage.name())])
        .inc();
    tracing::warn!(%key, %damage, "found damaged in the store; it is forgotten and made again");
}

impl Store {
    /// Reads all of the object and compares it with its digest. What is damaged is forgotten.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Gone`] when it is not what was put; else the backend's.
    pub async fn check(&self, object: &Object) -> Result<(), Error> {
        let mut bytes = self.read(object, 0..object.size).await?;
        while bytes.try_next().await?.is_some() {}
        Ok(())
    }

    /// Makes the object invisible, unless its record is gone already: then it was swept, and nothing is damaged.
    pub(super) async fn forget_damaged(&self, object: &Object, damage: Damage) {
        let record = Key::DigestRecord(object.digest.clone());
        match self.inner.backend.get(&record).await {
            Ok(None) => {}
            Ok(Some(found)) => {
                let names_it = super::records::names(&record, &found.bytes, object);
                if names_it {
                    report(&object.key, damage);
                    self.delete_damaged(&record).await;
                }
            }
            Err(error) => tracing::debug!(%record, %error, "a damaged object was not forgotten"),
        }
        self.forget(&object.digest).await;
    }

    /// Deletes a record that is not what was written, unless it was written again since.
    pub(super) async fn forget_record(&self, key: &Key, damage: Damage) {
        let there = self.inner.backend.get(key).await;
        let is_written_again = damage == Damage::Record
            && matches!(&there, Ok(Some(there)) if seal::is_intact(key, &there.bytes));
        if is_written_again || matches!(there, Ok(None)) {
            return;
        }
        report(key, damage);
        self.delete_damaged(key).await;
        self.inner.images.invalidate(key).await;
    }

    async fn delete_damaged(&self, record: &Key) {
        if let Err(error) = self.inner.backend.delete(record).await {
            tracing::warn!(%record, %error, "the record of what is damaged was not deleted");
        }
    }

    /// Has a layer checked in the background of which a range is read: the range itself cannot be compared with anything
    /// here. Once a day for each layer, one layer at a time, at the scrub's rate.
    pub(super) fn check_later(&self, object: &Object) {
        let is_wanted =
            self.inner.config.scrub.rate.as_u64() > 0 && matches!(object.key, Key::Layer { .. });
        if !is_wanted || self.inner.checked.contains_key(&object.digest) {
            return;
        }
        let (store, object) = (self.clone(), object.clone());
        tokio::spawn(async move { store.check_in_turn(&object).await });
    }

    /// Has an object checked in the background whose content makes no sense.
    pub fn suspect(&self, digest: &Digest) {
        let (store, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            store.inner.checked.invalidate(&digest).await;
            if let Ok(Some(object)) = store.locate(&digest).await {
                store.check_in_turn(&object).await;
            }
        });
    }

    async fn check_in_turn(&self, object: &Object) {
        let Ok(_place) = self.inner.checks.waiting.try_acquire() else {
            return;
        };
        if !self
            .inner
            .checked
            .entry(object.digest.clone())
            .or_insert(())
            .await
            .is_fresh()
        {
            return;
        }
        let Ok(_turn) = self.inner.checks.running.acquire().await else {
            return;
        };
        let rate = self.inner.config.scrub.rate.as_u64();
        match self.inspect(object, rate).await {
            Ok(None) => {}
            Ok(Some(damage)) => {
                self.inner.checked.invalidate(&object.digest).await;
                self.forget_damaged(object, damage).await;
            }
            Err(error) => {
                self.inner.checked.invalidate(&object.digest).await;
                tracing::debug!(digest = %object.digest, %error, "a layer was not checked");
            }
        }
    }

    /// What is wrong with the object's bytes, read at `rate` bytes a second if that is not 0. Nothing is forgotten.
    pub(super) async fn inspect(
        &self,
        object: &Object,
        rate: u64,
    ) -> Result<Option<Damage>, Error> {
        let mut hasher = object.digest.hasher();
        if object.size > 0 {
            let mut body = match self.body(object, 0..object.size).await? {
                Ok(body) => body.stream,
                Err(damage) => return Ok(Some(damage)),
            };
            let failed = |source| Error::Backend {
                what: format!("reading {}", object.key),
                source,
            };
            while let Some(piece) = body.try_next().await.map_err(failed)? {
                hasher.update(&piece);
                if rate > 0 {
                    tokio::time::sleep(pause(piece.len() as u64, rate)).await;
                }
            }
        }
        Ok((hasher.finish() != object.digest).then_some(Damage::Bytes))
    }

    /// The object's bytes, or why they cannot be what was put.
    pub(super) async fn body(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Result<Body, Damage>, Error> {
        let failed = match self.inner.backend.open(&object.key, range).await {
            Ok(Some(body)) if body.object_size == object.size => return Ok(Ok(body)),
            Ok(Some(_)) => return Ok(Err(Damage::Size)),
            Ok(None) => return Ok(Err(Damage::Missing)),
            Err(error) => error,
        };
        // A range behind the end of an object that became shorter is a failure to some backends.
        match self.inner.backend.head(&object.key).await? {
            Some(meta) if meta.size == object.size => Err(failed),
            Some(_) => Ok(Err(Damage::Size)),
            None => Ok(Err(Damage::Missing)),
        }
    }
}

/// How long `bytes` take at `rate` bytes a second.
fn pause(bytes: u64, rate: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}
