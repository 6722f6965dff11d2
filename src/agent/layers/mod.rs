//! Mounts layers lazily, each as a directory of the agent's file system.
//!
//! ```text
//! mount:  open (registry) ▶ numbers ▶ record on disk ▶ visible ▶ pull over ▶ prefetch
//! start:  records ▶ visible; each layer is read from disk at its first use, or soon after
//! ```
//! `table` has the mounted layers and their records, and `loader` makes them readable. `ahead` and
//! `readiness` act on layers that are mounted and about to be used, `native` on those that the kernel
//! reads by itself.

pub(crate) mod ahead;
pub(crate) mod drivers;
mod idle;
pub(crate) mod kernel;
mod loader;
pub(crate) mod mount;
pub(crate) mod native;
pub(crate) mod notify;
pub(crate) mod readiness;
pub(crate) mod recorder;
pub(crate) mod records;
mod removal;
pub(crate) mod report;
mod restart;
mod status;
pub(crate) mod table;
mod upkeep;

use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::Span;

use self::ahead::Ahead;
use self::drivers::Drivers;
use self::kernel::Kernel;
use self::loader::{Loader, NewLayer};
use self::mount::Mount;
use self::notify::Notifier;
use self::readiness::Readiness;
use self::recorder::Recorder;
use self::records::Record;
use self::report::Refusals;
use self::table::Table;
use crate::agent::config::Config;
use crate::agent::layer::Layer;
use crate::agent::layer::data::{DataStore, Limits};
use crate::agent::layer::fetch::Fetcher;
use crate::agent::layer::opening::Openings;
pub(crate) use crate::agent::layer::opening::remote::NotLazy;
use crate::agent::layer::opening::remote::TocDigest;
use crate::agent::layer::opening::toc_memory::TocMemory;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::layer_mount::LayerMount;
use crate::agent::numbers::LayerNumber;
use crate::agent::prefetch::profiles::ImageLayers;
use crate::oci::Digest;
use crate::telemetry::log::chain;
use crate::telemetry::metrics::metrics;
use crate::transport::Upstreams;

/// The layers that are mounted lazily.
#[derive(Debug)]
pub(crate) struct Layers {
    config: Config,
    loader: Loader,
    openings: Openings,
    table: Arc<Table>,
    kernel: Arc<Kernel>,
    drivers: Drivers,
    readiness: Arc<Readiness>,
    ahead: Arc<Ahead>,
    recorder: Arc<Recorder>,
    refusals: Refusals,
}

impl Layers {
    /// Restores the mounts recorded under the root. Blocking; makes no network requests.
    ///
    /// # Errors
    /// If the root cannot be used.
    pub(crate) fn open(
        config: &Config,
        upstreams: Upstreams,
        needed: &'static [LayerMount],
    ) -> io::Result<Self> {
        let limits = Limits {
            bytes: config.cache_size.as_u64(),
            min_free: config.min_free.map(|bytes| bytes.as_u64()),
            memory: config.memory.as_u64() - config.fetch_memory(),
        };
        let store = Arc::new(DataStore::open(&config.root.join("cache"), limits)?);
        let fetcher = Fetcher::new(store, config.max_request.as_u64(), config.fetch_memory());
        let loader = Loader {
            upstreams: upstreams.clone(),
            fetcher: fetcher.clone(),
            memory: TocMemory::default(),
        };
        let memory = loader.memory.clone();
        let openings = Openings::new(upstreams.clone(), fetcher, memory, config.mount_timeout);
        let drivers = Drivers::new(config);
        let erofs = Arc::clone(drivers.erofs());
        let table = Table::open(&config.root, loader.clone(), Arc::clone(&erofs))?;
        let table = Arc::new(table);
        let readiness = Readiness::new(config, Arc::clone(&table), erofs);
        let readiness = Arc::new(readiness);
        let ahead = Ahead::new(
            config,
            upstreams,
            Arc::clone(&table),
            Arc::clone(&readiness),
        );
        Ok(Self {
            config: config.clone(),
            loader,
            openings,
            table,
            kernel: Arc::new(Kernel::new(&config.root, needed)),
            drivers,
            readiness,
            ahead: Arc::new(ahead),
            recorder: Arc::default(),
            refusals: Refusals::default(),
        })
    }

    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    pub(crate) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    pub(crate) fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    pub(crate) fn readiness(&self) -> &Arc<Readiness> {
        &self.readiness
    }

    pub(crate) fn ahead(&self) -> &Arc<Ahead> {
        &self.ahead
    }

    /// Returns the recorder, which is called for every file that is opened or read.
    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    pub(crate) fn fetcher(&self) -> &Fetcher {
        &self.loader.fetcher
    }

    /// Makes the layer's tree visible and returns the number of its directory. `image` lists the
    /// image's layers that are mounted below this one, if they are known.
    ///
    /// The caller must pass a number that it does not keep to [`Self::unmount`].
    ///
    /// # Errors
    /// If the layer cannot be mounted lazily. It must then be unpacked.
    pub(crate) async fn mount(
        self: &Arc<Self>,
        spec: &LayerSpec,
        image: Option<ImageLayers>,
    ) -> Result<LayerNumber, NotLazy> {
        let outcome = self.try_mount(spec, image).await;
        let label = if outcome.is_ok() { "lazy" } else { "unpacked" };
        metrics()
            .agent_layers
            .get_or_create(&[("outcome", label)])
            .inc();
        if let Err(reason) = &outcome {
            self.refusals.note(spec, reason);
        }
        self.ahead.prepared(spec);
        outcome
    }

    async fn try_mount(
        self: &Arc<Self>,
        spec: &LayerSpec,
        image: Option<ImageLayers>,
    ) -> Result<LayerNumber, NotLazy> {
        if !self.kernel.unmounted().is_empty() {
            return Err(NotLazy::Off("the file system is not mounted".to_owned()));
        }
        if !self.config.policy(&spec.reference).lazy {
            return Err(NotLazy::Excluded);
        }
        let found = self.openings.in_time(&spec.reference, self.find(spec));
        let found = found.await?;
        let own = Arc::clone(self);
        let reference = spec.reference.clone();
        let span = Span::current();
        let add = move || span.in_scope(|| own.add(reference, found));
        let mount = spawn_blocking(add).await;
        let mount = mount.map_err(|error| NotLazy::Internal(error.to_string()))??;
        let image = image.map(|image| image.with(mount.record.number));
        self.ahead.fill(&mount, image, self.ahead.pull(spec));
        let Record {
            number,
            digest,
            reference,
            blob_size,
            ..
        } = &mount.record;
        metrics().agent_layer_bytes.inc_by(*blob_size);
        tracing::info!(%number, layer = %digest, reference, "mounted lazily");
        Ok(*number)
    }

    /// Returns the layer from another mount of the same layer if there is one, else from the
    /// registry.
    async fn find(&self, spec: &LayerSpec) -> Result<NewLayer, NotLazy> {
        if let Some(toc_digest) = spec.toc_digest.clone().map(TocDigest::Json)
            && let Some(other) = self.table.mounted(&spec.digest, &toc_digest)
        {
            return self.loader.again(spec, toc_digest, &other).await;
        }
        let is_new = |digest: &Digest| !self.table.is_mounted(digest);
        let opened = self.openings.open(spec, is_new).await?;
        let new = self.loader.opened(opened).await?;
        self.table.hold_native(new.layer.data());
        Ok(new)
    }

    /// Makes a layer visible. Blocking.
    fn add(&self, reference: String, new: NewLayer) -> Result<Arc<Mount>, NotLazy> {
        let failed = |error: io::Error| NotLazy::Internal(format!("record not written: {error}"));
        let is_for_erofs = self.drivers.is_erofs_chosen();
        let mount = self.table.add(reference, &new, is_for_erofs);
        let mount = mount.map_err(failed)?;
        let NewLayer { layer, fetched, .. } = new;
        if let Some(fetched) = fetched {
            layer.keep(fetched.tail.start, &fetched.tail.bytes);
        }
        self.kernel.notify(Notifier::root_changed);
        if is_for_erofs {
            self.mount_erofs(mount, &layer).map_err(failed)
        } else {
            Ok(mount)
        }
    }

    /// Mounts a new layer as EROFS. If that fails, FUSE serves it. Returns the mount as it is then.
    fn mount_erofs(&self, mount: Arc<Mount>, layer: &Arc<Layer>) -> io::Result<Arc<Mount>> {
        let Record { number, digest, .. } = &mount.record;
        let Err(error) = self.drivers.erofs().add(*number, layer.data()) else {
            return Ok(mount);
        };
        tracing::warn!(%number, layer = %digest, error = chain(&error), "layer not mounted as EROFS; its files are served by FUSE");
        let served = self.table.serve_by_fuse(&mount, layer);
        self.drivers.erofs().give_up(*number);
        served
    }
}
