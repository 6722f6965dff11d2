//! The agent's status report: the lazy layers, how much of them is on this node, and the layers
//! that are not lazy, with the reasons.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::mount::Mount;
use crate::agent::erofs::{Driver, DriverReport};
use crate::agent::layer::data::{CacheUsage, FreeSpace};
use crate::agent::layer::fetch::Reason;
pub(crate) use crate::agent::layer::measure::Measure;
use crate::agent::layer::opening::remote::NotLazy;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::numbers::LayerNumber;
use crate::agent::prefetch::profiles::ProfileReport;
use crate::oci::Digest;
use crate::telemetry::log::chain;

/// Most layers that were not mounted lazily and are remembered.
const MAX_REFUSALS: usize = 200;

/// The whole status report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub layers: Vec<LayerReport>,
    /// Profiles requested since the agent was started, the newest last.
    #[serde(default)]
    pub profiles: Vec<ProfileReport>,
    pub cache: CacheUsage,
    /// Most bytes of the cache.
    pub cache_limit: u64,
    /// The free space of the disk, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_space: Option<FreeSpace>,
    /// The newest last.
    pub refusals: Vec<Refusal>,
    /// Directories of needed mounts that are not mounted. Images are unpacked until they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmounted: Vec<PathBuf>,
    /// The driver of new layers.
    #[serde(default)]
    pub driver: DriverReport,
}

/// A layer that is mounted lazily.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerReport {
    pub number: LayerNumber,
    pub image: String,
    pub digest: Digest,
    /// Bytes of the layer in the registry.
    pub blob_size: u64,
    /// The size of its files' content, and how much of it is on this node. Not known before the
    /// layer's first use since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Measure>,
    /// Since the agent was started, as are the byte counts.
    pub requests: u64,
    pub read_bytes: u64,
    pub prefetched_bytes: u64,
    #[serde(default)]
    pub profile_bytes: u64,
    pub background_bytes: u64,
    /// Chunks that could not be fetched, or were refused.
    pub errors: u64,
    /// Whether one of its files has an extended attribute. Not known before the layer's first use
    /// since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_xattrs: Option<bool>,
    #[serde(default)]
    pub driver: Driver,
    /// Whether the kernel reads its content without the agent.
    #[serde(default)]
    pub is_native: bool,
    /// The reason why none of its files can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// A layer that is not mounted lazily.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub image: String,
    pub digest: Digest,
    pub reason: String,
    /// The last time that it was requested.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    pub times: u64,
}

impl LayerReport {
    pub(crate) fn of(mount: &Mount) -> Self {
        let loaded = mount.loaded();
        let (layer, damage) = match loaded {
            Some(Ok(layer)) => (Some(layer), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let traffic = layer.map(|layer| layer.traffic());
        let bytes = |reason| traffic.map_or(0, |traffic| traffic.bytes(reason));
        Self {
            number: mount.record.number,
            image: mount.record.reference.clone(),
            digest: mount.record.digest.clone(),
            blob_size: mount.record.blob_size,
            content: layer.map(|layer| layer.measure()),
            requests: traffic.map_or(0, |traffic| traffic.requests()),
            read_bytes: bytes(Reason::Read),
            prefetched_bytes: bytes(Reason::Prefetch),
            profile_bytes: bytes(Reason::Profile),
            background_bytes: bytes(Reason::Background),
            errors: traffic.map_or(0, |traffic| traffic.errors()),
            has_xattrs: layer.map(|layer| layer.tree().has_xattrs()),
            driver: Driver::default(),
            is_native: false,
            damage,
        }
    }
}

/// The layers that were recently not mounted lazily.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    pub(crate) fn note(&self, spec: &LayerSpec, reason: &NotLazy) {
        let mut refusals = self.0.lock();
        let (image, digest, reason) = (spec.reference.clone(), spec.digest.clone(), chain(reason));
        let is_same = |known: &Refusal| {
            (&known.image, &known.digest, &known.reason) == (&image, &digest, &reason)
        };
        let known = refusals
            .iter()
            .position(is_same)
            .and_then(|index| refusals.remove(index));
        let times = known.map_or(0, |known| known.times) + 1;
        refusals.push_back(Refusal {
            image,
            digest,
            reason,
            at: SystemTime::now(),
            times,
        });
        let surplus = refusals.len().saturating_sub(MAX_REFUSALS);
        drop(refusals.drain(..surplus));
    }

    pub(crate) fn all(&self) -> Vec<Refusal> {
        self.0.lock().iter().cloned().collect()
    }
}
