//! Keeps the data files durable and within their limits while the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::Layers;

/// Pause between two rounds that make written content durable. Content that is not durable is
/// compared with its digest after a power cut, so this saves work, not data.
const SYNC_PAUSE: Duration = Duration::from_secs(5);

impl Layers {
    /// Makes what was written durable, and keeps the limits while others fill the disk. Does not
    /// return.
    pub(crate) async fn keep_data(&self) {
        loop {
            tokio::time::sleep(SYNC_PAUSE).await;
            let store = Arc::clone(self.fetcher().store());
            let work = move || {
                store.sync();
                store.keep_limits();
            };
            if let Err(error) = spawn_blocking(work).await {
                tracing::error!(%error, "data files not synced");
            }
        }
    }
}
