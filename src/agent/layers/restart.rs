//! The layers that an earlier process mounted: mounted again if need be, read from disk, and written
//! again after a power cut.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::Layers;
use super::mount::Mount;
use super::notify::Notifier;
use crate::agent::prefetch::pulls::Pull;
use crate::agent::snapshots::StoredLayer;

/// Pause before layers that could not be read at the agent's start are tried again. Each further
/// pause is twice as long.
const RESUME_PAUSE: Duration = Duration::from_secs(10);
const LAST_RESUME_PAUSE: Duration = Duration::from_secs(600);

impl Layers {
    /// Mounts the layers as EROFS again that are recorded so and are not mounted, or whose FUSE
    /// mount has ended. Blocking.
    pub(crate) fn restore_erofs(&self) {
        let is_erofs =
            |mount: &Arc<Mount>| mount.record.data_size.is_some() && !mount.gone.is_cancelled();
        let named = |mount: Arc<Mount>| (mount.record.number, mount.record.data_name());
        let layers = || {
            let all = self.table.all().into_iter();
            all.filter(is_erofs).map(named).collect()
        };
        let load = |number| {
            let mount = self.table.by_number(number)?;
            Some(Arc::clone(self.table.layer(&mount).ok()?.data()))
        };
        let durable = |number| self.table.durable(&self.table.by_number(number)?.record);
        self.drivers.erofs().restore(layers, load, durable);
    }

    /// Reads from disk every layer that was not used since the start, and resumes prefetching it.
    /// Retries a layer that cannot be read for as long as it is mounted.
    pub(crate) async fn resume(&self) {
        let mut left = self.table.all();
        let mut pause = RESUME_PAUSE;
        loop {
            let mut failed = Vec::new();
            for mount in left.into_iter().filter(|mount| !mount.gone.is_cancelled()) {
                let (table, loading) = (Arc::clone(&self.table), Arc::clone(&mount));
                let loaded = spawn_blocking(move || table.layer(&loading).is_ok()).await;
                if matches!(loaded, Ok(true)) {
                    self.ahead.fill(&mount, None, Pull::OVER);
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

    /// Mounts a layer of a snapshot whose files a power cut has lost or torn. Does nothing if they
    /// are intact. Returns whether it was mounted. Blocking.
    pub(crate) fn restore(&self, layer: &StoredLayer) -> bool {
        match self.table.restore(layer) {
            Ok(Some(mount)) => {
                let record = &mount.record;
                tracing::warn!(number = %record.number, layer = %record.digest, "layer record restored");
                self.kernel.notify(Notifier::root_changed);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!(%error, "layer record not restored");
                false
            }
        }
    }
}
