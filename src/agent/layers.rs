//! Mounts layers lazily, each as a directory of the agent's one file system.
//!
//! ```text
//! mount:  open (registry) ▶ numbers ▶ record on disk ▶ visible ▶ prefetch
//! start:  records ▶ visible; each is read from disk when it is first used, or soon after
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use parking_lot::{Mutex, RwLock};
use tokio::task::spawn_blocking;

use super::cache::Cache;
use super::config::Config;
use super::fetch::{Blob, Fetcher, Reason};
use super::layer::Layer;
use super::mount::{Mount, Mounts};
use super::notify::Notifier;
use super::prefetch::Prefetch;
use super::profiles::{ImageLayers, Occasion, Oracle, Profiles, Turn};
use super::recorder::Recorder;
use super::records::{Record, Records};
pub use super::remote::NotLazy;
use super::remote::{self, Opened, Tail, TocDigest};
use super::report::{LayerReport, Refusals, Report};
use super::snapshots::Usage;
use super::spec::LayerSpec;
use super::toc_memory::TocMemory;
use super::tree::{FileId, Tree};
use super::unreachable::Unreachable;
use crate::budget::Weight;
use crate::oci::Digest;
use crate::telemetry::metrics::metrics;
use crate::transport::Upstreams;

/// How long after a failure the layers are tried again that could not be read at a start; each further pause is twice as
/// long.
const RESUME_PAUSE: Duration = Duration::from_secs(10);
const LAST_RESUME_PAUSE: Duration = Duration::from_secs(600);

/// The layers that are mounted lazily.
#[derive(Debug)]
pub struct Layers {
    config: Config,
    upstreams: Upstreams,
    records: Records,
    fetcher: Fetcher,
    prefetch: Arc<Prefetch>,
    profiles: Profiles,
    recorder: Arc<Recorder>,
    mounts: RwLock<Mounts>,
    /// Held while numbers are given and records come and go.
    bookkeeping: Mutex<()>,
    trees: Mutex<HashMap<(Digest, TocDigest), Weak<Tree>>>,
    /// The connection to the kernel; `None` while nothing is mounted.
    notifier: RwLock<Option<Arc<Notifier>>>,
    refusals: Refusals,
    toc_memory: TocMemory,
    unreachable: Unreachable,
}

impl Layers {
    /// Takes up what is mounted according to the records beneath the root. Blocks; asks no registry.
    ///
    /// # Errors
    /// When the root cannot be used.
    pub fn open(config: &Config, upstreams: Upstreams) -> io::Result<Self> {
        let records = Records::open(&config.root)?;
        let mut mounts = Mounts::default();
        for (number, record) in records.load()? {
            match record {
                Ok(record) => mounts.insert(Arc::new(Mount::new(record, None))),
                Err(error) => {
                    tracing::error!(number, %error, "a layer's record is damaged; its files cannot be read")
                }
            }
        }
        metrics()
            .agent_mounts
            .set(i64::try_from(mounts.all().len()).unwrap_or(i64::MAX));
        let memory = ByteSize(config.memory.as_u64() - config.fetch_memory());
        let cache = Arc::new(Cache::open(
            &config.root.join("cache"),
            config.cache_size,
            memory,
        )?);
        Ok(Self {
            fetcher: Fetcher::new(cache, config.max_request.as_u64(), config.fetch_memory()),
            prefetch: Arc::new(Prefetch::new(config)),
            profiles: Profiles::new(config),
            recorder: Arc::default(),
            config: config.clone(),
            upstreams,
            records,
            mounts: RwLock::new(mounts),
            bookkeeping: Mutex::default(),
            trees: Mutex::default(),
            notifier: RwLock::default(),
            refusals: Refusals::default(),
            toc_memory: TocMemory::default(),
            unreachable: Unreachable::default(),
        })
    }

    /// Notifies the kernel of layers that come and go from now on. Without a notifier no layer is mounted lazily.
    pub fn announce_to(&self, notifier: Option<Notifier>) {
        *self.notifier.write() = notifier.map(Arc::new);
    }

    fn notifier(&self) -> Option<Arc<Notifier>> {
        self.notifier.read().clone()
    }

    /// The directory where the layers of an agent with this root are mounted.
    pub fn mountpoint(root: &Path) -> std::path::PathBuf {
        root.join("lazy")
    }

    /// Makes the layer's tree visible and gives the number of its directory. It is the next one above what is mounted of
    /// `image`, where that is known.
    ///
    /// The caller hands back a number it does not keep, with [`Self::unmount`].
    ///
    /// # Errors
    /// When the layer cannot be shown lazily: it is to be unpacked.
    pub async fn mount(
        self: &Arc<Self>,
        spec: &LayerSpec,
        image: Option<ImageLayers>,
    ) -> Result<u64, NotLazy> {
        let outcome = self.try_mount(spec, image).await;
        let label = if outcome.is_ok() { "lazy" } else { "unpacked" };
        metrics()
            .agent_layers
            .get_or_create(&[("outcome", label)])
            .inc();
        if let Err(reason) = &outcome {
            self.refusals.note(spec, reason);
        }
        outcome
    }

    async fn try_mount(
        self: &Arc<Self>,
        spec: &LayerSpec,
        image: Option<ImageLayers>,
    ) -> Result<u64, NotLazy> {
        if self.notifier().is_none() {
            return Err(NotLazy::Off("the file system is not mounted".to_owned()));
        }
        if !self.config.policy(&spec.reference).lazy {
            return Err(NotLazy::Excluded);
        }
        let found = self.find_in_time(spec).await?;
        let own = Arc::clone(self);
        let reference = spec.reference.clone();
        let mount = spawn_blocking(move || own.add(reference, found)).await;
        let mount = mount.map_err(|error| NotLazy::Internal(error.to_string()))??;
        self.fill(&mount, image.map(|image| image.with(mount.record.number)));
        let Record {
            number,
            digest,
            reference,
            ..
        } = &mount.record;
        tracing::info!(number, layer = %digest, reference, "mounted lazily");
        Ok(*number)
    }

    /// The layer, unless its registry cost another one its time a moment ago.
    async fn find_in_time(&self, spec: &LayerSpec) -> Result<Found, NotLazy> {
        let (_, source) = remote::find(&self.upstreams, &spec.reference)?;
        let (host, begun) = (source.name(), Instant::now());
        let limit = self
            .unreachable
            .allowance(host, self.config.mount_timeout, begun);
        let limit = limit.ok_or_else(|| NotLazy::Unreachable(host.to_owned()))?;
        let found = tokio::time::timeout(limit, self.find(spec))
            .await
            .map_err(|_elapsed| NotLazy::Slow(limit));
        let found = found.and_then(|found| found);
        match &found {
            Err(NotLazy::Slow(_)) => self.unreachable.failed(host, begun, Instant::now()),
            Err(NotLazy::Upstream(error)) if error.is_transient() => {
                self.unreachable.failed(host, begun, Instant::now());
            }
            _ => self.unreachable.answered(host),
        }
        found
    }

    /// The layer from a mount of the same layer if there is one, else from the registry.
    async fn find(&self, spec: &LayerSpec) -> Result<Found, NotLazy> {
        if let Some(toc_digest) = spec.toc_digest.clone().map(TocDigest::Json)
            && let Some(twin) = self.mounted(&spec.digest, &toc_digest)
        {
            // Asked all the same: who may not read it in this repository must not get it.
            let (name, source) = remote::find(&self.upstreams, &spec.reference)?;
            let (size, peer) = source.locate(&name.repository, &spec.digest).await?;
            let blob = Blob {
                source,
                repository: name.repository,
                digest: spec.digest.clone(),
                size,
            };
            let layer = Layer::new(Arc::clone(twin.shared_tree()), blob, self.fetcher.clone())
                .given_by(peer);
            layer.traffic().add(1, 0, Reason::Read);
            return Ok(Found {
                layer,
                toc_digest,
                tail: None,
                _weight: None,
            });
        }
        let opened = remote::open(&self.upstreams, spec, &self.toc_memory).await?;
        let Opened {
            toc,
            toc_digest,
            blob,
            tail,
            peer,
            requests,
            weight,
        } = opened;
        let tree_weight = self.toc_memory.tree(&toc)?;
        let tree = self.share(&blob, &toc_digest, toc, Some(tree_weight))?;
        let layer = Layer::new(tree, blob, self.fetcher.clone()).given_by(peer);
        layer
            .traffic()
            .add(requests, tail.bytes.len() as u64, Reason::Read);
        Ok(Found {
            layer,
            toc_digest,
            tail: Some(tail),
            _weight: Some(weight),
        })
    }

    /// A mount of the same layer that was loaded.
    fn mounted(&self, digest: &Digest, toc_digest: &TocDigest) -> Option<Arc<Layer>> {
        let mounts = self.mounts.read();
        let is_twin = |mount: &&Arc<Mount>| {
            mount.record.digest == *digest && mount.record.toc_digest == *toc_digest
        };
        mounts
            .all()
            .filter(is_twin)
            .find_map(|mount| mount.loaded()?.ok().cloned())
    }

    /// The tree of a TOC, one for all mounts of the same layer.
    fn share(
        &self,
        blob: &Blob,
        toc_digest: &TocDigest,
        toc: estargz::Toc,
        weight: Option<Weight>,
    ) -> Result<Arc<Tree>, NotLazy> {
        let mut trees = self.trees.lock();
        trees.retain(|_, tree| tree.strong_count() > 0);
        let key = (blob.digest.clone(), toc_digest.clone());
        if let Some(tree) = trees.get(&key).and_then(Weak::upgrade) {
            return Ok(tree);
        }
        let (TocDigest::Json(toc_text) | TocDigest::Section(toc_text)) = toc_digest;
        let state =
            serde_json::json!({"digest": blob.digest, "size": blob.size, "tocDigest": toc_text});
        let tree = Tree::new(
            toc,
            &format!("{}.json", blob.digest),
            state.to_string().into_bytes(),
        )?;
        let tree = Arc::new(tree.with_weight(weight));
        trees.insert(key, Arc::downgrade(&tree));
        Ok(tree)
    }

    /// Gives the layer its numbers, writes its record, makes it visible. Blocks.
    fn add(&self, reference: String, found: Found) -> Result<Arc<Mount>, NotLazy> {
        let Found {
            layer,
            toc_digest,
            tail,
            _weight,
        } = found;
        let failed =
            |error: io::Error| NotLazy::Internal(format!("its record cannot be written: {error}"));
        if let Some(tail) = &tail {
            layer.keep(tail.start, &tail.bytes);
        }
        let _bookkeeping = self.bookkeeping.lock();
        let inodes = layer.tree().len();
        let (number, inode) = self.records.reserve(inodes).map_err(failed)?;
        let digest = layer.blob().digest.clone();
        let tail = match tail {
            Some(tail) => tail.trimmed(),
            None => self.tail_of(&digest, &toc_digest).map_err(failed)?,
        };
        let (blob_size, tail_start) = (tail.blob_size, tail.start);
        let record = Record {
            number,
            inode,
            inodes,
            reference,
            digest,
            toc_digest,
            blob_size,
            tail_start,
        };
        self.records.insert(&record, &tail).map_err(failed)?;
        let mount = Arc::new(Mount::new(record, Some(Arc::new(layer))));
        let mut mounts = self.mounts.write();
        mounts.insert(Arc::clone(&mount));
        drop(mounts);
        metrics().agent_mounts.inc();
        if let Some(notifier) = self.notifier() {
            notifier.root_changed();
        }
        Ok(mount)
    }

    /// The end of the blob as another mount of the layer has it.
    fn tail_of(&self, digest: &Digest, toc_digest: &TocDigest) -> io::Result<Tail> {
        let twin = {
            let mounts = self.mounts.read();
            let is_twin = |mount: &&Arc<Mount>| {
                mount.record.digest == *digest && mount.record.toc_digest == *toc_digest
            };
            mounts.all().find(is_twin).map(|mount| mount.record.clone())
        };
        // Let go between the look and now; the client unpacks or asks again.
        let twin = twin.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.records.tail(&twin)
    }

    /// Begins to fetch what nobody reads yet.
    fn fill(self: &Arc<Self>, mount: &Arc<Mount>, image: Option<ImageLayers>) {
        let Some(Ok(layer)) = mount.loaded() else {
            return;
        };
        let policy = self.config.policy(&mount.record.reference);
        let (own, layer, gone) = (Arc::clone(self), Arc::clone(layer), mount.gone.clone());
        tokio::spawn(async move {
            let turn = match &image {
                Some(image) => own.fetch_ahead(image, Occasion::Mount).await,
                None => None,
            };
            Arc::clone(&own.prefetch)
                .run(layer, policy, gone, turn)
                .await;
        });
    }

    /// Has fetched ahead what the profile of `image` names in those of its layers that are mounted, if the server that
    /// gave the topmost of them is a Starlift server, or profiles that refer to images are wanted.
    pub(super) async fn fetch_ahead(
        self: &Arc<Self>,
        image: &ImageLayers,
        occasion: Occasion,
    ) -> Option<Turn> {
        if !self.profiles.are_used() {
            return None;
        }
        let own = Arc::clone(self);
        let mounted = Arc::clone(&image.mounted);
        let look = move || {
            let layer = |(place, number): &(u32, u64)| {
                let mount = own.by_number(*number)?;
                let layer = Arc::clone(own.layer(&mount).ok()?);
                Some((*place, mount, layer))
            };
            mounted.iter().filter_map(layer).collect::<Vec<_>>()
        };
        let layers = spawn_blocking(look).await.ok()?;
        let (_, mount, top) = layers.last()?;
        let reference = mount.record.reference.as_str();
        let oracle = match top.peer().await {
            Some(peer) => Oracle::Server(peer),
            None if self.config.referrers => self.referrers_of(reference)?,
            None => return None,
        };
        let workload = self.config.policy(reference).workload;
        self.profiles
            .announce(image, (reference, workload), &layers, oracle, occasion)
    }

    /// What refers to an image in a registry that is no Starlift server.
    fn referrers_of(&self, reference: &str) -> Option<Oracle> {
        let (name, source) = remote::find(&self.upstreams, reference).ok()?;
        let reference = name.reference()?;
        Some(Oracle::Referrers {
            source,
            repository: name.repository,
            reference,
        })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Who hears of every file that is opened or read.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The mount that has an inode, and which of its files that is.
    pub fn at(&self, inode: u64) -> Option<(Arc<Mount>, FileId)> {
        let mounts = self.mounts.read();
        mounts.at(inode).map(|(mount, id)| (Arc::clone(mount), id))
    }

    /// The layer of a mount. Blocks for as long as reading a large TOC takes, the first time.
    ///
    /// # Errors
    /// When what is kept of it is damaged.
    pub fn layer<'a>(&self, mount: &'a Mount) -> Result<&'a Arc<Layer>, String> {
        mount.layer(|record| {
            let loaded = self.load(record).map_err(|error| error.to_string());
            if let Err(error) = &loaded {
                tracing::error!(number = record.number, layer = %record.digest, error, "layer could not be read from disk");
            }
            loaded
        })
    }

    fn load(&self, record: &Record) -> Result<Arc<Layer>, NotLazy> {
        let failed = |error: io::Error| {
            NotLazy::Internal(format!("what is kept of it cannot be read: {error}"))
        };
        let (name, source) = remote::find(&self.upstreams, &record.reference)?;
        let blob = Blob {
            source,
            repository: name.repository,
            digest: record.digest.clone(),
            size: record.blob_size,
        };
        let tail = self.records.tail(record).map_err(failed)?;
        let toc = remote::read(&tail, &record.toc_digest)?;
        // Containers use it: it is here however much memory others take.
        let weight = self.toc_memory.tree(&toc).ok();
        let tree = self.share(&blob, &record.toc_digest, toc, weight)?;
        if tree.len() != record.inodes {
            return Err(NotLazy::Internal(
                "it has another number of files than it had".to_owned(),
            ));
        }
        Ok(Arc::new(Layer::new(tree, blob, self.fetcher.clone())))
    }

    pub fn by_number(&self, number: u64) -> Option<Arc<Mount>> {
        self.mounts.read().get(number).cloned()
    }

    /// The layer's directory by its name in the root.
    pub fn by_name(&self, name: &[u8]) -> Option<Arc<Mount>> {
        let number = std::str::from_utf8(name).ok()?.parse::<u64>().ok()?;
        self.by_number(number)
            .filter(|_| number.to_string().as_bytes() == name)
    }

    /// The mounts with numbers above `number`, at most `count`.
    pub fn after(&self, number: u64, count: usize) -> Vec<Arc<Mount>> {
        let mounts = self.mounts.read();
        mounts.after(number).take(count).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.mounts.read().all().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads every layer from disk that was not used since the start, and goes on fetching. A layer that cannot be read is
    /// tried again and again as long as it is mounted.
    pub async fn resume(self: &Arc<Self>) {
        let mut left = self.after(0, usize::MAX);
        let mut pause = RESUME_PAUSE;
        loop {
            let mut failed = Vec::new();
            for mount in left.into_iter().filter(|mount| !mount.gone.is_cancelled()) {
                let (own, loading) = (Arc::clone(self), Arc::clone(&mount));
                let loaded = spawn_blocking(move || own.layer(&loading).is_ok()).await;
                if matches!(loaded, Ok(true)) {
                    self.fill(&mount, None);
                } else {
                    failed.push(mount);
                }
            }
            if failed.is_empty() {
                return;
            }
            left = failed;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RESUME_PAUSE);
        }
    }

    /// Lets a layer's directory go; nothing happens where it is gone already.
    pub async fn unmount(self: &Arc<Self>, number: u64) {
        let own = Arc::clone(self);
        if let Err(error) = spawn_blocking(move || own.drop_mount(number)).await {
            tracing::error!(number, %error, "a layer was not let go");
        }
    }

    fn drop_mount(&self, number: u64) {
        let _bookkeeping = self.bookkeeping.lock();
        let Some(mount) = self.mounts.write().remove(number) else {
            return;
        };
        mount.gone.cancel();
        metrics().agent_mounts.dec();
        if let Some(notifier) = self.notifier() {
            notifier.is_gone(number);
            notifier.root_changed();
        }
        if let Err(error) = self.records.remove(&mount.record) {
            tracing::warn!(number, %error, "a layer's record stays until the next start");
        }
    }

    /// Lets go what none of `numbers` names: left by a crash between a mount and its snapshot.
    pub async fn retain(self: &Arc<Self>, numbers: &HashSet<u64>) {
        for mount in self.after(0, usize::MAX) {
            if !numbers.contains(&mount.record.number) {
                tracing::info!(number = mount.record.number, layer = %mount.record.digest, "no snapshot has this layer");
                self.unmount(mount.record.number).await;
            }
        }
    }

    /// What the layer takes of this node's disk.
    pub async fn usage(self: &Arc<Self>, number: u64) -> Usage {
        let own = Arc::clone(self);
        let measure = move || {
            let mount = own.by_number(number);
            let held = mount
                .as_ref()
                .and_then(|mount| own.layer(mount).ok())
                .map(|layer| layer.measure());
            held.map_or_else(Usage::default, |held| Usage {
                size: held.held_bytes,
                inodes: held.held_chunks,
            })
        };
        spawn_blocking(measure).await.unwrap_or_default()
    }

    /// What is mounted, what is held of it, and what was not mounted lazily.
    pub fn report(&self) -> Report {
        let layers = self
            .after(0, usize::MAX)
            .iter()
            .map(|mount| LayerReport::of(mount))
            .collect();
        let cache = self.fetcher.cache();
        let profiles = self.profiles.report();
        Report {
            layers,
            profiles,
            cache: cache.held(),
            cache_limit: cache.limit(),
            refusals: self.refusals.all(),
        }
    }

    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}

/// A layer that is to be mounted.
struct Found {
    layer: Layer,
    toc_digest: TocDigest,
    /// Where it comes from the registry.
    tail: Option<Tail>,
    _weight: Option<Weight>,
}
