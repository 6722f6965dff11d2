//! The pending chunks, each shared by all readers that wait for it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use estargz::{Chunk, Digest};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::FetchError;

/// A chunk's content, once it has arrived. Drop it soon, because the run that brought it continues
/// only then.
pub(super) type ChunkFuture = Shared<BoxFuture<'static, Result<Content, FetchError>>>;

/// A chunk's content for the readers that wait for it. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Content(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

/// The table of pending chunks. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Arc<Mutex<HashMap<Digest, ChunkFuture>>>);

/// The state of a chunk.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// On this node.
    Held,
    Pending(ChunkFuture),
}

/// A chunk that this process fetches. It leaves the table when it is settled or dropped.
#[derive(Debug)]
pub(super) struct PendingChunk {
    /// Its number in its layer.
    pub(super) number: u32,
    pub(super) chunk: Chunk,
    pub(super) digest: Digest,
    done: Option<oneshot::Sender<Result<Content, FetchError>>>,
    table: Table,
}

impl Content {
    pub(super) fn new(bytes: Bytes, place: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Inner {
            bytes,
            _place: place,
        }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Table {
    /// Returns the chunk's state. A chunk that is neither pending nor on this node is added to
    /// `claimed`, and the caller must fetch it.
    pub(super) fn look_up(
        &self,
        number: u32,
        chunk: &Chunk,
        is_held: impl FnOnce() -> bool,
        claimed: &mut Vec<PendingChunk>,
    ) -> Lookup {
        let Some(digest) = chunk.digest else {
            return Lookup::Held;
        };
        let mut table = self.0.lock();
        if let Some(pending) = table.get(&digest) {
            return Lookup::Pending(pending.clone());
        }
        // Asked under the lock, because a chunk is on this node before it leaves the table.
        if is_held() {
            return Lookup::Held;
        }
        let (done, outcome) = oneshot::channel();
        let pending = outcome
            .map(|outcome| outcome.unwrap_or(Err(FetchError::Aborted)))
            .boxed()
            .shared();
        table.insert(digest, pending.clone());
        claimed.push(PendingChunk {
            number,
            chunk: chunk.clone(),
            digest,
            done: Some(done),
            table: self.clone(),
        });
        Lookup::Pending(pending)
    }

    /// Whether a reader waits for the chunk.
    pub(super) fn is_awaited(&self, digest: &Digest) -> bool {
        // The table itself holds one clone.
        self.0
            .lock()
            .get(digest)
            .is_some_and(|pending| pending.strong_count().is_some_and(|count| count > 1))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl PendingChunk {
    pub(super) fn settle(mut self, outcome: Result<Content, FetchError>) {
        self.leave();
        if let Some(done) = self.done.take() {
            // It is not a failure if no reader waits any more.
            let _unheard = done.send(outcome);
        }
    }

    fn leave(&self) {
        self.table.0.lock().remove(&self.digest);
    }
}

impl Drop for PendingChunk {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use estargz::codec::Codec;
    use tokio::sync::Semaphore;

    use super::*;

    fn chunk(number: u8) -> Chunk {
        let digest = Some(Digest::of(&[number]));
        Chunk {
            range: 0..1,
            inner_offset: 0,
            file_offset: 0,
            size: 1,
            digest,
            codec: Codec::Gzip,
        }
    }

    fn look_up(table: &Table, number: u8, claimed: &mut Vec<PendingChunk>) -> Lookup {
        table.look_up(u32::from(number), &chunk(number), || false, claimed)
    }

    fn pending(lookup: Lookup) -> ChunkFuture {
        match lookup {
            Lookup::Pending(pending) => pending,
            Lookup::Held => panic!("chunk is not pending"),
        }
    }

    #[tokio::test]
    async fn one_reader_fetches_a_chunk_and_all_get_it() {
        let (table, mut claimed) = (Table::default(), Vec::new());
        let all = [1, 1, 2, 1].map(|number| pending(look_up(&table, number, &mut claimed)));
        assert_eq!((claimed.len(), table.len()), (2, 2));
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        claimed
            .remove(0)
            .settle(Ok(Content::new(Bytes::from_static(b"x"), place)));
        let [one, same, other, last] = all;
        for pending in [one, same, last] {
            assert_eq!(
                places.available_permits(),
                0,
                "the place is taken as long as a reader holds the content"
            );
            assert_eq!(pending.await.unwrap().bytes(), b"x");
        }
        assert_eq!(places.available_permits(), 1);
        assert!(table.is_awaited(&Digest::of(&[2])));
        drop(claimed);
        assert!(matches!(other.await, Err(FetchError::Aborted)));
        assert_eq!(table.len(), 0);
    }

    #[tokio::test]
    async fn readers_that_leave_are_noticed() {
        let (table, mut claimed, digest) = (Table::default(), Vec::new(), Digest::of(&[1]));
        let lookup = look_up(&table, 1, &mut claimed);
        assert!(table.is_awaited(&digest));
        drop(lookup);
        assert!(!table.is_awaited(&digest));
        let again = look_up(&table, 1, &mut claimed);
        assert!(table.is_awaited(&digest) && claimed.len() == 1);
        drop(again);
    }
}
