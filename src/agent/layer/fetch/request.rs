//! One run of chunks in transit: requested, resumed after a cut, and delivered chunk by chunk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use estargz::chunk::ChunkError;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::memory::{Memory, Taken};
use super::pending::{Content, PendingChunk, Table};
use super::run::ChunkRun;
use super::window::Window;
use super::{Blob, FetchError, Reason, Transfer};
use crate::agent::layer::data::{DataStore, LayerData};
use crate::telemetry::limit::LineLimit;
use crate::telemetry::log::chain;

/// The rate in bytes a second, over a whole run, below which a registry is given up: a quarter of
/// the rate of the slowest links in use.
const LEAST_RATE: u64 = 8 << 10;
/// The time that every run gets besides: for connecting, and for a registry that is busy for a
/// while.
const LEAST_TIME: Duration = Duration::from_secs(120);
/// The pause before a run that was cut is resumed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a chunk with wrong bytes is requested again: other hosts may have the right bytes.
const MAX_WRONG: u32 = 2;

/// The context of a run.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) transfer: Transfer,
    pub(super) store: Arc<DataStore>,
    pub(super) memory: Arc<Memory>,
    pub(super) table: Table,
    /// The processors for chunks that nobody waits for. Readers do not queue.
    pub(super) decoders: Arc<Semaphore>,
    pub(super) reason: Reason,
    pub(super) _urgency: Option<Urgency>,
}

/// Counts as urgent while it lives.
#[derive(Debug)]
pub(crate) struct Urgency(Arc<AtomicUsize>);

/// A run in progress.
struct Progress {
    chunks: VecDeque<PendingChunk>,
    end: u64,
    window: Window,
    /// One place for an inflated chunk: the next chunk waits until no reader holds the content of
    /// this one.
    places: Arc<Semaphore>,
    /// How often the bytes of the first chunk were wrong.
    wrong: u32,
}

impl Urgency {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Request {
    /// Fetches the chunks of `run`. Uses the memory `taken`, or waits for memory.
    pub(super) async fn run(self, run: ChunkRun<PendingChunk>, taken: Option<Taken>) {
        let (bytes, ChunkRun { range, chunks, .. }) = (run.decoding_bytes(), run);
        let length = range.end - range.start;
        let places = Arc::new(Semaphore::new(1));
        let mut progress = Progress {
            chunks,
            end: range.end,
            window: Window::at(range.start),
            places,
            wrong: 0,
        };
        if let Err(error) = self.fetch(&mut progress, length, bytes, taken).await {
            self.fail(progress.chunks, &error);
        }
    }

    fn fail(&self, lost: VecDeque<PendingChunk>, error: &FetchError) {
        if !matches!(error, FetchError::Unwanted) {
            self.transfer.traffic.count_errors(lost.len() as u64);
            let Blob {
                digest, repository, ..
            } = &*self.transfer.blob;
            static LINES: LineLimit = LineLimit::new();
            if let Some(dropped) = LINES.pass() {
                let chunks = lost.len();
                tracing::warn!(layer = %digest, %repository, chunks, error = chain(&error), dropped, "chunks could not be fetched");
            }
        }
        lost.into_iter()
            .for_each(|chunk| chunk.settle(Err(error.clone())));
    }

    /// Removes chunks from `progress` as they arrive. The chunks that are left after an error were
    /// not fetched.
    async fn fetch(
        &self,
        progress: &mut Progress,
        length: u64,
        bytes: u64,
        taken: Option<Taken>,
    ) -> Result<(), FetchError> {
        let taken = match taken {
            Some(taken) => taken,
            None => self.memory(progress, bytes).await?,
        };
        let deadline = Instant::now() + LEAST_TIME + Duration::from_secs(length / LEAST_RATE);
        let outcome = tokio::time::timeout_at(deadline, self.all(progress)).await;
        // The last content counts until its readers have copied their parts.
        drop(progress.place().await);
        drop(taken);
        outcome.map_err(|_elapsed| FetchError::Slow)?
    }

    async fn memory(&self, progress: &Progress, bytes: u64) -> Result<Taken, FetchError> {
        let registry = self.transfer.blob.source.name();
        if let Some(taken) = self
            .memory
            .take(registry, bytes, self.reason)
            .now_or_never()
        {
            return Ok(taken?);
        }
        let taken = self.memory.take(registry, bytes, self.reason).await?;
        // The readers may have left meanwhile.
        let is_wanted = progress
            .chunks
            .iter()
            .any(|chunk| self.table.is_awaited(&chunk.digest));
        if is_wanted {
            Ok(taken)
        } else {
            Err(FetchError::Unwanted)
        }
    }

    /// Sends requests until all chunks have arrived, as long as each attempt makes progress.
    async fn all(&self, progress: &mut Progress) -> Result<(), FetchError> {
        loop {
            let before = progress.window.end();
            let Err(error) = self.attempt(progress).await else {
                return Ok(());
            };
            match error {
                // Another host may have the right bytes.
                FetchError::Wrong(_) => {}
                error if error.is_transient() && progress.window.end() > before => {
                    tracing::debug!(layer = %self.transfer.blob.digest, at = progress.window.end(), error = chain(&error), "run resumed after a cut");
                }
                error => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, progress: &mut Progress) -> Result<(), FetchError> {
        self.transfer.traffic.count_request();
        let Blob {
            source,
            repository,
            digest,
            ..
        } = &*self.transfer.blob;
        let range = progress.window.end()..progress.end;
        let mut body = source
            .blob_for(repository, digest, range.clone(), self.reason.purpose())
            .await?;
        if body.range.start != range.start {
            return Err(FetchError::Short);
        }
        while let Some(next) = progress.chunks.front() {
            let wanted = next.chunk.range.clone();
            progress.window.forget_before(wanted.start);
            while progress.window.get(&wanted).is_none() {
                let piece = body.stream.next().await.ok_or(FetchError::Short)??;
                self.transfer.traffic.count(piece.len() as u64, self.reason);
                progress.window.push(&piece);
                progress.window.forget_before(wanted.start);
            }
            let Some(error) = self.decode(progress).await? else {
                continue;
            };
            if progress.wrong < MAX_WRONG {
                progress.wrong += 1;
                if let Some(origin) = &body.origin {
                    origin.report_bad();
                }
                progress.window = Window::at(wanted.start);
                return Err(FetchError::Wrong(error));
            }
            self.refuse(progress, error);
        }
        Ok(())
    }

    /// Gives up the first chunk.
    fn refuse(&self, progress: &mut Progress, error: Arc<ChunkError>) {
        progress.wrong = 0;
        let Some(pending) = progress.chunks.pop_front() else {
            return;
        };
        self.transfer.traffic.count_errors(1);
        let Blob {
            digest, repository, ..
        } = &*self.transfer.blob;
        static LINES: LineLimit = LineLimit::new();
        if let Some(dropped) = LINES.pass() {
            tracing::error!(layer = %digest, %repository, chunk = %pending.digest, error = chain(&*error), dropped, "chunk refused");
        }
        pending.settle(Err(FetchError::Wrong(error)));
    }

    /// Decodes, stores and settles the chunks that have arrived, as long as no reader holds the
    /// content of one. Returns the error of the first chunk that is left, if its bytes are wrong.
    async fn decode(&self, progress: &mut Progress) -> Result<Option<Arc<ChunkError>>, FetchError> {
        let place = progress.place().await.ok_or(FetchError::Aborted)?;
        let decoder = match self.reason {
            Reason::Read => None,
            _ => Arc::clone(&self.decoders).acquire_owned().await.ok(),
        };
        let start = progress.window.end();
        let batch = Batch {
            chunks: std::mem::take(&mut progress.chunks),
            window: std::mem::replace(&mut progress.window, Window::at(start)),
            places: Arc::clone(&progress.places),
            store: Arc::clone(&self.store),
            data: Arc::clone(&self.transfer.data),
        };
        let work = move || (batch.decode(place), decoder).0;
        let decoded = tokio::task::spawn_blocking(work).await;
        let Decoded {
            chunks,
            window,
            is_any,
            error,
        } = decoded.map_err(|_panicked| FetchError::Aborted)?;
        if is_any {
            progress.wrong = 0;
        }
        (progress.chunks, progress.window) = (chunks, window);
        Ok(error.map(Arc::new))
    }
}

/// Chunks of a run, and the bytes that have arrived for the first of them.
struct Batch {
    chunks: VecDeque<PendingChunk>,
    window: Window,
    places: Arc<Semaphore>,
    store: Arc<DataStore>,
    data: Arc<LayerData>,
}

/// The chunks and bytes that are left of a batch.
struct Decoded {
    chunks: VecDeque<PendingChunk>,
    window: Window,
    /// Whether a chunk was decoded.
    is_any: bool,
    /// The error of the first chunk that is left.
    error: Option<ChunkError>,
}

impl Batch {
    /// Decodes chunks until one has not arrived, has wrong bytes, or finds no place because a
    /// reader holds the content of the one before. Blocking.
    fn decode(self, place: OwnedSemaphorePermit) -> Decoded {
        let Self {
            mut chunks,
            mut window,
            places,
            store,
            data,
        } = self;
        let (mut place, mut is_any, mut error) = (Some(place), false, None);
        while let Some(next) = chunks.front() {
            window.forget_before(next.chunk.range.start);
            let Some(bytes) = window.get(&next.chunk.range) else {
                break;
            };
            let free = || Arc::clone(&places).try_acquire_owned().ok();
            let Some(own) = place.take().or_else(free) else {
                break;
            };
            match next.chunk.decode(bytes) {
                Ok(content) => {
                    let content = Bytes::from(content);
                    store.put(&data, next.number, &content);
                    is_any = true;
                    if let Some(pending) = chunks.pop_front() {
                        pending.settle(Ok(Content::new(content, own)));
                    }
                }
                Err(wrong) => {
                    error = Some(wrong);
                    break;
                }
            }
        }
        Decoded {
            chunks,
            window,
            is_any,
            error,
        }
    }
}

impl Progress {
    /// Waits until the content of the previous chunk is dropped.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}
