//! One computation per key, shared by all callers that ask for the key while it runs.
//!
//! The computation runs in its own task, so the first caller may leave without stopping it. A
//! computation without a waiting caller runs to its end, or as long as [`Forgotten`] allows.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// The outcome of a computation: `None` if it panicked or was cancelled, or if the runtime shut
/// down.
type Running<V> = Shared<BoxFuture<'static, Option<V>>>;

type Table<K, V> = Arc<Mutex<HashMap<K, Entry<V>>>>;

/// Computations in flight, by key; clones share them.
#[derive(Debug)]
pub struct Flight<K, V>
where
    V: Clone,
{
    running: Table<K, V>,
    forgotten: Option<Forgotten>,
}

/// A limit for computations without a waiting caller: a few continue for a while, so that a caller
/// that asks again finds the result. Clones share the places.
#[derive(Debug, Clone)]
pub struct Forgotten {
    places: Arc<Semaphore>,
    time: Duration,
}

#[derive(Debug)]
struct Entry<V>
where
    V: Clone,
{
    outcome: Running<V>,
    /// The number of callers waiting for it.
    waiting: Arc<watch::Sender<usize>>,
}

impl Forgotten {
    /// Lets `count` computations continue, for at most `time`. All others end when their last
    /// waiting caller leaves.
    pub fn new(count: usize, time: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(count)),
            time,
        }
    }

    /// Returns when no caller waits and the computation may not continue.
    async fn over(&self, waiting: &mut watch::Receiver<usize>) {
        loop {
            // The sender is in the table as long as the computation runs.
            drop(waiting.wait_for(|count| *count == 0).await);
            let Ok(_place) = self.places.try_acquire() else {
                return;
            };
            if timeout(self.time, waiting.wait_for(|count| *count > 0))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

impl<K, V: Clone> Clone for Flight<K, V> {
    fn clone(&self) -> Self {
        Self {
            running: Arc::clone(&self.running),
            forgotten: self.forgotten.clone(),
        }
    }
}

impl<K, V: Clone> Default for Flight<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
            forgotten: None,
        }
    }
}

impl<K, V> Flight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Computations that end when no caller waits for them, except as `forgotten` allows.
    pub fn while_awaited(forgotten: Forgotten) -> Self {
        Self {
            running: Arc::default(),
            forgotten: Some(forgotten),
        }
    }

    /// Waits for the computation under `key`, and starts `compute` if none is running.
    ///
    /// Cancel safe: dropping the future leaves the computation running, unless it was the last
    /// caller and [`Forgotten`] does not let the computation continue. `None` means that the
    /// computation panicked or was cancelled.
    pub fn join<F, C>(
        &self,
        key: K,
        compute: C,
    ) -> impl Future<Output = Option<V>> + Send + use<K, V, F, C>
    where
        C: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(entry) = running.get(&key) {
            return Waiting::on(entry);
        }
        let (done, outcome) = tokio::sync::oneshot::channel();
        let (waiting, watched) = watch::channel(0);
        let entry = Entry {
            outcome: outcome.map(Result::ok).boxed().shared(),
            waiting: Arc::new(waiting),
        };
        let joined = Waiting::on(&entry);
        let landing = Landing {
            running: Arc::clone(&self.running),
            key: key.clone(),
            own: Arc::clone(&entry.waiting),
        };
        running.insert(key, entry);
        let computation = compute();
        let forgotten = self.forgotten.clone();
        tokio::spawn(async move {
            let Some(value) = landing.run(computation, forgotten, watched).await else {
                return;
            };
            // There may be no waiting caller any more, which is not a failure.
            let _unheard = done.send(value);
        });
        joined
    }

    /// The computation under `key`, if one is running.
    pub fn running(&self, key: &K) -> Option<impl Future<Output = Option<V>> + Send + use<K, V>> {
        self.running.lock().get(key).map(Waiting::on)
    }

    /// The number of running computations.
    pub fn len(&self) -> usize {
        self.running.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A caller waiting for an outcome.
struct Waiting<V: Clone> {
    outcome: Running<V>,
    waiting: Arc<watch::Sender<usize>>,
}

impl<V: Clone> Waiting<V> {
    /// The table must be locked, so that the computation is not cancelled at the same time.
    fn on(entry: &Entry<V>) -> Self {
        entry.waiting.send_modify(|count| *count += 1);
        Self {
            outcome: entry.outcome.clone(),
            waiting: Arc::clone(&entry.waiting),
        }
    }
}

impl<V: Clone> Future for Waiting<V> {
    type Output = Option<V>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<V>> {
        self.outcome.poll_unpin(context)
    }
}

impl<V: Clone> Drop for Waiting<V> {
    fn drop(&mut self) {
        self.waiting.send_modify(|count| *count -= 1);
    }
}

/// Removes the key from the table when the computation ends, even by panic or abort.
struct Landing<K: Eq + Hash, V: Clone> {
    running: Table<K, V>,
    key: K,
    own: Arc<watch::Sender<usize>>,
}

impl<K: Eq + Hash, V: Clone> Landing<K, V> {
    /// Returns the computation's value, or `None` if it was cancelled.
    async fn run<F: Future<Output = V>>(
        self,
        computation: F,
        forgotten: Option<Forgotten>,
        mut waiting: watch::Receiver<usize>,
    ) -> Option<V> {
        let Some(forgotten) = forgotten else {
            return Some(computation.await);
        };
        let mut computation = std::pin::pin!(computation);
        loop {
            tokio::select! {
                value = &mut computation => return Some(value),
                () = forgotten.over(&mut waiting) => {}
            }
            if self.give_up() {
                return None;
            }
        }
    }

    /// Removes the key from the table, unless a caller waits again.
    fn give_up(&self) -> bool {
        let mut running = self.running.lock();
        if *self.own.borrow() > 0 {
            return false;
        }
        running.remove(&self.key);
        true
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        // A cancelled computation may have a successor under its key.
        if running
            .get(&self.key)
            .is_some_and(|entry| Arc::ptr_eq(&entry.waiting, &self.own))
        {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::eventually::eventually_async;

    #[tokio::test]
    async fn many_callers_share_one_computation() {
        let flight = Flight::<&str, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let first = flight.join("key", || {
            let runs = Arc::clone(&runs);
            async move {
                gate.await.unwrap();
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        });
        let others: Vec<_> = (0..100)
            .map(|_| flight.join("key", || async { panic!("a second computation") }))
            .collect();
        open.send(()).unwrap();
        assert_eq!(first.await, Some(1));
        for other in others {
            assert_eq!(other.await, Some(1));
        }
        assert!(flight.is_empty());
    }

    #[tokio::test]
    async fn a_computation_continues_when_its_first_caller_leaves() {
        let flight = Flight::<u8, u8>::default();
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        drop(flight.join(1, || async move {
            gate.await.unwrap();
            7
        }));
        let second = flight.join(1, || async { panic!("a second computation") });
        open.send(()).unwrap();
        assert_eq!(second.await, Some(7));
    }

    #[tokio::test]
    async fn a_panic_gives_none_and_the_next_caller_starts_anew() {
        let flight = Flight::<u8, u8>::default();
        assert_eq!(
            flight.join(1, || async { panic!("on purpose") }).await,
            None
        );
        assert_eq!(flight.join(1, || async { 2 }).await, Some(2));
    }

    #[tokio::test]
    async fn a_computation_without_a_caller_ends() {
        let flight =
            Flight::<usize, usize>::while_awaited(Forgotten::new(2, Duration::from_secs(3600)));
        let slow = || std::future::pending::<usize>();
        let awaited = tokio::spawn(flight.join(0, slow));
        for key in 1..10 {
            drop(flight.join(key, slow));
        }
        // The awaited one, and two that may continue for a while.
        eventually_async("three computations run", async || flight.len() == 3).await;
        let kept = flight
            .running
            .lock()
            .keys()
            .copied()
            .find(|key| *key > 0)
            .unwrap();
        let joined = flight.join(kept, || async { panic!("it goes on") });
        awaited.abort();
        drop(joined);
        eventually_async("two computations run", async || flight.len() == 2).await;
    }

    #[tokio::test]
    async fn a_forgotten_computation_continues_only_for_a_while() {
        let flight =
            Flight::<usize, usize>::while_awaited(Forgotten::new(2, Duration::from_millis(1)));
        drop(flight.join(1, std::future::pending::<usize>));
        eventually_async("nothing runs", async || flight.is_empty()).await;
        assert_eq!(flight.join(1, || async { 5 }).await, Some(5));
    }
}
