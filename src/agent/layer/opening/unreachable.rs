//! Remembers registries on which a mount spent its time for nothing. For a while, layers from them
//! are unpacked without a request.
//!
//! Without this, an image from an unreachable registry would wait once for each of its layers.
//! After a pause one layer asks again, with a short timeout. The others are still refused
//! meanwhile.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A failure that took less time delays an image by nothing worth mentioning.
const COSTLY: Duration = Duration::from_millis(500);
/// The pause after the first failure: longer than the pull of a few layers. Each further pause is
/// twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How long the layer that asks again may wait.
const PROBE: Duration = Duration::from_secs(5);
/// Most registries that are remembered at once.
const MAX_HOSTS: usize = 1024;

/// The registries that are not asked.
#[derive(Debug, Default)]
pub(crate) struct Unreachable(Mutex<HashMap<String, Rest>>);

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    pause: Duration,
}

impl Unreachable {
    /// Returns how long to wait for `host`, `patience` at most, or `None` while it must not be
    /// asked.
    pub(crate) fn allowance(
        &self,
        host: &str,
        patience: Duration,
        now: Instant,
    ) -> Option<Duration> {
        let mut hosts = self.0.lock();
        let Some(rest) = hosts.get_mut(host) else {
            return Some(patience);
        };
        if now < rest.until {
            return None;
        }
        rest.until = now + rest.pause;
        Some(patience.min(PROBE))
    }

    /// Records that `host` gave no answer to a request from the time `begun`.
    pub(crate) fn failed(&self, host: &str, begun: Instant, now: Instant) {
        if now.duration_since(begun) < COSTLY {
            return;
        }
        let mut hosts = self.0.lock();
        let pause = match hosts.get(host) {
            // Requests that ran at the same time fail together and count once.
            Some(rest) if begun < rest.until - rest.pause => return,
            Some(rest) => (rest.pause * 2).min(LAST_PAUSE),
            None => FIRST_PAUSE,
        };
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, rest| now < rest.until);
        }
        if hosts.len() < MAX_HOSTS {
            tracing::warn!(host, ?pause, "registry not asked for layers for a while");
            hosts.insert(
                host.to_owned(),
                Rest {
                    until: now + pause,
                    pause,
                },
            );
        }
    }

    /// Records that `host` answered. The content of the answer does not matter.
    pub(crate) fn answered(&self, host: &str) {
        self.0.lock().remove(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn an_image_waits_for_an_unreachable_registry_only_once() {
        let (hosts, start) = (Unreachable::default(), Instant::now());
        assert_eq!(hosts.allowance("a", PATIENCE, start), Some(PATIENCE));
        hosts.failed("a", start, start + PATIENCE);
        assert_eq!(hosts.allowance("a", PATIENCE, start + PATIENCE), None);
        assert_eq!(
            hosts.allowance("b", PATIENCE, start + PATIENCE),
            Some(PATIENCE),
            "other registries are asked"
        );
        let probe = start + PATIENCE + FIRST_PAUSE;
        assert_eq!(hosts.allowance("a", PATIENCE, probe), Some(PROBE));
        assert_eq!(
            hosts.allowance("a", PATIENCE, probe),
            None,
            "only one layer asks again"
        );
        hosts.failed("a", probe, probe + PROBE);
        assert_eq!(
            hosts.allowance("a", PATIENCE, probe + PROBE + FIRST_PAUSE),
            None,
            "the pause has doubled"
        );
        assert_eq!(
            hosts.allowance("a", PATIENCE, probe + PROBE + 2 * FIRST_PAUSE),
            Some(PROBE)
        );
        hosts.answered("a");
        assert_eq!(hosts.allowance("a", PATIENCE, probe), Some(PATIENCE));
    }

    #[test]
    fn requests_that_fail_together_count_once_and_quick_failures_do_not_count() {
        let (hosts, start) = (Unreachable::default(), Instant::now());
        hosts.failed("a", start, start + COSTLY / 2);
        assert_eq!(hosts.allowance("a", PATIENCE, start), Some(PATIENCE));
        (0..10).for_each(|_| hosts.failed("a", start, start + PATIENCE));
        assert!(
            hosts
                .allowance("a", PATIENCE, start + PATIENCE + FIRST_PAUSE + SECOND)
                .is_some()
        );
    }

    #[test]
    fn only_a_limited_number_of_registries_is_remembered() {
        let (hosts, start) = (Unreachable::default(), Instant::now());
        for number in 0..2 * MAX_HOSTS {
            hosts.failed(&number.to_string(), start, start + SECOND);
        }
        assert_eq!(hosts.0.lock().len(), MAX_HOSTS);
        hosts.failed("later", start + LAST_PAUSE, start + LAST_PAUSE + SECOND);
        assert_eq!(hosts.0.lock().len(), 1);
    }
}
