//! Limits log lines that containers, clients or peers can cause at any rate.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Enough to see the kind of failure and the affected layers. At most 14,400 lines a day, which is
/// a few megabytes.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// Passes a few log lines of one kind in each minute and counts the dropped ones.
#[derive(Debug, Default)]
pub struct LineLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begun: Option<Instant>,
    passed: u32,
    dropped: u64,
}

impl LineLimit {
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                begun: None,
                passed: 0,
                dropped: 0,
            }),
        }
    }

    /// Returns the number of lines dropped since the last one if a line may be written now, else
    /// `None`.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state
            .begun
            .is_none_or(|begun| now.saturating_duration_since(begun) >= PERIOD)
        {
            state.begun = Some(now);
            state.passed = 0;
        }
        if state.passed == LINES {
            state.dropped += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_ten_lines_a_minute_and_a_count() {
        let (limit, start) = (LineLimit::new(), Instant::now());
        let passed = (0..1000).filter(|_| limit.pass_at(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.pass_at(start + Duration::from_secs(59)), None);
        assert_eq!(
            limit.pass_at(start + PERIOD),
            Some(991),
            "the next minute reports the dropped lines"
        );
        assert_eq!(limit.pass_at(start + PERIOD), Some(0));
    }
}
