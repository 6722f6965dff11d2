//! The wall clock in the unit that records use.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds since 1970; 0 if the clock is set before that.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
