//! Remembers hosts that failed: which are skipped for a while, and which are asked last.
//!
//! ```text
//! a request fails slowly ▶ no request for PAUSE ▶ one request probes ─ heard  ▶ forgotten
//!                                    ▲                               └ failed ▶ twice the pause
//!                                    └───────────────────────────────────────────────┘
//! ```
//!
//! A fast failure is not remembered, because the next request would fail just as fast.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use url::Url;

use super::error::Error;
use crate::oci::Digest;

/// A failure that took less time than this does not count, because it delayed nobody.
const COSTLY: Duration = Duration::from_millis(500);
/// A request that its caller cancelled counts as a failure if it had waited this long. Mounts and
/// pulls wait for some seconds.
const SILENT: Duration = Duration::from_secs(5);
/// How long a host is skipped after its first failure. Longer than it takes to ask about all layers
/// of an image.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest pause: as long as a person who repaired the host is willing to wait.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How long a mirror that broke off or sent wrong bytes is asked after all other hosts.
const LAST_FOR: Duration = Duration::from_secs(60);
/// How long that mirror is not asked for the same blob.
const BAD_FOR: Duration = Duration::from_secs(600);
/// Memory for the hosts and digests of bad blobs, in bytes: about ten thousand entries.
const MAX_BAD_BYTES: u64 = 2 << 20;
/// The most hosts that are remembered at once, and the longest name of one (DNS allows 253 bytes).
const MAX_HOSTS: usize = 4096;
const MAX_HOST_LEN: usize = 300;

/// The record of failed hosts, shared by all registries. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hosts: Mutex<Hosts>,
    bad: Cache<(Arc<str>, Digest), ()>,
}

/// One request to a host, from just before it is sent. If it is dropped without a call to
/// [`Watch::heard`] or [`Watch::failed`], its caller cancelled the request.
#[derive(Debug)]
pub(super) struct Watch {
    health: Health,
    host: Arc<str>,
    started: Instant,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Hosts(HashMap<Arc<str>, State>);

#[derive(Debug, Default)]
struct State {
    under_way: u32,
    heard: Option<Instant>,
    /// Consecutive failures, each followed by a pause.
    failures: u32,
    paused_until: Option<Instant>,
    is_probed: bool,
    last_until: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        let weigh = |(host, digest): &(Arc<str>, Digest), (): &()| {
            u32::try_from(host.len() + digest.hex().len() + 64).unwrap_or(u32::MAX)
        };
        let bad = Cache::builder()
            .weigher(weigh)
            .max_capacity(MAX_BAD_BYTES)
            .time_to_live(BAD_FOR)
            .build();
        Self(Arc::new(Inner {
            hosts: Mutex::default(),
            bad,
        }))
    }
}

impl Health {
    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.0.hosts.lock()
    }

    /// Allows a request to the host of `url`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the host is paused, or while another request probes it.
    pub(super) fn admit(&self, url: &Url) -> Result<Watch, Error> {
        let (host, started) = (host_key(url), Instant::now());
        if !self.hosts().admit(&host, started) {
            return Err(Error::Unavailable(
                "not asked: it did not answer a moment ago".to_owned(),
            ));
        }
        Ok(Watch {
            health: self.clone(),
            host,
            started,
            is_over: false,
        })
    }

    /// Remembers that `host` broke off while it sent `digest`, or sent wrong bytes.
    pub(super) fn report_bad(&self, host: &Arc<str>, digest: &Digest) {
        tracing::debug!(%host, %digest, "bad blob recorded for host");
        self.0.bad.insert((Arc::clone(host), digest.clone()), ());
        self.hosts().put_last(host, Instant::now());
    }

    /// Whether `host` recently failed to deliver this blob.
    pub(super) fn is_bad(&self, host: &Arc<str>, digest: &Digest) -> bool {
        self.0.bad.contains_key(&(Arc::clone(host), digest.clone()))
    }

    /// Whether other hosts are asked before this one.
    pub(super) fn is_last(&self, host: &str) -> bool {
        self.hosts().is_last(host, Instant::now())
    }
}

/// Returns the key under which a host is remembered: scheme, name and port.
pub(super) fn host_key(url: &Url) -> Arc<str> {
    let port = url.port_or_known_default().unwrap_or_default();
    format!(
        "{}://{}:{port}",
        url.scheme(),
        url.host_str().unwrap_or_default()
    )
    .into()
}

impl Watch {
    /// Records that the host answered, with any status.
    pub(super) fn heard(mut self) {
        self.is_over = true;
        self.health.hosts().heard(&self.host, Instant::now());
    }

    /// Records that no answer came.
    pub(super) fn failed(mut self) {
        self.is_over = true;
        let now = Instant::now();
        self.health
            .hosts()
            .failed(&self.host, self.started, COSTLY, now);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.is_over {
            self.health
                .hosts()
                .failed(&self.host, self.started, SILENT, Instant::now());
        }
    }
}

impl Hosts {
    fn admit(&mut self, host: &Arc<str>, now: Instant) -> bool {
        if !self.make_room(host, now) {
            return true;
        }
        let state = self.0.entry(Arc::clone(host)).or_default();
        if state.failures > 0 {
            if state.is_probed || state.paused_until.is_some_and(|until| now < until) {
                return false;
            }
            state.is_probed = true;
        }
        state.under_way += 1;
        true
    }

    fn heard(&mut self, host: &str, now: Instant) {
        let Some(state) = self.0.get_mut(host) else {
            return;
        };
        let (under_way, last_until) = (state.under_way.saturating_sub(1), state.last_until);
        *state = State {
            under_way,
            last_until,
            heard: Some(now),
            ..State::default()
        };
        self.forget_if_idle(host, now);
    }

    /// Records that a request begun at `started` got no answer. It does not count if it took less
    /// than `cost`, or if the host answered another request meanwhile.
    fn failed(&mut self, host: &str, started: Instant, cost: Duration, now: Instant) {
        let Some(state) = self.0.get_mut(host) else {
            return;
        };
        state.under_way = state.under_way.saturating_sub(1);
        state.is_probed = false;
        let is_alive = state.heard.is_some_and(|heard| heard >= started);
        // Requests that were sent together fail together. All of them cause one pause.
        let is_counted = state.paused_until.is_some_and(|until| now < until);
        if now.duration_since(started) >= cost && !is_alive && !is_counted {
            let pause = PAUSE
                .saturating_mul(1 << state.failures.min(8))
                .min(MAX_PAUSE);
            state.failures = state.failures.saturating_add(1);
            state.paused_until = Some(now + pause);
            tracing::debug!(host, pause = pause.as_secs(), "host paused after a failure");
        }
        self.forget_if_idle(host, now);
    }

    fn put_last(&mut self, host: &Arc<str>, now: Instant) {
        if self.make_room(host, now) {
            self.0.entry(Arc::clone(host)).or_default().last_until = Some(now + LAST_FOR);
        }
    }

    fn is_last(&self, host: &str, now: Instant) -> bool {
        let is_ahead = |until: Option<Instant>| until.is_some_and(|until| now < until);
        self.0
            .get(host)
            .is_some_and(|state| is_ahead(state.last_until) || is_ahead(state.paused_until))
    }

    fn forget_if_idle(&mut self, host: &str, now: Instant) {
        if self.0.get(host).is_some_and(|state| state.is_idle(now)) {
            self.0.remove(host);
        }
    }

    /// Makes room for `host`. Returns whether it can be remembered.
    fn make_room(&mut self, host: &str, now: Instant) -> bool {
        if self.0.contains_key(host) {
            return true;
        }
        if self.0.len() >= MAX_HOSTS {
            self.0.retain(|_, state| !state.is_over(now));
        }
        self.0.len() < MAX_HOSTS && host.len() <= MAX_HOST_LEN
    }
}

impl State {
    fn is_idle(&self, now: Instant) -> bool {
        self.under_way == 0
            && self.failures == 0
            && self.last_until.is_none_or(|until| until <= now)
    }

    /// Whether no request is running and every pause is over.
    fn is_over(&self, now: Instant) -> bool {
        let is_past = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        self.under_way == 0 && is_past(self.last_until) && is_past(self.paused_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Arc<str> {
        "https://a.example:443".into()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slow_failure_pauses_the_host_and_one_request_probes_it() {
        let (mut hosts, host, start) = (Hosts::default(), host(), Instant::now());
        assert!(hosts.admit(&host, start));
        hosts.failed(&host, start, COSTLY, start + SECOND);
        assert!(!hosts.admit(&host, start + 2 * SECOND));
        let back = start + SECOND + PAUSE;
        assert!(hosts.admit(&host, back), "the probe");
        assert!(!hosts.admit(&host, back), "one probe only");
        hosts.failed(&host, back, COSTLY, back + SECOND);
        assert!(
            !hosts.admit(&host, back + SECOND + PAUSE),
            "twice the pause"
        );
        let later = back + SECOND + 2 * PAUSE;
        assert!(hosts.admit(&host, later));
        hosts.heard(&host, later);
        assert!(hosts.admit(&host, later) && hosts.admit(&host, later));
    }

    #[test]
    fn fast_failures_and_failures_of_a_host_that_answers_are_not_remembered() {
        let (mut hosts, host, start) = (Hosts::default(), host(), Instant::now());
        hosts.admit(&host, start);
        hosts.failed(&host, start, COSTLY, start + COSTLY / 2);
        assert!(hosts.0.is_empty());
        hosts.admit(&host, start);
        hosts.admit(&host, start);
        hosts.heard(&host, start + SECOND);
        hosts.failed(&host, start, COSTLY, start + 20 * SECOND);
        assert!(hosts.admit(&host, start + 20 * SECOND));
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let (mut hosts, host, start) = (Hosts::default(), host(), Instant::now());
        (0..10).for_each(|_| assert!(hosts.admit(&host, start)));
        (0..10).for_each(|_| hosts.failed(&host, start, COSTLY, start + SECOND));
        assert!(hosts.admit(&host, start + SECOND + PAUSE));
    }

    #[test]
    fn a_cancelled_probe_lets_the_next_request_probe() {
        let (mut hosts, host, start) = (Hosts::default(), host(), Instant::now());
        hosts.admit(&host, start);
        hosts.failed(&host, start, SILENT, start + SILENT);
        let back = start + SILENT + PAUSE;
        assert!(hosts.admit(&host, back));
        hosts.failed(&host, back, SILENT, back + SECOND);
        assert!(hosts.admit(&host, back + SECOND));
    }

    #[test]
    fn remembered_hosts_are_bounded_and_old_ones_make_room() {
        let (mut hosts, start) = (Hosts::default(), Instant::now());
        for number in 0..2 * MAX_HOSTS {
            let host: Arc<str> = format!("https://h{number}:443").into();
            assert!(hosts.admit(&host, start));
            hosts.failed(&host, start, COSTLY, start + SECOND);
        }
        assert_eq!(hosts.0.len(), MAX_HOSTS);
        hosts.put_last(&host(), start + 2 * MAX_PAUSE);
        assert_eq!(hosts.0.len(), 1, "pauses that are over make room");
        assert!(hosts.admit(&"x".repeat(MAX_HOST_LEN + 1).into(), start));
        assert_eq!(hosts.0.len(), 1);
    }

    #[test]
    fn a_bad_blob_is_remembered_by_host_and_digest_and_puts_the_host_last() {
        let (health, host, digest) = (Health::default(), host(), Digest::sha256_of(b"x"));
        assert!(!health.is_bad(&host, &digest) && !health.is_last(&host));
        health.report_bad(&host, &digest);
        assert!(health.is_bad(&host, &digest) && health.is_last(&host));
        assert!(!health.is_bad(&host, &Digest::sha256_of(b"y")));
        assert!(!health.is_bad(&"https://b.example:443".into(), &digest));
    }
}
