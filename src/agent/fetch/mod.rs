//! Gets chunks from a registry, each of them once, in memory of limited size.
//!
//! ```text
//! chunks ▶ those held or on their way fall out ▶ runs of neighbours ▶ memory ▶ one request a run
//!                                                        ┌── chunk by chunk ──┘
//!                                                        └▶ decode (verifies) ▶ cache, and whoever waits
//! ```
//! A run goes on when its readers leave: the chunks that come are kept. One that has not begun yet does not begin then.

mod memory;
mod pending;
mod request;
mod run;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use estargz::Chunk;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use self::memory::Memory;
pub use self::pending::{ChunkFuture, Content, Lookup};
use self::pending::{PendingChunk, Table};
use self::request::{Request, Urgency};
pub use self::run::MAX_GAP;
use self::run::{ChunkRun, runs};
use super::cache::Cache;
use crate::budget::Full;
use crate::oci;
use crate::registry::{self, Purpose};
use crate::telemetry::metrics;
use crate::transport::Source;

/// A blob in a registry.
#[derive(Debug, Clone)]
pub struct Blob {
    pub source: Source,
    pub repository: oci::Repository,
    pub digest: oci::Digest,
    pub size: u64,
}

/// Why a chunk could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error("the registry did not give it: {0}")]
    Upstream(#[from] registry::Error),
    #[error("the registry gave other bytes: {0}")]
    Wrong(#[source] Arc<estargz::chunk::ChunkError>),
    #[error("the registry's answer ended too early")]
    Short,
    #[error("the registry sends too slowly")]
    Slow,
    #[error("no memory for it: {0}")]
    Full(#[from] Full),
    #[error("nobody waits for it")]
    Unwanted,
    #[error("the fetch was given up")]
    Aborted,
}

/// Who wants a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Something reads it.
    Read,
    /// It stands in front of the landmark.
    Prefetch,
    /// Containers read it when they start, its profile says.
    Profile,
    Background,
}

/// What was fetched of a layer.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    bytes: [AtomicU64; 4],
    errors: AtomicU64,
}

/// Fetches for all layers; clones share the table of what is on its way, and the memory for it.
#[derive(Debug, Clone)]
pub struct Fetcher {
    cache: Arc<Cache>,
    table: Table,
    memory: Arc<Memory>,
    /// Runs that something waits for.
    urgent: Arc<AtomicUsize>,
    max_run: u64,
}

impl FetchError {
    /// Whether the same request may well succeed in a while: the registry is away, or busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_transient(),
            Self::Short | Self::Slow | Self::Full(_) | Self::Unwanted | Self::Aborted => true,
            Self::Wrong(_) => false,
        }
    }

    /// Whether the registry refuses us, for good or for as long as a token or a proxy of its own is broken.
    pub fn is_denial(&self) -> bool {
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
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes(&self, reason: Reason) -> u64 {
        self.bytes[reason as usize].load(Ordering::Relaxed)
    }

    /// Bytes that came for whatever reason.
    pub fn received(&self) -> u64 {
        self.bytes
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .sum()
    }

    /// Chunks that could not be had.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Counts what opening the layer took.
    pub fn add(&self, requests: u64, bytes: u64, reason: Reason) {
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
    }
}

impl Fetcher {
    /// `max_run` is the most bytes of one request, a larger chunk's aside; `memory` the bytes that chunks on their way
    /// take.
    pub fn new(cache: Arc<Cache>, max_run: u64, memory: u64) -> Self {
        let (table, urgent, max_run) = (Table::default(), Arc::default(), max_run.max(1));
        Self {
            cache,
            table,
            memory: Arc::new(Memory::new(memory)),
            urgent,
            max_run,
        }
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn max_run(&self) -> u64 {
        self.max_run
    }

    /// Whether something waits for bytes right now.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) > 0
    }

    /// Sends for the chunks of `blob` that a reader waits for, and for those `beside` them, as far as they are not held;
    /// returns where each chunk is that the reader waits for. Does not wait.
    ///
    /// Holes are not to be among them. Call it inside a runtime.
    pub fn fetch(
        &self,
        blob: &Arc<Blob>,
        chunks: &[Chunk],
        beside: &[Chunk],
        traffic: &Arc<Traffic>,
    ) -> Vec<Lookup> {
        let mut claimed = Vec::new();
        let mut look_up = |chunk| self.table.look_up(chunk, Some(&self.cache), &mut claimed);
        let found = chunks.iter().map(&mut look_up).collect();
        beside.iter().map(look_up).for_each(drop);
        self.send(blob, claimed, traffic);
        found
    }

    /// Sends for a chunk whose copy in the cache cannot be read.
    pub fn fetch_anew(&self, blob: &Arc<Blob>, chunk: &Chunk, traffic: &Arc<Traffic>) -> Lookup {
        let mut claimed = Vec::new();
        let found = self.table.look_up(chunk, None, &mut claimed);
        self.send(blob, claimed, traffic);
        found
    }

    fn send(&self, blob: &Arc<Blob>, claimed: Vec<PendingChunk>, traffic: &Arc<Traffic>) {
        for run in runs(claimed, self.max_run) {
            tokio::spawn(self.request(blob, Reason::Read, traffic).run(run, None));
        }
    }

    /// Fetches the chunks of `blob` that are not held, before anyone reads them; those on their way are waited for. What
    /// was begun goes on when the caller leaves.
    ///
    /// # Errors
    /// When one could not be had, after all the others arrived or did not.
    pub async fn fetch_ahead(
        &self,
        blob: &Arc<Blob>,
        chunks: Vec<Chunk>,
        reason: Reason,
        traffic: &Arc<Traffic>,
    ) -> Result<(), FetchError> {
        let missing: Vec<Wanted> = chunks
            .into_iter()
            .filter(|chunk| self.is_missing(chunk))
            .map(Wanted)
            .collect();
        let mut outcome = Ok(());
        for run in runs(missing, self.max_run) {
            outcome = outcome.and(self.fetch_run(blob, run, reason, traffic).await);
        }
        outcome
    }

    /// Claims the chunks only once there is memory for them: a reader that comes meanwhile does not stand behind it.
    async fn fetch_run(
        &self,
        blob: &Arc<Blob>,
        run: ChunkRun<Wanted>,
        reason: Reason,
        traffic: &Arc<Traffic>,
    ) -> Result<(), FetchError> {
        let taken = self
            .memory
            .take(blob.source.name(), run.decoding_bytes(), reason)
            .await?;
        let mut claimed = Vec::new();
        let lookups: Vec<Lookup> = run
            .chunks
            .iter()
            .map(|wanted| {
                self.table
                    .look_up(&wanted.0, Some(&self.cache), &mut claimed)
            })
            .collect();
        let mut taken = Some(taken);
        for run in runs(claimed, self.max_run) {
            // They are neighbours still, and one run nearly always.
            tokio::spawn(self.request(blob, reason, traffic).run(run, taken.take()));
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

    fn request(&self, blob: &Arc<Blob>, reason: Reason, traffic: &Arc<Traffic>) -> Request {
        Request {
            blob: Arc::clone(blob),
            cache: Arc::clone(&self.cache),
            memory: Arc::clone(&self.memory),
            table: self.table.clone(),
            traffic: Arc::clone(traffic),
            reason,
            _urgency: (reason == Reason::Read).then(|| Urgency::new(&self.urgent)),
        }
    }

    fn is_missing(&self, chunk: &Chunk) -> bool {
        chunk
            .digest
            .is_some_and(|digest| !self.cache.holds(&digest))
    }
}

/// A chunk that is to be fetched ahead, and may be on its way.
#[derive(Debug)]
struct Wanted(Chunk);

impl AsRef<Chunk> for Wanted {
    fn as_ref(&self) -> &Chunk {
        &self.0
    }
}
