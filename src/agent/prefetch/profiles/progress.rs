//! The progress of the fetches for a profile, for the report, and to see how useful the profile
//! was.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::agent::layer::tree::FileId;
use crate::profile::{Stack, Workload};

/// The state of a requested profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Asked,
    /// The server has none, or did not return one.
    None,
    /// Its files are being fetched, or have been.
    Used,
}

/// A profile that was requested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProfileReport {
    pub image: String,
    pub stack: Stack,
    pub workload: Workload,
    /// The server that was asked.
    pub server: String,
    pub state: State,
    /// Files of the profile that the layers have.
    pub files: u64,
    /// How many of them are on this node.
    pub held_files: u64,
    pub requests: u64,
    /// Bytes of the layers that were requested.
    pub bytes: u64,
}

/// The live counters behind a report.
#[derive(Debug)]
pub(crate) struct Progress {
    image: String,
    stack: Stack,
    workload: Workload,
    server: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// By the layer's place and the file's ID: the time when the file was complete on this node.
    files: HashMap<(u32, FileId), Option<Instant>>,
    requests: u64,
    bytes: u64,
}

/// How useful a profile was for a file that a container used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Ahead,
    /// The file is in the profile, but was not yet on this node.
    Late,
    /// The file is not in the profile.
    Unknown,
}

impl Use {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Late => "late",
            Self::Unknown => "unknown",
        }
    }
}

impl Progress {
    pub(super) fn new(image: &str, stack: &Stack, workload: &Workload, server: String) -> Self {
        let inner = Inner {
            state: State::Asked,
            files: HashMap::new(),
            requests: 0,
            bytes: 0,
        };
        Self {
            image: image.to_owned(),
            stack: stack.clone(),
            workload: workload.clone(),
            server,
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub(super) fn set(&self, state: State) {
        self.inner().state = state;
    }

    pub(super) fn state(&self) -> State {
        self.inner().state
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn expect(&self, layer: u32, id: FileId) {
        self.inner().files.insert((layer, id), None);
    }

    pub(super) fn arrived(&self, layer: u32, id: FileId) {
        self.inner().files.insert((layer, id), Some(Instant::now()));
    }

    pub(super) fn count(&self, bytes: u64) {
        let mut inner = self.inner();
        inner.requests += 1;
        inner.bytes += bytes;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.inner().bytes
    }

    /// Returns how useful the profile was for a file that was used at `when`.
    pub(crate) fn when_used(&self, layer: u32, id: FileId, when: Instant) -> Use {
        match self.inner().files.get(&(layer, id)) {
            None => Use::Unknown,
            Some(Some(arrived)) if *arrived <= when => Use::Ahead,
            Some(_) => Use::Late,
        }
    }

    /// Returns the files that were complete on this node.
    pub(super) fn held(&self) -> Vec<(u32, FileId)> {
        self.inner()
            .files
            .iter()
            .filter(|(_, arrived)| arrived.is_some())
            .map(|(file, _)| *file)
            .collect()
    }

    pub(super) fn report(&self) -> ProfileReport {
        let inner = self.inner();
        ProfileReport {
            image: self.image.clone(),
            stack: self.stack.clone(),
            workload: self.workload.clone(),
            server: self.server.clone(),
            state: inner.state,
            files: inner.files.len() as u64,
            held_files: inner.files.values().flatten().count() as u64,
            requests: inner.requests,
            bytes: inner.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_as_ahead_if_it_arrived_before_its_use() {
        let stack = Stack::of([]);
        let progress = Progress::new("a", &stack, &Workload::default(), String::new());
        let before = Instant::now();
        progress.expect(0, FileId(1));
        progress.expect(0, FileId(2));
        progress.arrived(0, FileId(1));
        let later = Instant::now();
        assert_eq!(progress.when_used(0, FileId(1), later), Use::Ahead);
        assert_eq!(progress.when_used(0, FileId(2), later), Use::Late);
        assert_eq!(progress.when_used(1, FileId(1), later), Use::Unknown);
        assert!(matches!(
            progress.when_used(0, FileId(1), before),
            Use::Late | Use::Ahead
        ));
        assert_eq!(
            (progress.report().files, progress.report().held_files),
            (2, 1)
        );
        assert_eq!(progress.held(), [(0, FileId(1))]);
    }
}
