//! A Docker engine for one test.

use std::process::Command;

use serde_json::Value;

use super::place::{Daemon, Place};
use super::tree::Tree;

pub(crate) const TOOLS: &[&str] = &["dockerd", "docker", "containerd", "runc"];

#[derive(Debug)]
pub(crate) struct Dockerd<'a> {
    place: &'a Place,
    host: String,
    daemon: Daemon,
}

impl<'a> Dockerd<'a> {
    pub(crate) fn start(place: &'a Place, arguments: &[&str]) -> Self {
        let host = format!("unix://{}", place.path().join("docker.sock").display());
        let mut command = Command::new("dockerd");
        command.args([
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--storage-driver=overlay2",
        ]);
        command
            .args(["--host", &host])
            .arg("--data-root")
            .arg(place.dir("docker"));
        command
            .arg("--exec-root")
            .arg(place.dir("dx"))
            .arg("--pidfile")
            .arg(place.path().join("docker.pid"));
        command
            .args(["--config-file"])
            .arg(place.write("daemon.json", "{}"))
            .args(arguments);
        let client = host.clone();
        let daemon = place.daemon("dockerd", &mut command, || {
            Command::new("docker")
                .args(["-H", &client, "version"])
                .output()
                .unwrap()
                .status
                .success()
        });
        Self {
            place,
            host,
            daemon,
        }
    }

    /// Runs `docker` with these arguments, which must succeed.
    pub(crate) fn docker(&self, arguments: &str) -> String {
        self.place
            .run(&format!("docker -H {} {arguments}", self.host))
    }

    /// Whether `docker` succeeds with these arguments.
    pub(crate) fn succeeds(&self, arguments: &str) -> bool {
        let mut command = self.place.command("docker");
        command.args(["-H", &self.host]);
        let output = command.args(arguments.split_whitespace()).output();
        output.unwrap().status.success()
    }

    /// Returns the file system that containers of `image` see; `start` as in [`Tree::read`].
    pub(crate) fn tree(&self, image: &str, name: &str, start: i64) -> Tree {
        let inspected = self.docker(&format!("image inspect {image}"));
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let data = &inspected[0]["GraphDriver"]["Data"];
        let top = data["UpperDir"].as_str().unwrap();
        let below = data["LowerDir"]
            .as_str()
            .map(|lower| format!(":{lower}"))
            .unwrap_or_default();
        // An additional layer at the bottom, because overlayfs needs two.
        let empty = self.place.dir("empty");
        let target = self.place.dir(name);
        let options = format!("lowerdir={top}{below}:{}", empty.display());
        self.place.run(&format!(
            "mount -t overlay overlay -o ro,{options} {}",
            target.display()
        ));
        let tree = Tree::read(&target, start);
        self.place.run(&format!("umount {}", target.display()));
        tree
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        self.daemon.stop();
    }
}
