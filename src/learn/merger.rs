//! Gathers observations and writes them: each image at most once in an interval, however many nodes
//! report.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use moka::future::Cache;
use parking_lot::Mutex;

use super::Status;
use crate::clock::unix_now;
use crate::oci::Digest;
use crate::profile::{Knowledge, Observation, Source, Workload};
use crate::store::{Merge, Store};
use crate::telemetry::{log, metrics};

/// The most bytes of observations that wait to be written.
const MAX_WAITING_BYTES: usize = 40 << 20;
/// The memory of an observation beside its files, in bytes.
const WEIGHT_OF_ONE: usize = 512;
/// The number of images that are written at once.
const WRITES_AT_ONCE: usize = 4;

/// One observation of a start, and when it was received, in seconds since 1970.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) observation: Observation,
    pub(super) heard: u64,
}

/// The waiting observations of an image, by workload, observer and source. The latest of each
/// counts.
type Waiting = BTreeMap<(Workload, String, Source), Seen>;

/// A queue of observations. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Merger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    known: Cache<Digest, Arc<Knowledge>>,
    interval: Duration,
    state: Mutex<State>,
    /// Held while observations are written.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    images: HashMap<Digest, Waiting>,
    /// The weight of the observations that wait or are being written, in bytes.
    weight: usize,
    is_scheduled: bool,
    merges: u64,
    last_learned: Option<u64>,
}

impl Merger {
    pub(super) fn new(
        store: Store,
        known: Cache<Digest, Arc<Knowledge>>,
        interval: Duration,
    ) -> Self {
        let (state, writing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self {
            inner: Arc::new(Inner {
                store,
                known,
                interval,
                state,
                writing,
            }),
        }
    }

    /// Queues an observation, to be written within the interval. Returns `false` when too many
    /// wait.
    pub(super) fn offer(
        &self,
        image: &Digest,
        workload: &Workload,
        observer: String,
        source: Source,
        seen: Seen,
    ) -> bool {
        let mut state = self.inner.state.lock();
        let weight = weight(&seen);
        if state.weight + weight > MAX_WAITING_BYTES {
            return false;
        }
        let waiting = state.images.entry(image.clone()).or_default();
        let replaced = waiting.insert((workload.clone(), observer, source), seen);
        state.weight = state.weight + weight - replaced.as_ref().map_or(0, self::weight);
        if !std::mem::replace(&mut state.is_scheduled, true) {
            tokio::spawn(Arc::clone(&self.inner).run());
        }
        true
    }

    /// Writes the waiting observations. Returns when no write is running any more.
    pub(super) async fn flush(&self) {
        self.inner.write().await;
    }

    pub(super) fn status(&self) -> Status {
        let state = self.inner.state.lock();
        Status {
            merges: state.merges,
            last_learned: state.last_learned,
            waiting_images: state.images.len(),
        }
    }
}

impl Inner {
    async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.interval).await;
            self.write().await;
            let mut state = self.state.lock();
            if state.images.is_empty() {
                state.is_scheduled = false;
                return;
            }
        }
    }

    async fn write(&self) {
        let _writing = self.writing.lock().await;
        let images = std::mem::take(&mut self.state.lock().images);
        let writes = images
            .into_iter()
            .map(|(image, waiting)| self.write_image(image, waiting));
        stream::iter(writes)
            .buffer_unordered(WRITES_AT_ONCE)
            .collect::<()>()
            .await;
    }

    async fn write_image(&self, image: Digest, waiting: Waiting) {
        let (opinions, weight_of_all) =
            (waiting.len(), waiting.values().map(weight).sum::<usize>());
        let waiting = Arc::new(waiting);
        let (merge, started): (Merge, _) = (merging(Arc::clone(&waiting)), Instant::now());
        let outcome = self.store.learn(&image, &merge).await;
        drop(merge);
        metrics()
            .profile_merge_seconds
            .observe(started.elapsed().as_secs_f64());
        self.state.lock().weight -= weight_of_all;
        match outcome {
            Ok(known) => {
                self.state.lock().learned();
                metrics()
                    .profile_merges
                    .get_or_create(&[("outcome", "written")])
                    .inc();
                tracing::debug!(%image, opinions, "observations merged");
                self.known.insert(image, Arc::new(known)).await;
                self.known.run_pending_tasks().await;
            }
            Err(error) => {
                metrics()
                    .profile_merges
                    .get_or_create(&[("outcome", "failed")])
                    .inc();
                tracing::warn!(%image, opinions, error = log::chain(&error), "what was learned is not written yet");
                self.state
                    .lock()
                    .put_back(image, Arc::unwrap_or_clone(waiting));
            }
        }
    }
}

impl State {
    fn learned(&mut self) {
        self.merges += 1;
        self.last_learned = Some(unix_now());
    }

    /// Queues observations again whose write failed, unless newer ones arrived meanwhile.
    fn put_back(&mut self, image: Digest, failed: Waiting) {
        let waiting = self.images.entry(image).or_default();
        for (who, seen) in failed {
            if let Entry::Vacant(place) = waiting.entry(who) {
                self.weight += weight(&seen);
                place.insert(seen);
            }
        }
    }
}

fn weight(seen: &Seen) -> usize {
    seen.observation.weight() + WEIGHT_OF_ONE
}

/// Returns a merge of all waiting observations, in the order they were received.
fn merging(waiting: Arc<Waiting>) -> Merge {
    Arc::new(move |knowledge: &mut Knowledge| {
        let mut opinions: Vec<_> = waiting.iter().collect();
        opinions.sort_by_key(|(_, seen)| seen.heard);
        for ((workload, observer, source), seen) in opinions {
            knowledge.observe(workload, observer, *source, &seen.observation, seen.heard);
        }
    })
}
