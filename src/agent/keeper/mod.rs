//! Who keeps descriptors while the agent is restarted: systemd, or a process that does nothing else.

mod process;
mod systemd;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::config::KeeperKind;
use process::ProcessKeeper;
pub use process::serve;

/// Keeps descriptors by name.
#[derive(Debug)]
pub enum Keeper {
    Systemd,
    Process(ProcessKeeper),
    Nobody,
}

/// What was kept.
pub type Kept = BTreeMap<String, OwnedFd>;

impl Keeper {
    /// Finds or starts the keeper of the agent with this root, and takes back what it has.
    ///
    /// # Errors
    /// When there is none and none can be started.
    pub fn open(kind: KeeperKind, root: &Path) -> io::Result<(Self, Kept)> {
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

    /// Hands over a descriptor, in place of one that had the name.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Systemd => systemd::keep(name, fd),
            Self::Process(keeper) => keeper.keep(name, fd),
            Self::Nobody => Ok(()),
        }
    }

    /// Hands over a mount that is in no directory, which a descriptor of `O_PATH` stands for. systemd takes none of these.
    pub fn keep_mount(&self, name: &str, mount: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Process(keeper) => keeper.keep(name, mount),
            Self::Systemd | Self::Nobody => Ok(()),
        }
    }

    /// Has all descriptors dropped; a keeper's process ends.
    pub fn release(&self) -> io::Result<()> {
        match self {
            Self::Systemd => systemd::release(),
            Self::Process(keeper) => keeper.release(),
            Self::Nobody => Ok(()),
        }
    }

    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Process(_) => "process",
            Self::Nobody => "none",
        }
    }
}
