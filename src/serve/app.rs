//! The state that all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::catalog::Catalog;
use crate::convert::Converter;
use crate::flight::Forgotten;
use crate::learn::{Profiles, Ranges};
use crate::oci::Digest;
use crate::oci::route::Location;
use crate::registry;
use crate::store::Store;
use crate::transport::{Source, Upstreams};

use super::access::{Access, AccessError};
use super::audit::Audit;
use super::budgets::Budgets;
use super::config::Config;
use super::documents::Documents;
use super::guard::Names;
use super::jobs::Jobs;
use super::places::Places;
use super::resolver::Resolver;
use super::source_manifests::SourceManifests;

/// The number of remembered blob sizes, of some 64 bytes each.
const MAX_BLOB_SIZES: u64 = 100_000;

/// The most concurrent requests to Starlift's own API. Each makes an answer of a few hundred KiB at
/// most.
const API_PLACES: usize = 128;
/// The least percentage of them that one client may have: an operator's machine may ask for status
/// and metrics at once.
const API_SHARE: u8 = 50;

/// The number of upstream requests that continue after their clients left, because clients may well
/// ask again, and for how long.
const FORGOTTEN: usize = 32;
const FORGOTTEN_TIME: Duration = Duration::from_secs(10);

/// Memory for request bodies: the observations of ten nodes at once, or thousands of references.
const BODIES: u64 = 64 << 20;

/// Sizes of upstream blobs: lazy clients send many ranges for each.
pub(crate) type BlobSizes = Cache<(Location, Digest), u64>;

pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) upstreams: Upstreams,
    pub(crate) access: Access,
    pub(crate) converter: Converter,
    pub(crate) resolver: Resolver,
    pub(crate) source_manifests: SourceManifests,
    pub(crate) blob_sizes: BlobSizes,
    pub(crate) jobs: Jobs,
    pub(crate) profiles: Profiles,
    /// What the store holds, for the pages.
    pub(crate) catalog: Catalog,
    /// Set if ranges are learned from.
    pub(crate) ranges: Option<Ranges>,
    /// One permit for each node that may send an observation at the same time.
    pub(crate) senders: Semaphore,
    /// One place for each concurrent request for images.
    pub(crate) places: Arc<Places>,
    /// One place for each concurrent request to Starlift's own API.
    pub(crate) api_places: Arc<Places>,
    pub(crate) budgets: Budgets,
    /// Set if decisions are logged.
    pub(crate) audit: Option<Audit>,
    /// Memory for the documents of answers.
    pub(crate) documents: Documents,
    /// Memory for the bodies of requests.
    pub(crate) bodies: Budget,
    /// The names by which clients reach this server.
    pub(crate) names: Names,
    pub(crate) started: Instant,
    is_draining: AtomicBool,
}

impl App {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// If a file of users or issuers cannot be used.
    pub(crate) fn new(
        config: Config,
        store: Store,
        upstreams: Upstreams,
        converter: Converter,
        profiles: Profiles,
        audit: Option<Audit>,
    ) -> Result<Self, AccessError> {
        let forgotten = Forgotten::new(FORGOTTEN, FORGOTTEN_TIME);
        let learns = config.profiles.enabled && config.profiles.learn_from_ranges;
        Ok(Self {
            ranges: learns
                .then(|| Ranges::start(profiles.clone(), config.profiles.starts_before_redirect)),
            catalog: Catalog::new(
                store.clone(),
                converter.generation().clone(),
                profiles.clone(),
            ),
            profiles,
            resolver: Resolver::new(&config, forgotten.clone()),
            source_manifests: SourceManifests::new(config.manifest_cache, forgotten),
            blob_sizes: BlobSizes::new(MAX_BLOB_SIZES),
            jobs: Jobs::new(config.max_jobs),
            senders: Semaphore::new(config.profiles.max_senders.min(Semaphore::MAX_PERMITS)),
            places: Places::new(config.max_requests, config.client_share),
            api_places: Places::new(API_PLACES, config.client_share.max(API_SHARE)),
            budgets: Budgets::new(&config.budgets),
            audit,
            documents: Documents::new(),
            bodies: Budget::new("bodies of requests", BODIES),
            names: Names::new(&config),
            started: Instant::now(),
            is_draining: AtomicBool::new(false),
            access: Access::new(&config.access, store.clone())?,
            config,
            store,
            upstreams,
            converter,
        })
    }

    /// The upstream named `name`.
    pub(crate) fn source(&self, name: &str) -> Result<Source, registry::Error> {
        self.upstreams.get(name)
    }

    /// Makes `/readyz` report that the server stops.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }
}
