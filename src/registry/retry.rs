//! Decides which failed reads are retried, and after which pause.

use std::time::Duration;

use super::error::Error;

/// The longest `Retry-After` that is waited for. A longer one is passed on to the client as an
/// error.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The number of retries, and the first pause.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    pub(super) attempts: u32,
    pub(super) first_pause: Duration,
}

impl Retry {
    /// Calls `attempt` until it succeeds, fails permanently, or has been retried often enough.
    pub(super) async fn run<T, F>(self, mut attempt: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = self.pause_after(failures, &error) else {
                return Err(error);
            };
            tracing::debug!(%error, ?pause, "upstream request retried");
            failures += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// Returns the pause after failure number `failures`, counted from 0; `None` if a retry is
    /// pointless.
    pub(super) fn pause_after(self, failures: u32, error: &Error) -> Option<Duration> {
        if failures >= self.attempts || !error.is_transient() {
            return None;
        }
        if let Error::TooManyRequests {
            retry_after: Some(wait),
        } = error
        {
            return (*wait <= MAX_RETRY_AFTER).then_some(*wait);
        }
        let full = self
            .first_pause
            .saturating_mul(1 << failures.min(16))
            .min(MAX_PAUSE);
        // Between half and all of it, so that requests that failed together are not retried
        // together.
        Some(full.mul_f64(rand::random_range(0.5..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry {
        attempts: 3,
        first_pause: Duration::from_millis(100),
    };

    #[test]
    fn pauses_grow_and_end() {
        let error = Error::Unavailable(String::new());
        for (failures, most) in [(0, 100), (1, 200), (2, 400)] {
            let pause = RETRY.pause_after(failures, &error).unwrap();
            assert!(
                (most / 2..=most).contains(&pause.as_millis()),
                "{failures}: {pause:?}"
            );
        }
        assert_eq!(RETRY.pause_after(3, &error), None);
        assert_eq!(RETRY.pause_after(0, &Error::NotFound), None);
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_limit() {
        let error = |seconds| Error::TooManyRequests {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(
            RETRY.pause_after(0, &error(2)),
            Some(Duration::from_secs(2))
        );
        assert_eq!(RETRY.pause_after(0, &error(60)), None);
    }
}
