//! Fetches the files in the profile of one image, while its layers are mounted and a container
//! starts on them.
//!
//! ```text
//! ask the server ▶ files, in order ─┬▶ queue ▶ a few requests at once ▶ data files
//! layers as they are mounted ───────┘
//! ```
//! A read shares the requests that are in progress, and sends its own for chunks that are still
//! queued. Readers never wait for the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{Planned, lists_parts_read, plan};
use super::progress::{Progress, State};
use super::queue::{Queue, Run};
use super::{Key, ProfileSource};
use crate::agent::layer::Layer;
use crate::agent::layer::fetch::{FetchError, Reason};
use crate::agent::layer::tree::FileId;
use crate::aside::aside;
use crate::budget::{Budget, Weight};
use crate::profile::{Profile, Source};
use crate::registry;
use crate::telemetry::metrics::metrics;

/// Most requests in progress. With small files, eight hide a round trip of 20 ms at 100 Mbit/s.
const MAX_REQUESTS: usize = 8;
/// Most bytes in progress, unless a single chunk is larger: a third of a second at 100 Mbit/s, so
/// that the last files delay neither the first files nor an unforeseen read.
const MAX_BYTES: u64 = 4 << 20;
/// How long to wait for further layers of the image to be mounted.
const LINGER: Duration = Duration::from_secs(30);
/// Consecutive failures after which the rest is left to readers, and the pause after the first
/// failure. Each further pause is twice as long.
const MAX_FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The memory of a profile while it is parsed, for each byte of its text, and how long it is waited
/// for.
const PARSED_GROWTH: u64 = 6;
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);
/// How long the files before the landmark wait for the server's answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A mounted layer of the image.
#[derive(Debug, Clone)]
pub(crate) struct MountedLayer {
    /// Counted from the bottom of the image.
    pub place: u32,
    pub layer: Arc<Layer>,
    /// Cancelled when the layer is unmounted.
    pub gone: CancellationToken,
}

/// How many announcements of layers have been processed, or that the server has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Asking,
    Done(u64),
}

/// The right to wait until the files of a layer's profile have been fetched.
#[derive(Debug)]
pub(crate) struct PrefetchGate {
    pub(super) status: watch::Receiver<Status>,
    pub(super) announcement: u64,
}

/// The work for one image.
pub(super) struct ProfileFetch {
    pub(super) key: Key,
    /// The number of layers that the image has.
    pub(super) layers: u32,
    pub(super) source: ProfileSource,
    pub(super) limit: u64,
    pub(super) memory: Budget,
    pub(super) progress: Arc<Progress>,
    pub(super) status: watch::Sender<Status>,
    pub(super) arrivals: mpsc::UnboundedReceiver<Vec<MountedLayer>>,
}

/// The files to fetch, by layer.
#[derive(Default)]
struct Work {
    layers: HashMap<u32, MountedLayer>,
    queue: Queue,
    /// By file: its layer, its ID and the number of its missing chunks.
    left: HashMap<u32, (u32, FileId, usize)>,
}

impl PrefetchGate {
    /// Waits until the files that the profile names in this layer have arrived. Does not wait long
    /// for a silent server.
    pub(crate) async fn pass(mut self) {
        let answered = self.status.wait_for(|status| *status != Status::Asking);
        if !matches!(tokio::time::timeout(PATIENCE, answered).await, Ok(Ok(_))) {
            return;
        }
        let announcement = self.announcement;
        let is_done = |status: &Status| matches!(status, Status::Done(dealt_with) if *dealt_with >= announcement);
        // An error means that the fetch has ended.
        let _ended = self.status.wait_for(is_done).await;
    }
}

impl ProfileFetch {
    pub(super) async fn run(mut self) {
        let Some((profile, _weight)) = self.request_profile().await else {
            self.progress.set(State::None);
            return;
        };
        self.progress.set(State::Used);
        metrics()
            .agent_profiles
            .get_or_create(&[("outcome", "used")])
            .inc();
        let begun = Instant::now();
        self.fetch(&profile).await;
        let report = self.progress.report();
        tracing::info!(
            image = report.image,
            files = report.files,
            held = report.held_files,
            bytes = report.bytes,
            requests = report.requests,
            seconds = begun.elapsed().as_secs_f64(),
            sources = sources(&profile),
            server = report.server,
            "fetched by profile"
        );
    }

    /// Returns the profile and the memory that is reserved for it.
    async fn request_profile(&self) -> Option<(Arc<Profile>, Weight)> {
        let Key { stack, workload } = &self.key;
        let answer = self.source.profile(&self.key).await;
        let count = |outcome| {
            metrics()
                .agent_profiles
                .get_or_create(&[("outcome", outcome)])
                .inc()
        };
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(registry::Error::NotFound) => {
                count("none");
                tracing::debug!(%stack, %workload, server = self.progress.server(), "no profile for the image");
                return None;
            }
            Err(error) => {
                count("failed");
                tracing::warn!(%stack, %workload, server = self.progress.server(), %error, "profile not fetched");
                return None;
            }
        };
        match self.parse(bytes).await {
            Ok((profile, _)) if profile.is_empty() => {
                count("none");
                None
            }
            Ok((profile, weight)) => Some((Arc::new(profile), weight)),
            Err(error) => {
                count("failed");
                tracing::warn!(%stack, %workload, server = self.progress.server(), error, "profile not understood");
                None
            }
        }
    }

    async fn parse(&self, bytes: Bytes) -> Result<(Profile, Weight), String> {
        let most = bytes.len() as u64 * PARSED_GROWTH;
        let taken = self.memory.take_within(most, MEMORY_PATIENCE).await;
        let mut weight = taken.map_err(|full| full.to_string())?;
        let parsed = aside(bytes.len(), move || Profile::parse(&bytes)).await;
        let profile = parsed.map_err(|error| error.to_string())?;
        weight.shrink_to(profile.weight() as u64);
        Ok((profile, weight))
    }

    /// Fetches until all files of all layers have arrived, or no further layers come.
    async fn fetch(&mut self, profile: &Arc<Profile>) {
        let mut work = Work::default();
        let mut running = JoinSet::new();
        let (mut under_way, mut next, mut dealt_with, mut failures) = (0, None, 0, 0);
        loop {
            while running.len() < MAX_REQUESTS
                && let Some(run) = next.take().or_else(|| work.queue.next())
            {
                let bytes = run.bytes();
                if !running.is_empty() && under_way + bytes > MAX_BYTES {
                    next = Some(run);
                    break;
                }
                let Some(arrival) = work.layers.get(&run.layer).cloned() else {
                    continue;
                };
                if arrival.gone.is_cancelled() {
                    work.queue.forget(run.layer);
                    continue;
                }
                if self.progress.bytes() + bytes > self.limit
                    || !arrival.layer.fetcher().store().has_room()
                {
                    tracing::info!(stack = %self.key.stack, "limit reached; the rest of the profile is not prefetched");
                    work.queue.clear();
                    break;
                }
                under_way += bytes;
                self.progress.count(bytes);
                running.spawn(hold(arrival, run));
            }
            let is_idle = running.is_empty();
            if is_idle {
                // It is not a failure if nobody waits.
                let _unheard = self.status.send(Status::Done(dealt_with));
                if work.layers.contains_key(&(self.layers.saturating_sub(1))) {
                    return;
                }
            }
            tokio::select! {
                Some(done) = running.join_next(), if !is_idle => {
                    let Ok((run, outcome)) = done else { return };
                    under_way -= run.bytes();
                    match outcome {
                        Ok(()) => {
                            failures = 0;
                            work.landed(&run, &self.progress);
                        }
                        Err(FetchError::Wrong(_)) => {}
                        // The request has logged the error.
                        Err(_logged) if failures < MAX_FAILURES => {
                            tokio::time::sleep(FIRST_PAUSE * (1 << failures)).await;
                            failures += 1;
                            work.queue.add(run.layer, run.chunks);
                        }
                        Err(_logged) => return,
                    }
                }
                Some(arrivals) = self.arrivals.recv() => {
                    dealt_with += 1;
                    for arrival in arrivals {
                        work.add(profile, arrival, &self.progress).await;
                    }
                }
                () = tokio::time::sleep(LINGER), if is_idle => return,
                else => return,
            }
        }
    }
}

impl Work {
    async fn add(&mut self, profile: &Arc<Profile>, arrival: MountedLayer, progress: &Progress) {
        let place = arrival.place;
        if self
            .layers
            .get(&place)
            .is_some_and(|known| !known.gone.is_cancelled())
        {
            return;
        }
        self.queue.forget(place);
        if lists_parts_read(profile, place) {
            arrival.layer.foresee_parts();
        }
        let (own, layer) = (Arc::clone(profile), Arc::clone(&arrival.layer));
        self.layers.insert(place, arrival);
        let planned = tokio::task::spawn_blocking(move || plan(&own, place, &layer))
            .await
            .unwrap_or_default();
        for Planned { file, id, missing } in planned {
            if missing.is_empty() {
                progress.arrived(place, id);
            } else {
                progress.expect(place, id);
                self.left.insert(file, (place, id, missing.len()));
                self.queue.add(place, missing);
            }
        }
    }

    fn landed(&mut self, run: &Run, progress: &Progress) {
        for chunk in &run.chunks {
            let Some((place, id, left)) = self.left.get_mut(&chunk.file) else {
                continue;
            };
            *left -= 1;
            if *left == 0 {
                progress.arrived(*place, *id);
                self.left.remove(&chunk.file);
            }
        }
    }
}

async fn hold(arrival: MountedLayer, run: Run) -> (Run, Result<(), FetchError>) {
    let numbers = run.chunks.iter().map(|chunk| chunk.number);
    let held = arrival
        .gone
        .run_until_cancelled(arrival.layer.hold(numbers, Reason::Profile))
        .await;
    (run, held.unwrap_or(Ok(())))
}

/// Returns how many files come from each source: `412 by-hand, 30 agents`.
fn sources(profile: &Profile) -> String {
    let count = |source| {
        profile
            .files
            .iter()
            .filter(|file| file.sources.contains(&source))
            .count()
    };
    let counted = Source::ALL.map(|source| (count(source), source.name()));
    let named: Vec<String> = counted
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    named.join(", ")
}
