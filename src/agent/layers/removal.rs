//! Removes layers: those whose snapshots are removed, and those that a crash has left without one.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::Layers;
use crate::agent::numbers::LayerNumber;

impl Layers {
    /// Unmounts a layer's directory. Does nothing if it is gone already.
    pub(crate) async fn unmount(self: &Arc<Self>, number: LayerNumber) {
        let own = Arc::clone(self);
        if let Err(error) = spawn_blocking(move || own.drop_mount(number)).await {
            tracing::error!(%number, %error, "layer not unmounted");
        }
    }

    fn drop_mount(&self, number: LayerNumber) {
        self.table.remove(number, |mount| {
            if mount.record.data_size.is_some() {
                self.drivers.erofs().remove(number);
            }
            self.kernel.notify(|notifier| {
                notifier.is_gone(number);
                notifier.root_changed();
            });
        });
    }

    /// Unmounts every layer whose number is not in `numbers`: a crash between a mount and its
    /// snapshot leaves such layers.
    pub(crate) async fn retain(self: &Arc<Self>, numbers: &HashSet<LayerNumber>) {
        for mount in self.table.all() {
            if !numbers.contains(&mount.record.number) {
                tracing::info!(number = %mount.record.number, layer = %mount.record.digest, "layer without a snapshot removed");
                self.unmount(mount.record.number).await;
            }
        }
    }

    /// Deletes the files that a crash has left beside the records. Blocking.
    pub(crate) fn delete_leftovers(&self) {
        if let Err(error) = self.table.delete_leftovers() {
            tracing::warn!(%error, "leftovers beside the layer records not deleted");
        }
    }

    /// Deletes the content of layers that are not mounted: a crash at their removal leaves it.
    pub(crate) async fn delete_unmounted_data(&self) {
        let table = Arc::clone(&self.table);
        let work = move || table.delete_unmounted_data();
        match spawn_blocking(work).await.map_err(io::Error::other) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "content of unmounted layers not deleted");
            }
        }
    }
}
