//! The real executable as a server.

use std::net::SocketAddr;
use std::process::Command;

use super::eventually::eventually;
use super::place::{Daemon, Place, fetch, free_address};

/// `starlift serve` as a process.
#[derive(Debug)]
pub(crate) struct Starlift {
    pub(crate) daemon: Daemon,
    pub(crate) address: SocketAddr,
}

impl Starlift {
    /// Serves on a free port. The store is the workspace's directory `store`, unless `arguments`
    /// name another.
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Self {
        Self::start_with(place, arguments, |_command| {})
    }

    /// The same as [`Self::start`], after `adjust` has changed the command.
    pub(crate) fn start_with(
        place: &Place,
        arguments: &[&str],
        adjust: impl FnOnce(&mut Command),
    ) -> Self {
        let address = free_address();
        let store = place.path().join("store");
        let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
        command
            .current_dir(place.path())
            .args(["serve", "--listen", &address.to_string()])
            .args(arguments);
        if !arguments.contains(&"--store") {
            command.arg("--store").arg(&store);
        }
        adjust(&mut command);
        let ready = format!("http://{address}/readyz");
        let daemon = place.daemon("starlift", &mut command, || fetch(&ready).is_some());
        Self { daemon, address }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until the tag of `name` (`local/app`) is answered with the converted image, and
    /// returns its manifest.
    pub(crate) fn converted(&self, name: &str, tag: &str) -> serde_json::Value {
        let url = self.url(&format!("/v2/{name}/manifests/{tag}"));
        let mut manifest = serde_json::Value::Null;
        eventually("the converted image is served", || {
            manifest = serde_json::from_slice(&fetch(&url).expect("a manifest")).unwrap();
            let text = manifest.to_string();
            text.contains("dev.starlift.source.digest")
                || text.contains("containerd.io/snapshot/stargz/toc.digest")
        });
        manifest
    }
}
