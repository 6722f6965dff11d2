//! A cache of recent failures: a failing operation is not repeated at once, so that a failing image
//! does not cost minutes at each pull.

use std::hash::Hash;
use std::time::{Duration, Instant};

use moka::future::Cache;

/// The wait after the first failure. It doubles with each further failure.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The memory for failures, in bytes: room for about ten thousand.
const CAPACITY: u64 = 8 << 20;
/// The memory of a failure beside the bytes that its weigher counts.
const FAILURE_BYTES: usize = 512;

/// Recent failures, each with the answer to return until the next attempt.
#[derive(Debug)]
pub(crate) struct NegativeCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    recent: Cache<K, RememberedFailure<V>>,
}

#[derive(Debug, Clone)]
struct RememberedFailure<V> {
    wait: Duration,
    until: Instant,
    answer: V,
}

impl<K, V> NegativeCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// `weight` returns the memory of an answer and its key, in bytes.
    pub(crate) fn new(weight: impl Fn(&K, &V) -> usize + Send + Sync + 'static) -> Self {
        let weight = move |key: &K, failure: &RememberedFailure<V>| {
            u32::try_from(weight(key, &failure.answer).saturating_add(FAILURE_BYTES))
                .unwrap_or(u32::MAX)
        };
        // Twice the longest wait, so that a failure that recurs soon after its wait still doubles
        // it.
        let recent = Cache::builder()
            .max_capacity(CAPACITY)
            .weigher(weight)
            .time_to_live(LONGEST_WAIT * 2)
            .build();
        Self { recent }
    }

    /// Returns the last answer, until the time of the next attempt.
    pub(crate) async fn answer(&self, key: &K, now: Instant) -> Option<V> {
        let failure = self.recent.get(key).await?;
        (now < failure.until).then_some(failure.answer)
    }

    /// Records a failure. The next attempt comes after a doubling wait, or after `at_least`, which
    /// is capped too.
    pub(crate) async fn note(&self, key: K, answer: V, at_least: Option<Duration>, now: Instant) {
        let doubled = self
            .recent
            .get(&key)
            .await
            .map_or(FIRST_WAIT, |failure| failure.wait * 2);
        let wait = doubled.max(at_least.unwrap_or_default()).min(LONGEST_WAIT);
        self.recent
            .insert(
                key,
                RememberedFailure {
                    wait,
                    until: now + wait,
                    answer,
                },
            )
            .await;
    }

    pub(crate) async fn forget(&self, key: &K) {
        self.recent.invalidate(key).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_wait_doubles_up_to_a_bound() {
        let failures = NegativeCache::new(|_, _| 0);
        let mut now = Instant::now();
        assert_eq!(failures.answer(&"key", now).await, None);
        for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            failures.note("key", seconds, None, now).await;
            let next_try = now + Duration::from_secs(seconds);
            assert_eq!(
                failures
                    .answer(&"key", next_try - Duration::from_millis(1))
                    .await,
                Some(seconds)
            );
            assert_eq!(failures.answer(&"key", next_try).await, None);
            now = next_try;
        }
        failures.forget(&"key").await;
        failures.note("key", 1, None, now).await;
        assert_eq!(failures.answer(&"key", now + FIRST_WAIT).await, None);
    }

    #[tokio::test]
    async fn an_upstream_may_ask_for_longer_but_not_for_ever() {
        let failures = NegativeCache::new(|_, _| 0);
        let now = Instant::now();
        failures
            .note("key", (), Some(Duration::from_secs(60)), now)
            .await;
        assert!(
            failures
                .answer(&"key", now + Duration::from_secs(59))
                .await
                .is_some()
        );
        failures
            .note("key", (), Some(Duration::from_secs(1 << 40)), now)
            .await;
        assert!(failures.answer(&"key", now + LONGEST_WAIT).await.is_none());
    }
}
