//! Registries that cost a mount its time for nothing: for a while their layers are unpacked without being asked for.
//!
//! An image whose registry the agent cannot reach would wait as often as it has layers. Once a pause is over one layer
//! asks again, not for long; the others are still turned away meanwhile.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A failure that took less costs an image nothing to speak of.
const COSTLY: Duration = Duration::from_millis(500);
/// The pause after the first failure, which a pull of some layers does not outlast; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How long the one that asks again may wait.
const PROBE: Duration = Duration::from_secs(5);
/// Registries that are remembered at once.
const MAX_HOSTS: usize = 1024;

/// The registries that are not asked.
#[derive(Debug, Default)]
pub(super) struct Unreachable(Mutex<HashMap<String, Rest>>);

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    pause: Duration,
}

impl Unreachable {
    /// How long `host` may be waited for, `patience` at most; `None` while it is not asked.
    pub(super) fn allowance(
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

    /// `host` gave no answer to a question that was asked at `begun`.
    pub(super) fn failed(&self, host: &str, begun: Instant, now: Instant) {
        if now.duration_since(begun) < COSTLY {
            return;
        }
        let mut hosts = self.0.lock();
        let pause = match hosts.get(host) {
            // Questions asked together fail together.
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

    /// `host` answered, whatever it said.
    pub(super) fn answered(&self, host: &str) {
        self.0.lock().remove(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn one_wait_is_all_that_an_image_pays() {
        let (hosts, start) = (Unreachable::default(), Instant::now());
        assert_eq!(hosts.allowance("a", PATIENCE, start), Some(PATIENCE));
        hosts.failed("a", start, start + PATIENCE);
        assert_eq!(hosts.allowance("a", PATIENCE, start + PATIENCE), None);
        assert_eq!(
            hosts.allowance("b", PATIENCE, start + PATIENCE),
            Some(PATIENCE),
            "others are asked"
        );
        let probe = start + PATIENCE + FIRST_PAUSE;
        assert_eq!(hosts.allowance("a", PATIENCE, probe), Some(PROBE));
        assert_eq!(
            hosts.allowance("a", PATIENCE, probe),
            None,
            "one asks again"
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
    fn questions_that_fail_together_count_once_and_quick_failures_not_at_all() {
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
    fn registries_are_remembered_up_to_a_number() {
        let (hosts, start) = (Unreachable::default(), Instant::now());
        for number in 0..2 * MAX_HOSTS {
            hosts.failed(&number.to_string(), start, start + SECOND);
        }
        assert_eq!(hosts.0.lock().len(), MAX_HOSTS);
        hosts.failed("later", start + LAST_PAUSE, start + LAST_PAUSE + SECOND);
        assert_eq!(hosts.0.lock().len(), 1);
    }
}
