//! The rate that an upstream must keep while it sends a layer or a document: a least rate and a
//! deadline.
//!
//! Only time spent waiting for the upstream counts, so a body that arrives faster than it is
//! converted is never slow. While an image of another upstream waits for a slot, the required rate
//! is higher and the patience shorter.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::error::Error;

/// The number of consecutive windows below the least rate after which a body is given up.
const PATIENT_WINDOWS: u32 = 6;
/// The factor on the least rate while others wait for the body's slot: 256 KiB per second with the
/// default.
const CONTENDED: u64 = 16;
/// The deadline of a configuration or a manifest: some KiB in one or two requests.
pub(super) const DOCUMENT_WITHIN: Duration = Duration::from_secs(60);

/// The rate and the deadline for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// In bytes per second.
    pub(super) least_rate: u64,
    pub(super) window: Duration,
    pub(super) within: Duration,
}

/// Measures the rate of one body.
pub(super) struct Pacer<'a> {
    pace: Pace,
    is_contended: &'a (dyn Fn() -> bool + Send + Sync),
    /// Time spent waiting for the upstream, in total and in the current window.
    waited: Duration,
    waited_in_window: Duration,
    bytes_in_window: u64,
    slow_windows: u32,
}

impl Pace {
    /// Creates a pace whose least rate is measured over `slow_after`.
    pub(super) fn new(least_rate: u64, slow_after: Duration, within: Duration) -> Self {
        let window = (slow_after / PATIENT_WINDOWS).max(Duration::from_millis(1));
        Self {
            least_rate,
            window,
            within,
        }
    }

    /// Returns the pace for a document.
    pub(super) fn of_document(self) -> Self {
        Self {
            within: self.within.min(DOCUMENT_WITHIN),
            ..self
        }
    }

    /// Returns the bytes that a body sends in a window at the least rate.
    pub(super) fn least_in_window(self) -> u64 {
        let millis = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        self.least_rate.saturating_mul(millis) / 1000
    }

    /// Returns the bytes that a body must send in a window while others wait.
    pub(super) fn contended_in_window(self) -> u64 {
        self.least_in_window().saturating_mul(CONTENDED)
    }
}

impl<'a> Pacer<'a> {
    pub(super) fn new(pace: Pace, is_contended: &'a (dyn Fn() -> bool + Send + Sync)) -> Self {
        let (waited, waited_in_window) = (Duration::ZERO, Duration::ZERO);
        Self {
            pace,
            is_contended,
            waited,
            waited_in_window,
            bytes_in_window: 0,
            slow_windows: 0,
        }
    }

    /// Waits for the upstream's next response or piece.
    ///
    /// # Errors
    /// [`Error::Slow`] or [`Error::Overdue`] when the upstream does not keep the pace.
    pub(super) async fn wait<F: Future>(&mut self, next: F) -> Result<F::Output, Error> {
        let mut next = pin!(next);
        loop {
            self.check()?;
            let left = self.pace.window.saturating_sub(self.waited_in_window);
            let started = Instant::now();
            let came = timeout(
                left.min(self.pace.within.saturating_sub(self.waited)),
                &mut next,
            )
            .await;
            let waited = started.elapsed();
            self.waited += waited;
            self.waited_in_window += waited;
            if let Ok(came) = came {
                return Ok(came);
            }
        }
    }

    /// Counts received bytes.
    pub(super) fn came(&mut self, bytes: usize) {
        self.bytes_in_window = self.bytes_in_window.saturating_add(bytes as u64);
    }

    fn check(&mut self) -> Result<(), Error> {
        if self.waited >= self.pace.within {
            return Err(Error::Overdue {
                within: self.pace.within,
            });
        }
        if self.waited_in_window < self.pace.window {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.bytes_in_window);
        self.waited_in_window = Duration::ZERO;
        let is_slow = bytes < self.pace.least_in_window();
        self.slow_windows = if is_slow { self.slow_windows + 1 } else { 0 };
        let rate = self.pace.least_rate;
        if self.slow_windows >= PATIENT_WINDOWS {
            return Err(Error::Slow { rate });
        }
        if bytes < self.pace.contended_in_window() && (self.is_contended)() {
            return Err(Error::Slow {
                rate: rate.saturating_mul(CONTENDED),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(1000, Duration::from_millis(120), Duration::from_secs(3600))
    }

    #[tokio::test]
    async fn a_silent_upstream_is_given_up() {
        let mut pacer = Pacer::new(pace(), &|| false);
        let outcome = pacer.wait(std::future::pending::<()>()).await;
        assert!(matches!(outcome, Err(Error::Slow { rate: 1000 })));
        assert!(pacer.waited >= Duration::from_millis(120));
    }

    #[tokio::test]
    async fn a_silent_upstream_is_given_up_sooner_while_others_wait() {
        let mut pacer = Pacer::new(pace(), &|| true);
        let outcome = pacer.wait(std::future::pending::<()>()).await;
        assert!(matches!(outcome, Err(Error::Slow { rate: 16_000 })));
        assert_eq!(pacer.slow_windows, 1);
    }

    #[tokio::test]
    async fn a_body_at_the_least_rate_goes_on_to_its_deadline() {
        let pace = Pace {
            within: Duration::from_millis(300),
            ..pace()
        };
        let mut pacer = Pacer::new(pace, &|| false);
        let overdue = loop {
            match pacer
                .wait(tokio::time::sleep(Duration::from_millis(5)))
                .await
            {
                Ok(()) => pacer.came(1000),
                Err(error) => break error,
            }
        };
        assert!(matches!(overdue, Error::Overdue { .. }));
    }

    #[tokio::test]
    async fn time_spent_converting_does_not_count() {
        let mut pacer = Pacer::new(pace(), &|| true);
        for _ in 0..20 {
            pacer.wait(std::future::ready(())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(pacer.waited < Duration::from_millis(120));
    }
}
