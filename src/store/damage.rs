//! Damaged objects and records, which differ from the bytes that were put. They are found during a
//! read, forgotten, and made again at the next request.
//!
//! ```text
//! look-up, read, TOC ▶ damaged? ▶ count it, delete the record that shows it
//!                                 └▶ the next request finds nothing
//! ```
//! The bytes themselves stay until they are written again or swept, because no record shows them.

use std::ops::Range;
use std::time::Duration;

use futures::TryStreamExt as _;

use super::backend::Body;
use super::error::{Damage, Error};
use super::key::Key;
use super::{Object, Store, seal};
use crate::oci::Digest;
use crate::telemetry::metrics;

/// The most layers that wait for a check because their ranges are read.
const CHECKS_WAITING: usize = 1024;
/// How long a layer counts as whole after a check: bit rot takes days, and a check reads all of it.
pub(super) const CHECKED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Permits for the waiting checks, and one for the running check.
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

/// Counts and logs the damage.
pub(super) fn report(key: &Key, damage: Damage) {
    metrics()
        .store_damaged
        .get_or_create(&[("object", key.kind()), ("damage", damage.name())])
        .inc();
    tracing::warn!(%key, %damage, "found damaged in the store; it is forgotten and made again");
}

impl Store {
    /// Reads all of the object and compares it with its digest. A damaged object is forgotten.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Gone`] if it differs from the object that was put, or the
    /// backend's error.
    pub async fn check(&self, object: &Object) -> Result<(), Error> {
        let mut bytes = self.read(object, 0..object.size).await?;
        while bytes.try_next().await?.is_some() {}
        Ok(())
    }

    /// Makes the object invisible, unless its record is already deleted. Then it was swept, and
    /// nothing is damaged.
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
            Err(error) => tracing::debug!(%record, %error, "damaged object not forgotten"),
        }
        if let Some(cache) = &self.inner.ranges {
            cache.forget(&object.digest, object.size);
        }
        self.forget(&object.digest).await;
    }

    /// Deletes a record that differs from the written one, unless it was written again in the
    /// meantime.
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
            tracing::warn!(%record, %error, "damaged record not deleted");
        }
    }

    /// Checks a layer in the background after a range of it is read, because the range itself
    /// cannot be compared with a digest. Each layer once a day, one layer at a time, at the scrub's
    /// rate.
    pub(super) fn check_later(&self, object: &Object) {
        let is_wanted =
            self.inner.config.scrub.rate.as_u64() > 0 && matches!(object.key, Key::Layer { .. });
        if !is_wanted || self.inner.checked.contains_key(&object.digest) {
            return;
        }
        let (store, object) = (self.clone(), object.clone());
        tokio::spawn(async move { store.check_in_turn(&object).await });
    }

    /// Checks an object in the background whose content makes no sense.
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
                tracing::debug!(digest = %object.digest, %error, "layer not checked");
            }
        }
    }

    /// Returns the damage of the object's bytes, if any. Reads `rate` bytes per second, or without
    /// a limit if that is 0. Forgets nothing.
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

    /// The object's bytes, or the damage that shows without reading them.
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
        // Some backends report a failure for a range behind the end of a shortened object.
        match self.inner.backend.head(&object.key).await? {
            Some(meta) if meta.size == object.size => Err(failed),
            Some(_) => Ok(Err(Damage::Size)),
            None => Ok(Err(Damage::Missing)),
        }
    }
}

/// The time that `bytes` take at `rate` bytes per second.
fn pause(bytes: u64, rate: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}
