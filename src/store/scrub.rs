//! The scrub: reads everything in the store and compares it with its digests and checksums, so that
//! bit rot is found even in unread objects.
//!
//! It reads one object at a time, at a bounded rate. A lease and a record of the last pass make
//! sure that only one replica does it. A pass begins at a random digest and wraps around, so that
//! interrupted passes reach everything in the end.

use std::time::Duration;

use futures::TryStreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Damage, Error};
use super::key::Key;
use super::links::LinkRecord;
use super::profiles::StackRecord;
use super::records::{DigestRecord, ImageRecord, LayerRecord};
use super::statements::StatementRecord;
use super::{Lease, Object, Store};
use crate::clock::unix_now;
use crate::oci::Digest;
use crate::profile::Knowledge;
use crate::telemetry::{log, metrics};

/// The lease that keeps replicas from scrubbing at the same time.
const SCRUB: &str = "scrub";
/// How often the scrub checks whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);

/// A damaged entry of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub key: Key,
    /// The digest of a damaged object, or of the missing object that a record names.
    pub digest: Option<Digest>,
    pub damage: Damage,
}

/// The result of a pass over the whole store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubReport {
    pub objects: u64,
    pub records: u64,
    /// The bytes of the objects.
    pub bytes: u64,
    pub damaged: u64,
}

/// The record of the last pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LastPass {
    /// Seconds since 1970.
    finished: u64,
    report: LastReport,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct LastReport {
    objects: u64,
    bytes: u64,
    damaged: u64,
}

impl Store {
    /// Reads everything, at `rate` bytes per second if that is not 0, and calls `found` for each
    /// damaged entry. With `repair` the entry is forgotten, and the next request makes it again.
    ///
    /// # Errors
    /// The backend's error. Findings before it have been reported.
    pub async fn scrub(
        &self,
        repair: bool,
        rate: u64,
        found: &mut (dyn FnMut(&Finding) + Send),
    ) -> Result<ScrubReport, Error> {
        let mut pass = Pass {
            store: self,
            repair,
            rate,
            found,
            lease: None,
            report: ScrubReport::default(),
        };
        pass.run(0).await?;
        Ok(pass.report)
    }

    /// Maintains the store for as long as the server runs: scrubs it when that is due, and keeps it
    /// within its size.
    pub async fn tend(self) {
        tokio::join!(self.keep_scrubbed(), self.keep_size());
    }

    async fn keep_scrubbed(&self) {
        let interval = self.inner.config.scrub.interval;
        if interval.is_zero() {
            return;
        }
        loop {
            // The random pause keeps replicas that started together from checking together.
            tokio::time::sleep(
                interval
                    .min(LOOK_EVERY)
                    .mul_f64(rand::random_range(0.5..1.0)),
            )
            .await;
            if let Err(error) = self.scrub_if_due(interval).await {
                tracing::warn!(error = log::chain(&error), "scrub failed");
            }
        }
    }

    async fn scrub_if_due(&self, interval: Duration) -> Result<(), Error> {
        let is_due = |last: &Option<LastPass>| {
            last.as_ref()
                .is_none_or(|last| unix_now().saturating_sub(last.finished) >= interval.as_secs())
        };
        if !is_due(&self.last_pass().await?) {
            return Ok(());
        }
        let Some(lease) = self.lease(SCRUB).await? else {
            return Ok(());
        };
        if is_due(&self.last_pass().await?) {
            let rate = self.inner.config.scrub.rate.as_u64();
            // Each finding is logged when it is forgotten.
            let mut found = |_: &Finding| {};
            let report = ScrubReport::default();
            let mut pass = Pass {
                store: self,
                repair: true,
                rate,
                found: &mut found,
                lease: Some(&lease),
                report,
            };
            pass.run(rand::random()).await?;
            let ScrubReport {
                objects,
                bytes,
                damaged,
                ..
            } = pass.report;
            tracing::info!(report = ?pass.report, "the store is scrubbed");
            let last = LastPass {
                finished: unix_now(),
                report: LastReport {
                    objects,
                    bytes,
                    damaged,
                },
            };
            self.put_record(&Key::Scrub, &last).await?;
            self.last_pass().await?;
        }
        lease.release().await;
        Ok(())
    }

    async fn last_pass(&self) -> Result<Option<LastPass>, Error> {
        let last = self.record::<LastPass>(&Key::Scrub).await?;
        let finished = last
            .as_ref()
            .and_then(|last| i64::try_from(last.finished).ok());
        metrics().scrub_finished.set(finished.unwrap_or_default());
        Ok(last)
    }
}

struct Pass<'a> {
    store: &'a Store,
    repair: bool,
    rate: u64,
    found: &'a mut (dyn FnMut(&Finding) + Send),
    lease: Option<&'a Lease>,
    report: ScrubReport,
}

impl Pass<'_> {
    /// Checks the objects first, those with digests after `start` before the others, and then the
    /// records that name them.
    async fn run(&mut self, start: u8) -> Result<(), Error> {
        let start = format!("{start:02x}");
        for is_after in [true, false] {
            let mut listed = self.store.inner.backend.list("records/digest");
            while let Some(listed) = listed.try_next().await? {
                if let Key::DigestRecord(digest) = &listed.key
                    && (digest.hex() >= start.as_str()) == is_after
                {
                    self.object(digest).await?;
                }
            }
        }
        for top in [
            "records/layer",
            "records/image",
            "records/stack",
            "records/statement",
            "profiles",
            "links",
        ] {
            let mut listed = self.store.inner.backend.list(top);
            while let Some(listed) = listed.try_next().await? {
                match &listed.key {
                    key @ Key::LayerRecord { .. } => drop(self.record::<LayerRecord>(key).await?),
                    key @ Key::ImageRecord { .. } => self.image(key).await?,
                    key @ Key::StackRecord(_) => drop(self.record::<StackRecord>(key).await?),
                    key @ Key::StatementRecord(_) => {
                        drop(self.record::<StatementRecord>(key).await?);
                    }
                    key @ Key::Link { .. } => drop(self.record::<LinkRecord>(key).await?),
                    key => drop(self.record::<Knowledge>(key).await?),
                }
            }
        }
        self.record::<serde::de::IgnoredAny>(&Key::Salt)
            .await
            .map(drop)
    }

    /// Checks the digest's record and its object.
    async fn object(&mut self, digest: &Digest) -> Result<(), Error> {
        let key = Key::DigestRecord(digest.clone());
        let Some(record) = self.record::<DigestRecord>(&key).await? else {
            return Ok(());
        };
        let Ok(place) = record.key.parse() else {
            return Ok(());
        };
        let object = Object {
            digest: digest.clone(),
            size: record.size,
            media_type: record.media_type,
            key: place,
        };
        let damage = self.store.inspect(&object, self.rate).await?;
        self.count(object.size);
        self.report.objects += 1;
        let Some(damage) = damage else { return Ok(()) };
        if damage == Damage::Missing && self.store.digest_record(digest).await?.is_none() {
            // It was swept meanwhile.
            return Ok(());
        }
        self.report_finding(&Finding {
            key: object.key.clone(),
            digest: Some(digest.clone()),
            damage,
        });
        if self.repair {
            self.store.forget_damaged(&object, damage).await;
        }
        Ok(())
    }

    async fn record<R: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<R>, Error> {
        if self.lease.is_some_and(Lease::is_lost) {
            return Err(Error::Contended(SCRUB.to_owned()));
        }
        self.report.records += 1;
        self.count(0);
        match self.store.inspect_record(key).await? {
            Some(Ok(record)) => Ok(Some(record)),
            None => Ok(None),
            Some(Err(damage)) => {
                self.report_finding(&Finding {
                    key: key.clone(),
                    digest: None,
                    damage,
                });
                if self.repair {
                    self.store.forget_record(key, damage).await;
                }
                Ok(None)
            }
        }
    }

    /// Checks an image's record, which must only name existing objects.
    async fn image(&mut self, key: &Key) -> Result<(), Error> {
        let Some(record) = self.record::<ImageRecord>(key).await? else {
            return Ok(());
        };
        for digest in &record.objects {
            let is_there = match self
                .store
                .inspect_record::<DigestRecord>(&Key::DigestRecord(digest.clone()))
                .await?
            {
                Some(Ok(_)) => true,
                Some(Err(_)) | None => false,
            };
            if is_there {
                continue;
            }
            if self
                .store
                .inspect_record::<ImageRecord>(key)
                .await?
                .is_none()
            {
                // It was swept meanwhile.
                return Ok(());
            }
            self.report_finding(&Finding {
                key: key.clone(),
                digest: Some(digest.clone()),
                damage: Damage::Dangling,
            });
            if self.repair {
                self.store.forget_record(key, Damage::Dangling).await;
            }
            return Ok(());
        }
        Ok(())
    }

    fn report_finding(&mut self, finding: &Finding) {
        self.report.damaged += 1;
        (self.found)(finding);
    }

    fn count(&mut self, bytes: u64) {
        self.report.bytes += bytes;
        metrics().scrubbed_objects.inc();
        metrics().scrubbed_bytes.inc_by(bytes);
    }
}
