//! `starlift serve` as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::harness::{Daemon, free_address, run};
use crate::support::eventually::within;

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The limit for the conversion before the measurement.
const CONVERSION_LIMIT: Duration = Duration::from_secs(120);
const CONVERSION_POLL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) daemon: Daemon,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Serves these upstreams (`NAME=SOURCE`) with a store in `place`.
    pub(crate) fn start(
        starlift: &Path,
        place: &Path,
        upstreams: &[String],
    ) -> anyhow::Result<Self> {
        Self::start_with(starlift, place, upstreams, &[])
    }

    /// The same with settings in the environment's form (`("SERVE_REDIRECT", "true")`).
    pub(crate) fn start_with(
        starlift: &Path,
        place: &Path,
        upstreams: &[String],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let store = place.join("store").display().to_string();
        Self::launch(starlift, place, upstreams, &store, |command| {
            let settings = settings.iter();
            command.envs(settings.map(|(key, value)| (format!("STARLIFT_{key}"), value)));
        })
    }

    /// The same with a configuration file.
    pub(crate) fn start_configured(
        starlift: &Path,
        place: &Path,
        upstreams: &[String],
        file: &Path,
    ) -> anyhow::Result<Self> {
        let store = place.join("store").display().to_string();
        Self::start_configured_over(starlift, place, upstreams, file, &store)
    }

    /// The same with a store at `store`, a folder or a bucket.
    pub(crate) fn start_configured_over(
        starlift: &Path,
        place: &Path,
        upstreams: &[String],
        file: &Path,
        store: &str,
    ) -> anyhow::Result<Self> {
        Self::launch(starlift, place, upstreams, store, |command| {
            command.arg("--config").arg(file);
        })
    }

    fn launch(
        starlift: &Path,
        place: &Path,
        upstreams: &[String],
        store: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(starlift);
        command.args(["serve", "--listen", &address.to_string(), "--store", store]);
        command.args(
            upstreams
                .iter()
                .flat_map(|upstream| ["--upstream", upstream]),
        );
        adjust(&mut command);
        // No log line for each request, because the peers write none either.
        command.env("STARLIFT_LOG_FILTER", "warn");
        let ready = format!("http://{address}/readyz");
        let is_ready = || run(&format!("curl -sf {ready}")).is_ok();
        Ok(Self {
            daemon: Daemon::start(command, &place.join("starlift.log"), is_ready)?,
            address,
        })
    }

    /// Returns the number of answered requests for manifests, blobs and profiles.
    pub(crate) fn requests(&self) -> anyhow::Result<u64> {
        self.count(
            &["manifest", "blob", "api"]
                .map(|of| format!("starlift_requests_total{{endpoint=\"{of}\",")),
        )
    }

    /// Returns how often the server has written an image's observations to the store.
    pub(crate) fn profiles_written(&self) -> anyhow::Result<u64> {
        self.count(&["starlift_profile_merges_total{outcome=\"written\"}".to_owned()])
    }

    /// Returns the number of files in the profile of the image with these layers.
    pub(crate) fn files_ahead(&self, manifest: &Value) -> anyhow::Result<usize> {
        let layers = manifest["layers"].as_array().context("no image manifest")?;
        let digests = layers.iter().filter_map(|layer| layer["digest"].as_str());
        let stack = hex::encode(Sha256::digest(
            digests
                .map(|digest| format!("{digest}\n"))
                .collect::<String>(),
        ));
        let profile = run(&format!(
            "curl -sf http://{}/api/v1/profiles/sha256:{stack}",
            self.address
        ))?;
        let files = &serde_json::from_str::<Value>(&profile)?["files"];
        files
            .as_array()
            .map(Vec::len)
            .with_context(|| format!("no profile: {profile}"))
    }

    /// Returns the sum of the metrics that begin with one of `beginnings`.
    fn count(&self, beginnings: &[String]) -> anyhow::Result<u64> {
        let metrics = run(&format!("curl -sf http://{}/metrics", self.address))?;
        let lines = metrics.lines().filter(|line| {
            beginnings
                .iter()
                .any(|beginning| line.starts_with(beginning))
        });
        lines
            .map(|line| {
                Ok(line
                    .rsplit(' ')
                    .next()
                    .context("no value")?
                    .parse::<u64>()?)
            })
            .sum()
    }
}

/// Waits until the tag is answered with the converted image; returns its digest and content.
pub(crate) fn converted(url: &str) -> anyhow::Result<(String, Value)> {
    converted_as(url, "")
}

/// The same with a header for `Authorization`, unless that is empty.
pub(crate) fn converted_as(url: &str, authorization: &str) -> anyhow::Result<(String, Value)> {
    let looking = || look(url, authorization).transpose();
    let text = within(CONVERSION_LIMIT, CONVERSION_POLL, looking)
        .with_context(|| format!("no converted image: {url}"))??;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&text)));
    Ok((digest, serde_json::from_str(&text)?))
}

/// Returns the manifest if it is that of the converted image.
fn look(url: &str, authorization: &str) -> anyhow::Result<Option<String>> {
    let output = Command::new("curl")
        .args(["-sf", "-H", &format!("Accept: {MANIFEST_TYPE}")])
        .args(["-H", &format!("Authorization: {authorization}"), url])
        .output()?;
    ensure!(output.status.success(), "{url}: {:?}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let is_converted = text.contains("containerd.io/snapshot/stargz/toc.digest");
    Ok(is_converted.then_some(text))
}
