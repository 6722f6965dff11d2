//! The choice of the driver for new layers.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::probe::{Probe, ProbeError, check_version};
use crate::agent::config::DriverKind;
use crate::telemetry::log::chain;

/// How a layer's files are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Driver {
    Erofs,
    #[default]
    Fuse,
}

/// The driver of new layers, and the reason for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriverReport {
    pub driver: Driver,
    pub reason: String,
    /// Whether the configuration left no choice.
    pub is_configured: bool,
}

impl Driver {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for DriverReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.driver.as_str(), self.reason)
    }
}

impl DriverReport {
    /// Chooses the driver. Tries EROFS if the configuration allows it. Blocking.
    ///
    /// # Errors
    /// If the configuration demands EROFS, and this kernel cannot do it.
    pub(in crate::agent) fn choose(
        kind: DriverKind,
        root: &Path,
        probe: &Probe,
    ) -> Result<Self, ProbeError> {
        match kind {
            DriverKind::Fuse => Ok(Self::configured(Driver::Fuse)),
            DriverKind::Erofs => {
                probe.run(root)?;
                Ok(Self::configured(Driver::Erofs))
            }
            DriverKind::Auto => Ok(Self::automatic(try_erofs(root, probe))),
        }
    }

    fn configured(driver: Driver) -> Self {
        Self {
            driver,
            reason: "configured".to_owned(),
            is_configured: true,
        }
    }

    fn automatic(tried: Result<(), ProbeError>) -> Self {
        let (driver, reason) = match tried {
            Ok(()) => (Driver::Erofs, "tried at the start".to_owned()),
            Err(error) => (Driver::Fuse, chain(&error)),
        };
        Self {
            driver,
            reason,
            is_configured: false,
        }
    }
}

fn try_erofs(root: &Path, probe: &Probe) -> Result<(), ProbeError> {
    check_version(&rustix::system::uname().release().to_string_lossy())?;
    probe.run(root)
}
