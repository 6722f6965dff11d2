//! Mounts layers lazily, each as a directory of the agent's one file system.

use super::snapshots::Usage;
use super::spec::LayerSpec;

/// The layers that are mounted lazily.
#[derive(Debug, Default)]
pub struct Layers;

/// Why a layer is not mounted lazily; its snapshot is unpacked the ordinary way then.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotLazy(pub String);

impl Layers {
    /// Makes the layer's tree visible and gives the number of its directory.
    ///
    /// The caller hands back a number it does not keep, with [`Self::unmount`].
    #[expect(clippy::unused_async, reason = "mounting asks a registry")]
    pub async fn mount(&self, _spec: &LayerSpec) -> Result<u64, NotLazy> {
        Err(NotLazy("lazy mounts are off".to_owned()))
    }

    /// Lets a layer's directory go; nothing happens where it is gone already.
    #[expect(clippy::unused_async, reason = "unmounting waits for the file system")]
    pub async fn unmount(&self, _number: u64) {}

    /// What the layer takes of this node's disk.
    #[expect(clippy::unused_async, reason = "the cache is asked")]
    pub async fn usage(&self, _number: u64) -> Usage {
        Usage::default()
    }
}
