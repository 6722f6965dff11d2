//! The outcomes of requests, counted by kind of client.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The number of wrong answers that are kept for the report.
const SHOWN: usize = 20;

/// The outcome of one pull or range request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A whole pull of a converted image with every byte right.
    Converted,
    /// A whole pull of the source image with every byte right.
    Source,
    Ranges,
    /// Refused with a status.
    Refused(u16),
    /// The connection failed, or the body broke off.
    Broken,
    /// A completed answer with a wrong byte, which must not happen.
    Wrong(String),
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Mutex<BTreeMap<(&'static str, String), u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    /// Counts an outcome of one kind of client.
    pub(crate) fn count(&self, kind: &'static str, outcome: Outcome) {
        let name = match outcome {
            Outcome::Converted => "converted image, verified".to_owned(),
            Outcome::Source => "source image, verified".to_owned(),
            Outcome::Ranges => "ranges, verified".to_owned(),
            Outcome::Refused(status) => format!("refused with {status}"),
            Outcome::Broken => "connection failed or body broken off".to_owned(),
            Outcome::Wrong(how) => {
                let mut wrong = self.wrong.lock();
                if wrong.len() < SHOWN {
                    wrong.push(how);
                }
                "WRONG".to_owned()
            }
        };
        *self.counts.lock().entry((kind, name)).or_default() += 1;
    }

    /// Returns a row for each kind of client and outcome.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let counts = self.counts.lock();
        counts
            .iter()
            .map(|((kind, name), count)| vec![(*kind).to_owned(), name.clone(), count.to_string()])
            .collect()
    }

    /// Returns the wrong answers.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }

    /// Returns the number of requests with this outcome.
    pub(crate) fn total(&self, name: &str) -> u64 {
        let counts = self.counts.lock();
        counts
            .iter()
            .filter(|((_, other), _)| other == name)
            .map(|(_, count)| count)
            .sum()
    }
}
