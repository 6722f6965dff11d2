//! Prepares layers for containers that are about to start on them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::table::Table;
use crate::agent::config::Config;
use crate::agent::erofs::ErofsMounts;
use crate::agent::layer::data::LayerData;
use crate::agent::numbers::LayerNumber;

/// Prepares layers for containers.
#[derive(Debug)]
pub(crate) struct Readiness {
    table: Arc<Table>,
    erofs: Arc<ErofsMounts>,
    /// Whether the reads of the first container on a layer are recorded.
    is_recorded: bool,
    /// Held while the content of a layer is compared with its digests.
    checking: Mutex<()>,
}

impl Readiness {
    pub(super) fn new(config: &Config, table: Arc<Table>, erofs: Arc<ErofsMounts>) -> Self {
        Self {
            table,
            erofs,
            is_recorded: !config.record.is_zero(),
            checking: Mutex::default(),
        }
    }

    /// Makes the kernel read those of the layers without the agent that are mounted as EROFS and
    /// complete. Layers whose content was not compared with its digests since the start follow later.
    ///
    /// The first container's reads of a layer are recorded, so they still pass through the agent.
    pub(crate) async fn expect_container(self: &Arc<Self>, numbers: Vec<LayerNumber>) {
        let own = Arc::clone(self);
        let work = move || {
            let unchecked = numbers
                .into_iter()
                .inspect(|number| own.erofs.read_ahead(*number))
                .filter_map(|number| own.make_one_native(number));
            unchecked.collect::<Vec<_>>()
        };
        let unchecked = spawn_blocking(work).await.unwrap_or_default();
        if !unchecked.is_empty() {
            let own = Arc::clone(self);
            spawn_blocking(move || own.check_for_native(unchecked));
        }
    }

    /// Returns the layer if it is complete and its content must be compared with its digests first.
    fn make_one_native(&self, number: LayerNumber) -> Option<(LayerNumber, Arc<LayerData>)> {
        let mount = self.table.by_number(number)?;
        if let Some(Ok(layer)) = mount.loaded() {
            layer.data().mark_used();
        }
        let is_recorded = self.is_recorded && !mount.was_used();
        if is_recorded || !self.erofs.is_served(number) {
            return None;
        }
        let data = mount.loaded()?.ok()?.data();
        if data.is_checked() {
            self.erofs.make_native(number, data);
            return None;
        }
        data.is_complete().then(|| (number, Arc::clone(data)))
    }

    fn check_for_native(&self, layers: Vec<(LayerNumber, Arc<LayerData>)>) {
        for (number, data) in layers {
            // One layer at a time: this is not urgent, and reads the disk.
            let _turn = self.checking.lock();
            data.check_all();
            self.erofs.make_native(number, &data);
        }
    }
}
