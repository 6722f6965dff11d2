//! Converts each layer once: first its record is looked up, then one flight runs in this process,
//! then one lease is held per store.
//!
//! A caller that waits for another's flight or lease without progress converts the layer itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use estargz::pool::Pool;
use estargz::write::Options;
use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::error::Error;
use super::layer::{self, Job};
use super::pace::Pace;
use super::priority::Priorities;
use super::status::{Board, LayerProgress};
use crate::flight::Flight;
use crate::oci::{Descriptor, Digest, Repository};
use crate::rewrite::claims;
use crate::shares::{SLOW_FOR, Shares, Urgency};
use crate::store::records::Limit;
use crate::store::{Generation, Holder, LayerOutcome, LayerRecord, Store, layer_lease};
use crate::telemetry::traces::{self, child_span};
use crate::telemetry::{log, metrics};
use crate::transport::Source;

/// The pauses between two looks at the lease of a layer that another process converts: this part of
/// the time waited so far, but not shorter and not longer than these.
const LOOK_SHARE: u32 = 8;
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// How long a conversion waits for a slot before its source image is served.
pub(super) const SLOT_WITHIN: Duration = Duration::from_secs(1800);
/// The number of fetches remembered as too slow.
const SLOW_FETCHES: u64 = 10_000;

/// The place a layer is fetched from: its credentials are used, and its faults counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    upstream: String,
    repository: Repository,
}

impl Origin {
    pub(super) fn new(source: &Source, repository: &Repository) -> Self {
        Self {
            upstream: source.name().to_owned(),
            repository: repository.clone(),
        }
    }
}

/// A layer and, for an attempt that is not shared, its only origin.
pub(super) type Wanted = (Digest, Option<Origin>);

pub(super) type Landed = Result<LayerOutcome, Arc<Error>>;

/// An attempt at a layer that is shared by all conversions of that layer.
#[derive(Debug)]
pub(super) struct Attempt {
    origin: Origin,
    progress: Arc<LayerProgress>,
    /// That of the conversion which began it.
    urgency: Urgency,
}

/// Converts layers, each once.
#[derive(Debug)]
pub(super) struct LayerConverter {
    pub(super) store: Store,
    pub(super) generation: Generation,
    pub(super) options: Options,
    pub(super) priorities: Priorities,
    pub(super) pool: Arc<Pool>,
    pub(super) slots: Shares,
    pub(super) image_slots: Shares,
    pub(super) max_layer_size: u64,
    pub(super) pace: Pace,
    pub(super) lease_wait: Duration,
    pub(super) board: Arc<Board>,
    pub(super) flight: Flight<Wanted, Landed>,
    /// The shared attempts of `flight`.
    pub(super) attempts: Attempts,
    pub(super) slow: Cache<Wanted, u64>,
    /// Origins that are being asked to show that they hold a layer.
    pub(super) showing: Flight<Wanted, Result<(), Arc<Error>>>,
}

/// The running shared attempts, by layer.
pub(super) type Attempts = Arc<Mutex<HashMap<Digest, Arc<Attempt>>>>;

/// Returns an empty memory of fetches that were given up as too slow, with the required rate.
pub(super) fn slow_fetches() -> Cache<Wanted, u64> {
    Cache::builder()
        .max_capacity(SLOW_FETCHES)
        .time_to_live(SLOW_FOR)
        .build()
}

impl LayerConverter {
    /// Returns the outcome of a layer. The work goes on when the caller stops waiting.
    ///
    /// A conversion of the same layer may be running for another image, from another origin. When
    /// that one fails or makes no progress, the layer is fetched from `source`. So a broken or slow
    /// registry affects no other.
    ///
    /// A converted layer is returned only once `source` has shown that it holds the source layer in
    /// `repository`.
    pub(super) async fn outcome(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Landed {
        let outcome = self.of_any_origin(source, repository, layer).await?;
        if matches!(outcome, LayerOutcome::Converted(_)) {
            self.show(source, repository, layer).await?;
        }
        Ok(outcome)
    }

    async fn of_any_origin(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Landed {
        if layer.size > self.max_layer_size {
            return Ok(layer::over_size(self.max_layer_size));
        }
        let origin = Origin::new(source, repository);
        let own = (layer.digest.clone(), Some(origin.clone()));
        if let Some(rate) = self.slow.get(&own) {
            return Err(Arc::new(Error::Slow { rate }));
        }
        if let Some(outcome) = self.shared(source, &origin, layer).await? {
            return Ok(outcome);
        }
        let landed = self.flight.join(own, || {
            let (this, source, layer) = (Arc::clone(self), source.clone(), layer.clone());
            let span = child_span!("layer", layer.digest = %layer.digest, layer.size = layer.size);
            let attempt = async move {
                this.attempt(&source, &origin, &layer, Arc::default(), false)
                    .await
            };
            attempt.instrument(span)
        });
        landed
            .await
            .unwrap_or_else(|| Err(Arc::new(Error::BrokenOff)))
    }

    /// Returns the outcome of the shared attempt; `None` when another origin fails it or makes no
    /// progress.
    async fn shared(
        self: &Arc<Self>,
        source: &Source,
        origin: &Origin,
        layer: &Descriptor,
    ) -> Result<Option<LayerOutcome>, Arc<Error>> {
        let landed = self.flight.join((layer.digest.clone(), None), || {
            let (this, source, layer, origin) = (
                Arc::clone(self),
                source.clone(),
                layer.clone(),
                origin.clone(),
            );
            let progress = self.board.layer(&layer.digest);
            let attempt = Arc::new(Attempt {
                origin: origin.clone(),
                progress: Arc::clone(&progress),
                urgency: source.requester().urgency.clone(),
            });
            self.attempts().insert(layer.digest.clone(), attempt);
            let span = child_span!("layer", layer.digest = %layer.digest, layer.size = layer.size);
            let attempt = async move {
                let landed = this.attempt(&source, &origin, &layer, progress, true).await;
                this.attempts().remove(&layer.digest);
                landed
            };
            attempt.instrument(span)
        });
        // An attempt that is no longer listed has its outcome already.
        let attempt = self.attempts().get(&layer.digest).cloned();
        if let Some(attempt) = attempt.as_ref().filter(|_| !source.is_ahead()) {
            attempt.urgency.promote();
        }
        let other = attempt.filter(|attempt| attempt.origin != *origin);
        let Some(other) = other else {
            return landed
                .await
                .unwrap_or_else(|| Err(Arc::new(Error::BrokenOff)))
                .map(Some);
        };
        tokio::select! {
            landed = landed => Ok(landed.and_then(Result::ok)),
            () = other.stalls(self.pace, origin) => {
                tracing::debug!(layer = %layer.digest, upstream = origin.upstream, "shared attempt of another upstream stalled");
                Ok(None)
            }
        }
    }

    /// Limits an upstream that did not keep the pace to one conversion at a time for a while.
    pub(super) fn slow_down(&self, upstream: &str) {
        self.slots.slow_down(upstream);
        self.image_slots.slow_down(upstream);
    }

    fn attempts(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Attempt>>> {
        self.attempts.lock()
    }

    async fn attempt(
        &self,
        source: &Source,
        origin: &Origin,
        layer: &Descriptor,
        progress: Arc<LayerProgress>,
        is_shared: bool,
    ) -> Landed {
        let converted = self
            .converted(source, &origin.repository, layer, &progress, is_shared)
            .await;
        if let Err(error) = &converted {
            count("failed");
            if let Error::Slow { rate } = error {
                self.slow
                    .insert((layer.digest.clone(), Some(origin.clone())), *rate);
            }
            if error.is_slow() {
                self.slow_down(&origin.upstream);
            }
        }
        converted.map_err(Arc::new)
    }

    /// Converts the layer, unless its record appears first. An attempt that is not shared does not
    /// wait for a lease, because the holder may be the conversion without progress.
    async fn converted(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
        progress: &Arc<LayerProgress>,
        is_shared: bool,
    ) -> Result<LayerOutcome, Error> {
        let lease_name = layer_lease(&self.generation, &layer.digest);
        let since = Instant::now();
        loop {
            if let Some(record) = self.recorded(&layer.digest).await? {
                progress.complete(layer.size);
                count("found");
                return Ok(record.outcome);
            }
            // The slot comes first: a lease held while waiting for a slot would keep idle replicas
            // from converting.
            let slot = self.slots.take(source.turn(), 1, SLOT_WITHIN).await?;
            let lease = self
                .store
                .lease_while(
                    &lease_name,
                    moving(progress, self.pace, self.store.config().lease_ttl),
                )
                .await?;
            if lease.is_some() || !is_shared {
                let outcome = self
                    .convert_alone(source, repository, layer, progress)
                    .await;
                if let Some(lease) = lease {
                    lease.release().await;
                }
                return outcome.inspect(|_| progress.complete(layer.size));
            }
            drop(slot);
            if !self.lease_ends(&lease_name, since).await {
                return Err(Error::Lease(layer.digest.clone()));
            }
        }
    }

    /// Waits until the lease is no longer held. `false` if it is held for longer than the limit,
    /// counted from `since`.
    ///
    /// Each look is one read of the store: whatever the holder's outcome, its lease ends with it. A
    /// store that fails does not end the wait.
    async fn lease_ends(&self, name: &str, since: Instant) -> bool {
        while since.elapsed() < self.lease_wait {
            tokio::time::sleep(pause_after(since.elapsed())).await;
            match self.store.is_leased(name).await {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    tracing::debug!(lease = name, %error, "lease not read, looking again");
                }
            }
        }
        false
    }

    /// Returns the layer's record, unless its limit has been raised since.
    async fn recorded(&self, digest: &Digest) -> Result<Option<LayerRecord>, Error> {
        let record = self.store.layer(&self.generation, digest).await?;
        Ok(record.filter(|record| {
            !record
                .outcome
                .limit()
                .is_some_and(|limit| self.is_raised(limit))
        }))
    }

    /// Whether the limit in this configuration is higher than the recorded one.
    pub(super) fn is_raised(&self, limit: Limit) -> bool {
        match limit {
            Limit::LayerSize(met) => self.max_layer_size > met,
            Limit::UnpackedSize(met) => self.options.limits.max_source_bytes > met,
        }
    }

    /// Converts the layer while this process holds its lease.
    async fn convert_alone(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
        progress: &Arc<LayerProgress>,
    ) -> Result<LayerOutcome, Error> {
        let digest = &layer.digest;
        // The previous holder may have stored the record after the lookup and before the lease was
        // taken.
        if let Some(record) = self.recorded(digest).await? {
            return Ok(record.outcome);
        }
        let started = Instant::now();
        let job = Job {
            source: source.clone(),
            repository: repository.clone(),
            digest: digest.clone(),
            store: self.store.clone(),
            generation: self.generation.clone(),
            options: self.options.clone(),
            prioritized: self.priorities.of(digest),
            renew: self.priorities.renew_lazy_layers(),
            is_claimed: claims::are_made(&layer.annotations),
            pool: Arc::clone(&self.pool),
            max_layer_size: self.max_layer_size,
            pace: self.pace,
            progress: Arc::clone(progress),
        };
        let turn = source.turn();
        let is_contended =
            || self.slots.is_wanted_by_another(turn) || self.image_slots.is_wanted_by_another(turn);
        let outcome = job.run(&is_contended).await?;
        if matches!(outcome, LayerOutcome::Converted(_)) {
            self.link(source, repository, digest).await?;
        }
        if let LayerOutcome::Converted(layer) = &outcome {
            for account in &source.requester().accounts {
                let account = Holder::account(account);
                self.store
                    .keep_for(&account, &layer.digest, layer.size)
                    .await?;
            }
        }
        let record = LayerRecord {
            source: digest.clone(),
            outcome,
        };
        self.store.put_layer(&self.generation, &record).await?;
        report_outcome(&record, started.elapsed());
        Ok(record.outcome)
    }
}

/// The pause before the next look at a lease, so that the end of a conversion is noticed late by
/// little in proportion.
fn pause_after(waited: Duration) -> Duration {
    (waited / LOOK_SHARE).clamp(SHORTEST_LOOK, LONGEST_LOOK)
}

impl Attempt {
    /// Returns when the attempt makes no progress, as judged by a caller that could fetch the layer
    /// from `origin`.
    ///
    /// All repositories of an upstream share the queue for a slot and the connection to the
    /// registry. For the same upstream the least rate is therefore enough.
    async fn stalls(&self, pace: Pace, origin: &Origin) {
        let is_same_upstream = self.origin.upstream == origin.upstream;
        let least = if is_same_upstream {
            pace.least_in_window()
        } else {
            pace.contended_in_window()
        };
        let mut before = self.progress.done();
        loop {
            tokio::time::sleep(pace.window).await;
            let (now, is_fetching) = (self.progress.done(), self.progress.is_fetching());
            let is_waiting = now == 0 && !is_fetching;
            let moved = now.saturating_sub(before);
            before = now;
            if (is_fetching && moved < least) || (is_waiting && !is_same_upstream) {
                return;
            }
        }
    }
}

/// Returns a function that reports whether a layer's bytes moved since its last call, every third
/// of `ttl`. If they did not, the lease is not renewed.
fn moving(
    progress: &Arc<LayerProgress>,
    pace: Pace,
    ttl: Duration,
) -> impl FnMut() -> bool + Send + 'static {
    let progress = Arc::clone(progress);
    let renewal = Pace {
        window: ttl / 3,
        ..pace
    };
    let mut before = 0;
    move || {
        let now = progress.done();
        let moved = now.saturating_sub(before);
        before = now;
        !progress.is_fetching() || moved >= renewal.contended_in_window()
    }
}

fn report_outcome(record: &LayerRecord, took: Duration) {
    let (source, metrics) = (&record.source, metrics());
    match &record.outcome {
        LayerOutcome::Converted(layer) => {
            count("converted");
            metrics.layer_seconds.observe(took, traces::current_id());
            metrics.layer_source_bytes.inc_by(layer.source_size);
            metrics.layer_bytes.inc_by(layer.size);
            tracing::info!(%source, digest = %layer.digest, size = layer.size, source_size = layer.source_size, ?took, "layer converted");
        }
        LayerOutcome::PassedThrough { reason, .. } => {
            count("passed-through");
            tracing::info!(%source, reason, ?took, "layer passes through");
        }
    }
}

fn count(outcome: &'static str) {
    metrics()
        .layers
        .get_or_create(&[("outcome", outcome)])
        .inc();
}

/// Wraps the failure of one layer as the failure of its image.
pub(super) fn of_image(digest: &Digest, error: Arc<Error>) -> Error {
    tracing::debug!(%digest, error = log::chain(error.as_ref()), "layer failed");
    Error::Layer {
        digest: digest.clone(),
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the looks, if each takes no time.
    fn looks() -> impl Iterator<Item = Duration> {
        let next = |waited: &Duration| Some(*waited + pause_after(*waited));
        std::iter::successors(next(&Duration::ZERO), next)
    }

    #[test]
    fn the_end_of_a_lease_is_noticed_soon_and_for_few_reads() {
        let within = |limit| looks().take_while(|look| *look <= limit).count();
        let (wait, minute) = (Duration::from_secs(8), Duration::from_secs(60));
        assert!(within(wait) <= 30, "{}", within(wait));
        assert!(within(minute) <= 90, "{}", within(minute));
        let late = looks().zip(looks().skip(1)).take(200);
        for (before, look) in late {
            let most = (before / 8).max(Duration::from_millis(100));
            assert!(look - before <= most.min(Duration::from_secs(1)));
        }
    }
}
