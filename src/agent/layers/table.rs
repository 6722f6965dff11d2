//! The table of the mounted layers, with their records on disk.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::loader::{Loader, NewLayer};
use super::mount::{Mount, Mounts};
use super::records::{Record, Records};
use crate::agent::erofs::ErofsMounts;
use crate::agent::layer::Layer;
use crate::agent::layer::data::LayerData;
use crate::agent::layer::opening::remote::{NotLazy, Tail, TocDigest};
use crate::agent::layer::tree::FileId;
use crate::agent::numbers::{Inode, LayerNumber};
use crate::agent::snapshots::StoredLayer;
use crate::layers::digest::to_format;
use crate::oci::Digest;
use crate::telemetry::log::chain;
use crate::telemetry::metrics::metrics;

/// The mounted layers.
#[derive(Debug)]
pub(crate) struct Table {
    loader: Loader,
    records: Records,
    mounts: RwLock<Mounts>,
    /// Held while numbers are reserved and records are added or removed.
    bookkeeping: Mutex<()>,
    /// Some of them hold the content of a layer that is loaded in its place.
    erofs: Arc<ErofsMounts>,
}

impl Table {
    /// Reads the records beneath the root. Blocking.
    ///
    /// # Errors
    /// If the root cannot be used.
    pub(super) fn open(root: &Path, loader: Loader, erofs: Arc<ErofsMounts>) -> io::Result<Self> {
        let records = Records::open(root)?;
        let mut mounts = Mounts::default();
        for (number, record) in records.load()? {
            match record {
                Ok(record) => mounts.insert(Arc::new(Mount::new(record, None))),
                Err(error) => {
                    tracing::warn!(%number, %error, "layer record damaged; its files cannot be read unless it is restored")
                }
            }
        }
        count(&mounts);
        Ok(Self {
            loader,
            records,
            mounts: RwLock::new(mounts),
            bookkeeping: Mutex::default(),
            erofs,
        })
    }

    /// Returns the mount that has an inode, and the file of the layer with this inode.
    pub(crate) fn at(&self, inode: Inode) -> Option<(Arc<Mount>, FileId)> {
        let mounts = self.mounts.read();
        mounts.at(inode).map(|(mount, id)| (Arc::clone(mount), id))
    }

    /// Returns the layer of a mount. The first call blocks for as long as reading a large TOC
    /// takes.
    ///
    /// # Errors
    /// If the files that were stored for it are damaged.
    pub(crate) fn layer<'a>(&self, mount: &'a Mount) -> Result<&'a Arc<Layer>, String> {
        mount.layer(|record| {
            let loaded = self.load(record).map_err(|error| chain(&error));
            if let Err(error) = &loaded {
                tracing::error!(number = %record.number, layer = %record.digest, error, "layer could not be read from disk");
            }
            loaded
        })
    }

    fn load(&self, record: &Record) -> Result<Arc<Layer>, NotLazy> {
        let layer = self.loader.stored(record, self.records.tail(record))?;
        self.hold_native(layer.data());
        Ok(layer)
    }

    /// Keeps the content in its place that the kernel reads without the agent.
    pub(super) fn hold_native(&self, data: &Arc<LayerData>) {
        for mount in self.all() {
            if mount.record.data_name() == data.name() {
                self.erofs.hold(mount.record.number, data);
            }
        }
    }

    /// Whether a file of the layer has an extended attribute. True as long as the layer is not
    /// loaded.
    pub(crate) fn has_xattrs(&self, number: LayerNumber) -> bool {
        let mount = self.by_number(number);
        let layer = mount.as_ref().and_then(|mount| mount.loaded()?.ok());
        layer.is_none_or(|layer| layer.tree().has_xattrs())
    }

    pub(crate) fn by_number(&self, number: LayerNumber) -> Option<Arc<Mount>> {
        self.mounts.read().get(number).cloned()
    }

    /// Returns the mount whose directory in the root has this name.
    pub(crate) fn by_name(&self, name: &[u8]) -> Option<Arc<Mount>> {
        self.by_number(LayerNumber::from_name(name)?)
    }

    /// Returns the mounts with numbers above `number`, at most `count`.
    pub(crate) fn after(&self, number: LayerNumber, count: usize) -> Vec<Arc<Mount>> {
        let mounts = self.mounts.read();
        mounts.after(number).take(count).cloned().collect()
    }

    /// Returns all mounts, in the order of their numbers.
    pub(crate) fn all(&self) -> Vec<Arc<Mount>> {
        self.mounts.read().all().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.mounts.read().all().len()
    }

    /// Whether a layer is mounted from this blob.
    pub(super) fn is_mounted(&self, digest: &Digest) -> bool {
        let mounts = self.mounts.read();
        mounts.all().any(|mount| mount.record.digest == *digest)
    }

    /// Returns the loaded layer of another mount of the same layer.
    pub(super) fn mounted(&self, digest: &Digest, toc_digest: &TocDigest) -> Option<Arc<Layer>> {
        let mounts = self.mounts.read();
        mounts
            .of(digest, toc_digest)
            .find_map(|mount| mount.loaded()?.ok().cloned())
    }

    /// Returns the names of the files of the mounted layers.
    fn data_names(&self) -> HashSet<String> {
        let mounts = self.mounts.read();
        mounts.all().map(|mount| mount.record.data_name()).collect()
    }

    /// Returns the data file of a layer, if it is complete and durable.
    pub(super) fn durable(&self, record: &Record) -> Option<PathBuf> {
        let TocDigest::Json(toc) = &record.toc_digest else {
            return None;
        };
        let (store, name) = (self.loader.fetcher.store(), record.data_name());
        let toc = to_format(toc).ok()?;
        store.is_durable(&name, &toc).then(|| store.path(&name))
    }

    /// Reserves the layer's numbers, writes its record, makes it visible. Blocking.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub(super) fn add(
        &self,
        reference: String,
        new: &NewLayer,
        is_for_erofs: bool,
    ) -> io::Result<Arc<Mount>> {
        let (layer, toc_digest) = (&new.layer, new.toc_digest.clone());
        let _bookkeeping = self.bookkeeping.lock();
        let inodes = layer.tree().len();
        let (number, inode) = self.records.reserve(inodes)?;
        let digest = layer.blob().digest.clone();
        let stored = match &new.fetched {
            Some(fetched) => fetched.tail.trimmed(),
            None => self.tail_of(&digest, &toc_digest)?,
        };
        let record = Record {
            number,
            inode,
            inodes,
            reference,
            digest,
            toc_digest,
            blob_size: stored.blob_size,
            tail_start: stored.start,
            data_size: is_for_erofs.then(|| layer.data().places().size()),
        };
        self.records.insert(&record, &stored)?;
        // The last other mount may have been removed since the lookup, and the data file with it.
        self.loader.fetcher.store().revive(layer.data());
        if is_for_erofs {
            self.erofs.expect(number);
        }
        Ok(self.insert(Mount::new(record, Some(Arc::clone(layer)))))
    }

    fn insert(&self, mount: Mount) -> Arc<Mount> {
        let (mount, mut mounts) = (Arc::new(mount), self.mounts.write());
        mounts.insert(Arc::clone(&mount));
        count(&mounts);
        mount
    }

    /// Returns the end of the blob from the record of another mount of the layer.
    fn tail_of(&self, digest: &Digest, toc_digest: &TocDigest) -> io::Result<Tail> {
        let other = {
            let mounts = self.mounts.read();
            mounts
                .of(digest, toc_digest)
                .next()
                .map(|mount| mount.record.clone())
        };
        // The other mount was removed since the lookup. The client unpacks the layer or asks again.
        let other = other.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.records.tail(&other)
    }

    /// Records that FUSE serves a new layer that could not be mounted as EROFS. Returns the mount as
    /// it is then.
    pub(super) fn serve_by_fuse(
        &self,
        mount: &Mount,
        layer: &Arc<Layer>,
    ) -> io::Result<Arc<Mount>> {
        let record = Record {
            data_size: None,
            ..mount.record.clone()
        };
        self.records.replace(&record)?;
        Ok(self.insert(Mount::new(record, Some(Arc::clone(layer)))))
    }

    /// Returns the copy of a mounted layer's files that is stored with its snapshot. Blocking.
    ///
    /// # Errors
    /// If the layer is gone, or its files cannot be read.
    pub(crate) fn copy(&self, number: LayerNumber) -> io::Result<StoredLayer> {
        let mount = self.by_number(number).ok_or(io::ErrorKind::NotFound)?;
        self.records.copy(&mount.record)
    }

    /// Writes the record of a layer again and makes the layer visible, if a power cut has lost or
    /// torn its files. Returns `None` if they are intact.
    pub(super) fn restore(&self, layer: &StoredLayer) -> io::Result<Option<Arc<Mount>>> {
        let _bookkeeping = self.bookkeeping.lock();
        let (record, is_restored) = self.records.restore(layer)?;
        Ok(is_restored.then(|| self.insert(Mount::new(record, None))))
    }

    /// Hides a layer, calls `hidden` with its mount, and deletes its record, and its content if no
    /// other mount needs it.
    pub(super) fn remove(&self, number: LayerNumber, hidden: impl FnOnce(&Mount)) {
        let _bookkeeping = self.bookkeeping.lock();
        let Some(mount) = self.hide(number) else {
            return;
        };
        mount.gone.cancel();
        hidden(&mount);
        if let Err(error) = self.records.remove(&mount.record) {
            tracing::warn!(%number, %error, "layer record not deleted; it stays until the next start");
        }
        let name = mount.record.data_name();
        if !self.data_names().contains(&name) {
            self.loader.fetcher.store().discard(&name);
        }
    }

    fn hide(&self, number: LayerNumber) -> Option<Arc<Mount>> {
        let mut mounts = self.mounts.write();
        let mount = mounts.remove(number)?;
        count(&mounts);
        Some(mount)
    }

    /// Deletes the files that a crash has left beside the records.
    pub(super) fn delete_leftovers(&self) -> io::Result<()> {
        let _bookkeeping = self.bookkeeping.lock();
        self.records.delete_leftovers()
    }

    /// Deletes the content of layers that are not mounted.
    pub(super) fn delete_unmounted_data(&self) -> io::Result<()> {
        let _bookkeeping = self.bookkeeping.lock();
        self.loader.fetcher.store().retain(&self.data_names())
    }
}

fn count(mounts: &Mounts) {
    let count = i64::try_from(mounts.all().len()).unwrap_or(i64::MAX);
    metrics().agent_mounts.set(count);
}
