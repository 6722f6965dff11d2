//! The state of the layers: the whole status report, and the disk usage of one.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::Layers;
use super::mount::Mount;
use super::report::{LayerReport, Report};
use crate::agent::numbers::LayerNumber;
use crate::agent::snapshots::Usage;

impl Layers {
    /// Returns the state of the mounted layers and of the cache, and the layers that were not
    /// mounted lazily.
    pub(crate) fn report(&self) -> Report {
        let all = self.table.all();
        let store = self.fetcher().store();
        Report {
            layers: all.iter().map(|mount| self.report_of(mount)).collect(),
            profiles: self.ahead.profiles().report(),
            cache: store.usage(),
            cache_limit: store.limit(),
            free_space: store.free(),
            refusals: self.refusals.all(),
            unmounted: self.kernel.unmounted(),
            driver: self.drivers.report(),
        }
    }

    /// Returns the number of mounted layers of which no file can be read.
    pub(crate) fn damaged(&self) -> usize {
        let all = self.table.all();
        all.iter().filter(|mount| mount.is_damaged()).count()
    }

    fn report_of(&self, mount: &Mount) -> LayerReport {
        let number = mount.record.number;
        LayerReport {
            driver: self.drivers.of(number),
            is_native: self.drivers.erofs().is_native(number),
            ..LayerReport::of(mount)
        }
    }

    /// Returns the layer's usage of this node's disk.
    pub(crate) async fn usage(&self, number: LayerNumber) -> Usage {
        let table = Arc::clone(&self.table);
        let measure = move || {
            let mount = table.by_number(number);
            let held = mount
                .as_ref()
                .and_then(|mount| table.layer(mount).ok())
                .map(|layer| layer.data().usage());
            held.map_or_else(Usage::default, |held| Usage {
                size: held.bytes,
                inodes: held.inodes,
            })
        };
        spawn_blocking(measure).await.unwrap_or_default()
    }
}
