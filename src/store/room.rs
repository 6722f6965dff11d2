//! How many bytes the store holds, and whether more may be added: `store.retention.max_size`.
//!
//! ```text
//! used = last listing + stored here since then + reserved by running uploads
//! ```
//! Room is reserved before a layer is uploaded. If there is none, a sweep makes some. If that does
//! not help, the layer is refused. Replicas list the same bucket, each at most once a minute:
//! together they may exceed the limit by the bytes that they store within a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::TryStreamExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Store;
use super::error::Error;
use crate::telemetry::{log, metrics};

/// Everything that counts. Other objects (marks, leases, the salt) are empty or single.
const TOPS: [&str; 4] = ["layers", "blobs", "records", "profiles"];
/// How long a listing is used. Bytes stored by other replicas meanwhile are not seen.
const LISTED_FOR: Duration = Duration::from_secs(60);
/// The shortest time between two sweeps for room, because a sweep reads every record.
const SWEPT_FOR: Duration = Duration::from_secs(60);
/// How often a store with a limit is listed even if nothing is stored.
const LOOK_EVERY: Duration = Duration::from_secs(5 * 60);
/// The least share of the limit that a sweep for room frees, so that not every upload needs a
/// sweep.
const FREED_SHARE: u64 = 10;

/// The bytes of a store, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Room {
    listed: AtomicU64,
    stored: AtomicU64,
    reserved: AtomicU64,
    is_listed: AtomicBool,
    /// Held while the store is listed or swept for room.
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    listed: Option<Instant>,
    swept: Option<Instant>,
}

/// Room for bytes that are being stored, freed when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
    /// `None` if the store has no limit.
    max_size: Option<u64>,
}

impl Room {
    fn used(&self) -> u64 {
        let [listed, stored, reserved] =
            [&self.listed, &self.stored, &self.reserved].map(|bytes| bytes.load(Ordering::Relaxed));
        listed.saturating_add(stored).saturating_add(reserved)
    }

    fn try_reserve(&self, bytes: u64, max_size: u64) -> bool {
        // Reserved before the check: two concurrent callers may both be refused, but never both
        // admitted wrongly.
        self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let fits = self.used() <= max_size;
        if !fits {
            self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        }
        fits
    }
}

impl Reservation {
    /// Reserves more if the bytes turn out to be larger than expected.
    ///
    /// # Errors
    /// [`Error::Full`] if they do not fit.
    pub(super) fn cover(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(max_size) = self.max_size else {
            return Ok(());
        };
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.room.try_reserve(more, max_size) {
            return Err(full(bytes, max_size));
        }
        self.bytes += more;
        Ok(())
    }

    /// Counts the bytes as stored.
    pub(super) fn keep(self, bytes: u64) {
        self.room.stored.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

fn full(bytes: u64, max_size: u64) -> Error {
    Error::Full {
        bytes,
        max_size: bytesize::ByteSize::b(max_size),
    }
}

impl Store {
    /// Reserves room for about `bytes`.
    ///
    /// # Errors
    /// [`Error::Full`] if there is none and a sweep made none, or the backend's error.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Reservation, Error> {
        let room = &self.inner.room;
        let max_size = self
            .inner
            .config
            .retention
            .max_size
            .map(|size| size.as_u64());
        let Some(max) = max_size else {
            return Ok(Reservation {
                room: Arc::clone(room),
                bytes: 0,
                max_size,
            });
        };
        self.list_bytes(LISTED_FOR).await?;
        if !room.try_reserve(bytes, max) {
            if bytes > max {
                return Err(full(bytes, max));
            }
            self.make_room(bytes, max).await?;
            if !room.try_reserve(bytes, max) {
                return Err(full(bytes, max));
            }
        }
        Ok(Reservation {
            room: Arc::clone(room),
            bytes,
            max_size,
        })
    }

    /// Sweeps if the store is above its size, even if nothing is converted: the limit may have been
    /// lowered, or another replica may have stored more.
    pub(super) async fn keep_size(&self) {
        let Some(max) = self
            .inner
            .config
            .retention
            .max_size
            .map(|size| size.as_u64())
        else {
            return;
        };
        loop {
            let looked = async {
                self.list_bytes(LISTED_FOR).await?;
                if self.inner.room.used() > max {
                    self.make_room(0, max).await
                } else {
                    Ok(())
                }
            };
            if let Err(error) = looked.await {
                tracing::warn!(
                    error = log::chain(&error),
                    "size of the store not determined"
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Makes the next check of the size list the store again.
    pub(super) async fn forget_size(&self) {
        self.inner.room.times.lock().await.listed = None;
    }

    /// Lists the store unless that was done in the last `age`.
    async fn list_bytes(&self, age: Duration) -> Result<(), Error> {
        let room = &self.inner.room;
        let mut times = match room.times.try_lock() {
            Ok(times) => times,
            // A sweep takes time. Until it ends the last listing is good enough.
            Err(_busy) if room.is_listed.load(Ordering::Acquire) => return Ok(()),
            Err(_busy) => room.times.lock().await,
        };
        if times.listed.is_none_or(|listed| listed.elapsed() > age) {
            self.list_now(&mut times).await?;
        }
        Ok(())
    }

    async fn list_now(&self, times: &mut Times) -> Result<(), Error> {
        let room = &self.inner.room;
        let before = room.stored.load(Ordering::Acquire);
        let mut bytes = 0_u64;
        for top in TOPS {
            let mut listed = self.inner.backend.list(top);
            while let Some(listed) = listed.try_next().await? {
                bytes = bytes.saturating_add(listed.meta.size);
            }
        }
        room.listed.store(bytes, Ordering::Release);
        // Bytes stored during the listing may be in it or not. They count.
        room.stored.fetch_sub(before, Ordering::AcqRel);
        room.is_listed.store(true, Ordering::Release);
        times.listed = Some(Instant::now());
        Ok(())
    }

    /// Sweeps until `bytes` fit, if possible, and at most once per [`SWEPT_FOR`].
    async fn make_room(&self, bytes: u64, max: u64) -> Result<(), Error> {
        let mut times = self.inner.room.times.lock().await;
        if times.swept.is_some_and(|swept| swept.elapsed() < SWEPT_FOR) {
            return Ok(());
        }
        let wanted = bytes.saturating_add(self.inner.room.reserved.load(Ordering::Acquire));
        let wanted = wanted.max(max / FREED_SHARE);
        let report = self.sweep_for(SystemTime::now(), wanted).await?;
        if !report.busy {
            metrics().swept_bytes.inc_by(report.freed_bytes);
            tracing::info!(?report, "the store is swept to make room");
        }
        // A sweep that did not make the room is not repeated at once.
        let is_made = !report.busy && report.kept_bytes <= max.saturating_sub(wanted);
        times.swept = (!is_made).then(Instant::now);
        self.list_now(&mut times).await
    }
}
