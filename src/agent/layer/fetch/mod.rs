//! Fetches chunks from a registry, each only once, in memory of limited size.
//!
//! ```text
//! chunks ▶ those here or pending are dropped ▶ runs of neighbours ▶ memory ▶ one request a run
//!                                                ┌───── chunk by chunk ─────────┘
//!                                                └▶ decode (verifies) ▶ data file, waiting readers
//! ```
//! A run continues when its readers leave: the chunks that arrive are stored. A run that has not
//! begun by then is cancelled.

mod memory;
mod pending;
mod request;
mod run;
mod window;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use estargz::Chunk;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::Instrument as _;

use self::memory::Memory;
pub(crate) use self::pending::Lookup;
use self::pending::{PendingChunk, Table};
use self::request::Request;
pub(crate) use self::request::Urgency;
pub(crate) use self::run::MAX_GAP;
use self::run::{ChunkRun, runs};
use crate::agent::layer::data::{DataStore, LayerData};
use crate::budget::Full;
use crate::oci;
use crate::registry::{self, Purpose};
use crate::telemetry::metrics;
use crate::transport::Source;

/// A blob in a registry.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub source: Source,
    pub repository: oci::Repository,
    pub digest: oci::Digest,
    pub size: u64,
}

/// Where a layer's chunks come from, and where they go.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub blob: Arc<Blob>,
    pub data: Arc<LayerData>,
    pub traffic: Arc<Traffic>,
}

/// The reason why a chunk could not be fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("not returned by the registry")]
    Upstream(#[from] registry::Error),
    #[error("wrong bytes from the registry")]
    Wrong(#[source] Arc<estargz::chunk::ChunkError>),
    #[error("registry's answer ended too early")]
    Short,
    #[error("registry sends too slowly")]
    Slow,
    #[error("no memory for the chunk")]
    Full(#[from] Full),
    #[error("no reader waits for it")]
    Unwanted,
    #[error("fetch aborted")]
    Aborted,
}

/// The reason for fetching a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A reader waits for it.
    Read,
    /// It lies before the landmark.
    Prefetch,
    /// The image's profile says that containers read it at their start.
    Profile,
    Background,
}

/// Counters of the fetches for a layer.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    requests: AtomicU64,
    bytes: [AtomicU64; 4],
    errors: AtomicU64,
    /// Notified of bytes that a reader waited for.
    read: Notify,
}

/// Fetches chunks for all layers. Clones share the table of pending chunks and the memory for them.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    store: Arc<DataStore>,
    table: Table,
    memory: Arc<Memory>,
    /// Runs that a reader waits for, and layers that are opened.
    urgent: Arc<AtomicUsize>,
    decoders: Arc<Semaphore>,
    max_run: u64,
}

impl FetchError {
    /// Whether the same request may succeed later: the registry is unreachable or busy.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_transient(),
            Self::Short | Self::Slow | Self::Full(_) | Self::Unwanted | Self::Aborted => true,
            Self::Wrong(_) => false,
        }
    }

    /// Whether the registry denies access, permanently or while a token or a proxy of its own is
    /// broken.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(
            self,
            Self::Upstream(registry::Error::Unauthorized | registry::Error::Denied)
        )
    }
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Prefetch => "prefetch",
            Self::Profile => "profile",
            Self::Background => "background",
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Read => Purpose::Read,
            Self::Prefetch | Self::Profile => Purpose::Prefetch,
            Self::Background => Purpose::Background,
        }
    }
}

impl Traffic {
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self, reason: Reason) -> u64 {
        self.bytes[reason as usize].load(Ordering::Relaxed)
    }

    /// Returns the bytes received, for any reason.
    pub(crate) fn received(&self) -> u64 {
        self.bytes
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns the number of chunks that could not be fetched.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Counts the requests and bytes for opening the layer.
    pub(crate) fn add(&self, requests: u64, bytes: u64, reason: Reason) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.count(bytes, reason);
    }

    fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn count_errors(&self, chunks: u64) {
        self.errors.fetch_add(chunks, Ordering::Relaxed);
    }

    fn count(&self, bytes: u64, reason: Reason) {
        self.bytes[reason as usize].fetch_add(bytes, Ordering::Relaxed);
        metrics::metrics()
            .agent_fetched_bytes
            .get_or_create(&[("reason", reason.as_str())])
            .inc_by(bytes);
        if reason == Reason::Read {
            self.read.notify_one();
        }
    }

    /// Waits until readers wait for `bytes` bytes of the layer within `period`. For one caller at a
    /// time.
    pub(crate) async fn is_read_densely(&self, bytes: u64, period: Duration) {
        loop {
            let (begun, before) = (Instant::now(), self.bytes(Reason::Read));
            while begun.elapsed() < period {
                if self.bytes(Reason::Read) - before >= bytes {
                    return;
                }
                self.read.notified().await;
            }
        }
    }
}

impl Fetcher {
    /// `max_run` is the most bytes of one request, unless a single chunk is larger. `memory` is the
    /// number of bytes for chunks in transit.
    pub(crate) fn new(store: Arc<DataStore>, max_run: u64, memory: u64) -> Self {
        let (table, urgent, max_run) = (Table::default(), Arc::default(), max_run.max(1));
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            store,
            table,
            memory: Arc::new(Memory::new(memory)),
            urgent,
            decoders: Arc::new(Semaphore::new(cores)),
            max_run,
        }
    }

    pub(crate) fn store(&self) -> &Arc<DataStore> {
        &self.store
    }

    pub(crate) fn max_run(&self) -> u64 {
        self.max_run
    }

    /// Counts a layer that is opened as urgent, until the returned value is dropped.
    pub(crate) fn urgency(&self) -> Urgency {
        Urgency::new(&self.urgent)
    }

    /// Whether a reader waits for bytes right now, or a client for a layer.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) > 0
    }

    /// Requests the chunks with these numbers that a reader waits for, and those `beside` them,
    /// except the ones that are on this node or pending. Returns the lookup of each chunk that the
    /// reader waits for. Does not wait.
    ///
    /// Must be called inside a runtime.
    pub(crate) fn fetch(
        &self,
        transfer: &Transfer,
        numbers: &[u32],
        beside: &[u32],
    ) -> Vec<Lookup> {
        let mut claimed = Vec::new();
        let mut look_up = |number: &u32| self.look_up(&transfer.data, *number, &mut claimed);
        let found = numbers.iter().map(&mut look_up).collect();
        beside.iter().map(look_up).for_each(drop);
        self.send(transfer, claimed);
        found
    }

    /// Requests a chunk whose copy on this node cannot be read.
    pub(crate) fn fetch_anew(&self, transfer: &Transfer, number: u32) -> Lookup {
        let mut claimed = Vec::new();
        let chunk = transfer.data.tree().toc().chunk(number);
        let found = chunk.map_or(Lookup::Held, |chunk| {
            self.table.look_up(number, &chunk, || false, &mut claimed)
        });
        self.send(transfer, claimed);
        found
    }

    fn look_up(&self, data: &LayerData, number: u32, claimed: &mut Vec<PendingChunk>) -> Lookup {
        let Some(chunk) = data.tree().toc().chunk(number) else {
            return Lookup::Held;
        };
        let is_held = || self.store.has(data, number);
        self.table.look_up(number, &chunk, is_held, claimed)
    }

    fn send(&self, transfer: &Transfer, claimed: Vec<PendingChunk>) {
        for run in runs(claimed, self.max_run) {
            let request = self.request(transfer, Reason::Read).run(run, None);
            tokio::spawn(request.in_current_span());
        }
    }

    /// Fetches the chunks that are not on this node, before any reader needs them, and waits for
    /// those that are already pending. Requests that have begun continue when the caller is
    /// cancelled.
    ///
    /// # Errors
    /// If a chunk could not be fetched. Returned only after all the others have arrived or failed.
    pub(crate) async fn prefetch(
        &self,
        transfer: &Transfer,
        numbers: Vec<u32>,
        reason: Reason,
    ) -> Result<(), FetchError> {
        let wanted = self.adopt(&transfer.data, numbers).await?;
        let toc = transfer.data.tree().toc();
        let missing = wanted.iter().filter_map(|&number| {
            let chunk = toc.chunk(number)?;
            Some(MissingChunk { number, chunk })
        });
        let mut outcome = Ok(());
        for run in runs(missing.collect(), self.max_run) {
            outcome = outcome.and(self.fetch_run(transfer, run, reason).await);
        }
        // What was pending for another layer went to its data file.
        outcome.and(self.adopt(&transfer.data, wanted).await.map(drop))
    }

    /// Copies the chunks that other layers hold, and returns the numbers of those that are not on
    /// this node.
    async fn adopt(
        &self,
        data: &Arc<LayerData>,
        mut numbers: Vec<u32>,
    ) -> Result<Vec<u32>, FetchError> {
        let (store, data) = (Arc::clone(&self.store), Arc::clone(data));
        let work = move || {
            numbers.retain(|number| !store.adopt(&data, *number) && !store.has(&data, *number));
            numbers
        };
        let missing = tokio::task::spawn_blocking(work).await;
        missing.map_err(|_panicked| FetchError::Aborted)
    }

    /// Claims the chunks only once there is memory for them, so that a reader that comes meanwhile
    /// does not queue behind them.
    async fn fetch_run(
        &self,
        transfer: &Transfer,
        run: ChunkRun<MissingChunk>,
        reason: Reason,
    ) -> Result<(), FetchError> {
        let taken = self
            .memory
            .take(transfer.blob.source.name(), run.decoding_bytes(), reason)
            .await?;
        let mut claimed = Vec::new();
        let lookups: Vec<Lookup> = run
            .chunks
            .iter()
            .map(|wanted| self.look_up(&transfer.data, wanted.number, &mut claimed))
            .collect();
        let mut taken = Some(taken);
        for run in runs(claimed, self.max_run) {
            // The chunks are still neighbours, so this is nearly always one run.
            tokio::spawn(self.request(transfer, reason).run(run, taken.take()));
        }
        drop(taken);
        let pending = lookups.into_iter().filter_map(|lookup| match lookup {
            Lookup::Pending(pending) => Some(async move { pending.await.map(drop) }),
            Lookup::Held => None,
        });
        let mut pending: FuturesUnordered<_> = pending.collect();
        let mut outcome = Ok(());
        while let Some(arrived) = pending.next().await {
            outcome = outcome.and(arrived);
        }
        outcome
    }

    fn request(&self, transfer: &Transfer, reason: Reason) -> Request {
        Request {
            transfer: transfer.clone(),
            store: Arc::clone(&self.store),
            memory: Arc::clone(&self.memory),
            table: self.table.clone(),
            decoders: Arc::clone(&self.decoders),
            reason,
            _urgency: (reason == Reason::Read).then(|| Urgency::new(&self.urgent)),
        }
    }
}

/// A chunk to be prefetched, which may already be pending.
#[derive(Debug)]
struct MissingChunk {
    number: u32,
    chunk: Chunk,
}

impl AsRef<Chunk> for MissingChunk {
    fn as_ref(&self) -> &Chunk {
        &self.chunk
    }
}
