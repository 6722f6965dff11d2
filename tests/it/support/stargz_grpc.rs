//! The executable of the reference snapshotter, built from Debian's packages.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;

/// The folder of its library's sources in Debian.
const GOPATH: &str = "/usr/share/gocode";

/// Builds the executable from `source`, `fixtures/stargz-grpc`, and returns its path in the cache.
pub(crate) fn build(source: &Path) -> PathBuf {
    let lock = File::create(cache::dir().join("stargz-grpc.lock")).unwrap();
    lock.lock().unwrap();
    let target = cache::dir().join("stargz-grpc");
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
