//! A layer is converted once: its record is looked up, then one flight in this process, then one lease per store.

use std::sync::Arc;
use std::time::Duration;

use estargz::pool::Pool;
use estargz::write::Options;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::Error;
use super::layer::{self, Job};
use super::priority::Priorities;
use super::status::Board;
use crate::flight::Flight;
use crate::oci::{Descriptor, Digest, Repository};
use crate::store::records::Limit;
use crate::store::{Generation, LayerOutcome, LayerRecord, Store};
use crate::telemetry::log;
use crate::telemetry::metrics;
use crate::upstream::Source;

/// How often another process's work is looked at: at first, and at most.
const FIRST_POLL: Duration = Duration::from_millis(100);
const SLOWEST_POLL: Duration = Duration::from_secs(2);

/// How many failed flights of others a caller sits through before it takes their failure for its own.
const FLIGHTS_OF_OTHERS: usize = 3;

/// Where a layer is fetched from: whose credentials, whose faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    upstream: String,
    repository: Repository,
}

pub(super) type Landed = Result<LayerOutcome, (Origin, Arc<Error>)>;

/// Converts layers, each once.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) store: Store,
    pub(super) generation: Generation,
    pub(super) options: Options,
    pub(super) priorities: Priorities,
    pub(super) pool: Arc<Pool>,
    pub(super) slots: Semaphore,
    pub(super) max_layer_size: u64,
    pub(super) lease_wait: Duration,
    pub(super) board: Arc<Board>,
    pub(super) flight: Flight<Digest, Landed>,
}

impl Layers {
    /// What becomes of a layer. The work goes on when the caller stops waiting.
    ///
    /// Another image may already be waiting for the same layer from another place. When that place fails it, the layer
    /// is tried from `source`: nobody's broken registry is held against others.
    pub(super) async fn outcome(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<LayerOutcome, Arc<Error>> {
        if layer.size > self.max_layer_size {
            return Ok(layer::over_size(self.max_layer_size));
        }
        let origin = Origin { upstream: source.name().to_owned(), repository: repository.clone() };
        for attempt in 0.. {
            let landed = self.flight.join(layer.digest.clone(), || {
                let (this, source, layer) = (Arc::clone(self), source.clone(), layer.clone());
                let origin = origin.clone();
                async move {
                    let converted = this.converted(&source, &origin.repository, &layer).await;
                    if converted.is_err() {
                        count("failed");
                    }
                    converted.map_err(|error| (origin, Arc::new(error)))
                }
            });
            match landed.await {
                Some(Ok(outcome)) => return Ok(outcome),
                Some(Err((whose, _))) if whose != origin && attempt < FLIGHTS_OF_OTHERS => {}
                Some(Err((_, error))) => return Err(error),
                None => break,
            }
        }
        Err(Arc::new(Error::BrokenOff))
    }

    async fn converted(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<LayerOutcome, Error> {
        let progress = self.board.layer(&layer.digest);
        let lease_name = format!("layer/{}/{}", self.generation.0, layer.digest);
        let give_up = Instant::now() + self.lease_wait;
        let mut poll = FIRST_POLL;
        loop {
            if let Some(record) = self.recorded(&layer.digest).await? {
                progress.complete(layer.size);
                count("found");
                return Ok(record.outcome);
            }
            // The slot comes first: a lease that waits for a slot would keep idle replicas from the work.
            let slot = self.slots.acquire().await.map_err(|_closed| Error::BrokenOff)?;
            if let Some(lease) = self.store.lease(&lease_name).await? {
                let outcome = self.convert_alone(source, repository, &layer.digest).await;
                lease.release().await;
                return outcome.inspect(|_| progress.complete(layer.size));
            }
            drop(slot);
            if Instant::now() >= give_up {
                return Err(Error::Lease(layer.digest.clone()));
            }
            tokio::time::sleep(poll).await;
            poll = (poll * 2).min(SLOWEST_POLL);
        }
    }

    /// The layer's record, unless a limit has been raised since.
    async fn recorded(&self, digest: &Digest) -> Result<Option<LayerRecord>, Error> {
        let record = self.store.layer(&self.generation, digest).await?;
        Ok(record.filter(|record| !record.outcome.limit().is_some_and(|limit| self.is_raised(limit))))
    }

    /// Whether a limit is higher here than the one that was met.
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
        digest: &Digest,
    ) -> Result<LayerOutcome, Error> {
        // The last holder may have put the record between our look and our lease.
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
            pool: Arc::clone(&self.pool),
            max_layer_size: self.max_layer_size,
            progress: self.board.layer(digest),
        };
        let outcome = job.run().await?;
        let record = LayerRecord { source: digest.clone(), outcome };
        self.store.put_layer(&self.generation, &record).await?;
        tell(&record, started.elapsed());
        Ok(record.outcome)
    }
}

fn tell(record: &LayerRecord, took: Duration) {
    let (source, metrics) = (&record.source, metrics());
    match &record.outcome {
        LayerOutcome::Converted(layer) => {
            count("converted");
            metrics.layer_seconds.observe(took.as_secs_f64());
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
    metrics().layers.get_or_create(&[("outcome", outcome)]).inc();
}

/// The failure of one layer, as the failure of its image.
pub(super) fn of_image(digest: &Digest, error: Arc<Error>) -> Error {
    tracing::debug!(%digest, error = log::chain(error.as_ref()), "layer failed");
    Error::Layer { digest: digest.clone(), source: error }
}
