//! The outcomes of requests, counted by kind of client, and when they came.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;

use crate::figures::float;
use crate::plot::Curve;

/// The number of wrong answers that are kept for the report.
const SHOWN: usize = 20;
/// The most characters that are kept of what a command said.
const MAX_ERROR: usize = 300;
/// The seconds that one point of a curve stands for.
pub(crate) const PERIOD: f64 = 10.0;

/// The outcome of one pull, range request or start of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A whole pull of a converted image with every byte right.
    Converted,
    /// A whole pull of the source image with every byte right.
    Source,
    Ranges,
    /// Every file in a new container is right.
    Started,
    /// A new container could not read some files, and all others are right.
    ReadErrors,
    /// An image was not pulled, or its container did not start: the step, and what its command said.
    NotStarted(&'static str, String),
    /// Refused with a status.
    Refused(u16),
    /// The connection failed, or the body broke off.
    Broken,
    /// A completed answer with a wrong byte, which must not happen.
    Wrong(String),
}

impl Outcome {
    fn name(&self) -> String {
        match self {
            Self::Converted => "converted image, verified".to_owned(),
            Self::Source => "source image, verified".to_owned(),
            Self::Ranges => "ranges, verified".to_owned(),
            Self::Started => "started, every file verified".to_owned(),
            Self::ReadErrors => "started, reads failed, others verified".to_owned(),
            Self::NotStarted(step, _) => format!("not started: {step} failed"),
            Self::Refused(status) => format!("refused with {status}"),
            Self::Broken => "connection failed or body broken off".to_owned(),
            Self::Wrong(_) => "WRONG".to_owned(),
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::NotStarted(_, error) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        !matches!(
            self,
            Self::Converted | Self::Source | Self::Ranges | Self::Started
        )
    }
}

/// An outcome without its text.
#[derive(Debug, Clone, Copy)]
struct Event {
    /// Seconds since the start of the soak, and those that it took.
    at: f64,
    took: f64,
    kind: &'static str,
    is_failure: bool,
}

#[derive(Debug, Default)]
struct Count {
    total: u64,
    /// The error of the last one.
    error: String,
}

#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    /// By kind and name.
    counts: Mutex<BTreeMap<(&'static str, String), Count>>,
    wrong: Mutex<Vec<String>>,
    events: Mutex<Vec<Event>>,
}

impl Tally {
    pub(crate) fn new(begun: Instant) -> Self {
        Self {
            begun,
            counts: Mutex::default(),
            wrong: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Counts an outcome of one kind of client, of work that began at `since`.
    pub(crate) fn count(&self, kind: &'static str, since: Instant, outcome: &Outcome) {
        if let Outcome::Wrong(how) = outcome {
            let mut wrong = self.wrong.lock();
            if wrong.len() < SHOWN {
                wrong.push(how.clone());
            }
        }
        self.events.lock().push(Event {
            at: self.begun.elapsed().as_secs_f64(),
            took: since.elapsed().as_secs_f64(),
            kind,
            is_failure: outcome.is_failure(),
        });
        let key = (kind, outcome.name());
        let mut counts = self.counts.lock();
        let count = counts.entry(key).or_default();
        count.total += 1;
        if let Some(error) = outcome.error() {
            count.error = end_of(error);
        }
    }

    /// Returns a row for each kind of client and outcome.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let counts = self.counts.lock();
        counts
            .iter()
            .map(|((kind, name), count)| {
                vec![
                    (*kind).to_owned(),
                    name.clone(),
                    count.total.to_string(),
                    count.error.clone(),
                ]
            })
            .collect()
    }

    /// Returns the wrong answers.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }

    /// Returns the number of outcomes like this one.
    pub(crate) fn total(&self, outcome: &Outcome) -> u64 {
        let name = outcome.name();
        let counts = self.counts.lock();
        let same = counts.iter().filter(|((_, other), _)| *other == name);
        same.map(|(_, count)| count.total).sum()
    }

    /// Returns the kinds of clients.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        let counts = self.counts.lock();
        let mut kinds: Vec<_> = counts.keys().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    }

    /// Returns the median and the 99th percentile of the seconds of successful work, over time.
    pub(crate) fn latencies(&self, kind: &'static str) -> Vec<Curve> {
        let periods = self.by_period(|event| event.kind == kind && !event.is_failure);
        let curve = |label: &str, share: f64| Curve {
            label: label.to_owned(),
            points: periods
                .iter()
                .map(|(at, events)| {
                    let took = events.iter().map(|event| event.took).collect();
                    (*at, percentile(took, share))
                })
                .collect(),
        };
        vec![curve("median", 0.5), curve("99 %", 0.99)]
    }

    /// Returns the failures a second of each kind of client, over time.
    pub(crate) fn failures(&self) -> Vec<Curve> {
        let curve = |kind: &'static str| {
            let periods = self.by_period(|event| event.kind == kind);
            let failed = |(at, events): &(f64, Vec<Event>)| {
                let failed = events.iter().filter(|event| event.is_failure).count();
                (*at, float(failed as u64) / PERIOD)
            };
            Curve {
                label: kind.to_owned(),
                points: periods.iter().map(failed).collect(),
            }
        };
        self.kinds().into_iter().map(curve).collect()
    }

    fn by_period(&self, wanted: impl Fn(&Event) -> bool) -> Vec<(f64, Vec<Event>)> {
        let mut periods: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
        for event in self.events.lock().iter().filter(|event| wanted(event)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            let period = (event.at / PERIOD) as u64;
            periods.entry(period).or_default().push(*event);
        }
        let middle = |period| (float(period) + 0.5) * PERIOD;
        let periods = periods.into_iter();
        periods
            .map(|(period, events)| (middle(period), events))
            .collect()
    }
}

/// Returns the end of an error text, as a cell of a table.
fn end_of(error: &str) -> String {
    let line = error.split_whitespace().collect::<Vec<_>>().join(" ");
    let skipped = line.chars().count().saturating_sub(MAX_ERROR);
    line.chars()
        .skip(skipped)
        .collect::<String>()
        .replace('|', "/")
}

fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let place = (float(values.len() as u64) * share) as usize;
    let place = place.min(values.len().saturating_sub(1));
    values.get(place).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert!((percentile(values.clone(), 0.5) - 50.0).abs() < f64::EPSILON);
        assert!((percentile(values, 0.99) - 99.0).abs() < f64::EPSILON);
        assert!(percentile(Vec::new(), 0.5).abs() < f64::EPSILON);
    }
}
