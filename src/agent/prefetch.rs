//! Prefetches layer data that has not been read yet: first the files before the landmark (after the
//! image's profile, if there is one), then the rest in the background.
//!
//! The rest is fetched one request at a time over all layers, only while no reader waits for bytes,
//! and never so much that other chunks would be evicted or the disk would be full. A reader does not
//! stop a request that is already running.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::{Background, Config, Policy};
use super::fetch::{FetchError, Reason};
use super::layer::Layer;
use super::profiles::PrefetchGate;

/// How long to wait before looking again whether a reader waits for bytes.
const YIELD: Duration = Duration::from_millis(50);
/// Pause before the rest is tried again after a failure. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// The state that all layers share.
#[derive(Debug)]
pub struct Prefetch {
    delay: Duration,
    limit: u64,
    /// Bytes a second; `u64::MAX` for no limit.
    bandwidth: u64,
    /// The earliest time for the next background request. Locked while a request runs, so they run
    /// one after the other.
    turn: Mutex<Instant>,
}

impl Prefetch {
    pub fn new(config: &Config) -> Self {
        Self {
            delay: config.background_delay,
            limit: config.background_limit.as_u64(),
            bandwidth: config
                .background_bandwidth
                .map_or(u64::MAX, |bandwidth| bandwidth.as_u64().max(1)),
            turn: Mutex::new(Instant::now()),
        }
    }

    /// Prefetches `layer` as `policy` says, after the files of its profile (`gate`). Returns when
    /// that is done or `gone` is cancelled.
    pub(super) async fn run(
        self: Arc<Self>,
        layer: Arc<Layer>,
        policy: Policy,
        gone: CancellationToken,
        gate: Option<PrefetchGate>,
    ) {
        let work = async {
            if let Some(gate) = gate {
                gate.pass().await;
            }
            if policy.prefetch {
                self.fetch_before_landmark(&layer).await;
            }
            if policy.background != Background::Off {
                tokio::time::sleep(self.delay).await;
                self.fetch_rest(&layer, policy.background).await;
            }
        };
        gone.run_until_cancelled(work).await;
    }

    async fn fetch_before_landmark(&self, layer: &Layer) {
        for run in Runs::new(layer, 0..layer.tree().prefetched()) {
            if !layer.fetcher().store().has_room() {
                return;
            }
            if let Err(error) = layer.hold(run, Reason::Prefetch).await {
                tracing::warn!(layer = %layer.blob().digest, %error, "files before the landmark not prefetched");
                return;
            }
        }
    }

    async fn fetch_rest(&self, layer: &Layer, background: Background) {
        let budget = if background == Background::Limited {
            self.limit
        } else {
            u64::MAX
        };
        let mut pause = FIRST_PAUSE;
        loop {
            match self.fetch_rest_once(layer, budget).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(layer = %layer.blob().digest, %error, "background fetch failed; it is tried again later");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Fetches the missing chunks, once. Skips chunks whose bytes in the registry are wrong.
    ///
    /// # Errors
    /// If the registry is unreachable or refuses. Either may be temporary.
    async fn fetch_rest_once(&self, layer: &Layer, budget: u64) -> Result<(), FetchError> {
        let chunks = u32::try_from(layer.tree().toc().chunk_count()).unwrap_or(u32::MAX);
        for run in Runs::new(layer, 0..chunks) {
            let mut turn = self.turn.lock().await;
            tokio::time::sleep_until(*turn).await;
            while layer.fetcher().is_urgent() {
                tokio::time::sleep(YIELD).await;
            }
            let before = layer.traffic().bytes(Reason::Background);
            if before >= budget || !layer.fetcher().store().has_room() {
                return Ok(());
            }
            let begun = Instant::now();
            let outcome = layer.hold(run, Reason::Background).await;
            *turn = begun + self.time_for(layer.traffic().bytes(Reason::Background) - before);
            match outcome {
                Ok(()) | Err(FetchError::Wrong(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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

/// The chunks of a layer that are not on disk, in runs of about one request each.
struct Runs<'a> {
    layer: &'a Layer,
    left: Range<u32>,
}

impl<'a> Runs<'a> {
    fn new(layer: &'a Layer, chunks: Range<u32>) -> Self {
        Self {
            layer,
            left: chunks,
        }
    }

    /// Returns the chunk's size in the blob, if it must be fetched.
    fn missing(&self, number: u32) -> Option<u64> {
        let chunk = self.layer.tree().toc().chunk(number)?;
        (!self.layer.data().holds(number)).then(|| chunk.range.end - chunk.range.start)
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u32>;

    fn next(&mut self) -> Option<Range<u32>> {
        let first = self
            .left
            .clone()
            .find(|&number| self.missing(number).is_some())?;
        let mut bytes = self.missing(first).unwrap_or_default();
        let mut end = first + 1;
        while end < self.left.end
            && let Some(more) = self.missing(end)
            && bytes + more <= self.layer.fetcher().max_run()
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
