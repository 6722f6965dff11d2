//! The kernel's own limit on unanswered FUSE requests (Linux 6.15,
//! `fs.fuse.default_request_timeout` and `fs.fuse.max_request_timeout`). A single request that
//! waits longer ends the connection, and with it all layers.

use std::fs;
use std::time::Duration;

const DEFAULT: &str = "/proc/sys/fs/fuse/default_request_timeout";
const MAX: &str = "/proc/sys/fs/fuse/max_request_timeout";
/// Most requests of the kernel's own, such as read-ahead, that may wait at once.
const MAX_BACKGROUND: u16 = 128;

/// Returns the limit of a connection that is made now, or `None` if the kernel waits forever.
pub(crate) fn current() -> Option<Duration> {
    let read = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
    combined(read(DEFAULT).unwrap_or(0), read(MAX).unwrap_or(0))
}

/// Combines the two settings as the kernel does (fs/fuse/inode.c, `init_server_timeout`), without
/// rounding up.
fn combined(default: u64, max: u64) -> Option<Duration> {
    [default, max]
        .into_iter()
        .filter(|seconds| *seconds > 0)
        .min()
        .map(Duration::from_secs)
}

/// A read may take this many times the allowed silence while bytes arrive. With the default of one
/// minute that is as long as a chunk of 4 MiB takes on the slowest link that is waited for.
const MOST: u32 = 10;

/// How long answers to reads may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadLimits {
    /// How long a read may wait without bytes arriving.
    pub fresh: Duration,
    /// How long a read may take in all.
    pub most_fresh: Duration,
    /// The same for requests that an earlier agent received and did not answer.
    pub resent: Duration,
    pub most_resent: Duration,
    /// Read-ahead requests that are sent at once. Others wait in the kernel, which counts that time
    /// too.
    pub max_background: u16,
}

impl ReadLimits {
    /// Half of the kernel's limit is for a read, a quarter for a restart of the agent, and the rest
    /// for the same read sent again.
    pub(crate) fn new(configured: Duration, kernel: Option<Duration>) -> Self {
        let most = configured * MOST;
        let Some(limit) = kernel else {
            let (fresh, most_fresh) = (configured, most);
            return Self {
                fresh,
                most_fresh,
                resent: fresh,
                most_resent: most,
                max_background: MAX_BACKGROUND,
            };
        };
        let (half, quarter) = (limit / 2, limit / 4);
        Self {
            fresh: configured.min(half),
            most_fresh: most.min(half),
            resent: configured.min(quarter),
            most_resent: most.min(quarter),
            max_background: u16::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_shorter_of_the_kernels_limits_applies() {
        assert_eq!(combined(0, 0), None);
        assert_eq!(combined(20, 0), Some(Duration::from_secs(20)));
        assert_eq!(
            combined(0, 30),
            Some(Duration::from_secs(30)),
            "a maximum without a default applies too"
        );
        assert_eq!(combined(20, 10), Some(Duration::from_secs(10)));
        assert_eq!(combined(20, 60), Some(Duration::from_secs(20)));
    }

    #[test]
    fn a_read_a_restart_and_the_read_again_fit_into_the_kernels_limit() {
        for seconds in [1, 15, 20, 119, 120, 3600] {
            let kernel = Duration::from_secs(seconds);
            let limits = ReadLimits::new(MINUTE, Some(kernel));
            assert!(
                limits.most_fresh + limits.most_resent <= kernel * 3 / 4,
                "{seconds}"
            );
            assert!(
                limits.fresh <= limits.most_fresh && limits.resent <= limits.most_resent,
                "{seconds}"
            );
            assert_eq!(limits.fresh, MINUTE.min(kernel / 2));
        }
        let limits = ReadLimits::new(MINUTE, None);
        assert_eq!((limits.fresh, limits.resent), (MINUTE, MINUTE));
    }
}
