//! One computation per key, shared by all who ask for it while it runs.
//!
//! The computation runs in its own task: who asked first may go away without stopping it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

/// The outcome of a computation: `None` when it panicked or the runtime shut down under it.
type Running<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Computations in flight, by key; clones share them.
#[derive(Debug)]
pub struct Flight<K, V>
where
    V: Clone,
{
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
}

impl<K, V: Clone> Clone for Flight<K, V> {
    fn clone(&self) -> Self {
        Self { running: Arc::clone(&self.running) }
    }
}

impl<K, V: Clone> Default for Flight<K, V> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, V> Flight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the computation under `key`, starting `compute` when none is running.
    ///
    /// Cancel safe: dropping the future leaves the computation running. `None` means the computation panicked.
    pub fn join<F, C>(&self, key: K, compute: C) -> impl Future<Output = Option<V>> + Send + use<K, V, F, C>
    where
        C: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = running.get(&key) {
            return shared.clone();
        }
        let (done, outcome) = tokio::sync::oneshot::channel();
        let shared = outcome.map(Result::ok).boxed().shared();
        running.insert(key.clone(), shared.clone());
        let landing = Landing { running: Arc::clone(&self.running), key };
        let computation = compute();
        tokio::spawn(async move {
            let value = computation.await;
            drop(landing);
            // Nobody may be waiting any more, which is no failure.
            let _unheard = done.send(value);
        });
        shared
    }

    /// The computation under `key`, if one is running.
    pub fn running(&self, key: &K) -> Option<impl Future<Output = Option<V>> + Send + use<K, V>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// How many computations are running.
    pub fn len(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes the key off the table when the computation ends, also by panic or abort.
struct Landing<K: Eq + Hash, V: Clone> {
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

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
        let others: Vec<_> =
            (0..100).map(|_| flight.join("key", || async { panic!("a second computation") })).collect();
        open.send(()).unwrap();
        assert_eq!(first.await, Some(1));
        for other in others {
            assert_eq!(other.await, Some(1));
        }
        assert!(flight.is_empty());
    }

    #[tokio::test]
    async fn goes_on_when_the_first_caller_leaves() {
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
    async fn a_panic_is_told_and_the_next_caller_starts_anew() {
        let flight = Flight::<u8, u8>::default();
        assert_eq!(flight.join(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flight.join(1, || async { 2 }).await, Some(2));
    }
}
