//! A private containerd, for the reference's converter and for images that are pulled, mounted and
//! run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use crate::harness::{Daemon, run};
use crate::images::{Image, layer_bytes};

#[derive(Debug)]
pub(crate) struct Containerd {
    pub(crate) daemon: Daemon,
    pub(crate) socket: String,
}

impl Containerd {
    pub(crate) fn start(place: &Path) -> anyhow::Result<Self> {
        Self::start_with(place, "")
    }

    /// Starts containerd with further lines of configuration.
    pub(crate) fn start_with(place: &Path, more: &str) -> anyhow::Result<Self> {
        let at = |name: &str| place.join(name).display().to_string();
        let disabled =
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]";
        fs::write(
            at("containerd.toml"),
            format!("version = 2\n{disabled}\n{more}"),
        )?;
        let socket = at("containerd.sock");
        let mut command = Command::new("containerd");
        command.args([
            "--config",
            &at("containerd.toml"),
            "--root",
            &at("root"),
            "--state",
            &at("state"),
        ]);
        command.args(["--address", &socket]);
        let ready = || run(&format!("ctr -a {socket} version")).is_ok();
        let daemon = Daemon::start(command, &place.join("containerd.log"), ready)?;
        Ok(Self { daemon, socket })
    }

    pub(crate) fn ctr(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ctr -a {} {arguments}", self.socket))
    }

    pub(crate) fn ctr_remote(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ctr-remote -a {} {arguments}", self.socket))
    }

    /// Imports the image and returns containerd's name for it.
    pub(crate) fn import(&self, image: &Image, place: &Path) -> anyhow::Result<String> {
        let archive = place.join("import.tar");
        run(&format!(
            "skopeo copy --quiet {} oci-archive:{}:{}:1",
            image.oci(),
            archive.display(),
            image.name
        ))?;
        self.ctr(&format!(
            "images import --base-name {} --all-platforms {}",
            image.name,
            archive.display()
        ))?;
        fs::remove_file(archive)?;
        let listed = self.ctr("images ls -q")?;
        listed
            .lines()
            .find(|line| line.contains(&image.name))
            .map(str::to_owned)
            .context("no image imported")
    }

    pub(crate) fn layer_bytes(&self, image: &str) -> anyhow::Result<u64> {
        let listed = self.ctr("images ls")?;
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(image))
            .context("image not listed")?;
        let digest = line.split_whitespace().nth(2).context("no digest")?;
        let mut manifest: Value =
            serde_json::from_str(&self.ctr(&format!("content get {digest}"))?)?;
        if let Some(child) = manifest["manifests"][0]["digest"].as_str() {
            manifest = serde_json::from_str(&self.ctr(&format!("content get {child}"))?)?;
        }
        layer_bytes(&manifest)
    }
}
