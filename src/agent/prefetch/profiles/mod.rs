//! Profiles: the files that containers read at their start. The agent records them, reports them to
//! the server that served the image, asks that server for its profile, and prefetches the files in
//! it. Reports go only to a Starlift server; see `upstream::Peer`.
//!
//! ```text
//! a layer is mounted ▶ image ▶ profile_fetch ─ source ▶ plan ▶ queue ▶ fetch
//! a container starts ▶ image ▶ starts ─ recorder ▶ Observation ▶ the server
//! ```

mod image;
mod plan;
mod profile_fetch;
mod progress;
mod queue;
mod source;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub(crate) use self::image::ImageLayers;
pub(crate) use self::profile_fetch::MountedLayer;
pub(crate) use self::profile_fetch::PrefetchGate;
use self::profile_fetch::{ProfileFetch, Status};
pub(crate) use self::progress::Progress;
pub(crate) use self::progress::{ProfileReport, State};
pub(crate) use self::source::ProfileSource;
use crate::agent::config::Config;
use crate::agent::layer::Layer;
use crate::budget::Budget;
use crate::profile::{Stack, Workload};

/// The path of the server's profiles, followed by the stack.
pub(crate) const API: &str = "/api/v1/profiles";
/// Most images whose profiles are remembered. The one that was requested the longest ago is dropped
/// for a new one.
const MAX_KNOWN: usize = 64;
/// Memory for profiles whose files are being fetched, in bytes: ten of the largest, or all that are
/// remembered if they have the common size.
const MEMORY: u64 = 128 << 20;
/// Pause before the server is asked again for a profile, if it had none or if files of the profile
/// are missing.
pub(crate) const AGAIN: Duration = Duration::from_secs(60);
/// Pause before it is asked again if all files are here: the profile may have changed.
const RENEWED: Duration = Duration::from_secs(600);

/// The key of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) stack: Stack,
    pub(crate) workload: Workload,
}

/// The reason why layers are announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// One was mounted.
    Mount,
    /// A container starts on them.
    Start,
}

/// The profiles of the images that are mounted.
#[derive(Debug)]
pub(crate) struct Profiles {
    is_on: bool,
    limit: u64,
    memory: Budget,
    known: Mutex<HashMap<Key, KnownProfile>>,
}

#[derive(Debug)]
struct KnownProfile {
    progress: Arc<Progress>,
    asked: Instant,
    arrivals: mpsc::UnboundedSender<Vec<MountedLayer>>,
    announced: u64,
    status: watch::Receiver<Status>,
}

impl Profiles {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            is_on: config.profiles,
            limit: config.profile_limit.as_u64(),
            memory: Budget::new("profiles", MEMORY),
            known: Mutex::default(),
        }
    }

    /// Whether servers are asked.
    pub(crate) fn are_used(&self) -> bool {
        self.is_on
    }

    /// Starts to fetch the files that the profile of `image` names in these mounted layers. Returns
    /// the handle with which the caller may wait for them.
    pub(crate) fn announce(
        &self,
        image: &ImageLayers,
        named: (&str, Workload),
        layers: &[MountedLayer],
        source: ProfileSource,
        trigger: Trigger,
    ) -> Option<PrefetchGate> {
        let (reference, workload) = named;
        let key = Key {
            stack: image.stack.clone(),
            workload,
        };
        let arrivals: Vec<MountedLayer> = layers.to_vec();
        let mut known = self.known.lock();
        if let Some(known) = known.get_mut(&key) {
            if let Some(gate) = known.announce(arrivals.clone()) {
                return Some(gate);
            }
            if !known.is_worth_asking_again(layers, trigger) {
                return None;
            }
        }
        make_room(&mut known)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let (status, watched) = watch::channel(Status::Asking);
        let progress = Arc::new(Progress::new(
            reference,
            &key.stack,
            &key.workload,
            source.name(),
        ));
        let mut new = KnownProfile {
            progress,
            asked: Instant::now(),
            arrivals: sender,
            announced: 0,
            status: watched,
        };
        let progress = Arc::clone(&new.progress);
        let gate = new.announce(arrivals);
        let (layers, limit) = (image.count, self.limit);
        let fetch = ProfileFetch {
            key: key.clone(),
            layers,
            source,
            limit,
            memory: self.memory.clone(),
            progress,
            status,
            arrivals: receiver,
        };
        known.insert(key, new);
        drop(known);
        tokio::spawn(fetch.run());
        gate
    }

    pub(crate) fn progress(&self, key: &Key) -> Option<Arc<Progress>> {
        let known = self.known.lock();
        known.get(key).map(|known| Arc::clone(&known.progress))
    }

    /// Returns the profiles that were requested recently.
    pub(crate) fn report(&self) -> Vec<ProfileReport> {
        let known = self.known.lock();
        let mut known: Vec<&KnownProfile> = known.values().collect();
        known.sort_by_key(|known| known.asked);
        known
            .into_iter()
            .map(|known| known.progress.report())
            .collect()
    }
}

/// Drops one entry that has no running fetch. Returns `None` if there is no room and no such entry.
fn make_room(known: &mut HashMap<Key, KnownProfile>) -> Option<()> {
    if known.len() >= MAX_KNOWN {
        let idle = known.iter().filter(|(_, known)| known.arrivals.is_closed());
        let oldest = idle
            .min_by_key(|(_, known)| known.asked)
            .map(|(key, _)| key.clone())?;
        known.remove(&oldest);
    }
    Some(())
}

impl KnownProfile {
    /// Sends the layers to the running fetch. Returns `None` if it has ended.
    fn announce(&mut self, arrivals: Vec<MountedLayer>) -> Option<PrefetchGate> {
        self.arrivals.send(arrivals).ok()?;
        self.announced += 1;
        Some(PrefetchGate {
            status: self.status.clone(),
            announcement: self.announced,
        })
    }

    fn is_worth_asking_again(&self, layers: &[MountedLayer], trigger: Trigger) -> bool {
        let age = self.asked.elapsed();
        match (trigger, self.progress.state()) {
            // A profile was used, and its layers are mounted anew.
            (Trigger::Mount, State::Used) => true,
            _ if age < AGAIN => false,
            (_, State::Asked | State::None) => true,
            (Trigger::Start, State::Used) => age >= RENEWED || self.has_missing_files(layers),
        }
    }

    /// Whether a file that was fetched is no longer on this node.
    fn has_missing_files(&self, layers: &[MountedLayer]) -> bool {
        let by_place: HashMap<u32, &Arc<Layer>> = layers
            .iter()
            .map(|mounted| (mounted.place, &mounted.layer))
            .collect();
        let is_gone = |(place, id)| {
            by_place
                .get(&place)
                .is_some_and(|layer| !layer.has_first_chunk(id))
        };
        self.progress.held().into_iter().any(is_gone)
    }
}
