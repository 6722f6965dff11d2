//! The registry host that a body comes from, so that the reader of the body can report it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::health::Health;
use crate::oci::Digest;

/// The registry host that sends a blob. If the body was resumed at another host, it is that host.
#[derive(Debug, Clone)]
pub struct Origin {
    health: Health,
    digest: Digest,
    host: Arc<Mutex<Arc<str>>>,
}

impl Origin {
    pub(super) fn new(health: Health, digest: Digest, host: Arc<str>) -> Self {
        Self {
            health,
            digest,
            host: Arc::new(Mutex::new(host)),
        }
    }

    /// Reports that the bytes are not the blob's, or that they stopped coming. A mirror that did
    /// this is not asked for this blob for ten minutes, and for one minute it is asked after all
    /// others for everything else. The next read gets the blob from another host, if one has it.
    pub fn report_bad(&self) {
        let host = self.host.lock().clone();
        self.health.report_bad(&host, &self.digest);
    }

    pub(super) fn moved_to(&self, host: Arc<str>) {
        *self.host.lock() = host;
    }
}
