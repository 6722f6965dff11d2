//! The reference snapshotter as a containerd plugin.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::mounts::unmount_under;
use super::place::{Daemon, Place};
use super::stargz_grpc;

/// Serves containerd's snapshots API on a socket. Drop it after the containerd that uses it.
#[derive(Debug)]
pub(crate) struct Stargz {
    pub(crate) daemon: Daemon,
    socket: PathBuf,
    root: PathBuf,
}

impl Stargz {
    pub(crate) fn start(place: &Place) -> Self {
        let (socket, root) = (place.path().join("stargz.sock"), place.dir("stargz"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/stargz-grpc");
        let mut command = Command::new(stargz_grpc::build(&source));
        let daemon = place.daemon("stargz", command.arg(&socket).arg(&root), || {
            socket.exists()
        });
        Self {
            daemon,
            socket,
            root,
        }
    }

    /// Returns the configuration that makes it containerd's snapshotter `stargz`.
    pub(crate) fn plugin(&self) -> String {
        format!(
            "[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            self.socket.display()
        )
    }
}

impl Drop for Stargz {
    fn drop(&mut self) {
        self.daemon.kill();
        unmount_under(&self.root);
    }
}
