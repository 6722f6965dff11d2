//! The clocks of other machines, compared with this one's.

use std::time::{Duration, SystemTime};

use crate::doctor::Check;

/// A difference that matters: leases and the sweep compare times of several replicas, tokens are
/// valid for minutes. Signed requests to S3 are refused from 15 minutes on.
const SKEW: Duration = Duration::from_secs(30);
/// Times in HTTP headers are whole seconds.
const RESOLUTION: Duration = Duration::from_secs(1);

const MEND: &str =
    "synchronise the clock of this machine (chronyd, systemd-timesyncd), or that of the other one";

/// Compares the time that another machine named with the time span here in which it named it.
pub(super) fn skew(
    what: &'static str,
    name: &str,
    there: SystemTime,
    (earliest, latest): (SystemTime, SystemTime),
) -> Check {
    let behind = earliest
        .duration_since(there + RESOLUTION)
        .unwrap_or_default();
    let ahead = there.duration_since(latest).unwrap_or_default();
    let shown = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    match (behind.max(ahead), ahead > behind) {
        (skew, _) if skew <= SKEW => Check::good(what, format!("{name}: as here")),
        (skew, true) => Check::bad(
            what,
            format!("{name}: {} ahead of this machine", shown(skew)),
            MEND,
        ),
        (skew, false) => Check::bad(
            what,
            format!("{name}: {} behind this machine", shown(skew)),
            MEND,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_clock_is_judged_by_the_span_in_which_it_was_asked() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let span = (at(1000), at(1010));
        for there in [at(969), at(1000), at(1005), at(1040)] {
            assert_eq!(
                skew("clock", "x", there, span).state,
                State::Good,
                "{there:?}"
            );
        }
        let late = skew("clock", "x", at(900), span);
        assert_eq!(
            (late.state, late.told.as_str()),
            (State::Bad, "x: 1m 39s behind this machine")
        );
        let early = skew("clock", "x", at(4610), span);
        assert_eq!(
            (early.state, early.told.as_str()),
            (State::Bad, "x: 1h ahead of this machine")
        );
    }
}
