//! How much the store holds, and whether more may come: `store.retention.max_size`.
//!
//! ```text
//! used = listed lately + stored here since + reserved by uploads under way
//! ```
//! Before a layer is uploaded its room is reserved. When there is none, a sweep makes some; when that does not help, the
//! layer is refused. Replicas list the same bucket, each once in a minute at most: together they may be over the limit by
//! what they store within a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::TryStreamExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Store;
use super::error::Error;
use crate::telemetry::{log, metrics};

/// Everything that is counted: what is not listed here (marks, leases, the salt) is empty or one of its kind.
const TOPS: [&str; 4] = ["layers", "blobs", "records", "profiles"];
/// How long a listing counts: what other replicas store meanwhile is not seen.
const LISTED_FOR: Duration = Duration::from_secs(60);
/// How often a sweep is tried because there is no room; one reads every record.
const SWEPT_FOR: Duration = Duration::from_secs(60);
/// How often a store with a limit is listed though nothing is stored.
const LOOK_EVERY: Duration = Duration::from_secs(5 * 60);
/// The share of the limit that a sweep for want of room makes free at least, so that not every upload needs one.
const FREED_SHARE: u64 = 10;

/// The bytes of a store, in this process's eyes.
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

/// Room for bytes that are on their way into the store; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
    /// `None` when the store has no limit.
    max_size: Option<u64>,
}

impl Room {
    fn used(&self) -> u64 {
        let [listed, stored, reserved] =
            [&self.listed, &self.stored, &self.reserved].map(|bytes| bytes.load(Ordering::Relaxed));
        listed.saturating_add(stored).saturating_add(reserved)
    }

    fn try_reserve(&self, bytes: u64, max_size: u64) -> bool {
        // Reserved before the look: of two who reserve at once both may be refused, but never both wrongly let in.
        self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let fits = self.used() <= max_size;
        if !fits {
            self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        }
        fits
    }
}

impl Reservation {
    /// Reserves more when what came is larger than was thought.
    ///
    /// # Errors
    /// [`Error::Full`] when it does not fit.
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

    /// The bytes are in the store now.
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
    /// [`Error::Full`] when there is none and a sweep made none; else the backend's.
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

    /// Sweeps when the store is above its size, also when nothing is converted: the limit may have been lowered, or
    /// another replica have stored more.
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
                    "the store's size is not known for now"
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Has the store listed anew before the next look at its size.
    pub(super) async fn forget_size(&self) {
        self.inner.room.times.lock().await.listed = None;
    }

    /// Lists the store unless that was done in the last `age`.
    async fn list_bytes(&self, age: Duration) -> Result<(), Error> {
        let room = &self.inner.room;
        let mut times = match room.times.try_lock() {
            Ok(times) => times,
            // A sweep takes its time; until then the last list will do.
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
        // What was stored while the store was listed may be in the list or not: it counts.
        room.stored.fetch_sub(before, Ordering::AcqRel);
        room.is_listed.store(true, Ordering::Release);
        times.listed = Some(Instant::now());
        Ok(())
    }

    /// Sweeps until `bytes` fit, if that can be done, and no more often than once in a while.
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
        // One that made no room is not tried again at once.
        let is_made = !report.busy && report.kept_bytes <= max.saturating_sub(wanted);
        times.swept = (!is_made).then(Instant::now);
        self.list_now(&mut times).await
    }
}
