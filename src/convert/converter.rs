//! The entry point of the module: one flight per manifest, records first, recent failures
//! remembered.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use estargz::pool::Pool;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use moka::future::Cache;
use parking_lot::Mutex;
use tracing::Instrument as _;

use super::budget::Budget;
use super::config::{self, Config, Layout};
use super::documents::Documents;
use super::error::Error;
use super::layer_converter::{self, Attempts, LayerConverter};
use super::origin::Place;
use super::pace::Pace;
use super::priority::Priorities;
use super::status::{Board, Conversion, Running};
use crate::flight::Flight;
use crate::negative_cache::NegativeCache;
use crate::oci::{Digest, Manifest, Repository};
use crate::provenance::SigningKey;
use crate::rewrite::index;
use crate::rewrite::plan::{Plan, Wanted};
use crate::shares::{Share, Shares, Urgency};
use crate::store::{Generation, ImageRecord, Store};
use crate::telemetry::traces::{self, child_span};
use crate::telemetry::{log, metrics};
use crate::transport::Source;

/// How long an index counts as fresh. Afterwards it is checked for platforms that were pulled
/// meanwhile.
const FRESH_FOR: Duration = Duration::from_secs(60);
const FRESH_INDEXES: u64 = 10_000;
/// How long an image's order counts as checked. Afterwards it is compared with the profile again.
const ORDERED_FOR: Duration = Duration::from_secs(60);
const ORDERED_IMAGES: u64 = 10_000;
/// The memory of a digest, in bytes: its text and its place in a collection.
const DIGEST_BYTES: usize = 128;

/// Converts images, each once for all concurrent callers. Clones share the work.
#[derive(Debug, Clone)]
pub struct Converter {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) store: Store,
    pub(super) layers: Arc<LayerConverter>,
    pub(super) documents: Documents,
    pub(super) flight: Flight<ManifestKey, Outcome>,
    /// The conversions in flight that were requested ahead.
    pub(super) ahead: Ahead,
    pub(super) failures: NegativeCache<ManifestKey, Outcome>,
    /// Indexes that were refreshed a moment ago.
    pub(super) fresh: Cache<Digest, ()>,
    /// Converted images whose order was checked a moment ago.
    pub(super) ordered: Cache<Digest, ()>,
    pub(super) board: Arc<Board>,
    /// The key that signs statements on converted images.
    pub(super) signing_key: Option<Arc<SigningKey>>,
}

pub(super) type Outcome = Result<ImageRecord, Arc<Error>>;

/// A manifest and the place it is requested from. A failure of one place does not affect another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ManifestKey {
    upstream: String,
    repository: String,
    digest: Digest,
}

/// Conversions in flight that were requested ahead, so that a caller who waits for one can say so.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<Mutex<HashMap<ManifestKey, Urgency>>>);

/// A conversion that is listed as long as this exists.
struct Listed {
    ahead: Ahead,
    key: ManifestKey,
}

impl Ahead {
    fn list(&self, key: &ManifestKey, urgency: &Urgency) -> Listed {
        self.0.lock().insert(key.clone(), urgency.clone());
        Listed {
            ahead: self.clone(),
            key: key.clone(),
        }
    }

    /// Makes the conversion awaited, if it was requested ahead.
    fn promote(&self, key: &ManifestKey) {
        if let Some(urgency) = self.0.lock().get(key) {
            urgency.promote();
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.ahead.0.lock().remove(&self.key);
    }
}

/// Something that a caller holds while its conversion runs or waits.
#[derive(Debug)]
pub struct Ticket {
    _held: Box<dyn Any + Send + Sync>,
}

impl Ticket {
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self {
            _held: Box::new(held),
        }
    }
}

/// The outcome of an image or an index, and whether it is final.
pub(super) enum ImageOutcome {
    Final(ImageRecord),
    /// A child failed for now. The record may be served, but not stored.
    ForNow(ImageRecord),
}

/// The work that a manifest needs. Small, because it waits in a queue.
enum Work {
    PassThrough(String),
    Image,
    /// The children to convert, each once.
    Index(Vec<Digest>),
}

impl Work {
    fn of(plan: Plan, depth: usize) -> Self {
        match plan {
            Plan::PassThrough(reason) => Self::PassThrough(reason),
            Plan::Image(_) => Self::Image,
            Plan::Index(plan) => Self::Index(plan.to_convert(depth)),
        }
    }
}

/// Returns an empty cache of failures. A failure is weighed by the size of its record.
pub(super) fn failures() -> NegativeCache<ManifestKey, Outcome> {
    NegativeCache::new(|key: &ManifestKey, outcome: &Outcome| {
        let record = outcome.as_ref().map_or(0, weight_of);
        key.upstream.len() + key.repository.len() + record
    })
}

fn weight_of(record: &ImageRecord) -> usize {
    let reasons: usize = record
        .passed_through
        .iter()
        .map(|passed| passed.reason.len() + DIGEST_BYTES)
        .sum();
    reasons + (record.objects.len() + record.platforms.len()) * DIGEST_BYTES
}

impl Converter {
    /// Starts the compressing threads. Fails on an invalid configuration.
    pub fn new(config: &Config, store: Store) -> Result<Self, Error> {
        Self::prioritizing(config, store, Priorities::default())
    }

    /// As [`new`](Self::new), with some files at the front of their layers. All layers are then in
    /// the classic layout.
    pub fn prioritizing(
        config: &Config,
        store: Store,
        priorities: Priorities,
    ) -> Result<Self, Error> {
        let mut config = config.clone();
        if !priorities.is_empty() {
            config.layout = Layout::Classic;
        }
        let options = config.options()?;
        let generation = config::generation(&options, &priorities);
        let signing_key = config.signing_key.as_deref().map(SigningKey::read);
        let signing_key = signing_key.transpose()?.map(Arc::new);
        let budget = Budget::divide(config.memory.as_u64(), config.layers_at_once)?;
        let threads = match config.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN),
        };
        let board = Arc::<Board>::default();
        let layers = LayerConverter {
            store: store.clone(),
            generation: generation.clone(),
            options,
            priorities,
            pool: Arc::new(Pool::new(threads, budget.members)),
            slots: Shares::of_slots("layer slots", budget.layers),
            image_slots: Shares::of_slots("image slots", config.images_at_once.get()),
            pace: Pace::new(
                config.least_rate.as_u64(),
                config.slow_after,
                config.layer_within,
            ),
            max_layer_size: config.max_layer_size.as_u64(),
            lease_wait: config.lease_wait,
            board: Arc::clone(&board),
            flight: Flight::default(),
            attempts: Attempts::default(),
            slow: layer_converter::slow_fetches(),
            showing: Flight::default(),
        };
        let shared = Shared {
            generation,
            store,
            layers: Arc::new(layers),
            documents: Documents::default(),
            config,
            flight: Flight::default(),
            ahead: Ahead::default(),
            failures: failures(),
            fresh: Cache::builder()
                .max_capacity(FRESH_INDEXES)
                .time_to_live(FRESH_FOR)
                .build(),
            ordered: Cache::builder()
                .max_capacity(ORDERED_IMAGES)
                .time_to_live(ORDERED_FOR)
                .build(),
            board,
            signing_key,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub fn generation(&self) -> &Generation {
        &self.shared.generation
    }

    /// Returns the running and the recently finished conversions, newest first.
    pub fn status(&self) -> Vec<Conversion> {
        self.shared.board.list()
    }

    /// Returns how many conversions wait for their turn, and how long the longest of them has waited.
    pub fn queue(&self) -> (usize, Duration) {
        self.shared.layers.image_slots.queue()
    }

    /// Returns the record of the image converted from `source`, if there is one. A single read of
    /// the store.
    ///
    /// An index with unconverted platforms is refreshed in the background from time to time.
    pub async fn lookup(&self, source: &Digest) -> Result<Option<ImageRecord>, Error> {
        let record = self
            .shared
            .store
            .image(&self.shared.generation, source)
            .await?;
        let record = record.filter(|record| !self.shared.is_outgrown(record));
        if let Some(record) = record
            .as_ref()
            .filter(|record| self.shared.is_stale(record))
        {
            let (shared, record) = (Arc::clone(&self.shared), record.clone());
            tokio::spawn(async move {
                if let Err(error) = shared.refresh(&record).await {
                    let error = log::chain(&error);
                    tracing::warn!(source = %record.source, error, "index not refreshed");
                }
            });
        }
        Ok(record)
    }

    /// Converts a manifest or an index, unless it is converted already. The work goes on when the
    /// caller stops waiting.
    ///
    /// When the image passes through, the record names the source itself as the converted image;
    /// also when the store has no room. After an error another attempt may succeed later; until
    /// then the same error is returned at once.
    pub async fn convert(
        &self,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Outcome {
        self.convert_with(source, repository, manifest, Ticket::new(()))
            .await
    }

    /// As [`convert_with`](Self::convert_with), for an image that nobody waits for yet. It gets the
    /// slots that images leave which somebody waits for, until somebody asks for this one too.
    pub async fn convert_ahead(
        &self,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        ticket: Ticket,
    ) -> Outcome {
        let source = source.clone().ahead();
        self.convert_with(&source, repository, manifest, ticket)
            .await
    }

    /// As [`convert`](Self::convert). The ticket is dropped when the work ends, or at once if the
    /// work is another caller's already.
    pub async fn convert_with(
        &self,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        ticket: Ticket,
    ) -> Outcome {
        let outcome = self
            .shared
            .joined(source, repository, manifest, 0, (None, Some(ticket)))
            .await;
        match outcome.as_ref().err().and_then(|error| error.full()) {
            // Not recorded, because the store may have room later.
            Some(full) => Ok(index::passed_through(manifest, full.to_string())),
            None => outcome,
        }
    }
}

impl Shared {
    /// Converts a manifest that was found in `depth` indexes, once for all concurrent callers.
    pub(super) fn joined(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        depth: usize,
        (room, ticket): (Option<Share>, Option<Ticket>),
    ) -> BoxFuture<'static, Outcome> {
        let key = ManifestKey {
            upstream: source.name().to_owned(),
            repository: repository.to_string(),
            digest: manifest.digest.clone(),
        };
        let (this, source) = (Arc::clone(self), source.clone());
        let (repository, manifest) = (repository.clone(), manifest.clone());
        let asked = Instant::now();
        let joined = async move {
            if let Some(answer) = this.failures.answer(&key, Instant::now()).await {
                return answer;
            }
            let is_awaited = !source.is_ahead();
            if is_awaited {
                this.ahead.promote(&key);
            }
            if let Some(outcome) = this.flight.running(&key) {
                drop(ticket);
                return outcome
                    .await
                    .unwrap_or_else(|| Err(Arc::new(Error::BrokenOff)));
            }
            // Awaited here, where the caller may cancel it. A task would run without being counted.
            let room = match room {
                Some(room) => room,
                None => this.documents.conversion(source.turn(), &manifest).await?,
            };
            let running = Arc::clone(&this);
            let known = key.clone();
            let outcome = this.flight.join(key.clone(), || {
                let span = child_span!(
                    "conversion",
                    upstream = key.upstream,
                    repository = traces::short(&key.repository),
                    source = %key.digest
                );
                let urgency = &source.requester().urgency;
                let listed = (!is_awaited).then(|| running.ahead.list(&key, urgency));
                let conversion = async move {
                    let job = (&source, &repository, &manifest);
                    let outcome = Box::pin(running.run(key, job, depth, asked)).await;
                    drop((room, ticket, listed));
                    outcome
                };
                conversion.instrument(span)
            });
            if is_awaited {
                // Another caller may have started it in the meantime.
                this.ahead.promote(&known);
            }
            outcome
                .await
                .unwrap_or_else(|| Err(Arc::new(Error::BrokenOff)))
        };
        joined.boxed()
    }

    async fn run(
        self: Arc<Self>,
        key: ManifestKey,
        (source, repository, manifest): (&Source, &Repository, &Manifest),
        depth: usize,
        asked: Instant,
    ) -> Outcome {
        let mut outcome = self
            .found_or_made(source, repository, manifest, depth, asked)
            .await;
        if outcome.as_ref().is_err_and(Error::is_forgotten) {
            // A stored object was found damaged and its record deleted, so the image is converted
            // once more.
            outcome = self
                .found_or_made(source, repository, manifest, depth, asked)
                .await;
        }
        let ended = match &outcome {
            Ok(ImageOutcome::Final(_)) => "final",
            Ok(ImageOutcome::ForNow(_)) => "for-now",
            Err(_) => "failed",
        };
        metrics()
            .conversions
            .get_or_create(&[("outcome", ended)])
            .inc();
        match outcome {
            Ok(ImageOutcome::Final(record)) => {
                self.failures.forget(&key).await;
                Ok(record)
            }
            Ok(ImageOutcome::ForNow(record)) => {
                self.failures
                    .note(key, Ok(record.clone()), None, Instant::now())
                    .await;
                Ok(record)
            }
            Err(error) => {
                let error = Arc::new(error);
                self.failures
                    .note(
                        key.clone(),
                        Err(Arc::clone(&error)),
                        error.retry_after(),
                        Instant::now(),
                    )
                    .await;
                let chain = log::chain(error.as_ref());
                tracing::warn!(upstream = key.upstream, repository = key.repository, source = %key.digest, error = chain, "image not converted");
                Err(error)
            }
        }
    }

    async fn found_or_made(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        depth: usize,
        asked: Instant,
    ) -> Result<ImageOutcome, Error> {
        let recorded = self.store.image(&self.generation, &manifest.digest).await?;
        if let Some(record) = recorded.as_ref().filter(|record| !self.is_outgrown(record)) {
            let record = if self.is_stale(record) {
                self.refresh(record).await?
            } else {
                record.clone()
            };
            if !self.is_shown(source, repository, &record).await? {
                self.show(source, repository, manifest, depth, &record)
                    .await?;
            }
            return Ok(ImageOutcome::Final(record));
        }
        let running = self
            .board
            .start(source.name(), repository, &manifest.digest);
        let mut made = self
            .made(source, repository, manifest, depth, &running)
            .await;
        if let (Ok(ImageOutcome::Final(record)), Some(outgrown)) = (&mut made, recorded) {
            // The converted image that was served before stays readable.
            self.keep_with(record, &outgrown.objects).await?;
        }
        if let Ok(ImageOutcome::Final(record) | ImageOutcome::ForNow(record)) = &made {
            self.link(source, repository, record).await?;
            // The children of an index are a part of it.
            if depth == 0 && record.converted != record.source {
                let ready = &metrics().image_seconds;
                ready.observe(asked.elapsed(), traces::current_id());
            }
        }
        match &made {
            Ok(ImageOutcome::Final(record) | ImageOutcome::ForNow(record)) => {
                running.finish(Ok(record))
            }
            Err(error) => running.finish(Err(error)),
        }
        made
    }

    async fn made(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        depth: usize,
        running: &Running,
    ) -> Result<ImageOutcome, Error> {
        let place = Place {
            source,
            repository,
            depth,
        };
        match self
            .glance(manifest, move |plan| Work::of(plan, depth))
            .await?
        {
            Work::PassThrough(reason) => self
                .pass_through(place, manifest, reason)
                .await
                .map(ImageOutcome::Final),
            Work::Image => self
                .image(place, manifest, running)
                .await
                .map(ImageOutcome::Final),
            Work::Index(children) => {
                self.index(source, repository, manifest, children, depth)
                    .await
            }
        }
    }

    /// Whether a limit that the record names is higher in this configuration.
    fn is_outgrown(&self, record: &ImageRecord) -> bool {
        record
            .limits
            .iter()
            .any(|limit| self.layers.is_raised(*limit))
    }

    /// Keeps `objects` for as long as the record is kept.
    pub(super) async fn keep_with(
        &self,
        record: &mut ImageRecord,
        objects: &[Digest],
    ) -> Result<(), Error> {
        let before = record.objects.len();
        record.objects.extend_from_slice(objects);
        record.objects.sort_unstable();
        record.objects.dedup();
        if record.objects.len() > before {
            self.put_image(record).await?;
        }
        Ok(())
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            platforms: &self.config.platforms,
            all_platforms: self.config.all_platforms,
            renew: self.layers.priorities.renew_lazy_layers(),
        }
    }
}
