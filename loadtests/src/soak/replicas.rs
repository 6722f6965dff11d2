//! The replicas under load: started, killed, restarted and sampled.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use crate::harness::{cpu_with_ended_children, free_address};
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

impl Sample {
    /// Looks at a process.
    pub(crate) fn of(pid: u32, begun: Instant) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self {
            at: begun.elapsed().as_secs_f64(),
            memory_mib: field("VmRSS:")? / 1024.0,
            descriptors: crate::figures::float(descriptors as u64),
            threads: field("Threads:")?,
        })
    }
}

/// The settings that all replicas share.
#[derive(Debug)]
pub(crate) struct Settings<'s> {
    pub(crate) executable: &'s Path,
    pub(crate) upstreams: &'s [Upstream],
    /// Lines of `[serve]`.
    pub(crate) serve: &'s str,
    /// Lines of `[store]`.
    pub(crate) store: &'s str,
    /// The folder of configuration files and logs.
    pub(crate) folder: &'s Path,
}

/// Returns the lines of `[store]` for a prefix in an S3.
pub(crate) fn in_bucket(s3: &str, bucket: &str, prefix: &str) -> String {
    format!(
        "location = \"s3://{bucket}/{prefix}\"\nendpoint = \"{s3}\"\nregion = \"us-east-1\"\n\
         allow_http = true\naccess_key_id = \"key\"\nsecret_access_key = \"secret\"\n"
    )
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
        Sample::of(self.child.as_ref()?.id()?, begun)
    }

    /// Returns the processor seconds that the process and its ended children have used, if it runs.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let pid = self.child.as_ref()?.id()?;
        cpu_with_ended_children(&pid.to_string()).ok()
    }

    /// Returns the sum of the counters and gauges whose name and labels begin with `beginning`.
    pub(crate) async fn metric(&self, beginning: &str) -> anyhow::Result<f64> {
        let text = self.metrics().await?;
        let lines = text.lines().filter(|line| line.starts_with(beginning));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        let answer = reqwest::get(format!("http://{}/metrics", self.address)).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Returns every gauge of `/metrics` by name and labels.
    pub(crate) async fn gauges(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let text = self.metrics().await?;
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
    format!(
        "[serve]\nlisten = \"{address}\"\n{}[store]\n{}[log]\nfilter = \"warn\"\n{}",
        settings.serve,
        settings.store,
        upstreams.collect::<String>()
    )
}
