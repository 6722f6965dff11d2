//! How many of the traces that senders wish for are made.
//!
//! A sender says in its trace context whether a request is to be traced. Everybody can say so, and the
//! number of a trace is the sender's choice too, so neither decides alone. Each request that brings a
//! context earns `ratio` of a trace, and each wish that is granted costs one: no more than this part of
//! them is traced. An agent with the same ratio wishes for this part, and is granted all of it.

use parking_lot::Mutex;

/// The most wishes that are granted at once, after requests without a wish. The requests of one pull
/// come together.
const BURST: f64 = 32.0;

/// Grants wishes for traces.
#[derive(Debug)]
pub(super) struct Allowance {
    ratio: f64,
    is_trusting: bool,
    earned: Mutex<f64>,
}

impl Allowance {
    pub(super) fn new(ratio: f64, is_trusting: bool) -> Self {
        Self {
            ratio,
            is_trusting,
            earned: Mutex::default(),
        }
    }

    /// Whether a request with a trace context is traced.
    pub(super) fn grants(&self, is_wished: bool) -> bool {
        if self.is_trusting {
            return is_wished;
        }
        let mut earned = self.earned.lock();
        *earned = (*earned + self.ratio).min(BURST);
        let is_granted = is_wished && *earned >= 1.0;
        if is_granted {
            *earned -= 1.0;
        }
        is_granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(allowance: &Allowance, wishes: impl Iterator<Item = bool>) -> usize {
        wishes.filter(|wish| allowance.grants(*wish)).count()
    }

    #[test]
    fn a_sender_that_wishes_for_everything_gets_the_ratio() {
        for (ratio, expected) in [(0.0, 0), (0.25, 250), (1.0, 1000)] {
            let allowance = Allowance::new(ratio, false);
            assert_eq!(granted(&allowance, (0..1000).map(|_| true)), expected);
        }
    }

    #[test]
    fn a_sender_that_wishes_for_the_ratio_gets_all_of_it() {
        let allowance = Allowance::new(0.25, false);
        let wishes = (1..=1000).map(|number| number % 4 == 0);
        assert_eq!(granted(&allowance, wishes), 250);
    }

    #[test]
    fn quiet_requests_earn_no_more_than_a_burst() {
        let allowance = Allowance::new(0.5, false);
        assert_eq!(granted(&allowance, (0..10_000).map(|_| false)), 0);
        let at_once = granted(&allowance, (0..100).map(|_| true));
        assert!((81..=83).contains(&at_once), "{at_once}");
    }

    #[test]
    fn trusted_senders_decide_by_themselves() {
        let allowance = Allowance::new(0.0, true);
        assert!(allowance.grants(true) && !allowance.grants(false));
    }
}
