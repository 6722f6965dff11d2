//! What all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::convert::{Converter, Profiles, Ranges};
use crate::store::Store;
use crate::upstream::{self, Source, Upstreams};

use super::blobs::BlobSizes;
use super::config::Config;
use super::jobs::Jobs;
use super::originals::Originals;
use super::resolver::Resolver;

/// Blob sizes remembered: 64 bytes or so each.
const MAX_BLOB_SIZES: u64 = 100_000;

pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) upstreams: Upstreams,
    pub(crate) converter: Converter,
    pub(crate) resolver: Resolver,
    pub(crate) originals: Originals,
    pub(crate) blob_sizes: BlobSizes,
    pub(crate) jobs: Jobs,
    pub(crate) profiles: Profiles,
    /// Set where ranges are learned from.
    pub(crate) ranges: Option<Ranges>,
    /// One permit for each node that may tell what it saw at once.
    pub(crate) senders: Semaphore,
    /// One permit for each request that may run at once.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) started: Instant,
    is_draining: AtomicBool,
}

impl App {
    /// Needs a runtime.
    pub(crate) fn new(config: Config, store: Store, upstreams: Upstreams, converter: Converter) -> Self {
        let profiles = Profiles::new(&converter, config.profiles.merge_interval);
        let learns = config.profiles.enabled && config.profiles.learn_from_ranges;
        Self {
            ranges: learns.then(|| Ranges::start(profiles.clone(), config.profiles.starts_before_redirect)),
            profiles,
            resolver: Resolver::new(&config),
            originals: Originals::new(config.manifest_cache),
            blob_sizes: BlobSizes::new(MAX_BLOB_SIZES),
            jobs: Jobs::new(config.max_jobs),
            senders: Semaphore::new(config.profiles.max_senders.min(Semaphore::MAX_PERMITS)),
            permits: Arc::new(Semaphore::new(config.max_requests.min(Semaphore::MAX_PERMITS))),
            started: Instant::now(),
            is_draining: AtomicBool::new(false),
            config,
            store,
            upstreams,
            converter,
        }
    }

    /// The upstream called `name`.
    pub(crate) fn source(&self, name: &str) -> Result<Source, upstream::Error> {
        self.upstreams.get(name)
    }

    /// Tells `/readyz` that no new work is wanted.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }
}
