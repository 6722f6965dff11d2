//! The drivers that show layers, and the one of new layers.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::agent::config::{Config, DriverKind};
use crate::agent::erofs::{Driver, DriverReport, ErofsMounts, Probe, ProbeError};
use crate::agent::numbers::LayerNumber;

/// The drivers of one root.
#[derive(Debug)]
pub(crate) struct Drivers {
    root: PathBuf,
    configured: DriverKind,
    erofs: Arc<ErofsMounts>,
    probe: Arc<Probe>,
    chosen: OnceLock<DriverReport>,
}

impl Drivers {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            root: config.root.clone(),
            configured: config.driver,
            erofs: Arc::new(ErofsMounts::new(&config.root)),
            probe: Arc::default(),
            chosen: OnceLock::new(),
        }
    }

    /// Chooses the driver of new layers. Until then it is FUSE. Blocking: it may try EROFS over the
    /// FUSE mounts.
    ///
    /// # Errors
    /// If the configuration demands EROFS, and this kernel cannot do it.
    pub(crate) fn choose(&self) -> Result<&DriverReport, ProbeError> {
        let chosen = DriverReport::choose(self.configured, &self.root, &self.probe)?;
        Ok(self.chosen.get_or_init(|| chosen))
    }

    /// Whether new layers are mounted as EROFS.
    pub(super) fn is_erofs_chosen(&self) -> bool {
        let chosen = self.chosen.get();
        chosen.is_some_and(|chosen| chosen.driver == Driver::Erofs)
    }

    /// Returns the driver of a mounted layer.
    pub(super) fn of(&self, number: LayerNumber) -> Driver {
        if self.erofs.is_known(number) {
            Driver::Erofs
        } else {
            Driver::Fuse
        }
    }

    /// Returns the driver of new layers and the reason for it, for the status report.
    pub(super) fn report(&self) -> DriverReport {
        self.chosen.get().cloned().unwrap_or_default()
    }

    pub(crate) fn erofs(&self) -> &Arc<ErofsMounts> {
        &self.erofs
    }

    pub(crate) fn probe(&self) -> &Arc<Probe> {
        &self.probe
    }
}
