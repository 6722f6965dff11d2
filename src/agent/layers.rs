//! Mounts layers lazily, each as a directory of the agent's file system.
//!
//! ```text
//! mount:  open (registry) ▶ numbers ▶ record on disk ▶ visible ▶ pull over ▶ prefetch
//! start:  records ▶ visible; each layer is read from disk at its first use, or soon after
//! ```

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::task::spawn_blocking;

use super::config::Config;
use super::data::{DataStore, LayerData, Limits};
use super::erofs::{Driver, DriverReport, ErofsMounts, Probe, ProbeError};
use super::fetch::{Blob, Fetcher, Reason};
use super::idle;
use super::layer::Layer;
use super::layer_mount::LayerMount;
use super::mount::{Mount, Mounts};
use super::notify::Notifier;
use super::opening::Openings;
use super::prefetch::Prefetch;
use super::profiles::{ImageLayers, PrefetchGate, ProfileSource, Profiles, Trigger};
use super::pulls::{Pull, Pulls};
use super::recorder::Recorder;
use super::records::{Record, Records, data_name};
pub use super::remote::NotLazy;
use super::remote::{self, Opened, Tail, TocDigest};
use super::report::{LayerReport, Refusals, Report};
use super::snapshots::{StoredLayer, Usage};
use super::spec::LayerSpec;
use super::toc_memory::{SectionWeight, TocMemory};
use super::tree::{FileId, Tree};
use crate::budget::Weight;
use crate::layers::digest::to_format;
use crate::oci::Digest;
use crate::telemetry::log::chain;
use crate::telemetry::metrics::metrics;
use crate::transport::Upstreams;

/// Pause before layers that could not be read at the agent's start are tried again. Each further
/// pause is twice as long.
const RESUME_PAUSE: Duration = Duration::from_secs(10);
const LAST_RESUME_PAUSE: Duration = Duration::from_secs(600);

/// Rounds of it after which memory that is not in use is returned: half a minute.
const ROUNDS_TO_REST: u32 = 6;

/// Pause between two rounds that make written content durable. Content that is not durable is
/// compared with its digest after a power cut, so this saves work, not data.
const SYNC_PAUSE: Duration = Duration::from_secs(5);

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
    /// Held while numbers are reserved and records are added or removed.
    bookkeeping: Mutex<()>,
    /// The mounts that must be there: while one is missing, no layer is mounted lazily.
    needed: &'static [LayerMount],
    erofs: ErofsMounts,
    /// Held while the content of a layer is compared with its digests.
    checking: Mutex<()>,
    probe: Probe,
    /// The driver of new layers.
    driver: OnceLock<DriverReport>,
    /// The kernel connections of the mounts that are in their place.
    notifiers: RwLock<BTreeMap<LayerMount, Arc<Notifier>>>,
    refusals: Refusals,
    toc_memory: TocMemory,
    openings: Openings,
    pulls: Pulls,
}

impl Layers {
    /// Restores the mounts recorded under the root. Blocking; makes no network requests.
    ///
    /// # Errors
    /// If the root cannot be used.
    pub fn open(
        config: &Config,
        upstreams: Upstreams,
        needed: &'static [LayerMount],
    ) -> io::Result<Self> {
        let records = Records::open(&config.root)?;
        let mut mounts = Mounts::default();
        for (number, record) in records.load()? {
            match record {
                Ok(record) => mounts.insert(Arc::new(Mount::new(record, None))),
                Err(error) => {
                    tracing::warn!(number, %error, "layer record damaged; its files cannot be read unless it is restored")
                }
            }
        }
        metrics()
            .agent_mounts
            .set(i64::try_from(mounts.all().len()).unwrap_or(i64::MAX));
        let limits = Limits {
            bytes: config.cache_size.as_u64(),
            min_free: config.min_free.map(|bytes| bytes.as_u64()),
            memory: config.memory.as_u64() - config.fetch_memory(),
        };
        let store = Arc::new(DataStore::open(&config.root.join("cache"), limits)?);
        let fetcher = Fetcher::new(store, config.max_request.as_u64(), config.fetch_memory());
        let toc_memory = TocMemory::default();
        let openings = Openings::new(
            upstreams.clone(),
            fetcher.clone(),
            toc_memory.clone(),
            config.mount_timeout,
        );
        Ok(Self {
            fetcher,
            prefetch: Arc::new(Prefetch::new(config)),
            profiles: Profiles::new(config),
            recorder: Arc::default(),
            config: config.clone(),
            upstreams,
            records,
            mounts: RwLock::new(mounts),
            bookkeeping: Mutex::default(),
            needed,
            erofs: ErofsMounts::new(&config.root),
            checking: Mutex::default(),
            probe: Probe::default(),
            driver: OnceLock::new(),
            notifiers: RwLock::default(),
            refusals: Refusals::default(),
            toc_memory,
            openings,
            pulls: Pulls::default(),
        })
    }

    /// Sets the notifier that sends the kernel the changes of layers on `mount` from now on. `None`
    /// says that the mount is gone. While a needed mount is gone, no layer is mounted lazily.
    pub fn announce_to(&self, mount: LayerMount, notifier: Option<Notifier>) {
        let mut notifiers = self.notifiers.write();
        match notifier {
            Some(notifier) => notifiers.insert(mount, Arc::new(notifier)),
            None => notifiers.remove(&mount),
        };
    }

    /// Chooses the driver of new layers. Until then it is FUSE. Blocking: it may try EROFS over the
    /// FUSE mounts.
    ///
    /// # Errors
    /// If the configuration demands EROFS, and this kernel cannot do it.
    pub fn choose_driver(&self) -> Result<&DriverReport, ProbeError> {
        let (kind, root) = (self.config.driver, &self.config.root);
        let chosen = DriverReport::choose(kind, root, &self.probe)?;
        Ok(self.driver.get_or_init(|| chosen))
    }

    /// Whether a layer is mounted as EROFS.
    pub fn is_erofs(&self, number: u64) -> bool {
        self.erofs.is_known(number)
    }

    pub(super) fn erofs(&self) -> &ErofsMounts {
        &self.erofs
    }

    pub(super) fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Mounts the layers as EROFS again that are recorded so and are not mounted, or whose FUSE
    /// mount has ended. Blocking.
    pub fn restore_erofs(&self) {
        let all = self.after(0, usize::MAX);
        let is_erofs =
            |mount: &&Arc<Mount>| mount.record.data_size.is_some() && !mount.gone.is_cancelled();
        let layers = all.iter().filter(is_erofs);
        let load = |number| {
            let mount = self.by_number(number)?;
            Some(Arc::clone(self.layer(&mount).ok()?.data()))
        };
        let durable = |number| self.durable(&self.by_number(number)?.record);
        let named = |mount: &Arc<Mount>| (mount.record.number, mount.record.data_name());
        self.erofs.restore(layers.map(named), load, durable);
    }

    /// Returns the data file of a layer, if it is complete and durable.
    fn durable(&self, record: &Record) -> Option<PathBuf> {
        let TocDigest::Json(toc) = &record.toc_digest else {
            return None;
        };
        let (store, name) = (self.fetcher.store(), record.data_name());
        let toc = to_format(toc).ok()?;
        store.is_durable(&name, &toc).then(|| store.path(&name))
    }

    /// Prepares layers for a container that is about to start on them. Makes the kernel read those
    /// without the agent that are mounted as EROFS and complete. Layers whose content was not compared with its digests since the start follow later.
    ///
    /// The first container's reads of a layer are recorded, so they still pass through the agent.
    pub async fn expect_container(self: &Arc<Self>, numbers: Vec<u64>) {
        let own = Arc::clone(self);
        let work = move || {
            let unchecked = numbers
                .into_iter()
                .inspect(|number| own.erofs.read_ahead(*number))
                .filter_map(|number| own.make_one_native(number));
            unchecked.collect::<Vec<_>>()
        };
        let unchecked = spawn_blocking(work).await.unwrap_or_default();
        if !unchecked.is_empty() {
            let own = Arc::clone(self);
            spawn_blocking(move || own.check_for_native(unchecked));
        }
    }

    /// Returns the layer if it is complete and its content must be compared with its digests first.
    fn make_one_native(&self, number: u64) -> Option<(u64, Arc<LayerData>)> {
        let mount = self.by_number(number)?;
        if let Some(Ok(layer)) = mount.loaded() {
            layer.data().mark_used();
        }
        let is_recorded = !self.config.record.is_zero() && !mount.was_used();
        if is_recorded || !self.erofs.is_served(number) {
            return None;
        }
        let data = mount.loaded()?.ok()?.data();
        if data.is_checked() {
            self.erofs.make_native(number, data);
            return None;
        }
        data.is_complete().then(|| (number, Arc::clone(data)))
    }

    fn check_for_native(&self, layers: Vec<(u64, Arc<LayerData>)>) {
        for (number, data) in layers {
            // One layer at a time: this is not urgent, and reads the disk.
            let _turn = self.checking.lock();
            data.check_all();
            self.erofs.make_native(number, &data);
        }
    }

    /// Returns the directories of the needed mounts that are missing.
    fn unmounted(&self) -> Vec<PathBuf> {
        let notifiers = self.notifiers.read();
        let is_gone = |mount: &&LayerMount| !notifiers.contains_key(mount);
        let gone = self.needed.iter().filter(is_gone);
        gone.map(|mount| mount.directory(&self.config.root))
            .collect()
    }

    fn notify(&self, message: impl Fn(&Notifier)) {
        let notifiers: Vec<_> = self.notifiers.read().values().map(Arc::clone).collect();
        notifiers.iter().for_each(|notifier| message(notifier));
    }

    /// Makes the layer's tree visible and returns the number of its directory. `image` lists the
    /// image's layers that are mounted below this one, if they are known.
    ///
    /// The caller must pass a number that it does not keep to [`Self::unmount`].
    ///
    /// # Errors
    /// If the layer cannot be mounted lazily. It must then be unpacked.
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
        if spec.layers_above.is_empty() {
            self.pulls.end(&spec.reference);
        }
        outcome
    }

    async fn try_mount(
        self: &Arc<Self>,
        spec: &LayerSpec,
        image: Option<ImageLayers>,
    ) -> Result<u64, NotLazy> {
        if !self.unmounted().is_empty() {
            return Err(NotLazy::Off("the file system is not mounted".to_owned()));
        }
        if !self.config.policy(&spec.reference).lazy {
            return Err(NotLazy::Excluded);
        }
        let found = self.openings.in_time(&spec.reference, self.find(spec));
        let found = found.await?;
        let own = Arc::clone(self);
        let reference = spec.reference.clone();
        let mount = spawn_blocking(move || own.add(reference, found)).await;
        let mount = mount.map_err(|error| NotLazy::Internal(error.to_string()))??;
        let image = image.map(|image| image.with(mount.record.number));
        self.fill(&mount, image, self.pull(spec));
        let Record {
            number,
            digest,
            reference,
            ..
        } = &mount.record;
        tracing::info!(number, layer = %digest, reference, "mounted lazily");
        Ok(*number)
    }

    /// Returns the pull that a layer is part of.
    fn pull(&self, spec: &LayerSpec) -> Pull {
        if spec.layers_above.is_empty() {
            Pull::OVER
        } else {
            self.pulls.join(&spec.reference)
        }
    }

    /// Returns the layer from another mount of the same layer if there is one, else from the
    /// registry.
    async fn find(&self, spec: &LayerSpec) -> Result<OpenedLayer, NotLazy> {
        if let Some(toc_digest) = spec.toc_digest.clone().map(TocDigest::Json)
            && let Some(other) = self.mounted(&spec.digest, &toc_digest)
        {
            // The registry is asked all the same: a client without access to this repository must
            // not get the layer.
            let (name, source) = remote::find(&self.upstreams, &spec.reference)?;
            let (size, peer) = source.locate(&name.repository, &spec.digest).await?;
            let blob = Blob {
                source,
                repository: name.repository,
                digest: spec.digest.clone(),
                size,
            };
            let data = Arc::clone(other.data());
            let layer = Layer::new(data, blob, self.fetcher.clone()).given_by(peer);
            layer.traffic().add(1, 0, Reason::Read);
            return Ok(OpenedLayer {
                layer,
                toc_digest,
                tail: None,
                _weight: None,
            });
        }
        let is_new = |digest: &Digest| !self.is_mounted(digest);
        let opened = self.openings.open(spec, is_new).await?;
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
        let own = (blob.digest.clone(), toc_digest.clone(), blob.size);
        let (store, fetcher) = (Arc::clone(self.fetcher.store()), self.fetcher.clone());
        let share = move || share(&store, own, toc, Some(tree_weight));
        let data = spawn_blocking(share).await;
        let data = data.map_err(|error| NotLazy::Internal(error.to_string()))??;
        self.hold_native(&data);
        let layer = Layer::new(data, blob, fetcher).given_by(peer);
        layer
            .traffic()
            .add(requests, tail.bytes.len() as u64, Reason::Read);
        Ok(OpenedLayer {
            layer,
            toc_digest,
            tail: Some(tail),
            _weight: Some(weight),
        })
    }

    /// Whether a layer is mounted from this blob.
    fn is_mounted(&self, digest: &Digest) -> bool {
        let mounts = self.mounts.read();
        mounts.all().any(|mount| mount.record.digest == *digest)
    }

    /// Returns the loaded layer of another mount of the same layer.
    fn mounted(&self, digest: &Digest, toc_digest: &TocDigest) -> Option<Arc<Layer>> {
        let mounts = self.mounts.read();
        let is_same = |mount: &&Arc<Mount>| {
            mount.record.digest == *digest && mount.record.toc_digest == *toc_digest
        };
        mounts
            .all()
            .filter(is_same)
            .find_map(|mount| mount.loaded()?.ok().cloned())
    }

    /// Reserves the layer's numbers, writes its record, makes it visible. Blocking.
    fn add(&self, reference: String, found: OpenedLayer) -> Result<Arc<Mount>, NotLazy> {
        let OpenedLayer {
            layer,
            toc_digest,
            tail,
            _weight,
        } = found;
        let failed = |error: io::Error| NotLazy::Internal(format!("record not written: {error}"));
        let layer = Arc::new(layer);
        let bookkeeping = self.bookkeeping.lock();
        let inodes = layer.tree().len();
        let (number, inode) = self.records.reserve(inodes).map_err(failed)?;
        let digest = layer.blob().digest.clone();
        let stored = match &tail {
            Some(tail) => tail.trimmed(),
            None => self.tail_of(&digest, &toc_digest).map_err(failed)?,
        };
        let (blob_size, tail_start) = (stored.blob_size, stored.start);
        let record = Record {
            number,
            inode,
            inodes,
            reference,
            digest,
            toc_digest,
            blob_size,
            tail_start,
            data_size: self.is_for_erofs().then(|| layer.data().places().size()),
        };
        self.records.insert(&record, &stored).map_err(failed)?;
        // The last other mount may have been removed since the lookup, and the data file with it.
        self.fetcher.store().revive(layer.data());
        if record.data_size.is_some() {
            self.erofs.expect(number);
        }
        let mount = Arc::new(Mount::new(record, Some(Arc::clone(&layer))));
        let mut mounts = self.mounts.write();
        mounts.insert(Arc::clone(&mount));
        drop(mounts);
        drop(bookkeeping);
        if let Some(tail) = &tail {
            layer.keep(tail.start, &tail.bytes);
        }
        metrics().agent_mounts.inc();
        self.notify(Notifier::root_changed);
        if mount.record.data_size.is_none() {
            return Ok(mount);
        }
        self.mount_erofs(mount, &layer).map_err(failed)
    }

    fn is_for_erofs(&self) -> bool {
        let chosen = self.driver.get();
        chosen.is_some_and(|chosen| chosen.driver == Driver::Erofs)
    }

    /// Mounts a new layer as EROFS. If that fails, FUSE serves it. Returns the mount as it is then.
    fn mount_erofs(&self, mount: Arc<Mount>, layer: &Arc<Layer>) -> io::Result<Arc<Mount>> {
        let Err(error) = self.erofs.add(mount.record.number, layer.data()) else {
            return Ok(mount);
        };
        let Record { number, digest, .. } = &mount.record;
        tracing::warn!(number, layer = %digest, error = chain(&error), "layer not mounted as EROFS; its files are served by FUSE");
        let record = Record {
            data_size: None,
            ..mount.record.clone()
        };
        self.records.replace(&record)?;
        let mount = Arc::new(Mount::new(record, Some(Arc::clone(layer))));
        self.mounts.write().insert(Arc::clone(&mount));
        Ok(mount)
    }

    /// Returns the end of the blob from the record of another mount of the layer.
    fn tail_of(&self, digest: &Digest, toc_digest: &TocDigest) -> io::Result<Tail> {
        let other = {
            let mounts = self.mounts.read();
            let is_same = |mount: &&Arc<Mount>| {
                mount.record.digest == *digest && mount.record.toc_digest == *toc_digest
            };
            mounts.all().find(is_same).map(|mount| mount.record.clone())
        };
        // The other mount was removed since the lookup. The client unpacks the layer or asks again.
        let other = other.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.records.tail(&other)
    }

    /// Starts to prefetch the layer once its image's `pull` is over. The profile is requested
    /// before.
    fn fill(self: &Arc<Self>, mount: &Arc<Mount>, image: Option<ImageLayers>, pull: Pull) {
        let Some(Ok(layer)) = mount.loaded() else {
            return;
        };
        let policy = self.config.policy(&mount.record.reference);
        let (own, layer, gone) = (Arc::clone(self), Arc::clone(layer), mount.gone.clone());
        let number = mount.record.number;
        tokio::spawn(async move {
            if let Some(image) = &image {
                own.request_profile(image).await;
            }
            pull.over().await;
            let gate = match &image {
                Some(image) => own.prefetch_profile(image, Trigger::Mount).await,
                None => None,
            };
            Arc::clone(&own.prefetch)
                .run(layer, policy, gone, gate)
                .await;
            own.expect_container(vec![number]).await;
        });
    }

    /// Requests the profile of `image`, unless that was done. Prefetches nothing.
    async fn request_profile(self: &Arc<Self>, image: &ImageLayers) {
        self.announce(image, Trigger::Mount, |_layers| &[]).await;
    }

    /// Prefetches the files that the profile of `image` names, in those of its layers that are
    /// mounted. Does nothing unless the topmost of them comes from a Starlift server or `referrers`
    /// is on.
    pub(super) async fn prefetch_profile(
        self: &Arc<Self>,
        image: &ImageLayers,
        trigger: Trigger,
    ) -> Option<PrefetchGate> {
        self.announce(image, trigger, |layers| layers).await
    }

    /// Announces those of the mounted layers of `image` that `choose` returns.
    async fn announce(
        self: &Arc<Self>,
        image: &ImageLayers,
        trigger: Trigger,
        choose: impl FnOnce(&[MountedLayer]) -> &[MountedLayer],
    ) -> Option<PrefetchGate> {
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
        let source = match top.peer().await {
            Some(peer) => ProfileSource::Server(peer),
            None if self.config.referrers => self.referrers_of(reference)?,
            None => return None,
        };
        let workload = self.config.policy(reference).workload;
        let named = (reference, workload);
        self.profiles
            .announce(image, named, choose(&layers), source, trigger)
    }

    /// Returns the profile source for an image in a registry that is not a Starlift server: the
    /// documents that refer to it.
    fn referrers_of(&self, reference: &str) -> Option<ProfileSource> {
        let (name, source) = remote::find(&self.upstreams, reference).ok()?;
        let reference = name.reference()?;
        Some(ProfileSource::Referrers {
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

    /// Returns the recorder, which is called for every file that is opened or read.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Returns the mount that has an inode, and the file of the layer with this inode.
    pub fn at(&self, inode: u64) -> Option<(Arc<Mount>, FileId)> {
        let mounts = self.mounts.read();
        mounts.at(inode).map(|(mount, id)| (Arc::clone(mount), id))
    }

    /// Returns the layer of a mount. The first call blocks for as long as reading a large TOC
    /// takes.
    ///
    /// # Errors
    /// If the files that were stored for it are damaged.
    pub fn layer<'a>(&self, mount: &'a Mount) -> Result<&'a Arc<Layer>, String> {
        mount.layer(|record| {
            let loaded = self.load(record).map_err(|error| chain(&error));
            if let Err(error) = &loaded {
                tracing::error!(number = record.number, layer = %record.digest, error, "layer could not be read from disk");
            }
            loaded
        })
    }

    fn load(&self, record: &Record) -> Result<Arc<Layer>, NotLazy> {
        let failed =
            |error: io::Error| NotLazy::Internal(format!("stored TOC not readable: {error}"));
        let (name, source) = remote::find(&self.upstreams, &record.reference)?;
        let blob = Blob {
            source,
            repository: name.repository,
            digest: record.digest.clone(),
            size: record.blob_size,
        };
        let tail = self.records.tail(record).map_err(failed)?;
        let toc = remote::read(&tail, &record.toc_digest)?;
        // Containers use the layer: its TOC is loaded however much memory others take.
        let weight = self.toc_memory.tree(&toc).ok();
        let own = (
            record.digest.clone(),
            record.toc_digest.clone(),
            record.blob_size,
        );
        let data = share(self.fetcher.store(), own, toc, weight)?;
        self.hold_native(&data);
        if data.tree().len() != record.inodes {
            return Err(NotLazy::Internal(
                "number of files differs from the record".to_owned(),
            ));
        }
        Ok(Arc::new(Layer::new(data, blob, self.fetcher.clone())))
    }

    /// Keeps the content in its place that the kernel reads without the agent.
    fn hold_native(&self, data: &Arc<LayerData>) {
        for mount in self.after(0, usize::MAX) {
            if mount.record.data_name() == data.name() {
                self.erofs.hold(mount.record.number, data);
            }
        }
    }

    /// Whether a file of the layer has an extended attribute. True as long as the layer is not
    /// loaded.
    pub fn has_xattrs(&self, number: u64) -> bool {
        let mount = self.by_number(number);
        let layer = mount.as_ref().and_then(|mount| mount.loaded()?.ok());
        layer.is_none_or(|layer| layer.tree().has_xattrs())
    }

    pub fn by_number(&self, number: u64) -> Option<Arc<Mount>> {
        self.mounts.read().get(number).cloned()
    }

    /// Returns the mount whose directory in the root has this name.
    pub fn by_name(&self, name: &[u8]) -> Option<Arc<Mount>> {
        let number = std::str::from_utf8(name).ok()?.parse::<u64>().ok()?;
        self.by_number(number)
            .filter(|_| number.to_string().as_bytes() == name)
    }

    /// Returns the mounts with numbers above `number`, at most `count`.
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

    /// Reads from disk every layer that was not used since the start, and resumes prefetching it.
    /// Retries a layer that cannot be read for as long as it is mounted.
    pub async fn resume(self: &Arc<Self>) {
        let mut left = self.after(0, usize::MAX);
        let mut pause = RESUME_PAUSE;
        loop {
            let mut failed = Vec::new();
            for mount in left.into_iter().filter(|mount| !mount.gone.is_cancelled()) {
                let (own, loading) = (Arc::clone(self), Arc::clone(&mount));
                let loaded = spawn_blocking(move || own.layer(&loading).is_ok()).await;
                if matches!(loaded, Ok(true)) {
                    self.fill(&mount, None, Pull::OVER);
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

    /// Returns the copy of a mounted layer's files that is stored with its snapshot. Blocking.
    ///
    /// # Errors
    /// If the layer is gone, or its files cannot be read.
    pub fn copy(&self, number: u64) -> io::Result<StoredLayer> {
        let mount = self.by_number(number).ok_or(io::ErrorKind::NotFound)?;
        self.records.copy(&mount.record)
    }

    /// Mounts a layer of a snapshot whose files a power cut has lost or torn. Does nothing if they
    /// are intact. Returns whether it was mounted. Blocking.
    pub fn restore(&self, layer: &StoredLayer) -> bool {
        let _bookkeeping = self.bookkeeping.lock();
        let (record, is_restored) = match self.records.restore(layer) {
            Ok(restored) => restored,
            Err(error) => {
                tracing::error!(%error, "layer record not restored");
                return false;
            }
        };
        if is_restored {
            tracing::warn!(number = record.number, layer = %record.digest, "layer record restored");
            let mut mounts = self.mounts.write();
            mounts.insert(Arc::new(Mount::new(record, None)));
            let count = i64::try_from(mounts.all().len()).unwrap_or(i64::MAX);
            metrics().agent_mounts.set(count);
            drop(mounts);
            self.notify(Notifier::root_changed);
        }
        is_restored
    }

    /// Deletes the files that a crash has left beside the records. Blocking.
    pub fn delete_leftovers(&self) {
        let _bookkeeping = self.bookkeeping.lock();
        if let Err(error) = self.records.delete_leftovers() {
            tracing::warn!(%error, "leftovers beside the layer records not deleted");
        }
    }

    /// Unmounts a layer's directory. Does nothing if it is gone already.
    pub async fn unmount(self: &Arc<Self>, number: u64) {
        let own = Arc::clone(self);
        if let Err(error) = spawn_blocking(move || own.drop_mount(number)).await {
            tracing::error!(number, %error, "layer not unmounted");
        }
    }

    fn drop_mount(&self, number: u64) {
        let _bookkeeping = self.bookkeeping.lock();
        let Some(mount) = self.mounts.write().remove(number) else {
            return;
        };
        mount.gone.cancel();
        metrics().agent_mounts.dec();
        if mount.record.data_size.is_some() {
            self.erofs.remove(number);
        }
        self.notify(|notifier| {
            notifier.is_gone(number);
            notifier.root_changed();
        });
        if let Err(error) = self.records.remove(&mount.record) {
            tracing::warn!(number, %error, "layer record not deleted; it stays until the next start");
        }
        let name = mount.record.data_name();
        if !self.data_names().contains(&name) {
            self.fetcher.store().discard(&name);
        }
    }

    /// Returns the names of the files of the mounted layers.
    fn data_names(&self) -> HashSet<String> {
        let mounts = self.mounts.read();
        mounts.all().map(|mount| mount.record.data_name()).collect()
    }

    /// Deletes the content of layers that are not mounted: a crash at their removal leaves it.
    pub async fn delete_unmounted_data(self: &Arc<Self>) {
        let own = Arc::clone(self);
        let work = move || {
            let _bookkeeping = own.bookkeeping.lock();
            own.fetcher.store().retain(&own.data_names())
        };
        match spawn_blocking(work).await.map_err(io::Error::other) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "content of unmounted layers not deleted");
            }
        }
    }

    /// Makes what was written durable, keeps the limits while others fill the disk, and returns
    /// memory that is not in use. Does not return.
    pub async fn keep_data(self: &Arc<Self>) {
        for round in (0..ROUNDS_TO_REST).cycle() {
            tokio::time::sleep(SYNC_PAUSE).await;
            let store = Arc::clone(self.fetcher.store());
            let work = move || {
                store.sync();
                store.keep_limits();
                if round + 1 == ROUNDS_TO_REST {
                    idle::release(&store);
                }
            };
            if let Err(error) = spawn_blocking(work).await {
                tracing::error!(%error, "data files not synced");
            }
        }
    }

    /// Unmounts every layer whose number is not in `numbers`: a crash between a mount and its
    /// snapshot leaves such layers.
    pub async fn retain(self: &Arc<Self>, numbers: &HashSet<u64>) {
        for mount in self.after(0, usize::MAX) {
            if !numbers.contains(&mount.record.number) {
                tracing::info!(number = mount.record.number, layer = %mount.record.digest, "layer without a snapshot removed");
                self.unmount(mount.record.number).await;
            }
        }
    }

    /// Returns the layer's usage of this node's disk.
    pub async fn usage(self: &Arc<Self>, number: u64) -> Usage {
        let own = Arc::clone(self);
        let measure = move || {
            let mount = own.by_number(number);
            let held = mount
                .as_ref()
                .and_then(|mount| own.layer(mount).ok())
                .map(|layer| layer.data().usage());
            held.map_or_else(Usage::default, |held| Usage {
                size: held.bytes,
                inodes: held.inodes,
            })
        };
        spawn_blocking(measure).await.unwrap_or_default()
    }

    /// Returns the state of the mounted layers and of the cache, and the layers that were not
    /// mounted lazily.
    pub fn report(&self) -> Report {
        let layers = self
            .after(0, usize::MAX)
            .iter()
            .map(|mount| self.report_of(mount))
            .collect();
        let store = self.fetcher.store();
        let profiles = self.profiles.report();
        Report {
            layers,
            profiles,
            cache: store.usage(),
            cache_limit: store.limit(),
            free_space: store.free(),
            refusals: self.refusals.all(),
            unmounted: self.unmounted(),
            driver: self.driver.get().cloned().unwrap_or_default(),
        }
    }

    fn report_of(&self, mount: &Mount) -> LayerReport {
        let number = mount.record.number;
        let driver = if self.is_erofs(number) {
            Driver::Erofs
        } else {
            Driver::Fuse
        };
        LayerReport {
            driver,
            is_native: self.erofs.is_native(number),
            ..LayerReport::of(mount)
        }
    }

    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}

/// A mounted layer of an image, with its place.
type MountedLayer = (u32, Arc<Mount>, Arc<Layer>);

/// A layer that is about to be mounted.
struct OpenedLayer {
    layer: Layer,
    toc_digest: TocDigest,
    /// The end of the blob, if the layer comes from the registry.
    tail: Option<Tail>,
    _weight: Option<SectionWeight>,
}

/// Returns the data file of the layer with this digest, TOC digest and size, one for all its mounts.
/// Blocking.
fn share(
    store: &DataStore,
    (digest, toc_digest, size): (Digest, TocDigest, u64),
    toc: estargz::Toc,
    weight: Option<Weight>,
) -> Result<Arc<LayerData>, NotLazy> {
    let name = data_name(&digest, &toc_digest);
    if let Some(data) = store.in_use(&name) {
        return Ok(data);
    }
    let (TocDigest::Json(toc_text) | TocDigest::Section(toc_text)) = &toc_digest;
    let state = serde_json::json!({"digest": digest, "size": size, "tocDigest": toc_text});
    let state = state.to_string().into_bytes();
    let tree = Tree::new(store.map(toc), &format!("{digest}.json"), state)?;
    Ok(store.layer(&name, Arc::new(tree.with_weight(weight)))?)
}
