//! Replicas over one bucket, behind one address: their processor time, their counters, and the
//! bucket's count of requests.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::Method;
use parking_lot::Mutex;

use crate::figures::float;
use crate::harness::{Daemon, free_address, run};
use crate::scale::measured::Used;
use crate::soak::replicas::{Replica, Settings, in_bucket};
use crate::soak::upstream::Upstream;
use crate::support::s3::{Asked, BUCKET, Fault, S3};

/// A fleet is idle when its processes have used less than this in [`IDLE_FOR`].
const IDLE_CPU: f64 = 0.03;
const IDLE_FOR: Duration = Duration::from_secs(1);
/// The most periods that are awaited until a fleet is idle.
const IDLE_WITHIN: usize = 60;

/// Requests that the bucket got, by what they are billed as.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Requests {
    /// GET and HEAD.
    pub(super) reads: u64,
    /// PUT, POST and listings.
    pub(super) writes: u64,
}

/// A bucket that counts its requests.
pub(super) struct Bucket {
    s3: S3,
    counts: Arc<Mutex<Requests>>,
}

impl Bucket {
    pub(super) async fn start() -> Self {
        let (s3, counts) = (S3::start().await, Arc::<Mutex<Requests>>::default());
        let counted = Arc::clone(&counts);
        s3.fail(move |asked| {
            counted.lock().count(asked);
            Fault::None
        });
        Self { s3, counts }
    }

    fn requests(&self) -> Requests {
        *self.counts.lock()
    }
}

impl Requests {
    fn count(&mut self, asked: &Asked) {
        match asked.method {
            // A listing is billed like a write.
            Method::GET if asked.key.is_empty() => self.writes += 1,
            Method::GET | Method::HEAD => self.reads += 1,
            Method::PUT | Method::POST => self.writes += 1,
            // Deletions are free.
            _ => {}
        }
    }
}

/// Replicas over one bucket, and the address in front of them.
pub(super) struct Fleet<'b> {
    pub(super) address: SocketAddr,
    pub(super) replicas: Vec<Replica>,
    bucket: &'b Bucket,
    _front: Daemon,
}

impl<'b> Fleet<'b> {
    /// Starts `count` replicas over the bucket's prefix `name`, with nothing converted.
    pub(super) async fn start(
        executable: &Path,
        (name, count): (&str, usize),
        upstream: &Upstream,
        bucket: &'b Bucket,
        place: &Path,
    ) -> anyhow::Result<Self> {
        let folder = place.join(name);
        fs::create_dir(&folder)?;
        let settings = Settings {
            executable,
            upstreams: std::slice::from_ref(upstream),
            // All clients share an address.
            serve: "wait = \"20s\"\nsweep_interval = \"0s\"\nclient_share = 100\n",
            store: &in_bucket(&bucket.s3.endpoint, BUCKET, name),
            folder: &folder,
        };
        let mut replicas = Vec::new();
        for number in 0..count {
            replicas.push(Replica::start(number, &settings).await?);
        }
        let (address, front) = front(&replicas, &folder)?;
        let fleet = Self {
            address,
            replicas,
            bucket,
            _front: front,
        };
        fleet.settle().await?;
        Ok(fleet)
    }

    /// Runs `work` and returns its output with what it has cost, background work included.
    pub(super) async fn cost<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(T, Used)> {
        let (cpu, requests) = (self.cpu()?, self.bucket.requests());
        let begun = std::time::Instant::now();
        let output = work.await?;
        let wall = begun.elapsed().as_secs_f64();
        self.settle().await?;
        let after = self.bucket.requests();
        let used = Used {
            wall,
            cpu: self.cpu()? - cpu,
            reads: float(after.reads - requests.reads),
            writes: float(after.writes - requests.writes),
        };
        Ok((output, used))
    }

    /// Returns the sum of a counter over the replicas.
    pub(super) async fn counted(&self, beginning: &str) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for replica in &self.replicas {
            sum += replica.metric(beginning).await?;
        }
        Ok(sum)
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        let used = self.replicas.iter().map(Replica::cpu);
        used.sum::<Option<f64>>().context("a replica has ended")
    }

    /// Waits until the replicas do nothing, as after checks and predictions in the background.
    async fn settle(&self) -> anyhow::Result<()> {
        let mut before = self.cpu()?;
        for _ in 0..IDLE_WITHIN {
            tokio::time::sleep(IDLE_FOR).await;
            let now = self.cpu()?;
            if now - before < IDLE_CPU {
                return Ok(());
            }
            before = now;
        }
        anyhow::bail!("the replicas do not become idle")
    }
}

/// Starts nginx, which hands the requests to the replicas in turn.
fn front(replicas: &[Replica], folder: &Path) -> anyhow::Result<(SocketAddr, Daemon)> {
    let address = free_address()?;
    let servers: String = replicas
        .iter()
        .map(|replica| format!("server {};\n", replica.address))
        .collect();
    let at = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {at}/{name};\n"))
        .concat();
    let file = folder.join("nginx.conf");
    fs::write(
        &file,
        format!(
            "daemon off;\npid {at}/nginx.pid;\nerror_log {at}/nginx-errors.log;\nworker_processes 1;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\naccess_log off;\n{temporary}\
             upstream fleet {{\n{servers}keepalive 64;\n}}\n\
             server {{\nlisten {address};\nlocation / {{\nproxy_pass http://fleet;\n\
             proxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\n\
             proxy_buffering off;\nproxy_read_timeout 60s;\n}}\n}}\n}}\n"
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file);
    let ready = format!("http://{address}/readyz");
    let is_ready = || run(&format!("curl -sf {ready}")).is_ok();
    let daemon = Daemon::start(command, &folder.join("nginx.log"), is_ready)?;
    Ok((address, daemon))
}

/// Returns the requests of each replica so far, by address.
pub(super) async fn by_replica(fleet: &Fleet<'_>) -> anyhow::Result<BTreeMap<SocketAddr, f64>> {
    let mut counts = BTreeMap::new();
    for replica in &fleet.replicas {
        let count = replica.metric("starlift_requests_total").await?;
        counts.insert(replica.address, count);
    }
    Ok(counts)
}
