//! The store: converted layers, small objects, records and leases, in a folder or a bucket.
//!
//! Records are written last and are the commit point. Objects without a record are swept. An object
//! is visible if a digest record names its key, and every visible object can be read:
//!
//! ```text
//! layer bytes ▶ digest record ▶ layer record ┐
//! manifest, config ▶ digest record           ├▶ image record
//! ```

mod backend;
mod blobs;
mod buffers;
mod catalog;
mod config;
mod damage;
mod error;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod kept_for;
pub mod key;
mod lease;
mod links;
mod open_files;
mod origin;
pub(crate) mod outline;
mod probe;
mod profiles;
mod range_cache;
pub mod records;
mod remote;
mod room;
mod scrub;
mod seal;
mod statements;
mod sweep;
mod upload;
mod used;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::sync::Semaphore;

use crate::oci::Digest;
use backend::Backend;
pub use blobs::Nearby;
pub use buffers::Buffer;
pub use catalog::{ListedImage, ListedImages};
pub use config::{Config, RangeCacheConfig, Retention, Scrub, Secret};
pub use error::{Damage, Error};
pub use key::{Generation, Key};
pub use lease::{Lease, layer_lease};
pub use links::{Held, Holder, Link};
pub use origin::{Origin, SourceLayer};
pub(crate) use probe::{Operation, Probe, ProbeError, probe};
pub use profiles::{Merge, Salt, StackRecord};
pub use records::{ImageRecord, LayerOutcome, LayerRecord};
pub use scrub::{Finding, ScrubReport};
pub use statements::StoredStatement;
pub use sweep::SweepReport;
pub use upload::LayerUpload;

/// Most files of objects that are open: a quarter of the descriptors that a process has by default.
const OPEN_FILES: u64 = 256;
/// The memory for the keys of objects, in bytes: about 100,000 of them.
const FOUND_OBJECTS: u64 = 32 << 20;
/// How long an object's key is cached. Shorter than any sensible grace, so that an object swept by
/// another replica leaves the cache in time.
const FOUND_FOR: Duration = Duration::from_secs(5 * 60);
/// The memory for image records, in bytes: about 10,000 images of twenty layers.
const FOUND_IMAGES: u64 = 32 << 20;
/// How long an image record is cached. Short, because another replica may add a platform to an
/// index.
const IMAGE_FOR: Duration = Duration::from_secs(10);
/// The memory for manifests and configurations, in bytes.
const SMALL_OBJECTS: u64 = 32 << 20;
/// The memory for links, in bytes: about 60,000 of them.
const LINKS: u64 = 40 << 20;
/// The memory for noted uses, and for checked layers, in bytes each: about 100,000 of them.
const DIGESTS: u64 = 16 << 20;
/// A use is recorded at most once in this time, or twice in the time that a use protects if that is
/// shorter.
const USE_NOTED_FOR: Duration = Duration::from_secs(60 * 60);
/// The most uses that are recorded at the same time.
const NOTES_AT_ONCE: usize = 4;
/// The size of a cache entry without its text: the digest, the entry, the table's share.
const ENTRY: usize = 160;

/// A handle on the store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    config: Config,
    objects: Cache<Digest, Object>,
    files: open_files::OpenFiles<Digest>,
    /// Pieces of a bucket's objects on disk.
    ranges: Option<range_cache::RangeCache>,
    /// The number of forgotten objects. A look-up that caches an object checks whether it changed
    /// meanwhile.
    forgotten: AtomicU64,
    images: Cache<Key, Arc<ImageRecord>>,
    small: Cache<Digest, Bytes>,
    /// Links that exist, by the holder's id and the digest.
    linked: Cache<(Digest, Digest), Link>,
    /// Converted images all of whose links were found a moment ago, by the holder's id.
    shown: Cache<(Digest, Digest), ()>,
    /// The bytes that are stored for an account, by its id.
    kept_for: Cache<Digest, Arc<AtomicU64>>,
    noted: Cache<Digest, ()>,
    notes: Semaphore,
    /// Layers that were recently checked in full, because a range of them was requested.
    checked: Cache<Digest, ()>,
    checks: damage::Checks,
    room: Arc<room::Room>,
}

/// An object that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub digest: Digest,
    pub size: u64,
    /// The media type that it is served with. `None` for layers.
    pub media_type: Option<String>,
    pub key: Key,
}

impl Store {
    /// Opens the store at `config.location` and checks that it is writable.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let backend = backend_of(config)?;
        let store = Self::with_backend(backend, config.clone(), Self::ranges(config).await?);
        store.check_writable().await?;
        Ok(store)
    }

    /// A store in the folder `config.location` that is not needed after this process: nothing is
    /// synced to disk.
    pub fn scratch(config: &Config) -> Result<Self, Error> {
        Ok(Self::with_backend(
            Backend::scratch(Path::new(&config.location))?,
            config.clone(),
            None,
        ))
    }

    /// A store that loses everything with its last handle.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(InMemory::new()), &Config::default())
    }

    /// A store over any object store that supports conditional puts. `config.location` is ignored.
    pub fn over(objects: Arc<dyn ObjectStore>, config: &Config) -> Self {
        Self::with_backend(
            Backend::bucket(objects, object_store::path::Path::default(), None),
            config.clone(),
            None,
        )
    }

    /// Opens the cache of ranges, if there is one.
    async fn ranges(config: &Config) -> Result<Option<range_cache::RangeCache>, Error> {
        let Some(cache) = config.cache.clone() else {
            return Ok(None);
        };
        let opened = tokio::task::spawn_blocking(move || range_cache::RangeCache::open(&cache));
        let opened = opened
            .await
            .map_err(|error| Error::Config(error.to_string()))?;
        opened.map(Some)
    }

    fn with_backend(
        backend: Backend,
        config: Config,
        ranges: Option<range_cache::RangeCache>,
    ) -> Self {
        // A use must be recorded again before the protection of the last one ends.
        let noted_for = USE_NOTED_FOR.min(config.retention.idle() / 2);
        let digests = || {
            Cache::builder()
                .max_capacity(DIGESTS)
                .weigher(|_: &Digest, ()| weight(0))
        };
        let inner = Inner {
            backend,
            forgotten: AtomicU64::new(0),
            files: open_files::OpenFiles::new(OPEN_FILES),
            ranges,
            objects: weighed(FOUND_OBJECTS, FOUND_FOR, |_, object: &Object| {
                ENTRY * 2 + object.media_type.as_ref().map_or(0, String::len)
            }),
            images: weighed(FOUND_IMAGES, IMAGE_FOR, |_, record: &Arc<ImageRecord>| {
                record.weight()
            }),
            small: weighed(SMALL_OBJECTS, FOUND_FOR, |_, bytes: &Bytes| bytes.len()),
            shown: weighed(DIGESTS, IMAGE_FOR, |_: &(Digest, Digest), ()| ENTRY * 2),
            linked: weighed(LINKS, FOUND_FOR, |_: &(Digest, Digest), _: &Link| ENTRY * 3),
            kept_for: Cache::builder()
                .max_capacity(kept_for::ACCOUNTS)
                .time_to_live(kept_for::COUNTED_FOR)
                .build(),
            noted: digests().time_to_live(noted_for).build(),
            notes: Semaphore::new(NOTES_AT_ONCE),
            checked: digests().time_to_live(damage::CHECKED_FOR).build(),
            checks: damage::Checks::default(),
            room: Arc::default(),
            config,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The configuration that the store was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Checks that the store answers. Cheap enough for a readiness probe.
    pub async fn ready(&self) -> Result<(), Error> {
        self.inner
            .backend
            .head(&Key::Probe("ready".to_owned()))
            .await
            .map(drop)
    }

    async fn check_writable(&self) -> Result<(), Error> {
        let probe = Key::Probe(format!("{:016x}", rand::random::<u64>()));
        self.inner
            .backend
            .put(&probe, Bytes::from_static(b"starlift"))
            .await?;
        self.inner.backend.delete(&probe).await
    }
}

/// The folder or bucket that the configuration names. Sends nothing to a bucket yet.
fn backend_of(config: &Config) -> Result<Backend, Error> {
    match remote::Location::parse(config)? {
        remote::Location::Folder(_) if config.cache.is_some() => {
            let reason = "`store.cache` is for buckets, and the store is a folder";
            Err(Error::Config(reason.to_owned()))
        }
        remote::Location::Folder(path) => Backend::folder(Path::new(&path)),
        remote::Location::Bucket(bucket) => remote::open(config, &bucket),
    }
}

/// A cache of `capacity` bytes. The weight of an entry is its size in memory.
fn weighed<K, V>(capacity: u64, lifetime: Duration, weigh: fn(&K, &V) -> usize) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let weigher = move |key: &K, value: &V| weight(weigh(key, value));
    Cache::builder()
        .max_capacity(capacity)
        .weigher(weigher)
        .time_to_live(lifetime)
        .build()
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes.saturating_add(ENTRY)).unwrap_or(u32::MAX)
}
