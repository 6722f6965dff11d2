//! Layers whose content the kernel reads from their data files, without the agent: native layers.
//!
//! ```text
//! complete, checked ▶ native ─ the limit of the disk, and no container uses it ▶ served ▶ evicted
//!                        └──── content differs from its digest ▶ served ▶ fetched again ▶ native
//! ```
//! After a start of the agent nothing has been compared with its digests. Native layers stay native
//! and are compared in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Layers;
use super::mount::Mount;
use super::table::Table;
use crate::agent::erofs::ErofsMounts;
use crate::agent::layer::Layer;
use crate::agent::layer::data::{Checked, DataStore, LayerData};
use crate::agent::layer::fetch::Reason;
use crate::agent::snapshots::Snapshots;
use crate::telemetry::log::chain;

/// Bytes a second that are read from the disk to compare content with its digests. A node with 100
/// GiB of layers has compared all of them within an hour of the agent's start.
const BANDWIDTH: u64 = 32 << 20;
/// Bytes that are compared between two pauses.
const STEP: u64 = 4 << 20;
/// Pause between two releases of layers that are to be evicted.
const BREATH: Duration = Duration::from_millis(100);
/// Pause between two looks at whether a native layer has lost content.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes layers native, and serves them again when the disk is full or content is damaged.
#[derive(Debug, Clone)]
pub(crate) struct Natives {
    table: Arc<Table>,
    erofs: Arc<ErofsMounts>,
    store: Arc<DataStore>,
    /// They know which layers containers use.
    snapshots: Arc<Snapshots>,
}

impl Natives {
    pub(crate) fn new(layers: &Layers, snapshots: Arc<Snapshots>) -> Self {
        Self {
            table: Arc::clone(layers.table()),
            erofs: Arc::clone(layers.drivers().erofs()),
            store: Arc::clone(layers.fetcher().store()),
            snapshots,
        }
    }

    /// Does all that is to be done with native layers. Does not return.
    pub(crate) async fn keep(self) {
        tokio::join!(self.keep_right(), self.keep_limits());
    }

    /// Compares the content of complete layers with its digests, makes them native, and heals those
    /// that lose content. Does not return.
    async fn keep_right(&self) {
        for mount in self.all() {
            if let Some(layer) = self.load(&mount).await {
                self.check(&mount, &layer).await;
            }
        }
        loop {
            tokio::time::sleep(PAUSE).await;
            for mount in self.all() {
                if let Some(Ok(layer)) = mount.loaded() {
                    self.heal(&mount, layer).await;
                }
            }
        }
    }

    /// Releases the native layers that are to be evicted. Does not return.
    async fn keep_limits(&self) {
        loop {
            let wanted = self.store.wanted().await;
            let own = self.clone();
            let work = move || {
                wanted.iter().for_each(|data| own.release(data));
                own.store.keep_limits();
            };
            if let Err(error) = spawn_blocking(work).await {
                tracing::error!(%error, "native layers not released");
            }
            // A layer that is in use is wanted again and again while nothing else can go.
            tokio::time::sleep(BREATH).await;
        }
    }

    /// Returns the layers that are mounted as EROFS.
    fn all(&self) -> Vec<Arc<Mount>> {
        let mut all = self.table.all();
        all.retain(|mount| mount.record.data_size.is_some());
        all
    }

    async fn load(&self, mount: &Arc<Mount>) -> Option<Arc<Layer>> {
        let (table, mount) = (Arc::clone(&self.table), Arc::clone(mount));
        // A layer that cannot be read is reported where that is noticed.
        let load = move || table.layer(&mount).ok().cloned();
        spawn_blocking(load).await.ok().flatten()
    }

    /// Compares all content of a complete layer with its digests, slowly.
    async fn check(&self, mount: &Arc<Mount>, layer: &Arc<Layer>) {
        let is_native = self.erofs.is_native(mount.record.number);
        if !is_native && !layer.data().is_complete() {
            return;
        }
        let mut next = Some(0);
        while let Some(from) = next.filter(|_| !mount.gone.is_cancelled()) {
            let begun = Instant::now();
            let data = Arc::clone(layer.data());
            let checked = spawn_blocking(move || data.check_some(from, STEP)).await;
            let Ok(Checked { bytes, next: after }) = checked else {
                return;
            };
            next = after;
            self.heal(mount, layer).await;
            tokio::time::sleep_until(begun + time_for(bytes)).await;
        }
        self.make_native(mount, layer).await;
    }

    /// Serves a native layer that has lost content, fetches the content, and makes it native again.
    async fn heal(&self, mount: &Arc<Mount>, layer: &Arc<Layer>) {
        let number = mount.record.number;
        if !self.erofs.is_native(number) || layer.data().is_complete() {
            return;
        }
        let (erofs, data) = (Arc::clone(&self.erofs), Arc::clone(layer.data()));
        let work = move || {
            let is_served = erofs.make_served(number);
            is_served.then(|| data.missing())
        };
        let Ok(Some(missing)) = spawn_blocking(work).await else {
            return;
        };
        let (chunks, digest) = (missing.len(), &mount.record.digest);
        match layer.hold(missing.into_iter(), Reason::Background).await {
            Ok(()) => {
                tracing::info!(%number, layer = %digest, chunks, "damaged content fetched again");
                self.make_native(mount, layer).await;
            }
            Err(error) => {
                tracing::warn!(%number, layer = %digest, chunks, error = chain(&error), "damaged content not fetched; it is fetched when it is read");
            }
        }
    }

    async fn make_native(&self, mount: &Arc<Mount>, layer: &Arc<Layer>) {
        let number = mount.record.number;
        let (erofs, data) = (Arc::clone(&self.erofs), Arc::clone(layer.data()));
        let work = move || erofs.make_native(number, &data);
        if let Err(error) = spawn_blocking(work).await {
            tracing::error!(%number, %error, "complete layer not mounted over its data file");
        }
    }

    /// Serves the mounts of a native layer again, unless a container uses one of them. Blocking.
    fn release(&self, data: &LayerData) {
        let mut mounts = self.table.all();
        mounts.retain(|mount| mount.record.data_name() == data.name());
        let numbers = mounts.iter().map(|mount| mount.record.number);
        // On a file system without leases nothing would keep a hole from an unknown reader.
        let is_unused = data.knows_readers()
            && match self.snapshots.lazy_numbers_in_use() {
                Ok(used) => {
                    used.is_some_and(|used| !numbers.clone().any(|own| used.contains(&own)))
                }
                Err(error) => {
                    tracing::warn!(%error, "snapshots not read; layers that are not in use are not evicted");
                    false
                }
            };
        let is_served = is_unused && numbers.clone().all(|number| self.erofs.make_served(number));
        if !is_served {
            data.mark_used();
        }
    }
}

/// Returns the time that so many bytes take at the bandwidth of comparisons.
fn time_for(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / BANDWIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_take_their_time() {
        assert_eq!(time_for(BANDWIDTH), Duration::from_secs(1));
        assert_eq!(time_for(STEP), Duration::from_millis(125));
    }
}
