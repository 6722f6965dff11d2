//! The chunks that are on their way, each for all who want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use estargz::{Chunk, Digest};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::FetchError;
use crate::agent::cache::Cache;

/// A chunk's content, once it is here. Drop it soon: the run it came with goes on only then.
pub type ChunkFuture = Shared<BoxFuture<'static, Result<Content, FetchError>>>;

/// A chunk's content on its way to whoever waits for it. Clones share it.
#[derive(Debug, Clone)]
pub struct Content(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

/// The table of what is on its way; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Arc<Mutex<HashMap<Digest, ChunkFuture>>>);

/// Where a chunk is.
#[derive(Debug)]
pub enum Lookup {
    /// In the cache.
    Held,
    Pending(ChunkFuture),
}

/// A chunk that this process fetches. Its place in the table is given up when it is settled or dropped.
#[derive(Debug)]
pub(super) struct PendingChunk {
    pub(super) chunk: Chunk,
    pub(super) digest: Digest,
    done: Option<oneshot::Sender<Result<Content, FetchError>>>,
    table: Table,
}

impl Content {
    pub(super) fn new(bytes: Bytes, place: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Inner { bytes, _place: place }))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, ChunkFuture>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the chunk is. One that is neither on its way nor held, or whose copy in the `cache` cannot be read, is put
    /// into `claimed` for the caller to fetch.
    pub(super) fn look_up(&self, chunk: &Chunk, cache: Option<&Cache>, claimed: &mut Vec<PendingChunk>) -> Lookup {
        let Some(digest) = chunk.digest else { return Lookup::Held };
        let mut table = self.lock();
        if let Some(pending) = table.get(&digest) {
            return Lookup::Pending(pending.clone());
        }
        // Asked under the lock: a chunk is in the cache before it leaves the table.
        if cache.is_some_and(|cache| cache.holds(&digest)) {
            return Lookup::Held;
        }
        let (done, outcome) = oneshot::channel();
        let pending = outcome.map(|outcome| outcome.unwrap_or(Err(FetchError::Aborted))).boxed().shared();
        table.insert(digest, pending.clone());
        claimed.push(PendingChunk { chunk: chunk.clone(), digest, done: Some(done), table: self.clone() });
        Lookup::Pending(pending)
    }

    /// Whether somebody waits for the chunk.
    pub(super) fn is_awaited(&self, digest: &Digest) -> bool {
        // The table itself has one.
        self.lock().get(digest).is_some_and(|pending| pending.strong_count().is_some_and(|count| count > 1))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

impl PendingChunk {
    pub(super) fn settle(mut self, outcome: Result<Content, FetchError>) {
        self.leave();
        if let Some(done) = self.done.take() {
            // Nobody may be waiting any more, which is no failure.
            let _unheard = done.send(outcome);
        }
    }

    fn leave(&self) {
        self.table.lock().remove(&self.digest);
    }
}

impl Drop for PendingChunk {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.leave();
        }
    }
}
