//! Prefetches layer data that has not been read yet: first the files before the landmark (after the
//! image's profile, if there is one), then the rest in the background.
//!
//! ```text
//! profile ▶ landmark ▶ delay ▶ rest: one request at a time over all layers, while nobody waits
//!                        │       │
//!                        └───────┴─ read densely, profiled densely, or configured ▶ burst
//! ```
//! A burst fetches a whole layer at the machine's speed: a few large requests at once, chunks decoded
//! on all cores. One request of all bursts goes on while a reader waits; readers have memory,
//! connections and threads of their own.
//!
//! Nothing is fetched if other chunks would be evicted or the disk would be full. A reader does not
//! stop a request that is already running.

pub(crate) mod profiles;
pub(crate) mod pulls;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::profiles::PrefetchGate;
use crate::agent::config::{Background, Config, Policy};
use crate::agent::layer::Layer;
use crate::agent::layer::fetch::{FetchError, Fetcher, Reason};

/// How long to wait before looking again whether a reader waits for bytes.
const YIELD: Duration = Duration::from_millis(50);
/// Pause before the rest is tried again after a failure. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// Bytes of the first requests of bursts, and of the smallest. A request takes about as long as
/// `BURST_TIME`, because a reader may wait for the last chunk of one.
const LEAST_BURST: u64 = 1 << 20;
const BURST_TIME: Duration = Duration::from_millis(100);
/// Most requests of all bursts at the same time. Two keep a link busy while one waits for its first
/// byte; four also keep several cores busy.
const BURST_REQUESTS: usize = 4;
/// Requests of all bursts that begin while a reader waits.
const BURST_BESIDE_READERS: usize = 1;
/// Demand is dense if readers wait for an eighth of a layer, or for as much as 100 Mbit/s carry,
/// within this time.
const DENSE_SHARE: u64 = 8;
const DENSE_BYTES: u64 = 64 << 20;
const DENSE_PERIOD: Duration = Duration::from_secs(5);
/// A layer is burst if its profile names at least one byte in this many.
const DENSE_PROFILE_SHARE: u64 = 2;

/// The state that all layers share.
#[derive(Debug)]
pub(crate) struct Prefetch {
    delay: Duration,
    limit: u64,
    /// Bytes a second; `u64::MAX` for no limit.
    bandwidth: u64,
    /// The earliest time for the next background request. Locked while a request runs, so they run
    /// one after the other.
    turn: Mutex<Instant>,
    bursts: Semaphore,
    /// Bytes of the next request of a burst.
    burst_bytes: AtomicU64,
}

impl Prefetch {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            delay: config.background_delay,
            limit: config.background_limit.as_u64(),
            bandwidth: config
                .background_bandwidth
                .map_or(u64::MAX, |bandwidth| bandwidth.as_u64().max(1)),
            turn: Mutex::new(Instant::now()),
            bursts: Semaphore::new(BURST_REQUESTS),
            burst_bytes: AtomicU64::new(LEAST_BURST),
        }
    }

    /// Prefetches `layer` as `policy` says, after the files of its profile (`gate`). Returns when
    /// that is done or `gone` is cancelled.
    pub(crate) async fn run(
        self: Arc<Self>,
        layer: Arc<Layer>,
        policy: Policy,
        gone: CancellationToken,
        gate: Option<PrefetchGate>,
    ) {
        let work = async {
            let is_profiled = gate.is_some();
            if let Some(gate) = gate {
                gate.pass().await;
            }
            let is_dense = is_profiled && is_mostly_here(&layer);
            if policy.prefetch {
                self.fetch_before_landmark(&layer).await;
            }
            match policy.background {
                Background::Off => {}
                Background::Burst => self.burst(&layer, u64::MAX).await,
                Background::Limited => self.fetch_rest(&layer, self.limit, is_dense).await,
                Background::Full => self.fetch_rest(&layer, u64::MAX, is_dense).await,
            }
        };
        gone.run_until_cancelled(work).await;
    }

    async fn fetch_before_landmark(&self, layer: &Layer) {
        let max = layer.fetcher().max_run();
        for run in Runs::new(layer, 0..layer.tree().prefetched(), || max) {
            if !layer.fetcher().store().has_room() {
                return;
            }
            if let Err(error) = layer.hold(run, Reason::Prefetch).await {
                tracing::warn!(layer = %layer.blob().digest, %error, "files before the landmark not prefetched");
                return;
            }
        }
    }

    /// Fetches up to `budget` bytes of the layer, slowly unless its demand is dense.
    async fn fetch_rest(&self, layer: &Layer, budget: u64, is_dense: bool) {
        let slowly = async {
            tokio::time::sleep(self.delay).await;
            retried(layer, || self.fetch_once(layer, budget)).await;
        };
        let dense = (layer.blob().size / DENSE_SHARE).clamp(1, DENSE_BYTES);
        let is_read = async {
            if !is_dense {
                let traffic = layer.traffic();
                traffic.is_read_densely(dense, DENSE_PERIOD).await;
            }
        };
        tokio::select! {
            biased;
            () = is_read => {
                tracing::debug!(layer = %layer.blob().digest, "dense demand; layer fetched as a whole");
                self.burst(layer, budget).await;
            }
            () = slowly => {}
        }
    }

    /// Fetches the missing chunks, once. Skips chunks whose bytes in the registry are wrong.
    ///
    /// # Errors
    /// If the registry is unreachable or refuses. Either may be temporary.
    async fn fetch_once(&self, layer: &Layer, budget: u64) -> Result<(), FetchError> {
        let max = layer.fetcher().max_run();
        for run in Runs::all(layer, || max) {
            let mut turn = self.turn.lock().await;
            tokio::time::sleep_until(*turn).await;
            while layer.fetcher().is_urgent() {
                tokio::time::sleep(YIELD).await;
            }
            if !may_continue(layer, budget) {
                return Ok(());
            }
            self.hold(layer, run, &mut turn).await?;
        }
        Ok(())
    }

    async fn burst(&self, layer: &Layer, budget: u64) {
        retried(layer, || self.burst_once(layer, budget)).await;
    }

    /// The same as [`Self::fetch_once`] with several requests at once, whether or not a reader
    /// waits. A limit of bytes or bandwidth leaves one.
    async fn burst_once(&self, layer: &Layer, budget: u64) -> Result<(), FetchError> {
        let max = layer.fetcher().max_run();
        let bytes = || self.burst_bytes.load(Ordering::Relaxed).min(max);
        stream::iter(Runs::all(layer, bytes))
            .map(|run| self.burst_run(layer, run, budget))
            .buffer_unordered(BURST_REQUESTS)
            .try_collect()
            .await
    }

    async fn burst_run(
        &self,
        layer: &Layer,
        run: Range<u32>,
        budget: u64,
    ) -> Result<(), FetchError> {
        let _place = self.burst_place(layer.fetcher()).await;
        let is_limited = budget < u64::MAX || self.bandwidth < u64::MAX;
        if is_limited {
            let mut turn = self.turn.lock().await;
            tokio::time::sleep_until(*turn).await;
            if !may_continue(layer, budget) {
                return Ok(());
            }
            return self.hold(layer, run, &mut turn).await;
        }
        if !may_continue(layer, budget) {
            return Ok(());
        }
        let (begun, bytes) = (Instant::now(), length(layer, &run));
        skip_wrong(layer.hold(run, Reason::Background).await)?;
        let next = in_time(bytes, begun.elapsed(), layer.fetcher().max_run());
        self.burst_bytes.store(next, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for a place among the requests of all bursts.
    async fn burst_place(&self, fetcher: &Fetcher) -> Option<SemaphorePermit<'_>> {
        loop {
            let place = self.bursts.acquire().await.ok()?;
            let others = BURST_REQUESTS - self.bursts.available_permits() - 1;
            if others < BURST_BESIDE_READERS || !fetcher.is_urgent() {
                return Some(place);
            }
            drop(place);
            tokio::time::sleep(YIELD).await;
        }
    }

    /// Fetches a run, and sets the earliest time for the next.
    async fn hold(
        &self,
        layer: &Layer,
        run: Range<u32>,
        turn: &mut Instant,
    ) -> Result<(), FetchError> {
        let before = layer.traffic().bytes(Reason::Background);
        let begun = Instant::now();
        let outcome = layer.hold(run, Reason::Background).await;
        *turn = begun + self.time_for(layer.traffic().bytes(Reason::Background) - before);
        skip_wrong(outcome)
    }

    /// Returns the time that so many bytes take at the allowed bandwidth.
    fn time_for(&self, bytes: u64) -> Duration {
        if self.bandwidth == u64::MAX {
            return Duration::ZERO;
        }
        Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bandwidth))
                .unwrap_or(u64::MAX),
        )
    }
}

/// Returns the bytes that take about [`BURST_TIME`] if `bytes` took `time`.
fn in_time(bytes: u64, time: Duration, max: u64) -> u64 {
    let nanos = time.as_nanos().max(1);
    let next = u128::from(bytes) * BURST_TIME.as_nanos() / nanos;
    let next = u64::try_from(next).unwrap_or(u64::MAX);
    next.max(LEAST_BURST).min(max)
}

/// Returns the bytes of chunks in the blob.
fn length(layer: &Layer, chunks: &Range<u32>) -> u64 {
    let toc = layer.tree().toc();
    let ranges = chunks.clone().filter_map(|number| toc.chunk(number));
    ranges
        .map(|chunk| chunk.range.end - chunk.range.start)
        .sum()
}

/// Repeats `fetch` after failures, with pauses, until it has succeeded.
async fn retried<F: Future<Output = Result<(), FetchError>>>(layer: &Layer, fetch: impl Fn() -> F) {
    let mut pause = FIRST_PAUSE;
    while let Err(error) = fetch().await {
        tracing::debug!(layer = %layer.blob().digest, %error, "background fetch failed; it is tried again later");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Whether the limits allow another background request for the layer.
fn may_continue(layer: &Layer, budget: u64) -> bool {
    layer.traffic().bytes(Reason::Background) < budget && layer.fetcher().store().has_room()
}

fn skip_wrong(outcome: Result<(), FetchError>) -> Result<(), FetchError> {
    match outcome {
        Err(FetchError::Wrong(_)) => Ok(()),
        outcome => outcome,
    }
}

/// Whether the profile has brought most of the layer.
fn is_mostly_here(layer: &Layer) -> bool {
    let (bytes, held) = layer.data().content_bytes();
    held >= bytes / DENSE_PROFILE_SHARE
}

/// The chunks of a layer that are not on disk, in runs of about one request each.
struct Runs<'a, F> {
    layer: &'a Layer,
    left: Range<u32>,
    /// Returns the most bytes of the next run.
    max: F,
}

impl<'a, F: Fn() -> u64> Runs<'a, F> {
    fn new(layer: &'a Layer, chunks: Range<u32>, max: F) -> Self {
        Self {
            layer,
            left: chunks,
            max,
        }
    }

    /// The runs of the whole layer.
    fn all(layer: &'a Layer, max: F) -> Self {
        let chunks = u32::try_from(layer.tree().toc().chunk_count()).unwrap_or(u32::MAX);
        Self::new(layer, 0..chunks, max)
    }

    /// Returns the chunk's size in the blob, if it must be fetched.
    fn missing(&self, number: u32) -> Option<u64> {
        let chunk = self.layer.tree().toc().chunk(number)?;
        (!self.layer.data().holds(number)).then(|| chunk.range.end - chunk.range.start)
    }
}

impl<F: Fn() -> u64> Iterator for Runs<'_, F> {
    type Item = Range<u32>;

    fn next(&mut self) -> Option<Range<u32>> {
        let first = self
            .left
            .clone()
            .find(|&number| self.missing(number).is_some())?;
        let mut bytes = self.missing(first).unwrap_or_default();
        let (mut end, max) = (first + 1, (self.max)());
        while end < self.left.end
            && let Some(more) = self.missing(end)
            && bytes + more <= max
        {
            bytes += more;
            end += 1;
        }
        self.left.start = end;
        Some(first..end)
    }
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;

    #[test]
    fn a_request_of_a_burst_takes_about_the_same_time_on_every_link() {
        const MIB: u64 = 1 << 20;
        let second = Duration::from_secs(1);
        assert_eq!(in_time(MIB, second / 50, 8 * MIB), 5 * MIB);
        assert_eq!(in_time(MIB, second / 1000, 8 * MIB), 8 * MIB);
        assert_eq!(in_time(8 * MIB, 10 * second, 8 * MIB), LEAST_BURST);
        assert_eq!(
            in_time(0, Duration::ZERO, 1000),
            1000,
            "small requests are configured"
        );
    }

    #[test]
    fn a_bandwidth_makes_requests_wait() {
        let with = |background_bandwidth| {
            Prefetch::new(&Config {
                background_bandwidth,
                ..Config::default()
            })
        };
        assert_eq!(with(None).time_for(u64::MAX), Duration::ZERO);
        assert_eq!(
            with(Some(ByteSize::mib(1))).time_for(1 << 19),
            Duration::from_millis(500)
        );
        assert_eq!(
            with(Some(ByteSize(0))).time_for(2),
            Duration::from_secs(2),
            "to fetch nothing, use `off`"
        );
    }
}
