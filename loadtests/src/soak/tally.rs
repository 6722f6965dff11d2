//! What became of the requests: counted, and shown.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Wrong answers that are kept to be shown.
const SHOWN: usize = 20;

/// How one pull or range request ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A whole pull of a converted image, right to the last byte.
    Converted,
    /// A whole pull of the source image, right to the last byte.
    Source,
    Ranges,
    /// Refused with a status.
    Refused(u16),
    /// The connection failed, or the body broke off.
    Broken,
    /// An answer that ended well and was not right: there must be none.
    Wrong(String),
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Mutex<BTreeMap<(&'static str, String), u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    /// Counts an outcome of a client of this kind.
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

    /// A row for each kind of client and outcome.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let counts = self.counts.lock();
        counts
            .iter()
            .map(|((kind, name), count)| vec![(*kind).to_owned(), name.clone(), count.to_string()])
            .collect()
    }

    /// Answers that were not right.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }

    /// How many requests had this outcome.
    pub(crate) fn total(&self, name: &str) -> u64 {
        let counts = self.counts.lock();
        counts
            .iter()
            .filter(|((_, other), _)| other == name)
            .map(|(_, count)| count)
            .sum()
    }
}
