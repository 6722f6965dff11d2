//! Limits how long a read may wait: as long as bytes arrive for its layer, up to a maximum.

use std::time::Duration;

use tokio::time::Instant;

/// The rate, in bytes a second for a layer, below which nothing counts as arriving: a quarter of
/// the rate of the slowest links in use.
const LEAST_RATE: u64 = 8 << 10;

/// Waits for `read` while `received`, a count of bytes, grows. Returns `None` if it did not grow
/// for as long as `silence`, or if `read` took longer than `most` altogether.
pub(crate) async fn patiently<T>(
    silence: Duration,
    most: Duration,
    received: impl Fn() -> u64,
    read: impl Future<Output = T>,
) -> Option<T> {
    let least = u64::try_from(silence.as_millis())
        .unwrap_or(u64::MAX)
        .saturating_mul(LEAST_RATE)
        / 1000;
    let deadline = Instant::now() + most;
    let mut before = received();
    tokio::pin!(read);
    while Instant::now() < deadline {
        let until = deadline.min(Instant::now() + silence);
        if let Ok(outcome) = tokio::time::timeout_at(until, &mut read).await {
            return Some(outcome);
        }
        let now = received();
        if now.saturating_sub(before) < least.max(1) {
            return None;
        }
        before = now;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use tokio::sync::oneshot;

    use super::*;

    const SILENCE: Duration = Duration::from_millis(10);
    const MOST: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_silent_registry_is_not_waited_for() {
        assert_eq!(patiently(SILENCE, MOST, || 7, pending::<()>()).await, None);
        assert_eq!(patiently(SILENCE, MOST, || 7, ready(5)).await, Some(5));
    }

    /// Returns a count of bytes that grows by `step` at each call, and a read that ends at the
    /// third call.
    fn read(step: u64) -> (impl Fn() -> u64, oneshot::Receiver<()>) {
        let (done, read) = oneshot::channel();
        let (looks, done) = (Cell::new(0), Cell::new(Some(done)));
        let received = move || {
            looks.set(looks.get() + 1);
            if looks.get() == 3 {
                done.take().unwrap().send(()).unwrap();
            }
            looks.get() * step
        };
        (received, read)
    }

    #[tokio::test]
    async fn a_slow_link_is_waited_for_and_a_trickle_is_not() {
        let (received, link) = read(LEAST_RATE);
        assert!(patiently(SILENCE, MOST, received, link).await.is_some());
        let (received, trickle) = read(1);
        assert!(patiently(SILENCE, MOST, received, trickle).await.is_none());
    }

    #[tokio::test]
    async fn a_read_that_never_ends_is_given_up_although_bytes_arrive() {
        let count = Cell::new(0);
        let received = || count.replace(count.get() + LEAST_RATE);
        assert_eq!(
            patiently(SILENCE, MOST, received, pending::<()>()).await,
            None
        );
    }
}
