//! The real executable as a node agent, and what containerd's configuration needs to know it.

use std::path::PathBuf;
use std::process::Command;

use super::place::{Daemon, Place};

/// `starlift agent` in a process of its own; drop it after the containerd that uses it.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) daemon: Daemon,
    pub(crate) socket: PathBuf,
    pub(crate) root: PathBuf,
}

impl Agent {
    /// Serves the snapshots in the place's directory `agent`; a second start finds those of the first.
    pub(crate) fn start(place: &Place) -> Self {
        let (socket, root) = (place.path().join("agent.sock"), place.dir("agent"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
        command.current_dir(place.path()).arg("agent").arg("--address").arg(&socket).arg("--root").arg(&root);
        let daemon = place.daemon("agent", &mut command, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        Self { daemon, socket, root }
    }

    /// What containerd's configuration needs to know it as the snapshotter `name`.
    pub(crate) fn plugin(&self, name: &str) -> String {
        format!("[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"{}\"\n", self.socket.display())
    }

    /// The directories of ordinary snapshots that are there.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root.join("snapshots")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}
