//! Layers mounted for a while by one process, which learns what is read of them.
//!
//! Not the agent's own mount: no keeper holds it, no file is handed to the kernel as a whole, nothing is fetched ahead.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estargz::toc::NodeId;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::config::{Background, Config, KeeperKind};
use super::filesystem::FileSystem;
use super::fuse::Adapter;
use super::layers::{Layers, NotLazy};
use super::notify::Notifier;
use super::opens::Opens;
use super::recorder::Recorder;
use super::session::{self, Device, SessionError};
use super::spec::LayerSpec;
use crate::upstream::Upstreams;

/// The mount; undone when dropped.
#[derive(Debug)]
pub struct Observatory {
    layers: Arc<Layers>,
    recorder: Arc<Recorder>,
    mountpoint: PathBuf,
}

/// A layer that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    number: u64,
    pub path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the mount cannot be served")]
    Io(#[from] io::Error),
}

impl Observatory {
    /// Mounts beneath `root`, an empty directory, with the layers of `upstreams` to be shown.
    ///
    /// # Errors
    /// When this process may not mount, or there is no /dev/fuse.
    pub async fn mount(root: &Path, upstreams: Upstreams) -> Result<Self, ObserveError> {
        let config = Config {
            root: root.to_owned(),
            prefetch: false,
            background: Background::Off,
            passthrough: false,
            keeper: KeeperKind::None,
            ..Config::default()
        };
        let runtime = Handle::current();
        spawn_blocking(move || Self::serve(&config, upstreams, runtime)).await.map_err(io::Error::other)?
    }

    fn serve(config: &Config, upstreams: Upstreams, runtime: Handle) -> Result<Self, ObserveError> {
        let layers = Arc::new(Layers::open(config, upstreams)?);
        let recorder = Arc::new(Recorder::default());
        let mountpoint = Layers::mountpoint(&config.root);
        let device = Device::mount(&mountpoint, &config.root.join("init"))?;
        let observatory = Self { layers, recorder, mountpoint };
        let adapter = Adapter::new(
            FileSystem::recorded(Arc::clone(&observatory.layers), Arc::clone(&observatory.recorder)),
            Opens::load(&config.root.join("opens"), true)?,
            device.duplicate()?,
            runtime,
            config.read_timeout,
            config.passthrough,
        );
        let notifier = Notifier::new(device.duplicate()?);
        let session = device.serve(adapter, config.threads)?;
        std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the kernel is not answered any more");
            }
        })?;
        observatory.layers.announce_to(notifier);
        Ok(observatory)
    }

    /// Shows a layer.
    ///
    /// # Errors
    /// When it cannot be read lazily.
    pub async fn show(&self, layer: &LayerSpec) -> Result<Shown, NotLazy> {
        let number = self.layers.mount(layer).await?;
        Ok(Shown { number, path: self.mountpoint.join(number.to_string()) })
    }

    /// What is opened from here on is recorded.
    pub fn begin(&self) {
        self.recorder.begin();
    }

    /// Ends the recording: each file by the place of its layer in `layers` and its path there, in the order of first use.
    pub fn end(&self, layers: &[Shown]) -> Vec<(usize, Vec<u8>)> {
        let files = self.recorder.end().into_iter().filter_map(|inode| self.layers.at(inode));
        let files: Vec<_> = files.map(|(mount, id)| (mount.record.number, NodeId(id.0))).collect();
        let numbers = layers.iter().enumerate().map(|(place, shown)| (shown.number, place));
        let places: HashMap<u64, usize> = numbers.collect();
        let mut paths = HashMap::new();
        for shown in layers {
            let nodes = files.iter().filter(|(number, _)| *number == shown.number).map(|(_, node)| *node);
            let nodes: std::collections::HashSet<NodeId> = nodes.collect();
            let Some(mount) = self.layers.by_name(shown.number.to_string().as_bytes()) else { continue };
            let Ok(layer) = self.layers.layer(&mount) else { continue };
            for entry in layer.tree().toc().entries().filter(|entry| nodes.contains(&entry.node.id())) {
                // A file of several names is called by the first of them: whichever comes first brings the content.
                paths.entry((shown.number, entry.node.id())).or_insert(entry.path);
            }
        }
        let found = |file: (u64, NodeId)| Some((*places.get(&file.0)?, paths.remove(&file)?));
        files.into_iter().filter_map(found).collect()
    }
}

impl Drop for Observatory {
    fn drop(&mut self) {
        if let Err(error) = session::clear(&self.mountpoint) {
            tracing::warn!(%error, path = %self.mountpoint.display(), "the layers stay mounted");
        }
    }
}
