//! Watches the starts of containers, and reports the files that they read from lazily mounted
//! layers to the server that served the image.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::agent::layer::Layer;
use crate::agent::layer::tree::FileId;
use crate::agent::layers::Layers;
use crate::agent::layers::ahead::Ahead;
use crate::agent::layers::mount::Mount;
use crate::agent::layers::recorder::{Recorder, Recording, Used};
use crate::agent::layers::table::Table;
use crate::agent::numbers::LayerNumber;
use crate::agent::prefetch::profiles::{AGAIN, API, ImageLayers, Key, Trigger};
use crate::profile::{FileUse, MAX_FILES, MAX_OBSERVATION_BYTES, Observation};
use crate::registry::Peer;
use crate::telemetry::metrics::metrics;

/// Most starts that are watched at once. Further starts are not watched, because they resemble
/// these.
const MAX_WATCHED: usize = 32;
/// A start is over after this time without a read.
const QUIET: Duration = Duration::from_secs(10);
/// The pauses before an observation is sent again. After the last attempt it is lost.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The starts of containers. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Starts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Arc<Table>,
    ahead: Arc<Ahead>,
    recorder: Arc<Recorder>,
    /// How long a start is watched. Zero turns watching off.
    period: Duration,
    /// The time when each image was last watched: a container that crashes in a loop is watched
    /// only once in a while.
    begun: Mutex<HashMap<Key, Instant>>,
    watched: AtomicUsize,
}

/// A start that is being watched.
struct Start {
    key: Key,
    image: String,
    recording: Recording,
    /// The layers with their places.
    mounts: Vec<(u32, Arc<Mount>)>,
}

/// The files that a start used.
struct ObservedStart {
    observation: Observation,
    /// The topmost lazy layer. Its server is the one that served the image.
    top: Option<Arc<Layer>>,
}

impl Starts {
    pub(super) fn new(layers: &Layers) -> Self {
        let period = layers.ahead().config().record;
        Self(Arc::new(Inner {
            table: Arc::clone(layers.table()),
            ahead: Arc::clone(layers.ahead()),
            recorder: Arc::clone(layers.recorder()),
            period,
            begun: Mutex::default(),
            watched: AtomicUsize::new(0),
        }))
    }

    /// Starts to watch a container that is about to start on the layers of `image`, and prefetches
    /// its profile. Does not wait. Must be called inside a runtime.
    pub(super) fn begin(&self, image: ImageLayers) {
        let Inner {
            table,
            ahead,
            recorder,
            ..
        } = &*self.0;
        let mounts = image
            .mounted
            .iter()
            .filter_map(|(place, number)| Some((*place, table.by_number(*number)?)));
        let mounts: Vec<(u32, Arc<Mount>)> = mounts.collect();
        let Some((_, top)) = mounts.last() else {
            return;
        };
        let reference = top.record.reference.clone();
        let workload = ahead.config().policy(&reference).workload;
        let key = Key {
            stack: image.stack.clone(),
            workload,
        };
        // The kernel answers reads of pages that an earlier container read, and the agent does not
        // see them. Only the first start over these layers shows all its reads.
        let is_first = mounts
            .iter()
            .fold(true, |is_first, (_, mount)| mount.mark_used() && is_first);
        if is_first && self.0.may_watch(&key) {
            let numbers = mounts.iter().map(|(_, mount)| mount.record.number);
            let recording = recorder.begin(numbers, MAX_FILES);
            let start = Start {
                key,
                image: reference,
                recording,
                mounts,
            };
            let own = Arc::clone(&self.0);
            tokio::spawn(async move { own.watch(start).await });
        }
        let ahead = Arc::clone(ahead);
        tokio::spawn(async move { ahead.prefetch_profile(&image, Trigger::Start).await });
    }
}

impl Inner {
    fn may_watch(&self, key: &Key) -> bool {
        if self.period.is_zero() || self.watched.load(Ordering::Relaxed) >= MAX_WATCHED {
            return false;
        }
        let mut begun = self.begun.lock();
        begun.retain(|_, begun| begun.elapsed() < AGAIN.max(self.period));
        if begun.contains_key(key) {
            return false;
        }
        begun.insert(key.clone(), Instant::now());
        self.watched.fetch_add(1, Ordering::Relaxed);
        true
    }

    async fn watch(self: Arc<Self>, start: Start) {
        self.wait_for_end(&start.recording).await;
        self.watched.fetch_sub(1, Ordering::Relaxed);
        let own = Arc::clone(&self);
        let (key, image) = (start.key.clone(), start.image.clone());
        let Ok(ObservedStart {
            observation,
            top: Some(top),
        }) = tokio::task::spawn_blocking(move || own.see(start)).await
        else {
            return;
        };
        if observation.is_empty() {
            return;
        }
        let Some(peer) = top.peer().await else { return };
        send(&peer, &key, &image, &observation).await;
    }

    async fn wait_for_end(&self, recording: &Recording) {
        let end = recording.begun() + self.period;
        loop {
            let quiet = recording.last().map_or(end, |last| (last + QUIET).min(end));
            if quiet <= Instant::now() {
                return;
            }
            // If nothing has been read yet, look again soon: the first read may be the last.
            tokio::time::sleep_until(quiet.min(Instant::now() + QUIET).into()).await;
        }
    }

    /// Ends the recording and resolves its files to paths. Blocking.
    fn see(&self, start: Start) -> ObservedStart {
        let Start {
            key,
            recording,
            mounts,
            ..
        } = start;
        let begun = recording.begun();
        let mut by_number: HashMap<LayerNumber, Vec<Used>> = HashMap::new();
        recording
            .end()
            .into_iter()
            .for_each(|used| by_number.entry(used.number).or_default().push(used));
        let progress = self.ahead.profiles().progress(&key);
        let (mut files, mut top) = (Vec::new(), None);
        for (place, mount) in mounts {
            let Ok(layer) = self.table.layer(&mount) else {
                continue;
            };
            top = Some(Arc::clone(layer));
            let used = by_number.remove(&mount.record.number).unwrap_or_default();
            let ids: HashSet<FileId> = used.iter().map(|used| used.id).collect();
            let mut paths = layer.tree().paths(&ids);
            for Used {
                id, after, extents, ..
            } in used
            {
                // A path that is not UTF-8 cannot be in a profile.
                let Some(path) = paths
                    .remove(&id)
                    .and_then(|path| String::from_utf8(path).ok())
                else {
                    continue;
                };
                if let Some(progress) = &progress {
                    let how = progress.when_used(place, id, begun + after).as_str();
                    metrics()
                        .agent_profile_files
                        .get_or_create(&[("use", how)])
                        .inc();
                }
                files.push(FileUse {
                    layer: place,
                    path,
                    extents,
                    after,
                });
            }
        }
        ObservedStart {
            observation: Observation::new(files),
            top,
        }
    }
}

async fn send(peer: &Peer, key: &Key, image: &str, observation: &Observation) {
    let count = |outcome| {
        metrics()
            .agent_observations
            .get_or_create(&[("outcome", outcome)])
            .inc()
    };
    let Some((files, json)) = document(observation) else {
        return;
    };
    let (path, workload) = (
        format!("{API}/{}", key.stack),
        String::from(key.workload.clone()),
    );
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match peer
            .post(&path, &[("workload", workload.as_str())], json.clone())
            .await
        {
            Ok(()) => {
                count("sent");
                tracing::info!(
                    image,
                    files,
                    bytes = json.len(),
                    server = peer.host(),
                    "observation sent"
                );
                return;
            }
            Err(error) => error,
        };
        match pauses.next().filter(|_| error.is_transient()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => {
                count("refused");
                tracing::debug!(image, server = peer.host(), %error, "observation not accepted");
                return;
            }
        }
    }
}

/// Returns the document and the number of files in it: as many of the first files as fit.
fn document(observation: &Observation) -> Option<(usize, Bytes)> {
    let mut observation = observation.clone();
    loop {
        let json = observation.to_json().ok()?;
        let files = observation.files();
        if json.len() <= MAX_OBSERVATION_BYTES {
            return Some((files.len(), json.into()));
        }
        observation = Observation::new(files[..files.len() / 2].to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Extents;

    #[test]
    fn a_document_that_would_be_too_long_contains_the_first_files() {
        let file = |number: u32| FileUse {
            layer: 0,
            path: format!("{number:05}{}", "x".repeat(200)),
            extents: Extents::default(),
            after: Duration::from_millis(number.into()),
        };
        let (files, json) = document(&Observation::new((0..16_000).map(file).collect())).unwrap();
        assert!(json.len() <= MAX_OBSERVATION_BYTES && files == 8000);
        let sent = Observation::parse(&json, 1).unwrap();
        assert!(sent.files()[0].path.starts_with("00000"));
    }
}
