//! The kernel's side of the agent's mounts: which of them are in their place, and messages to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::notify::Notifier;
use crate::agent::layer_mount::LayerMount;

/// The kernel connections.
#[derive(Debug)]
pub(crate) struct Kernel {
    root: PathBuf,
    /// The mounts that must be there: while one is missing, no layer is mounted lazily.
    needed: &'static [LayerMount],
    /// The connections of the mounts that are in their place.
    notifiers: RwLock<BTreeMap<LayerMount, Arc<Notifier>>>,
}

impl Kernel {
    pub(super) fn new(root: &Path, needed: &'static [LayerMount]) -> Self {
        Self {
            root: root.to_owned(),
            needed,
            notifiers: RwLock::default(),
        }
    }

    /// Sets the notifier that sends the kernel the changes of layers on `mount` from now on. `None`
    /// says that the mount is gone. While a needed mount is gone, no layer is mounted lazily.
    pub(crate) fn announce_to(&self, mount: LayerMount, notifier: Option<Notifier>) {
        let mut notifiers = self.notifiers.write();
        match notifier {
            Some(notifier) => notifiers.insert(mount, Arc::new(notifier)),
            None => notifiers.remove(&mount),
        };
    }

    /// Returns the directories of the needed mounts that are missing.
    pub(super) fn unmounted(&self) -> Vec<PathBuf> {
        let notifiers = self.notifiers.read();
        let is_gone = |mount: &&LayerMount| !notifiers.contains_key(mount);
        let gone = self.needed.iter().filter(is_gone);
        gone.map(|mount| mount.directory(&self.root)).collect()
    }

    pub(super) fn notify(&self, message: impl Fn(&Notifier)) {
        let notifiers: Vec<_> = self.notifiers.read().values().map(Arc::clone).collect();
        notifiers.iter().for_each(|notifier| message(notifier));
    }
}
