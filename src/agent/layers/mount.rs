//! One lazily mounted layer: a directory of the agent's file system, and the inodes of its files.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::records::Record;
use crate::agent::layer::Layer;
use crate::agent::layer::opening::remote::TocDigest;
use crate::agent::layer::tree::FileId;
use crate::agent::numbers::{Inode, LayerNumber};
use crate::oci::Digest;

/// Pause before a layer that could not be read from disk is tried again: the fault may have been
/// temporary.
const AGAIN: Duration = Duration::from_secs(5);

/// A layer's directory.
#[derive(Debug)]
pub(crate) struct Mount {
    pub record: Record,
    /// After a restart of the agent, read from disk at the first use.
    layer: OnceLock<Arc<Layer>>,
    /// The error of the last attempt to read it, and its time.
    failure: Mutex<Option<(String, Instant)>>,
    /// Whether a container may have read files of it before, so that the kernel has their pages.
    was_used: AtomicBool,
    /// Cancelled when the layer is unmounted.
    pub gone: CancellationToken,
}

impl Mount {
    pub(crate) fn new(record: Record, layer: Option<Arc<Layer>>) -> Self {
        let (cell, was_used) = (OnceLock::new(), AtomicBool::new(layer.is_none()));
        if let Some(layer) = layer {
            // The cell is new, so it is empty.
            let _set = cell.set(layer);
        }
        Self {
            record,
            layer: cell,
            failure: Mutex::default(),
            was_used,
            gone: CancellationToken::new(),
        }
    }

    /// Marks the layer as used by a container. Returns whether this is certainly the first one: a
    /// layer that was mounted by an earlier agent may have been used.
    pub(crate) fn mark_used(&self) -> bool {
        !self.was_used.swap(true, Ordering::Relaxed)
    }

    /// Whether a container may have used the layer.
    pub(crate) fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }

    /// Returns the layer. The first caller runs `load` to read it from disk, while others wait. A
    /// failure is returned again for a few seconds.
    pub(crate) fn layer(
        &self,
        load: impl FnOnce(&Record) -> Result<Arc<Layer>, String>,
    ) -> Result<&Arc<Layer>, String> {
        if let Some(layer) = self.layer.get() {
            return Ok(layer);
        }
        let mut failure = self.failure.lock();
        if let Some(layer) = self.layer.get() {
            return Ok(layer);
        }
        if let Some((reason, _)) = failure.as_ref().filter(|(_, when)| when.elapsed() < AGAIN) {
            return Err(reason.clone());
        }
        match load(&self.record) {
            Ok(layer) => {
                *failure = None;
                Ok(self.layer.get_or_init(|| layer))
            }
            Err(reason) => {
                *failure = Some((reason.clone(), Instant::now()));
                Err(reason)
            }
        }
    }

    /// Returns the layer or the reason why there is none, if either is known.
    pub(crate) fn loaded(&self) -> Option<Result<&Arc<Layer>, String>> {
        if let Some(layer) = self.layer.get() {
            return Some(Ok(layer));
        }
        // Does not wait: another thread may be reading the layer.
        let failure = self.failure.try_lock()?;
        failure.as_ref().map(|(reason, _)| Err(reason.clone()))
    }

    /// Whether no file of the layer can be read.
    pub(crate) fn is_damaged(&self) -> bool {
        matches!(self.loaded(), Some(Err(_)))
    }

    /// The inode of a file of the layer.
    pub(crate) fn inode(&self, id: FileId) -> Inode {
        Inode(self.record.inode.0 + u64::from(id.0))
    }
}

/// All mounted layers.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    by_number: BTreeMap<LayerNumber, Arc<Mount>>,
    by_inode: BTreeMap<Inode, Arc<Mount>>,
}

impl Mounts {
    pub(crate) fn insert(&mut self, mount: Arc<Mount>) {
        self.by_inode.insert(mount.record.inode, Arc::clone(&mount));
        self.by_number.insert(mount.record.number, mount);
    }

    pub(crate) fn remove(&mut self, number: LayerNumber) -> Option<Arc<Mount>> {
        let mount = self.by_number.remove(&number)?;
        self.by_inode.remove(&mount.record.inode);
        Some(mount)
    }

    pub(crate) fn get(&self, number: LayerNumber) -> Option<&Arc<Mount>> {
        self.by_number.get(&number)
    }

    /// Returns the layer that has the inode, and the file of the layer with this inode.
    pub(crate) fn at(&self, inode: Inode) -> Option<(&Arc<Mount>, FileId)> {
        let (first, mount) = self.by_inode.range(..=inode).next_back()?;
        let id = u32::try_from(inode.0 - first.0)
            .ok()
            .filter(|id| *id < mount.record.inodes)?;
        Some((mount, FileId(id)))
    }

    /// The mounts with numbers above `number`, in order.
    pub(crate) fn after(&self, number: LayerNumber) -> impl Iterator<Item = &Arc<Mount>> {
        self.by_number
            .range((Bound::Excluded(number), Bound::Unbounded))
            .map(|(_, mount)| mount)
    }

    /// Returns the mounts of the layer with this TOC.
    pub(crate) fn of(
        &self,
        digest: &Digest,
        toc_digest: &TocDigest,
    ) -> impl Iterator<Item = &Arc<Mount>> {
        self.all().filter(move |mount| {
            mount.record.digest == *digest && mount.record.toc_digest == *toc_digest
        })
    }

    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Mount>> {
        self.by_number.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(number: u64, inode: u64, inodes: u32) -> Arc<Mount> {
        let digest = Digest::sha256_of(b"layer");
        let record = Record {
            number: LayerNumber(number),
            inode: Inode(inode),
            inodes,
            reference: "registry.example/app:1".to_owned(),
            digest: digest.clone(),
            toc_digest: TocDigest::Json(digest),
            blob_size: 0,
            tail_start: 0,
            data_size: None,
        };
        Arc::new(Mount::new(record, None))
    }

    #[test]
    fn every_inode_belongs_to_one_layer_or_none() {
        let mut mounts = Mounts::default();
        mounts.insert(mount(1, 2, 10));
        mounts.insert(mount(2, 12, 3));
        mounts.insert(mount(3, 20, 5));
        let at = |mounts: &Mounts, inode| {
            mounts
                .at(Inode(inode))
                .map(|(mount, id)| (mount.record.number.0, id.0))
        };
        assert_eq!(at(&mounts, Inode::ROOT.0), None);
        assert_eq!(
            [2, 11, 12, 14].map(|inode| at(&mounts, inode)),
            [Some((1, 0)), Some((1, 9)), Some((2, 0)), Some((2, 2))]
        );
        assert_eq!([15, 19, 25].map(|inode| at(&mounts, inode)), [None; 3]);
        assert!(mounts.remove(LayerNumber(2)).is_some() && mounts.remove(LayerNumber(2)).is_none());
        assert_eq!(
            [12, 20].map(|inode| at(&mounts, inode)),
            [None, Some((3, 0))]
        );
        assert_eq!(
            mounts
                .after(LayerNumber(1))
                .map(|mount| mount.record.number.0)
                .collect::<Vec<_>>(),
            [3]
        );
    }

    #[test]
    fn a_layer_that_cannot_be_read_is_tried_again_later() {
        let mount = mount(1, 2, 10);
        assert!(mount.loaded().is_none() && !mount.is_damaged());
        assert_eq!(
            mount.layer(|_| Err("damaged".to_owned())).unwrap_err(),
            "damaged"
        );
        assert_eq!(mount.layer(|_| panic!("too soon")).unwrap_err(), "damaged");
        assert_eq!(mount.loaded().unwrap().unwrap_err(), "damaged");
        assert!(mount.is_damaged());
        let long_ago = Instant::now().checked_sub(AGAIN).unwrap();
        *mount.failure.lock() = Some(("damaged".to_owned(), long_ago));
        assert_eq!(
            mount.layer(|_| Err("still".to_owned())).unwrap_err(),
            "still"
        );
    }
}
