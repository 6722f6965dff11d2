//! Single flight: the product's table of pending chunks, with the steps of `src/agent/layer/fetch/mod.rs`
//! and of `Layer::read_pieces` around it.

#[path = "../../../../src/agent/layer/fetch/pending.rs"]
mod pending;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use estargz::{Chunk, Digest};
use shuttle::future::{spawn, yield_now};
use tokio::sync::Semaphore;

use self::pending::{Content, Lookup, PendingChunk, Table};
use super::data::{DataStore, LayerData};

/// The reason why a chunk could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("no reader waits for it")]
    Unwanted,
    #[error("fetch aborted")]
    Aborted,
}

/// A node's cache and its registry.
#[derive(Clone)]
pub struct Fetcher {
    table: Table,
    pub store: Arc<DataStore>,
    pub data: Arc<LayerData>,
    registry: Arc<Registry>,
}

/// The chunks of a layer in a registry.
pub struct Registry {
    chunks: Vec<Bytes>,
    /// How many requests for each chunk run.
    running: Vec<AtomicUsize>,
    /// Requests that are dropped before they have their chunk.
    lost: AtomicUsize,
    /// How many requests have begun.
    begun: AtomicUsize,
}

impl Registry {
    /// `lost` requests end without an answer.
    pub fn new(chunks: Vec<Bytes>, lost: usize) -> Self {
        let running = chunks.iter().map(|_| AtomicUsize::new(0)).collect();
        let (lost, begun) = (AtomicUsize::new(lost), AtomicUsize::new(0));
        Self {
            chunks,
            running,
            lost,
            begun,
        }
    }

    async fn get(&self, number: u32, chunk: &Chunk) -> Option<Bytes> {
        let index = number as usize;
        self.begun.fetch_add(1, Ordering::SeqCst);
        let before = self.running[index].fetch_add(1, Ordering::SeqCst);
        assert_eq!(before, 0, "chunk {number} is fetched twice at once");
        yield_now().await;
        self.running[index].fetch_sub(1, Ordering::SeqCst);
        assert_eq!(chunk.digest, Some(Digest::of(&self.chunks[index])));
        let take = |left: usize| left.checked_sub(1);
        let is_lost = self
            .lost
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        is_lost.is_err().then(|| self.chunks[index].clone())
    }
}

impl Fetcher {
    pub fn new(store: Arc<DataStore>, data: Arc<LayerData>, registry: Registry) -> Self {
        Self {
            table: Table::default(),
            store,
            data,
            registry: Arc::new(registry),
        }
    }

    /// `Layer::read_pieces`: reads a chunk, and fetches it if it is not here. What was evicted
    /// meanwhile is fetched anew.
    pub async fn read(&self, number: u32) -> Result<Bytes, FetchError> {
        if let Some(bytes) = self.held(number) {
            return Ok(bytes);
        }
        if let Lookup::Pending(pending) = self.fetch(number, || self.store.has(&self.data, number))
        {
            return pending.await.map(|content| copied(&content));
        }
        if let Some(bytes) = self.held(number) {
            return Ok(bytes);
        }
        match self.fetch(number, || false) {
            Lookup::Pending(pending) => pending.await.map(|content| copied(&content)),
            Lookup::Held => panic!("a chunk with content is no hole"),
        }
    }

    /// Returns the number of requests to the registry.
    pub fn requests(&self) -> usize {
        self.registry.begun.load(Ordering::SeqCst)
    }

    /// Requests a chunk and does not wait for it.
    pub fn leave(&self, number: u32) {
        drop(self.fetch(number, || self.store.has(&self.data, number)));
    }

    /// Whether no request is left in the table for this chunk.
    pub fn is_idle(&self, number: u32) -> bool {
        let mut claimed = Vec::new();
        let chunk = self.data.tree().toc().chunk(number).unwrap();
        self.table.look_up(number, &chunk, || false, &mut claimed);
        !claimed.is_empty()
    }

    fn held(&self, number: u32) -> Option<Bytes> {
        let whole = 0..self.data.tree().toc().chunk(number)?.size;
        self.store.read_chunk(&self.data, number, whole)
    }

    fn fetch(&self, number: u32, is_held: impl FnOnce() -> bool) -> Lookup {
        let mut claimed = Vec::new();
        let chunk = self.data.tree().toc().chunk(number).unwrap();
        let found = self.table.look_up(number, &chunk, is_held, &mut claimed);
        for pending in claimed {
            let own = self.clone();
            let _detached = spawn(async move { own.request(pending).await });
        }
        found
    }

    /// `Request::run`: the chunk is on this node before it leaves the table.
    async fn request(&self, pending: PendingChunk) {
        // A request that has not begun ends if its readers have left.
        yield_now().await;
        if !self.table.is_awaited(&pending.digest) {
            return pending.settle(Err(FetchError::Unwanted));
        }
        let got = self.registry.get(pending.number, &pending.chunk).await;
        let Some(content) = got else { return };
        self.store.put(&self.data, pending.number, &content);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        pending.settle(Ok(Content::new(content, place)));
    }
}

fn copied(content: &Content) -> Bytes {
    Bytes::copy_from_slice(content.bytes())
}
