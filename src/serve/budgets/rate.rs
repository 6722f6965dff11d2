//! Requests a second with a burst, as one point in time for each client (the generic cell rate
//! algorithm). Pure.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// The burst without one in the configuration, in seconds of the rate.
const BURST_SECONDS: u32 = 10;

/// A rate and its burst.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// The time that one request takes at the rate.
    interval: Duration,
    /// How far requests may be ahead of the rate.
    ahead: Duration,
}

impl Rate {
    pub(super) fn new(a_second: NonZeroU32, burst: Option<NonZeroU32>) -> Self {
        let interval = Duration::from_secs(1) / a_second.get();
        let burst = burst.map_or(
            a_second.get().saturating_mul(BURST_SECONDS),
            NonZeroU32::get,
        );
        Self {
            interval,
            ahead: interval.saturating_mul(burst - 1),
        }
    }

    /// Admits a request at `now`. `paid` is the time up to which earlier requests have used the
    /// rate; the new one is returned.
    ///
    /// # Errors
    /// The time after which the request is admitted.
    pub(super) fn admit(self, paid: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let paid = paid.map_or(now, |paid| paid.max(now));
        match (paid - now).checked_sub(self.ahead) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(paid + self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn a_burst_is_admitted_and_then_the_rate() {
        let rate = Rate::new(number(2), Some(number(3)));
        let now = Instant::now();
        let mut paid = None;
        for _ in 0..3 {
            paid = Some(rate.admit(paid, now).unwrap());
        }
        let wait = rate.admit(paid, now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        let just_before = now + wait - Duration::from_nanos(1);
        assert!(rate.admit(paid, just_before).is_err());
        paid = Some(rate.admit(paid, now + wait).unwrap());
        assert!(rate.admit(paid, now + wait).is_err());
        let later = now + Duration::from_secs(60);
        for _ in 0..3 {
            paid = Some(rate.admit(paid, later).unwrap());
        }
        assert!(
            rate.admit(paid, later).is_err(),
            "a pause saves no more than a burst"
        );
    }

    #[test]
    fn without_a_burst_ten_seconds_of_requests_come_at_once() {
        let rate = Rate::new(number(5), None);
        let now = Instant::now();
        let mut paid = None;
        let mut admitted = 0;
        while let Ok(next) = rate.admit(paid, now) {
            (paid, admitted) = (Some(next), admitted + 1);
        }
        assert_eq!(admitted, 50);
    }
}
