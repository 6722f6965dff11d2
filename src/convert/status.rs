//! The running and the recent conversions, for the API and for `warm`. Bounded, and lost when the
//! process ends.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::error::Error;
use super::public_reason::Reason;
use crate::clock::unix_now;
use crate::oci::{Digest, Repository};
use crate::store::ImageRecord;

/// The number of finished conversions that are remembered.
const RECENT: usize = 256;
/// The most layers listed for a conversion. Docker's own images have at most 127.
const LISTED_LAYERS: usize = 128;

/// The conversion of one image manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Conversion {
    /// Counts up from 1 in this process.
    pub id: u64,
    /// The upstream's name and the repository in it.
    pub upstream: String,
    pub repository: String,
    /// Digest of the source manifest.
    pub source: Digest,
    pub state: State,
    /// When the conversion began, in seconds since 1970.
    pub started: u64,
    /// When the conversion ended, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// The layers to convert. Empty for an index, whose images are separate conversions.
    pub layers: Vec<Layer>,
    /// The digest of the converted image, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub converted: Option<Digest>,
    /// Why the conversion failed. The log has more, beside the source's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// The state of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Converted,
    /// The source image is served.
    PassedThrough,
    /// The conversion is retried at the next request.
    Failed,
}

/// A layer being converted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Layer {
    pub source: Digest,
    /// Bytes of the source layer received so far.
    pub done: u64,
    /// The size of the source layer, in bytes.
    pub total: u64,
}

/// Counts the bytes of one layer, for all conversions that wait for it.
#[derive(Debug, Default)]
pub(super) struct LayerProgress {
    done: AtomicU64,
    /// Set while an upstream sends the layer.
    is_fetching: AtomicBool,
}

impl LayerProgress {
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Starts from 0, for a second attempt.
    pub(super) fn reset(&self) {
        self.done.store(0, Ordering::Relaxed);
        self.is_fetching.store(true, Ordering::Relaxed);
    }

    /// Records that the upstream sent the whole layer.
    pub(super) fn fetched(&self) {
        self.is_fetching.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_fetching(&self) -> bool {
        self.is_fetching.load(Ordering::Relaxed)
    }

    /// Returns the bytes of the source layer received so far.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Records that the whole layer is converted, wherever it came from.
    pub(super) fn complete(&self, total: u64) {
        self.done.store(total, Ordering::Relaxed);
    }
}

/// All conversions of this process.
#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<Conversions>,
}

#[derive(Debug, Default)]
struct Conversions {
    last_id: u64,
    /// Oldest first: the running conversions and the last [`RECENT`] finished ones.
    entries: VecDeque<Entry>,
    layers: HashMap<Digest, Weak<LayerProgress>>,
}

#[derive(Debug)]
struct Entry {
    conversion: Conversion,
    progress: Vec<Arc<LayerProgress>>,
}

impl Board {
    /// Lists a new conversion.
    pub(super) fn start(
        self: &Arc<Self>,
        upstream: &str,
        repository: &Repository,
        source: &Digest,
    ) -> Running {
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        let conversion = Conversion {
            id,
            upstream: upstream.to_owned(),
            repository: repository.to_string(),
            source: source.clone(),
            state: State::Running,
            started: unix_now(),
            ended: None,
            layers: Vec::new(),
            converted: None,
            error: None,
        };
        state.entries.push_back(Entry {
            conversion,
            progress: Vec::new(),
        });
        Running {
            board: Arc::clone(self),
            id,
        }
    }

    /// Returns the counter of a layer, shared by all conversions of it.
    pub(super) fn layer(&self, source: &Digest) -> Arc<LayerProgress> {
        let mut state = self.state();
        if let Some(progress) = state.layers.get(source).and_then(Weak::upgrade) {
            return progress;
        }
        state
            .layers
            .retain(|_, progress| progress.strong_count() > 0);
        let progress = Arc::default();
        state
            .layers
            .insert(source.clone(), Arc::downgrade(&progress));
        progress
    }

    /// Returns the conversions, newest first.
    pub(super) fn list(&self) -> Vec<Conversion> {
        self.state().entries.iter().rev().map(Entry::now).collect()
    }

    fn state(&self) -> MutexGuard<'_, Conversions> {
        self.state.lock()
    }
}

impl Entry {
    fn now(&self) -> Conversion {
        let mut conversion = self.conversion.clone();
        for (layer, progress) in conversion.layers.iter_mut().zip(&self.progress) {
            layer.done = progress.done.load(Ordering::Relaxed);
        }
        conversion
    }
}

/// A running conversion. If it is dropped unfinished, it has failed.
#[derive(Debug)]
pub(super) struct Running {
    board: Arc<Board>,
    id: u64,
}

impl Running {
    /// Sets the layers that are being converted, with their sizes.
    pub(super) fn layers(&self, layers: &[(Digest, u64)]) {
        let layers = &layers[..layers.len().min(LISTED_LAYERS)];
        let progress: Vec<_> = layers
            .iter()
            .map(|(source, _)| self.board.layer(source))
            .collect();
        let layers = layers.iter().map(|(source, total)| Layer {
            source: source.clone(),
            done: 0,
            total: *total,
        });
        let layers: Vec<_> = layers.collect();
        self.change(|entry| {
            entry.conversion.layers = layers;
            entry.progress = progress;
        });
    }

    pub(super) fn finish(self, outcome: Result<&ImageRecord, &Error>) {
        self.change(|entry| match outcome {
            Ok(record) if record.converted == record.source => {
                entry.conversion.state = State::PassedThrough
            }
            Ok(record) => {
                entry.conversion.state = State::Converted;
                entry.conversion.converted = Some(record.converted.clone());
            }
            Err(error) => {
                entry.conversion.state = State::Failed;
                entry.conversion.error = Some(error.into());
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut state = self.board.state();
        if let Some(entry) = state
            .entries
            .iter_mut()
            .find(|entry| entry.conversion.id == self.id)
        {
            change(entry);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.change(|entry| {
            if entry.conversion.state == State::Running {
                entry.conversion.state = State::Failed;
                entry.conversion.error = Some(Reason::BrokenOff);
            }
            *entry = Entry {
                conversion: entry.now(),
                progress: Vec::new(),
            };
            entry.conversion.ended = Some(unix_now());
        });
        let mut state = self.board.state();
        let finished = state
            .entries
            .iter()
            .filter(|entry| entry.conversion.ended.is_some())
            .count();
        if finished > RECENT
            && let Some(oldest) = state
                .entries
                .iter()
                .position(|entry| entry.conversion.ended.is_some())
        {
            state.entries.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(board: &Arc<Board>, name: &str) -> Running {
        board.start(
            "docker.io",
            &"library/app".parse().unwrap(),
            &Digest::sha256_of(name.as_bytes()),
        )
    }

    #[test]
    fn progress_is_shared_by_all_conversions_of_a_layer() {
        let board = Arc::new(Board::default());
        let layer = (Digest::sha256_of(b"layer"), 10);
        let (first, second) = (start(&board, "a"), start(&board, "b"));
        first.layers(std::slice::from_ref(&layer));
        second.layers(std::slice::from_ref(&layer));
        board.layer(&layer.0).add(4);
        let done: Vec<_> = board
            .list()
            .iter()
            .map(|conversion| conversion.layers[0].done)
            .collect();
        assert_eq!(done, [4, 4]);
        assert_eq!(board.list()[0].id, 2, "newest first");
    }

    #[test]
    fn a_dropped_conversion_has_failed() {
        let board = Arc::new(Board::default());
        drop(start(&board, "a"));
        let conversion = &board.list()[0];
        assert_eq!(conversion.state, State::Failed);
        assert!(conversion.error.is_some() && conversion.ended.is_some());
    }

    #[test]
    fn only_finished_conversions_are_forgotten() {
        let board = Arc::new(Board::default());
        let running = start(&board, "runs");
        for number in 0..RECENT * 2 {
            start(&board, &number.to_string()).finish(Err(&Error::BrokenOff));
        }
        let list = board.list();
        assert_eq!(list.len(), RECENT + 1);
        assert_eq!(
            list.last().map(|conversion| conversion.id),
            Some(running.id)
        );
    }
}
