//! Mounts layers temporarily, for one process that records the files read from them.
//!
//! This is not the agent's own mount: no keeper holds it, and nothing is prefetched.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::agent::config::{Background, Config, KeeperKind};
use crate::agent::fuse::Device;
pub(crate) use crate::agent::fuse::MountError;
use crate::agent::fuse::attach;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::layer_mount::LayerMount;
pub(crate) use crate::agent::layers::recorder::Recording;
use crate::agent::layers::recorder::Used;
use crate::agent::layers::{Layers, NotLazy};
use crate::agent::mountpoint;
use crate::agent::numbers::LayerNumber;
use crate::transport::Upstreams;

/// A workload that opens more files than this gains nothing from having them all first.
const MAX_FILES: usize = 1 << 20;

/// The mount. Unmounted on drop.
#[derive(Debug)]
pub(crate) struct Observatory {
    layers: Arc<Layers>,
    mountpoint: PathBuf,
}

/// A layer that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    number: LayerNumber,
    pub path: PathBuf,
}

impl Observatory {
    /// Mounts a file system under `root`, an empty directory. Its layers come from `upstreams`.
    ///
    /// # Errors
    /// If this process may not mount, or there is no /dev/fuse.
    pub(crate) async fn mount(root: &Path, upstreams: Upstreams) -> Result<Self, MountError> {
        let config = Config {
            root: root.to_owned(),
            prefetch: false,
            background: Background::Off,
            keeper: KeeperKind::None,
            ..Config::default()
        };
        let runtime = Handle::current();
        spawn_blocking(move || Self::serve(&config, upstreams, runtime))
            .await
            .map_err(io::Error::other)?
    }

    fn serve(config: &Config, upstreams: Upstreams, runtime: Handle) -> Result<Self, MountError> {
        let layers = Arc::new(Layers::open(config, upstreams, &[LayerMount::Full])?);
        let mount = LayerMount::Full;
        let mountpoint = mount.directory(&config.root);
        let device = Device::mount(&mountpoint, &mount.saved_init(&config.root))?;
        let observatory = Self { layers, mountpoint };
        // Only this process unmounts it.
        let _unmounted = attach(&device, mount, &observatory.layers, config, runtime)?;
        Ok(observatory)
    }

    /// Mounts a layer.
    ///
    /// # Errors
    /// If it cannot be read lazily.
    pub(crate) async fn show(&self, layer: &LayerSpec) -> Result<Shown, NotLazy> {
        let number = self.layers.mount(layer, None).await?;
        Ok(Shown {
            number,
            path: self.mountpoint.join(number.to_string()),
        })
    }

    /// Records the files of `layers` that are read from now on.
    pub(crate) fn begin(&self, layers: &[Shown]) -> Recording {
        self.layers
            .recorder()
            .begin(layers.iter().map(|shown| shown.number), MAX_FILES)
    }

    /// Ends the recording and returns the files in the order of first use, each with the index of
    /// its layer in `layers` and its path there.
    pub(crate) fn end(&self, recording: Recording, layers: &[Shown]) -> Vec<(usize, Vec<u8>)> {
        let files = recording.end();
        let places: HashMap<LayerNumber, usize> =
            layers.iter().map(|shown| shown.number).zip(0..).collect();
        let mut paths = HashMap::new();
        for shown in layers {
            let Some(mount) = self.layers.table().by_number(shown.number) else {
                continue;
            };
            let Ok(layer) = self.layers.table().layer(&mount) else {
                continue;
            };
            let ids = files
                .iter()
                .filter(|used| used.number == shown.number)
                .map(|used| used.id)
                .collect();
            paths.insert(shown.number, layer.tree().paths(&ids));
        }
        let found = |used: Used| {
            Some((
                *places.get(&used.number)?,
                paths.get_mut(&used.number)?.remove(&used.id)?,
            ))
        };
        files.into_iter().filter_map(found).collect()
    }
}

impl Drop for Observatory {
    fn drop(&mut self) {
        if let Err(error) = mountpoint::clear(&self.mountpoint) {
            tracing::warn!(%error, path = %self.mountpoint.display(), "layers not unmounted");
        }
    }
}
