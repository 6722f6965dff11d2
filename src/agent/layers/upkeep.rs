//! Keeps the data files durable and within their limits while the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::{Layers, idle};

/// Pause between two rounds that make written content durable. Content that is not durable is
/// compared with its digest after a power cut, so this saves work, not data.
const SYNC_PAUSE: Duration = Duration::from_secs(5);
/// Rounds of it after which memory that is not in use is returned: half a minute.
const ROUNDS_TO_REST: u32 = 6;

impl Layers {
    /// Makes what was written durable, keeps the limits while others fill the disk, and returns
    /// memory that is not in use. Does not return.
    pub(crate) async fn keep_data(&self) {
        for round in (0..ROUNDS_TO_REST).cycle() {
            tokio::time::sleep(SYNC_PAUSE).await;
            let store = Arc::clone(self.fetcher().store());
            let work = move || {
                store.sync();
                store.keep_limits();
                if round + 1 == ROUNDS_TO_REST {
                    idle::release(&store);
                }
            };
            if let Err(error) = spawn_blocking(work).await {
                tracing::error!(%error, "data files not synced");
            }
        }
    }
}
