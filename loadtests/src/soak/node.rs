//! A node under faults: a containerd and an agent with a root of their own, perhaps on a small file
//! system, perhaps in a network namespace of their own.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::Mutex as AsyncMutex;

use crate::harness::run;
use crate::soak::replicas::Sample;
use crate::support::eventually::eventually_async;
use crate::support::mounts::unmount_under;

/// The name of the agent's snapshotter.
const SNAPSHOTTER: &str = "lazy";
/// The time limit of a command of containerd: longer than reads and pulls take during faults.
const COMMAND_LIMIT: Duration = Duration::from_secs(170);
/// The content of layers on a node: less than the images have, so that it is evicted and fetched
/// again.
const CACHE: &str = "24MiB";
/// The small file system of a node.
const DISK_BYTES: u64 = 512 << 20;
const BLOCK: usize = 4096;
/// The two ends of the link to the namespace.
const HOST_END: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const NODE_END: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 2);
/// The time within which an agent ends after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A network namespace with a link to this one; dropping it removes both.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    link: String,
}

impl Network {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let number = std::process::id();
        let network = Self {
            name: format!("slsoak-{number}"),
            // At most 15 bytes.
            link: format!("sls{number}"),
        };
        let Self { name, link } = &network;
        run(&format!("ip netns add {name}"))?;
        run(&format!(
            "ip link add {link} type veth peer name eth0 netns {name}"
        ))?;
        run(&format!("ip addr add {HOST_END}/30 dev {link}"))?;
        run(&format!("ip link set {link} up"))?;
        run(&format!("ip -n {name} addr add {NODE_END}/30 dev eth0"))?;
        run(&format!("ip -n {name} link set eth0 up"))?;
        run(&format!("ip -n {name} link set lo up"))?;
        Ok(network)
    }

    /// The address of this machine as the namespace sees it.
    pub(crate) const fn host(&self) -> IpAddr {
        IpAddr::V4(HOST_END)
    }

    /// Cuts or joins the link.
    pub(crate) fn set(&self, is_up: bool) -> anyhow::Result<()> {
        let state = if is_up { "up" } else { "down" };
        run(&format!("ip link set {} {state}", self.link)).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _gone_already = run(&format!("ip netns del {}", self.name));
        let _gone_with_it = run(&format!("ip link del {}", self.link));
    }
}

/// A small file system in a file; dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) folder: PathBuf,
}

impl Disk {
    pub(crate) fn new(place: &Path) -> anyhow::Result<Self> {
        let (file, folder) = (place.join("disk.img"), place.join("disk"));
        fs::File::create(&file)?.set_len(DISK_BYTES)?;
        fs::create_dir(&folder)?;
        run(&format!("mkfs.ext4 -q -F -m 0 {}", file.display()))?;
        run(&format!(
            "mount -o loop {} {}",
            file.display(),
            folder.display()
        ))?;
        Ok(Self { folder })
    }

    /// Takes all of the free space, or gives it back.
    pub(crate) fn fill(&self, is_full: bool) -> anyhow::Result<()> {
        let filler = self.folder.join("filler");
        if !is_full {
            return Ok(fs::remove_file(filler)?);
        }
        let free = run(&format!("df --output=avail -B1 {}", self.folder.display()))?;
        let free: u64 = free.lines().last().context("df")?.trim().parse()?;
        // It takes what it can get before it fails, and leaves the last blocks.
        let _partly = run(&format!(
            "fallocate -l {} {}",
            free.max(1),
            filler.display()
        ));
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(&filler)?;
        loop {
            match file.write_all(&[0; BLOCK]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_under(&self.folder);
    }
}

/// A node. [`Node::end`] ends its processes in order; dropping it kills what is left.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: usize,
    /// `HOST:PORT` of the registry.
    registry: String,
    place: PathBuf,
    root: PathBuf,
    executable: Mutex<PathBuf>,
    agent: AsyncMutex<Option<Child>>,
    /// The agent's process, or 0.
    agent_pid: AtomicU32,
    containerd: AsyncMutex<Option<Child>>,
    pub(crate) network: Option<Network>,
    pub(crate) disk: Option<Disk>,
}

impl Node {
    /// Starts containerd and an agent, which runs in `network` and on `disk` if there are any.
    pub(crate) async fn start(
        (number, registry): (usize, String),
        executable: &Path,
        place: &Path,
        (network, disk): (Option<Network>, Option<Disk>),
    ) -> anyhow::Result<Self> {
        let root = disk
            .as_ref()
            .map_or(place, |disk| &disk.folder)
            .join("agent");
        let node = Self {
            number,
            registry,
            place: place.to_owned(),
            root,
            executable: Mutex::new(executable.to_owned()),
            agent: AsyncMutex::default(),
            agent_pid: AtomicU32::new(0),
            containerd: AsyncMutex::default(),
            network,
            disk,
        };
        let hosts = place.join("certs.d").join(&node.registry);
        fs::create_dir_all(&hosts)?;
        fs::write(
            hosts.join("hosts.toml"),
            format!("server = \"http://{}\"\n", node.registry),
        )?;
        node.start_agent().await?;
        node.start_containerd().await?;
        Ok(node)
    }

    /// A command in the node's network.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.network {
            Some(network) => {
                // Not `ip netns exec`, which also makes a mount namespace.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", network.name));
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command.stdin(Stdio::null());
        command
    }

    fn executable(&self) -> PathBuf {
        self.executable.lock().clone()
    }

    fn log(&self, name: &str) -> anyhow::Result<fs::File> {
        let path = self.place.join(format!("{name}.log"));
        Ok(fs::File::options().create(true).append(true).open(path)?)
    }

    pub(crate) async fn start_agent(&self) -> anyhow::Result<()> {
        let host = self.registry.split(':').next().unwrap_or_default();
        let log = self.log("agent")?;
        let mut command = self.command(self.executable());
        command
            .args(["agent", "--address"])
            .arg(self.place.join("agent.sock"))
            .arg("--root")
            .arg(&self.root)
            .env("STARLIFT_PULL_SERVERS", host)
            .env("STARLIFT_PULL_ALLOWED_HOSTS", host)
            .env("STARLIFT_PULL_CERTS_DIR", self.place.join("certs.d"))
            .env("STARLIFT_AGENT_CACHE_SIZE", CACHE)
            .env("STARLIFT_AGENT_MIN_FREE", "1MiB")
            .env("STARLIFT_LOG_FILTER", "info")
            .stdout(log.try_clone()?)
            .stderr(log);
        let agent = command.spawn().context("starlift agent")?;
        self.agent_pid
            .store(agent.id().unwrap_or(0), Ordering::Relaxed);
        *self.agent.lock().await = Some(agent);
        eventually_async("the agent answers", async || self.status().await.is_some()).await;
        Ok(())
    }

    async fn start_containerd(&self) -> anyhow::Result<()> {
        let at = |name: &str| self.place.join(name).display().to_string();
        let disabled =
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]";
        fs::write(
            at("containerd.toml"),
            format!(
                "version = 2\n{disabled}\n[proxy_plugins.{SNAPSHOTTER}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
                at("agent.sock")
            ),
        )?;
        let log = self.log("containerd")?;
        let mut command = self.command("containerd");
        command
            .args(["--config", &at("containerd.toml")])
            .args(["--root", &at("root"), "--state", &at("state")])
            .args(["--address", &at("containerd.sock")])
            .stdout(log.try_clone()?)
            .stderr(log);
        *self.containerd.lock().await = Some(command.spawn().context("containerd")?);
        eventually_async("containerd answers", async || {
            self.ctr("version").await.is_ok()
        })
        .await;
        Ok(())
    }

    /// Kills the agent with SIGKILL.
    pub(crate) async fn kill_agent(&self) -> anyhow::Result<()> {
        self.agent_pid.store(0, Ordering::Relaxed);
        if let Some(mut agent) = self.agent.lock().await.take() {
            agent.kill().await?;
        }
        Ok(())
    }

    /// Ends the agent with SIGTERM, and starts another executable in its place.
    pub(crate) async fn upgrade_agent(&self) -> anyhow::Result<()> {
        self.stop_agent().await?;
        let upgraded = self.place.join("starlift-upgraded");
        let executable = self.executable();
        if executable != upgraded {
            fs::copy(&executable, &upgraded)?;
            *self.executable.lock() = upgraded;
        }
        self.start_agent().await
    }

    async fn stop_agent(&self) -> anyhow::Result<()> {
        self.agent_pid.store(0, Ordering::Relaxed);
        let Some(mut agent) = self.agent.lock().await.take() else {
            return Ok(());
        };
        let pid = agent.id().context("the agent has ended")?;
        run(&format!("kill {pid}"))?;
        let ended = tokio::time::timeout(STOP_LIMIT, agent.wait()).await;
        if ended.is_err() {
            agent.kill().await?;
            anyhow::bail!("the agent did not end after SIGTERM");
        }
        Ok(())
    }

    /// Whether the agent or containerd ended by itself, which is a failure.
    pub(crate) fn has_crashed(&self) -> bool {
        [&self.agent, &self.containerd].into_iter().any(|child| {
            // A locked one is being ended on purpose.
            let child = child.try_lock();
            child.is_ok_and(|mut child| {
                child
                    .as_mut()
                    .is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
            })
        })
    }

    /// The output of `starlift agent status --json`.
    pub(crate) async fn status(&self) -> Option<Value> {
        let mut command = self.command(self.executable());
        command.args(["agent", "status", "--json", "--root"]);
        let output = limited(command.arg(&self.root)).await.ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs `ctr` and returns its output.
    pub(crate) async fn ctr(&self, arguments: &str) -> anyhow::Result<String> {
        self.client("ctr", arguments).await
    }

    async fn client(&self, program: &str, arguments: &str) -> anyhow::Result<String> {
        let mut command = self.command(program);
        command.arg("-a").arg(self.place.join("containerd.sock"));
        command.args(arguments.split_whitespace());
        let output = limited(&mut command).await?;
        ensure!(
            output.status.success(),
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the name of an image of the honest upstream on this node.
    pub(crate) fn image(&self, tag: &str) -> String {
        let repository = crate::soak::upstream::REPOSITORY;
        format!("{}/honest/{repository}:{tag}", self.registry)
    }

    pub(crate) async fn pull(&self, tag: &str) -> anyhow::Result<()> {
        let image = self.image(tag);
        let arguments = format!("images rpull --plain-http --snapshotter {SNAPSHOTTER} {image}");
        self.client("ctr-remote", &arguments).await.map(drop)
    }

    pub(crate) async fn remove(&self, tag: &str) -> anyhow::Result<()> {
        let image = self.image(tag);
        self.ctr(&format!("images rm --sync {image}"))
            .await
            .map(drop)
    }

    /// Returns the arguments of `ctr` for a container of the image that runs a script of `folder`,
    /// which it sees as `/check`.
    pub(crate) fn container(&self, tag: &str, id: &str, folder: &Path, script: &str) -> String {
        let image = self.image(tag);
        format!(
            "--snapshotter {SNAPSHOTTER} --mount type=bind,src=/bin/busybox,dst=/busybox,options=rbind:ro \
             --mount type=bind,src={},dst=/check,options=rbind:rw {image} {id} /busybox sh /check/{script}",
            folder.display()
        )
    }

    /// Returns a name that no container of another run has: runc keeps all of them in one place.
    pub(crate) fn container_id(&self, name: &str) -> String {
        format!("soak-{}-{}-{name}", std::process::id(), self.number)
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    pub(crate) fn sample(&self, begun: std::time::Instant) -> Option<Sample> {
        let pid = self.agent_pid.load(Ordering::Relaxed);
        (pid != 0).then(|| Sample::of(pid, begun))?
    }

    /// Returns the number of panics in the agent's log.
    pub(crate) fn panics(&self) -> anyhow::Result<usize> {
        let log = fs::read_to_string(self.place.join("agent.log"))?;
        Ok(log.lines().filter(|line| line.contains("panicked")).count())
    }

    /// Ends everything in order and returns what is left: layers, files, mounts.
    pub(crate) async fn end(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        self.ctr("leases create --id collected").await?;
        self.ctr("leases delete --sync collected").await?;
        let is_empty = async || self.layers().await.is_some_and(|layers| layers == 0);
        let mut turns = 0;
        while !is_empty().await && turns < 60 {
            turns += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if !is_empty().await {
            left.push(format!("layers without images: {:?}", self.layers().await));
        }
        for folder in ["cache", "layers"] {
            let files = fs::read_dir(self.root.join(folder)).into_iter().flatten();
            let files = files.flatten().map(|file| file.path());
            // The number of the next layer stays.
            let files = files.filter(|file| !file.ends_with("layers/next"));
            left.extend(files.map(|file| file.display().to_string()));
        }
        self.stop_agent().await?;
        if let Some(mut containerd) = self.containerd.lock().await.take() {
            let pid = containerd.id().context("containerd has ended")?;
            run(&format!("kill {pid}"))?;
            containerd.wait().await?;
        }
        let mut unmount = self.command(self.executable());
        unmount.args(["agent", "unmount", "--root"]).arg(&self.root);
        let output = limited(&mut unmount).await?;
        if !output.status.success() {
            left.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        left.extend(
            unmount_under(&self.root)
                .into_iter()
                .map(|mount| format!("mounted: {mount}")),
        );
        left.extend(
            unmount_under(&self.place.join("state"))
                .into_iter()
                .map(|mount| format!("mounted: {mount}")),
        );
        Ok(left)
    }

    /// Kills what containerd leaves running when it is killed: containers and their shims.
    fn kill_containers(&self) {
        let tasks = self
            .place
            .join("state/io.containerd.runtime.v2.task/default");
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            for file in ["init.pid", "shim.pid"] {
                let pid = fs::read_to_string(task.path().join(file)).unwrap_or_default();
                if !pid.trim().is_empty() {
                    let _gone_already = run(&format!("kill -9 {}", pid.trim()));
                }
            }
        }
    }

    async fn layers(&self) -> Option<usize> {
        Some(self.status().await?["layers"].as_array()?.len())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.containerd] {
            if let Some(child) = child.get_mut() {
                let _gone_already = child.start_kill();
            }
        }
        self.kill_containers();
        let unmount = format!(
            "{} agent unmount --root {}",
            self.executable().display(),
            self.root.display()
        );
        let _done_already = run(&unmount);
        unmount_under(&self.place);
    }
}

/// Runs a command for at most [`COMMAND_LIMIT`].
async fn limited(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.kill_on_drop(true).output();
    Ok(tokio::time::timeout(COMMAND_LIMIT, output).await??)
}
