//! The replicas under load: started, killed, restarted and sampled.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use crate::harness::free_address;
use crate::soak::upstream::Upstream;
use crate::support::eventually::eventually_async;

/// One `starlift serve`; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    executable: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    pub(crate) kills: usize,
}

/// The resources that a replica holds at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Seconds since the start of the soak.
    pub(crate) at: f64,
    pub(crate) memory_mib: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
}

/// The settings that all replicas share.
#[derive(Debug)]
pub(crate) struct Settings<'s> {
    pub(crate) executable: &'s Path,
    pub(crate) upstreams: &'s [Upstream],
    pub(crate) s3: &'s str,
    pub(crate) bucket: &'s str,
    pub(crate) folder: &'s Path,
}

impl Replica {
    /// Starts replica `number` over the shared bucket and waits until it is ready.
    pub(crate) async fn start(number: usize, settings: &Settings<'_>) -> anyhow::Result<Self> {
        let address = free_address()?;
        let config = settings.folder.join(format!("replica-{number}.toml"));
        fs::write(&config, configuration(address, settings))?;
        let log = settings.folder.join(format!("replica-{number}.log"));
        let executable = settings.executable.to_owned();
        let mut replica = Self {
            address,
            executable,
            config,
            log,
            child: None,
            kills: 0,
        };
        replica.restart().await?;
        Ok(replica)
    }

    /// Restarts the process and waits until it is ready.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = Command::new(&self.executable);
        command
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("starlift serve")?);
        eventually_async("the replica is ready or has ended", async || {
            self.has_crashed() || self.is_ready().await
        })
        .await;
        ensure!(
            !self.has_crashed(),
            "replica not started: {}",
            fs::read_to_string(&self.log)?
        );
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("http://{}/readyz", self.address)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Ends the process with SIGKILL.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
            self.kills += 1;
        }
        Ok(())
    }

    /// Whether the process ended by itself, which is a failure.
    pub(crate) fn has_crashed(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn sample(&self, begun: Instant) -> Option<Sample> {
        let pid = self.child.as_ref()?.id()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Sample {
            at: begun.elapsed().as_secs_f64(),
            memory_mib: field("VmRSS:")? / 1024.0,
            descriptors: crate::figures::float(descriptors as u64),
            threads: field("Threads:")?,
        })
    }

    /// Returns every gauge of `/metrics` by name and labels.
    pub(crate) async fn gauges(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let text = reqwest::get(format!("http://{}/metrics", self.address))
            .await?
            .error_for_status()?
            .text()
            .await?;
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge"))
            .collect();
        let values = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                let is_gauge = names.contains(&name.split('{').next().unwrap_or_default());
                is_gauge.then(|| Some((name.to_owned(), value.parse().ok()?)))?
            });
        Ok(values.collect())
    }

    /// Returns the number of log lines that report a panic.
    pub(crate) fn panics(&self) -> anyhow::Result<usize> {
        Ok(fs::read_to_string(&self.log)?
            .lines()
            .filter(|line| line.contains("panicked"))
            .count())
    }
}

fn configuration(address: SocketAddr, settings: &Settings<'_>) -> String {
    let upstreams = settings.upstreams.iter().map(|upstream| {
        format!(
            "[upstream.{}]\nurl = \"http://{}\"\n",
            upstream.behaviour.name(),
            upstream.address
        )
    });
    let Settings { s3, bucket, .. } = settings;
    format!(
        "[serve]\nlisten = \"{address}\"\nwait = \"2s\"\nsweep_interval = \"20s\"\n\
         [store]\nlocation = \"s3://{bucket}/soak\"\nendpoint = \"{s3}\"\nregion = \"us-east-1\"\nallow_http = true\n\
         access_key_id = \"key\"\nsecret_access_key = \"secret\"\n\
         [log]\nfilter = \"warn\"\n{}",
        upstreams.collect::<String>()
    )
}
