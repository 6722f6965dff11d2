//! The registry host that a body comes from, so that whoever reads the body can report it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::health::Health;
use crate::oci::Digest;

/// The registry host that gives a blob, or the latest of several where a body was taken up elsewhere.
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

    /// Reports that the bytes are not the blob's, or that they stopped coming: a mirror that did this is not asked for
    /// this blob for some minutes, and after all others for everything else. The next read gets other bytes where
    /// another host has them.
    pub fn report_bad(&self) {
        let host = self.host.lock().clone();
        self.health.report_bad(&host, &self.digest);
    }

    pub(super) fn moved_to(&self, host: Arc<str>) {
        *self.host.lock() = host;
    }
}
