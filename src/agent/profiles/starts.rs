//! Watches containers start: what they read of lazily mounted layers is told to the server that gave the image.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{AGAIN, API, ImageLayers, Key, Occasion};
use crate::agent::layer::Layer;
use crate::agent::layers::Layers;
use crate::agent::mount::Mount;
use crate::agent::recorder::{Recording, Used};
use crate::agent::tree::FileId;
use crate::profile::{FileUse, MAX_FILES, MAX_OBSERVATION_BYTES, Observation};
use crate::registry::Peer;
use crate::telemetry::metrics::metrics;

/// Most starts that are watched at once; others are as those are.
const MAX_WATCHED: usize = 32;
/// A start is over when nothing was read for so long.
const QUIET: Duration = Duration::from_secs(10);
/// The pauses before an observation is sent again; after the last it is lost.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The starts of containers; clones share them.
#[derive(Debug, Clone)]
pub struct Starts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layers: Arc<Layers>,
    /// How long a start is watched; zero: not at all.
    period: Duration,
    /// When each image was last watched: a container that crashes again and again is no news.
    begun: Mutex<HashMap<Key, Instant>>,
    watched: AtomicUsize,
}

/// A start that is watched.
struct Start {
    key: Key,
    image: String,
    recording: Recording,
    /// The layers in their places.
    mounts: Vec<(u32, Arc<Mount>)>,
}

/// What one was seen to use.
struct Seen {
    observation: Observation,
    /// The topmost lazy layer: who gave it gave the image.
    top: Option<Arc<Layer>>,
}

impl Starts {
    pub fn new(layers: Arc<Layers>) -> Self {
        let period = layers.config().record;
        Self(Arc::new(Inner {
            layers,
            period,
            begun: Mutex::default(),
            watched: AtomicUsize::new(0),
        }))
    }

    /// A container is about to start on the layers of `image`. Does not wait; call it inside a runtime.
    pub fn begin(&self, image: ImageLayers) {
        let layers = &self.0.layers;
        let mounts = image
            .mounted
            .iter()
            .filter_map(|(place, number)| Some((*place, layers.by_number(*number)?)));
        let mounts: Vec<(u32, Arc<Mount>)> = mounts.collect();
        let Some((_, top)) = mounts.last() else {
            return;
        };
        let reference = top.record.reference.clone();
        let workload = layers.config().policy(&reference).workload;
        let key = Key {
            stack: image.stack.clone(),
            workload,
        };
        if self.0.may_watch(&key) {
            let numbers = mounts.iter().map(|(_, mount)| mount.record.number);
            let recording = layers.recorder().begin(numbers, MAX_FILES);
            let start = Start {
                key,
                image: reference,
                recording,
                mounts,
            };
            let own = Arc::clone(&self.0);
            tokio::spawn(async move { own.watch(start).await });
        }
        let layers = Arc::clone(layers);
        tokio::spawn(async move { layers.fetch_ahead(&image, Occasion::Start).await });
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
        self.until_it_is_over(&start.recording).await;
        self.watched.fetch_sub(1, Ordering::Relaxed);
        let own = Arc::clone(&self);
        let (key, image) = (start.key.clone(), start.image.clone());
        let Ok(Seen {
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
        tell(&peer, &key, &image, &observation).await;
    }

    async fn until_it_is_over(&self, recording: &Recording) {
        let end = recording.begun() + self.period;
        loop {
            let quiet = recording.last().map_or(end, |last| (last + QUIET).min(end));
            if quiet <= Instant::now() {
                return;
            }
            // Looked at again soon where nothing was read yet: the first read may be the last.
            tokio::time::sleep_until(quiet.min(Instant::now() + QUIET).into()).await;
        }
    }

    /// Ends the recording and gives its files their names. Blocks.
    fn see(&self, start: Start) -> Seen {
        let Start {
            key,
            recording,
            mounts,
            ..
        } = start;
        let begun = recording.begun();
        let mut by_number: HashMap<u64, Vec<Used>> = HashMap::new();
        recording
            .end()
            .into_iter()
            .for_each(|used| by_number.entry(used.number).or_default().push(used));
        let progress = self.layers.profiles().progress(&key);
        let (mut files, mut top) = (Vec::new(), None);
        for (place, mount) in mounts {
            let Ok(layer) = self.layers.layer(&mount) else {
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
                // What is not UTF-8 is in no profile.
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
        Seen {
            observation: Observation::new(files),
            top,
        }
    }
}

async fn tell(peer: &Peer, key: &Key, image: &str, observation: &Observation) {
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
                    "what the start read was told"
                );
                return;
            }
            Err(error) => error,
        };
        match pauses.next().filter(|_| error.is_transient()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => {
                count("refused");
                tracing::debug!(image, server = peer.host(), %error, "nobody wants to know what the start read");
                return;
            }
        }
    }
}

/// The document and how many files are in it: the first that fit.
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
    fn a_document_that_would_be_too_long_has_the_first_files() {
        let file = |number: u32| FileUse {
            layer: 0,
            path: format!("{number:05}{}", "x".repeat(200)),
            extents: Extents::default(),
            after: Duration::from_millis(number.into()),
        };
        let (files, json) = document(&Observation::new((0..16_000).map(file).collect())).unwrap();
        assert!(json.len() <= MAX_OBSERVATION_BYTES && files == 8000);
        let told = Observation::parse(&json, 1).unwrap();
        assert!(told.files()[0].path.starts_with("00000"));
    }
}
