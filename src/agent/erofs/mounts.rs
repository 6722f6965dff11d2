//! The EROFS mounts of the layers. They are in the kernel and outlive the agent.
//!
//! ```text
//! <root>/erofs/<number>         the mountpoint
//! <root>/erofs/<number>.image   the metadata image
//! <root>/erofs/<number>.data    what the mount reads its content from, for the next agent
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Advice, fadvise};

use super::image::{self, Identity, WriteError};
use super::mount;
use crate::agent::layer::data::{Hold, LayerData};
use crate::agent::layer_mount::{
    LayerMount, erofs_folder as folder, erofs_mountpoint as mountpoint_of,
};
use crate::agent::mountpoint;
use crate::agent::numbers::LayerNumber;
use crate::telemetry::log::chain;

const NATIVE: &str = "native";

/// Unmounts all layers. Open files keep a file system alive.
///
/// # Errors
/// If the kernel does not unmount one of them.
pub(crate) fn clear(root: &Path) -> io::Result<()> {
    let folder = folder(root);
    mount::mounted_in(&folder)?
        .into_keys()
        .try_for_each(|number| mountpoint::clear(&folder.join(number.to_string())).map(drop))
}

/// The EROFS mounts of one root.
#[derive(Debug)]
pub(crate) struct ErofsMounts {
    root: PathBuf,
    /// Held while anything is mounted or unmounted.
    work: Mutex<()>,
    /// Held for a moment: a layer that is loaded while another is mounted asks for it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The device number of the FUSE mount that serves the data files.
    device: Option<u64>,
    backings: BTreeMap<LayerNumber, Backing>,
    /// Layers that are about to be added.
    expected: BTreeSet<LayerNumber>,
}

/// The source of a mounted layer's content.
#[derive(Debug)]
enum Backing {
    /// The layer's file in the FUSE mount with this device number.
    Served(u64),
    /// The data file. Nothing of it may be evicted; the layer that is loaded says so.
    Native(Option<Hold>),
    /// The layer's tree in the FUSE mount `lazy`, because EROFS could not be mounted again.
    Tree,
}

impl ErofsMounts {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            work: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Sets the FUSE mount that serves the data files from now on.
    pub(crate) fn set_device(&self, device: u64) {
        self.state.lock().device = Some(device);
    }

    /// Leaves a layer that is new to [`Self::add`].
    pub(crate) fn expect(&self, number: LayerNumber) {
        self.state.lock().expected.insert(number);
    }

    /// Writes the image of a layer that is new, and mounts it over its file in the FUSE mount. If
    /// that fails, nobody else mounts it either until [`Self::give_up`].
    ///
    /// # Errors
    /// If the layer cannot be expressed as EROFS, or the kernel does not mount it.
    pub(crate) fn add(&self, number: LayerNumber, data: &LayerData) -> Result<(), WriteError> {
        let added = self.try_to_add(number, data);
        if added.is_err() {
            self.remove(number);
        } else {
            self.state.lock().expected.remove(&number);
        }
        added
    }

    /// Forgets a layer that was not added, once its record says that FUSE serves it. Waits for a
    /// [`Self::restore`] that may have read the record before.
    pub(crate) fn give_up(&self, number: LayerNumber) {
        let _work = self.work.lock();
        self.state.lock().expected.remove(&number);
    }

    fn try_to_add(&self, number: LayerNumber, data: &LayerData) -> Result<(), WriteError> {
        make_folder(&folder(&self.root))?;
        image::write(&self.image(number), data, number)?;
        let _work = self.work.lock();
        Ok(self.serve(number)?)
    }

    /// Mounts a layer over its file in the FUSE mount.
    fn serve(&self, number: LayerNumber) -> io::Result<()> {
        let device = self.state.lock().device;
        let device = device.ok_or(io::ErrorKind::NotConnected)?;
        let data = LayerMount::Data
            .directory(&self.root)
            .join(number.to_string());
        self.mount(number, &data, &device.to_string())?;
        self.set(number, Backing::Served(device));
        Ok(())
    }

    fn set(&self, number: LayerNumber, backing: Backing) {
        self.state.lock().backings.insert(number, backing);
    }

    /// Mounts a layer over `data`. A crash in between leaves no note, and the next agent mounts
    /// again.
    fn mount(&self, number: LayerNumber, data: &Path, note: &str) -> io::Result<()> {
        let (image, at) = (self.image(number), mountpoint_of(&self.root, number));
        remove_file(&self.note(number))?;
        mount::mount(&image, data, &at)?;
        mountpoint::read_further_ahead(&at);
        fs::write(self.note(number), note)
    }

    /// Mounts a layer over its data file if all of it is there and was compared with its digests.
    /// Containers that have it mounted keep the mount that they have. Does nothing if it is mounted
    /// so already.
    pub(crate) fn make_native(&self, number: LayerNumber, data: &Arc<LayerData>) {
        let _work = self.work.lock();
        let is_ready = || data.is_complete() && data.is_checked() && data.path().exists();
        if !self.is_served(number) || !is_ready() {
            return;
        }
        let hold = data.hold();
        // Content may have been evicted before it was held.
        if !data.is_complete() {
            return;
        }
        match self.mount(number, data.path(), NATIVE) {
            Ok(()) => {
                self.set(number, Backing::Native(Some(hold)));
                tracing::debug!(%number, "complete layer mounted over its data file");
            }
            Err(error) => {
                tracing::warn!(%number, %error, "complete layer not mounted over its data file");
                if let Err(error) = self.serve(number) {
                    tracing::error!(%number, %error, "layer not mounted");
                }
            }
        }
    }

    /// Mounts a layer that the kernel reads by itself over its file in the FUSE mount again. Containers
    /// that have it mounted keep the mount that they have. Returns whether the agent serves it now.
    pub(crate) fn make_served(&self, number: LayerNumber) -> bool {
        let _work = self.work.lock();
        if !self.is_native(number) {
            return self.is_served(number);
        }
        match self.serve(number) {
            Ok(()) => {
                tracing::debug!(%number, "layer mounted over the FUSE mount again");
                true
            }
            Err(error) => {
                tracing::warn!(%number, %error, "layer not mounted over the FUSE mount");
                false
            }
        }
    }

    /// Whether the agent serves a layer's content.
    pub(crate) fn is_served(&self, number: LayerNumber) -> bool {
        let state = self.state.lock();
        matches!(state.backings.get(&number), Some(Backing::Served(_)))
    }

    /// Keeps the content of a layer in its place if a mount reads the data file itself.
    pub(crate) fn hold(&self, number: LayerNumber, data: &Arc<LayerData>) {
        if let Some(Backing::Native(hold)) = self.state.lock().backings.get_mut(&number) {
            hold.get_or_insert_with(|| data.hold());
        }
    }

    /// Mounts every layer of `layers` again that is not mounted, or whose FUSE mount is gone. Each
    /// has its number and the name of its data file; they are listed while nothing else is mounted or
    /// unmounted. `load` reads a layer from disk. `durable` returns
    /// the data file of a layer that is complete and survives a power cut.
    pub(crate) fn restore(
        &self,
        layers: impl FnOnce() -> Vec<(LayerNumber, String)>,
        load: impl Fn(LayerNumber) -> Option<Arc<LayerData>>,
        durable: impl Fn(LayerNumber) -> Option<PathBuf>,
    ) {
        let _work = self.work.lock();
        let mounted = match mount::mounted_in(&folder(&self.root)) {
            Ok(mounted) => mounted,
            Err(error) => return tracing::error!(%error, "mount table not read"),
        };
        for (number, name) in layers() {
            if self.is_mounted(&mounted, number) {
                continue;
            }
            match self.restore_one(number, &name, &load, &durable) {
                Ok(()) => tracing::info!(%number, layer = name, "layer mounted again"),
                Err(error) => {
                    tracing::error!(
                        %number,
                        layer = name,
                        error = chain(&error),
                        "layer not mounted as EROFS; its files are served by FUSE"
                    );
                    self.show_tree(number);
                }
            }
        }
    }

    /// Whether a layer is mounted and its content can be read, or is about to be.
    fn is_mounted(&self, mounted: &HashMap<LayerNumber, bool>, number: LayerNumber) -> bool {
        let State {
            device,
            backings,
            expected,
        } = &mut *self.state.lock();
        if expected.contains(&number) {
            return true;
        }
        let Some(is_erofs) = mounted.get(&number) else {
            return false;
        };
        let note = || fs::read_to_string(self.note(number)).unwrap_or_default();
        let backing = backings.entry(number).or_insert_with(|| match note() {
            note if note == NATIVE => Backing::Native(None),
            // No device has the number 0.
            note => Backing::Served(note.parse().unwrap_or_default()),
        });
        match backing {
            Backing::Native(_) => *is_erofs,
            Backing::Served(own) => *is_erofs && Some(*own) == *device,
            Backing::Tree => !is_erofs,
        }
    }

    fn restore_one(
        &self,
        number: LayerNumber,
        name: &str,
        load: impl Fn(LayerNumber) -> Option<Arc<LayerData>>,
        durable: impl Fn(LayerNumber) -> Option<PathBuf>,
    ) -> Result<(), WriteError> {
        let image = self.image(number);
        if !image::is_intact(&image, Identity::of(number, name)) {
            let data = load(number).ok_or(WriteError::NoLayer)?;
            make_folder(&folder(&self.root))?;
            image::write(&image, &data, number)?;
        }
        // An agent that knows the layer may have a part of it that is not durable.
        match durable(number).filter(|_| !self.is_known(number)) {
            Some(data) => {
                self.mount(number, &data, NATIVE)?;
                // The layer takes the hold when it is loaded. Until then nothing of it is evicted.
                self.set(number, Backing::Native(None));
            }
            None => self.serve(number)?,
        }
        Ok(())
    }

    fn show_tree(&self, number: LayerNumber) {
        let tree = LayerMount::Full
            .directory(&self.root)
            .join(number.to_string());
        match mount::bind(&tree, &mountpoint_of(&self.root, number)) {
            Ok(()) => self.set(number, Backing::Tree),
            Err(error) => tracing::error!(%number, %error, "layer not mounted"),
        }
    }

    /// Unmounts a layer, and deletes its files.
    pub(crate) fn remove(&self, number: LayerNumber) {
        let _work = self.work.lock();
        self.state.lock().backings.remove(&number);
        let at = mountpoint_of(&self.root, number);
        let removed = mountpoint::clear(&at)
            .and_then(|_| remove_file(&self.image(number)))
            .and_then(|()| remove_file(&self.note(number)))
            .and_then(|()| fs::remove_dir(&at));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%number, %error, "EROFS mount of a layer not removed");
            }
            _ => {}
        }
    }

    /// Starts to read the image of a layer that is mounted here into the page cache. The kernel
    /// reads metadata page by page, so that a walk on a cold cache would wait for each of them.
    pub(crate) fn read_ahead(&self, number: LayerNumber) {
        let advise = || {
            let image = File::open(self.image(number))?;
            fadvise(&image, 0, None, Advice::WillNeed).map_err(io::Error::from)
        };
        if self.is_known(number)
            && let Err(error) = advise()
        {
            tracing::debug!(%number, %error, "metadata image not read ahead");
        }
    }

    /// Whether a layer is mounted here.
    pub(crate) fn is_known(&self, number: LayerNumber) -> bool {
        self.state.lock().backings.contains_key(&number)
    }

    /// Whether the kernel reads the layer's content without the agent.
    pub(crate) fn is_native(&self, number: LayerNumber) -> bool {
        matches!(
            self.state.lock().backings.get(&number),
            Some(Backing::Native(_))
        )
    }

    fn image(&self, number: LayerNumber) -> PathBuf {
        folder(&self.root).join(format!("{number}.image"))
    }

    fn note(&self, number: LayerNumber) -> PathBuf {
        folder(&self.root).join(format!("{number}.data"))
    }
}

pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_new_layer_is_mounted_by_nobody_else_until_it_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        let (mounts, number) = (ErofsMounts::new(root.path()), LayerNumber(1));
        let loads = Cell::new(0);
        let restore = || {
            let load = |_| {
                loads.set(loads.get() + 1);
                None
            };
            mounts.restore(|| vec![(number, "layer".to_owned())], load, |_| None);
            loads.get()
        };
        mounts.expect(number);
        assert_eq!(restore(), 0, "it is being added");
        mounts.remove(number);
        assert_eq!(
            restore(),
            0,
            "adding it failed, and its record is not written yet"
        );
        mounts.give_up(number);
        assert_eq!(restore(), 1);
    }
}
