//! The reference snapshotter, built from Debian's packages by `fixtures/stargz-grpc`, as a
//! containerd plugin.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fixture::cache_dir;
use super::place::{Daemon, Place};

/// The folder of its library's sources in Debian.
const GOPATH: &str = "/usr/share/gocode";

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
        let mut command = Command::new(build());
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
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(&self.root));
        for mount in ours {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

/// Returns the executable, which is built once per machine.
fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/stargz-grpc");
    fs::create_dir_all(cache_dir()).unwrap();
    let lock = File::create(cache_dir().join("stargz-grpc.lock")).unwrap();
    lock.lock().unwrap();
    let target = cache_dir().join("stargz-grpc");
    let mut command = Command::new("go");
    command
        .args(["build", "-o"])
        .arg(&target)
        .arg(".")
        .current_dir(source);
    let output = command
        .env("GO111MODULE", "off")
        .env("GOPATH", GOPATH)
        .env("GOFLAGS", "")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target
}
