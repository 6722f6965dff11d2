//! What we keep: converted layers, small objects, records and leases, in a folder or a bucket.
//!
//! Records are written last and are the commit point; what no record names is swept. An object is visible when a digest
//! record says where it lies, and what is visible can be read:
//!
//! ```text
//! layer bytes ▶ digest record ▶ layer record ┐
//! manifest, config ▶ digest record           ├▶ image record
//! ```

mod backend;
mod blobs;
mod config;
mod error;
mod folder;
pub mod key;
mod lease;
mod profiles;
pub mod records;
mod remote;
mod sweep;
mod upload;
mod used;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::sync::Semaphore;

use crate::oci::Digest;
use backend::Backend;
pub use config::{Config, Retention, Secret};
pub use error::Error;
pub use key::{Generation, Key};
pub use lease::Lease;
pub use profiles::{Merge, Salt, StackRecord};
pub use records::{ImageRecord, LayerOutcome, LayerRecord};
pub use sweep::SweepReport;
pub use upload::LayerUpload;

/// How many objects' places are remembered: about 30 MiB.
const FOUND_OBJECTS: u64 = 100_000;
/// How long an object's place is believed; shorter than any sensible grace, so that what another replica swept is
/// forgotten in time.
const FOUND_FOR: Duration = Duration::from_secs(5 * 60);
/// How many image records are remembered.
const FOUND_IMAGES: u64 = 10_000;
/// How long an image record is believed: another replica may add a platform to an index.
const IMAGE_FOR: Duration = Duration::from_secs(10);
/// The memory for manifests and configurations, in bytes.
const SMALL_OBJECTS: u64 = 32 << 20;
/// A use is written down at most once in this time, or twice in the grace if that is shorter.
const USE_NOTED_FOR: Duration = Duration::from_secs(60 * 60);
/// How many uses are written down at once.
const NOTES_AT_ONCE: usize = 4;

/// A handle on the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    config: Config,
    objects: Cache<Digest, Object>,
    images: Cache<Key, Arc<ImageRecord>>,
    small: Cache<Digest, Bytes>,
    noted: Cache<Digest, ()>,
    notes: Semaphore,
}

/// An object that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub digest: Digest,
    pub size: u64,
    /// The type it is served with; `None` for layers.
    pub media_type: Option<String>,
    pub key: Key,
}

impl Store {
    /// Opens the store at `config.location` and checks that it can be written.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let backend = match remote::Location::parse(config)? {
            remote::Location::Folder(path) => Backend::folder(Path::new(&path))?,
            remote::Location::Bucket(bucket) => remote::open(config, &bucket)?,
        };
        let store = Self::with_backend(backend, config.clone());
        store.check_writable().await?;
        Ok(store)
    }

    /// A store in the folder `config.location` that nobody looks for after this process: nothing is synced to disk.
    pub fn scratch(config: &Config) -> Result<Self, Error> {
        Ok(Self::with_backend(Backend::scratch(Path::new(&config.location))?, config.clone()))
    }

    /// A store that forgets everything with its last handle.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(InMemory::new()), &Config::default())
    }

    /// A store over any object store that knows conditional puts; `config.location` is not looked at.
    pub fn over(objects: Arc<dyn ObjectStore>, config: &Config) -> Self {
        Self::with_backend(Backend::bucket(objects, object_store::path::Path::default(), None), config.clone())
    }

    fn with_backend(backend: Backend, config: Config) -> Self {
        let weight = |_: &Digest, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // A use must be on record while the grace still covers the last one.
        let noted_for = USE_NOTED_FOR.min(config.retention.grace / 2);
        let inner = Inner {
            backend,
            config,
            objects: Cache::builder().max_capacity(FOUND_OBJECTS).time_to_live(FOUND_FOR).build(),
            images: Cache::builder().max_capacity(FOUND_IMAGES).time_to_live(IMAGE_FOR).build(),
            small: Cache::builder().max_capacity(SMALL_OBJECTS).weigher(weight).time_to_live(FOUND_FOR).build(),
            noted: Cache::builder().max_capacity(FOUND_OBJECTS).time_to_live(noted_for).build(),
            notes: Semaphore::new(NOTES_AT_ONCE),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Whether the store answers; cheap enough for a readiness probe.
    pub async fn ready(&self) -> Result<(), Error> {
        self.inner.backend.head(&Key::Probe("ready".to_owned())).await.map(drop)
    }

    async fn check_writable(&self) -> Result<(), Error> {
        let probe = Key::Probe(format!("{:016x}", rand::random::<u64>()));
        self.inner.backend.put(&probe, Bytes::from_static(b"starlift")).await?;
        self.inner.backend.delete(&probe).await
    }
}
