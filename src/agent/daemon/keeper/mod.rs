//! The keeper: holds descriptors while the agent restarts. It is systemd, or a process with no
//! other task.

mod process;
mod systemd;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use crate::agent::config::KeeperKind;
use process::ProcessKeeper;
pub(crate) use process::serve;

/// The names of the listening socket and of the credentials of pods. `LayerMount` has the others.
pub(crate) const LISTENER: &str = "socket";
pub(crate) const CREDENTIALS: &str = "credentials";

/// Holds descriptors by name.
#[derive(Debug)]
pub(crate) enum Keeper {
    Systemd,
    Process(ProcessKeeper),
    Nobody,
}

/// The held descriptors.
pub(crate) type Kept = BTreeMap<String, OwnedFd>;

impl Keeper {
    /// Finds or starts the keeper of the agent with this root, and returns the descriptors that it
    /// holds.
    ///
    /// # Errors
    /// If there is none and none can be started.
    pub(crate) fn open(kind: KeeperKind, root: &Path) -> io::Result<(Self, Kept)> {
        match kind {
            KeeperKind::None => Ok((Self::Nobody, Kept::new())),
            KeeperKind::Systemd => Ok((Self::Systemd, systemd::take()?)),
            KeeperKind::Auto if systemd::has_store() => Ok((Self::Systemd, systemd::take()?)),
            KeeperKind::Auto | KeeperKind::Process => {
                let (keeper, kept) = ProcessKeeper::open(root)?;
                Ok((Self::Process(keeper), kept))
            }
        }
    }

    /// Gives the keeper a descriptor, which replaces the previous one of that name.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Systemd => systemd::keep(name, fd),
            Self::Process(keeper) => keeper.keep(name, fd),
            Self::Nobody => Ok(()),
        }
    }

    /// Gives the keeper a mount that is in no directory, as an `O_PATH` descriptor. systemd does
    /// not accept these.
    pub(crate) fn keep_mount(&self, name: &str, mount: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Process(keeper) => keeper.keep(name, mount),
            Self::Systemd | Self::Nobody => Ok(()),
        }
    }

    /// Makes the keeper drop all descriptors. A keeper process then ends.
    pub(crate) fn release(&self) -> io::Result<()> {
        match self {
            Self::Systemd => systemd::release(),
            Self::Process(keeper) => keeper.release(),
            Self::Nobody => Ok(()),
        }
    }

    /// Returns the keeper's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Process(_) => "process",
            Self::Nobody => "none",
        }
    }
}
