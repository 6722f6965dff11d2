//! Profiles inferred from range requests, for clients that do not report observations.
//!
//! ```text
//! request (never waits) ▶ queue ▶ sessions (one client, one image, up to a silence)
//!                                    ▼
//!                                  trace (which files?) ▶ merger
//! ```

mod sessions;
mod trace;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};

use super::error::Error;
use super::merger::Seen;
use super::{Profiles, check};
use crate::aside::aside;
use crate::clock::unix_now;
use crate::layers::MAX_LAYERS;
use crate::oci::{Digest, Manifest};
use crate::profile::{FileUse, Knowledge, Observation, Source, Stack, Workload};
use crate::store::{StackRecord, outline};
use crate::telemetry::{log, metrics};
use sessions::{Image, Read, Session, Sessions};

/// The most events that wait. Further events are dropped. Each takes about a kilobyte at most.
const MAX_WAITING: usize = 4096;
/// A request for more ranges than this is ignored.
const MAX_PARTS: usize = 64;
/// A request for so few bytes only checks whether the blob exists (stargz-snapshotter,
/// `fetcher.check`).
const MAX_PROBE: u64 = 2;
/// Longer manifests are ignored.
const MAX_MANIFEST: usize = 256 << 10;
/// How often the sessions are checked for their end.
const TICK: Duration = Duration::from_millis(500);
/// Sessions that are evaluated at once. Each may take a TOC's worth of memory.
const LEARNING_AT_ONCE: usize = 4;
/// Layers that are remembered as not yet learned, and how long after a pull of an image that has
/// them.
const UNLEARNED_LAYERS: u64 = 10_000;
const UNLEARNED_FOR: Duration = Duration::from_secs(15 * 60);
/// The number of images whose sessions are counted.
const COUNTED_IMAGES: u64 = 10_000;
/// The memory for images, in layers: some 10 MiB.
const REMEMBERED_LAYERS: u64 = 100_000;
/// A session that began after a silence and has more than this share of all files is not a start:
/// the client fetches everything.
const MOST_FILES: f64 = 0.5;

/// Learns from range requests. Clones share it.
#[derive(Debug, Clone)]
pub struct Ranges {
    events: mpsc::Sender<Event>,
    /// By the manifest's digest.
    images: moka::sync::Cache<Digest, Option<Arc<Image>>>,
    unlearned: moka::sync::Cache<Digest, ()>,
}

#[derive(Debug)]
enum Event {
    Pulled {
        client: IpAddr,
        image: Arc<Image>,
        at: Instant,
    },
    Read(Read),
}

/// The task that processes the events.
#[derive(Debug)]
struct Learner {
    profiles: Profiles,
    sessions: Sessions,
    unlearned: moka::sync::Cache<Digest, ()>,
    /// The number of sessions after which an image counts as learned.
    enough: usize,
    counted: moka::sync::Cache<Digest, usize>,
    slots: Arc<Semaphore>,
}

impl Ranges {
    /// Starts the task, which runs until the last clone is dropped. An image counts as learned
    /// after `enough` sessions, or when as many observers are known already. Needs a runtime.
    pub fn start(profiles: Profiles, enough: usize) -> Self {
        let (events, received) = mpsc::channel(MAX_WAITING);
        let unlearned = moka::sync::Cache::builder()
            .max_capacity(UNLEARNED_LAYERS)
            .time_to_live(UNLEARNED_FOR)
            .build();
        let learner = Learner {
            profiles,
            sessions: Sessions::default(),
            unlearned: unlearned.clone(),
            enough,
            counted: moka::sync::Cache::new(COUNTED_IMAGES),
            slots: Arc::new(Semaphore::new(LEARNING_AT_ONCE)),
        };
        tokio::spawn(learner.run(received));
        let layers = |_: &Digest, image: &Option<Arc<Image>>| {
            u32::try_from(image.as_ref().map_or(1, |image| image.layers.len())).unwrap_or(u32::MAX)
        };
        let images = moka::sync::Cache::builder()
            .max_capacity(REMEMBERED_LAYERS)
            .weigher(layers)
            .build();
        Self {
            events,
            images,
            unlearned,
        }
    }

    /// Records that a client fetched an image's manifest. Never waits.
    pub fn pulled(&self, client: IpAddr, manifest: &Manifest) {
        let image = self.images.get_with(manifest.digest.clone(), || {
            let layers = (manifest.bytes.len() <= MAX_MANIFEST)
                .then(|| outline::layers(manifest))
                .flatten();
            layers
                .filter(|layers| layers.len() <= MAX_LAYERS)
                .map(|layers| Arc::new(Image { layers }))
        });
        if let Some(image) = image {
            self.send(Event::Pulled {
                client,
                image,
                at: Instant::now(),
            });
        }
    }

    /// Records that a client requested parts of a layer of `size` bytes, in order. Never waits.
    pub fn read(&self, client: IpAddr, layer: &Digest, size: u64, parts: &[Range<u64>]) {
        let is_probe = matches!(parts, [part] if part.start == 0 && part.end <= MAX_PROBE);
        if parts.is_empty() || parts.len() > MAX_PARTS || is_probe {
            return;
        }
        self.send(Event::Read(Read {
            client,
            layer: layer.clone(),
            size,
            parts: parts.to_vec(),
            at: Instant::now(),
        }));
    }

    /// Whether range requests for the layer should be recorded here, because an image that has it
    /// is not learned yet.
    pub fn wants(&self, layer: &Digest) -> bool {
        self.unlearned.contains_key(layer)
    }

    fn send(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            metrics()
                .range_requests
                .get_or_create(&[("outcome", "lost")])
                .inc();
        }
    }
}

impl Learner {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return,
                },
                _ = ticks.tick(), if !self.sessions.is_empty() => {
                    for session in self.sessions.ended(Instant::now()) {
                        self.learn(session);
                    }
                }
            }
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Pulled { client, image, at } => {
                if !self.is_learned(&image).await {
                    image
                        .layers
                        .iter()
                        .for_each(|layer| self.unlearned.insert(layer.clone(), ()));
                }
                self.sessions.begin(client, &image, at);
            }
            Event::Read(read) => {
                tracing::trace!(client = %read.client, layer = %read.layer, parts = ?read.parts, "ranges requested");
                let outcome = if self.sessions.read(read) {
                    "noted"
                } else {
                    "unknown"
                };
                metrics()
                    .range_requests
                    .get_or_create(&[("outcome", outcome)])
                    .inc();
            }
        }
    }

    async fn is_learned(&self, image: &Image) -> bool {
        let Ok(Some(record)) = self.profiles.stack(&Stack::of(&image.layers)).await else {
            return false;
        };
        if self
            .counted
            .get(&record.config)
            .is_some_and(|sessions| sessions >= self.enough)
        {
            return true;
        }
        let known = self.profiles.known(&record.config).await;
        known.is_ok_and(|known| known.observers(&Workload::default()) >= self.enough)
    }

    /// Evaluates a session in the background: which files the client read.
    fn learn(&self, session: Session) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            count("busy");
            return;
        };
        let (profiles, counted, unlearned) = (
            self.profiles.clone(),
            self.counted.clone(),
            self.unlearned.clone(),
        );
        let enough = self.enough;
        tokio::spawn(async move {
            let _slot = slot;
            match look_into(&profiles, &session).await {
                Ok(Some(config)) => {
                    let sessions = counted.get(&config).unwrap_or_default() + 1;
                    counted.insert(config, sessions);
                    if sessions >= enough {
                        session
                            .image
                            .layers
                            .iter()
                            .for_each(|layer| unlearned.invalidate(layer));
                    }
                    count("taken");
                }
                Ok(None) => count("refused"),
                Err(error) => {
                    count("refused");
                    tracing::warn!(error = log::chain(&error), "ranges were not learned from");
                }
            }
        });
    }
}

fn count(outcome: &'static str) {
    metrics()
        .observations
        .get_or_create(&[("source", "ranges"), ("outcome", outcome)])
        .inc();
}

/// Learns from a session. Returns the image's configuration if the session was used.
async fn look_into(profiles: &Profiles, session: &Session) -> Result<Option<Digest>, Error> {
    let Some(record) = profiles.stack(&Stack::of(&session.image.layers)).await? else {
        return Ok(None);
    };
    let known = profiles.known(&record.config).await?;
    let Some(files) = files(profiles, session, &record, &known).await? else {
        return Ok(None);
    };
    let observation = Observation::new(files);
    if observation.is_empty() {
        return Ok(None);
    }
    let observer = profiles.observer(&record.config, session.client).await?;
    tracing::debug!(image = %record.config, files = observation.files().len(), "observation inferred from ranges");
    let seen = Seen {
        observation,
        heard: unix_now(),
    };
    let merger = &profiles.shared.merger;
    let is_taken = merger.offer(
        &record.config,
        &Workload::default(),
        observer,
        Source::Ranges,
        seen,
    );
    Ok(is_taken.then(|| record.config.clone()))
}

/// Returns the files that a session read; `None` when its client fetches everything in the
/// background.
async fn files(
    profiles: &Profiles,
    session: &Session,
    record: &StackRecord,
    known: &Arc<Knowledge>,
) -> Result<Option<Vec<FileUse>>, Error> {
    let all = session
        .layers
        .values()
        .flat_map(|layer| layer.asked.iter().map(|asked| (asked, layer.size)));
    let block = trace::block_of(all);
    let (all_known, size) = (Arc::clone(known), known.len() * size_of::<FileUse>());
    let likely = aside(size, move || likely(&all_known)).await;
    let (mut files, mut all_files, mut seen) = (Vec::new(), 0, HashSet::new());
    for (number, digest) in (0u32..).zip(&record.layers) {
        let Some(layer) = session.layers.get(digest).filter(|_| seen.insert(digest)) else {
            continue;
        };
        let Some(toc) = check::toc(&profiles.shared.tocs, digest).await? else {
            continue;
        };
        let (asked, likely) = (
            layer.asked.clone(),
            likely.get(&number).cloned().unwrap_or_default(),
        );
        let traced = tokio::task::spawn_blocking(move || {
            let used = trace::files(&toc, number, block, &asked, |path| likely.contains(path));
            (used, trace::count(&toc))
        });
        let (used, count) = traced.await.map_err(|_ended| Error::BrokenOff)?;
        files.extend(used);
        all_files += count;
    }
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = files.len() as f64 / all_files.max(1) as f64;
    Ok((share <= MOST_FILES || !session.began_after_a_silence()).then_some(files))
}

/// Returns the files by layer that are known from better sources than ranges.
fn likely(known: &Knowledge) -> HashMap<u32, HashSet<String>> {
    let mut likely: HashMap<u32, HashSet<String>> = HashMap::new();
    for file in known.profile(&Workload::default()).files {
        if file.sources.iter().any(|source| *source != Source::Ranges) {
            likely.entry(file.layer).or_default().insert(file.path);
        }
    }
    likely
}
