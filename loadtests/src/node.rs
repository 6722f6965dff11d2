//! A node: containerd with further snapshotters, and images that are pulled into them, mounted and
//! run.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::containerd::Containerd;
use crate::harness::{Daemon, Running, drop_caches, run};
use crate::support::mounts::unmount_under;
use crate::support::stargz_grpc;

/// The sources of the reference snapshotter's daemon, which the tests build too.
const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/it/fixtures/stargz-grpc"
);
/// The same snapshotter in its current version, which `.ci/clients` builds.
const REFERENCE_OF_TODAY: &str = "stargz-grpc-today";
/// The type of EROFS in statfs(2).
const EROFS_MAGIC: &str = "e0f5e1e2";
/// The name of containerd's own snapshotter, which unpacks layers.
pub(crate) const UNPACKED: &str = "overlayfs";

/// A containerd and its additional snapshotters.
#[derive(Debug)]
pub(crate) struct Node {
    containerd: Containerd,
    snapshotters: Vec<Snapshotter>,
    place: PathBuf,
}

/// A snapshotter that mounts lazily, in its own process.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    pub(crate) name: &'static str,
    pub(crate) daemon: Daemon,
    socket: PathBuf,
    /// The socket with the agent's metrics, if it has one.
    api: Option<PathBuf>,
    _mounts: Mounts,
}

/// An image's files as a container would see them; dropping it unmounts them.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) target: PathBuf,
    /// The command that mounts the files.
    command: String,
    /// The snapshot of the image's topmost layer.
    top: String,
}

/// The mounts beneath a directory; dropping it unmounts them.
#[derive(Debug)]
struct Mounts {
    root: PathBuf,
    /// The command that replaces umount(8) if another process holds the mount.
    unmount: Option<String>,
}

/// A container that runs the image's own command in the host's network; dropping it kills the
/// container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) process: Running,
    kill: String,
}

/// The time of a container's first byte of output, and all its output.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) first: Instant,
    pub(crate) text: String,
}

impl Snapshotter {
    /// Starts `starlift agent` with settings in the environment's form (`("BACKGROUND", "off")`).
    pub(crate) fn starlift(
        name: &'static str,
        starlift: &Path,
        place: &Path,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let (root, socket) = (place.join(name), place.join(format!("{name}.sock")));
        let mut command = Command::new(starlift);
        command
            .arg("agent")
            .arg("--address")
            .arg(&socket)
            .arg("--root")
            .arg(&root);
        // The registry is a Starlift server: the agent reports starts to no other.
        command.env("STARLIFT_PULL_SERVERS", "127.0.0.1");
        command.envs(
            settings
                .iter()
                .map(|(key, value)| (format!("STARLIFT_AGENT_{key}"), value)),
        );
        let agent = |word: &str| {
            format!(
                "{} agent {word} --root {}",
                starlift.display(),
                root.display()
            )
        };
        let is_ready = || run(&agent("status")).is_ok();
        let daemon = Daemon::start(command, &place.join(format!("{name}.log")), is_ready)?;
        let (unmount, api) = (Some(agent("unmount")), Some(root.join("api.sock")));
        Ok(Self {
            name,
            daemon,
            socket,
            api,
            _mounts: Mounts { root, unmount },
        })
    }

    /// Starts the reference snapshotter without prefetch and without background fetch.
    pub(crate) fn reference(name: &'static str, place: &Path) -> anyhow::Result<Self> {
        let (root, socket) = (place.join(name), place.join(format!("{name}.sock")));
        let debians = || stargz_grpc::build(Path::new(REFERENCE));
        let mut command = Command::new(reference_of_today().unwrap_or_else(debians));
        command.arg(&socket).arg(&root);
        let daemon = Daemon::start(command, &place.join(format!("{name}.log")), || {
            socket.exists()
        })?;
        Ok(Self {
            name,
            daemon,
            socket,
            api: None,
            _mounts: Mounts {
                root,
                unmount: None,
            },
        })
    }
}

/// Returns the reference snapshotter in its current version, if `PATH` leads to it.
pub(crate) fn reference_of_today() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut found = env::split_paths(&path).map(|folder| folder.join(REFERENCE_OF_TODAY));
    found.find(|file| file.is_file())
}

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Some(command) = &self.unmount {
            let _reported_by_what_is_left = run(command);
        }
        unmount_under(&self.root);
    }
}

impl Node {
    pub(crate) fn start(place: &Path, snapshotters: Vec<Snapshotter>) -> anyhow::Result<Self> {
        let plugin = |snapshotter: &Snapshotter| {
            let Snapshotter { name, socket, .. } = snapshotter;
            format!(
                "[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
                socket.display()
            )
        };
        let plugins: String = snapshotters.iter().map(plugin).collect();
        Ok(Self {
            containerd: Containerd::start_with(place, &plugins)?,
            snapshotters,
            place: place.to_owned(),
        })
    }

    pub(crate) fn daemon(&self, name: &str) -> anyhow::Result<&Daemon> {
        let found = self
            .snapshotters
            .iter()
            .find(|snapshotter| snapshotter.name == name);
        found
            .map(|snapshotter| &snapshotter.daemon)
            .with_context(|| format!("no snapshotter {name}"))
    }

    /// Returns the kernel's requests to a snapshotter so far, by operation. Empty if the
    /// snapshotter does not count them.
    pub(crate) fn fuse_requests(&self, name: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        const METRIC: &str = "starlift_agent_fuse_requests_total{operation=\"";
        let mut snapshotters = self.snapshotters.iter();
        let found = snapshotters.find(|snapshotter| snapshotter.name == name);
        let Some(api) = found.and_then(|snapshotter| snapshotter.api.as_ref()) else {
            return Ok(BTreeMap::new());
        };
        let metrics = run(&format!(
            "curl -sf --unix-socket {} http://agent/metrics",
            api.display()
        ))?;
        let counts = metrics.lines().filter_map(|line| {
            let (operation, count) = line.strip_prefix(METRIC)?.split_once("\"} ")?;
            Some((operation.to_owned(), count.parse().ok()?))
        });
        Ok(counts.collect())
    }

    /// Pulls `image` over plain HTTP. containerd's own snapshotter unpacks it; any other mounts it
    /// lazily.
    pub(crate) fn pull(&self, image: &str, snapshotter: &str) -> anyhow::Result<()> {
        let flags = format!("--plain-http --snapshotter {snapshotter}");
        if snapshotter == UNPACKED {
            return self
                .containerd
                .ctr(&format!("images pull {flags} {image}"))
                .map(drop);
        }
        self.containerd
            .ctr_remote(&format!("images rpull {flags} {image}"))
            .map(drop)
    }

    /// Pulls `image` and mounts it as for a container, with a writable overlay.
    pub(crate) fn pull_and_mount(
        &self,
        image: &str,
        snapshotter: &str,
        name: &str,
    ) -> anyhow::Result<Mounted> {
        let before = self.tops(snapshotter)?;
        self.pull(image, snapshotter)?;
        let top = self
            .tops(snapshotter)?
            .into_iter()
            .find(|top| !before.contains(top))
            .context("no new snapshot")?;
        self.mount(&top, snapshotter, name)
    }

    /// Mounts the snapshot `top` as for one more container, with a writable overlay of its own.
    fn mount(&self, top: &str, snapshotter: &str, name: &str) -> anyhow::Result<Mounted> {
        let (key, target) = (
            format!("{snapshotter}-{name}"),
            self.place.join(format!("{snapshotter}-{name}")),
        );
        fs::create_dir(&target)?;
        let snapshots = format!("snapshots --snapshotter {snapshotter}");
        self.containerd
            .ctr(&format!("{snapshots} prepare {key} {top}"))?;
        let command = self
            .containerd
            .ctr(&format!("{snapshots} mounts {} {key}", target.display()))?;
        let lower = command
            .split_once("lowerdir=")
            .and_then(|(_, rest)| rest.split([',', ':', ' ']).next());
        let kind = run(&format!(
            "stat -f -c %T {}",
            lower.with_context(|| format!("no overlay: {command}"))?
        ))?;
        // Older versions of stat(1) do not know the name of EROFS.
        let is_lazy = ["fuse", "erofs"].iter().any(|name| kind.starts_with(name))
            || kind.contains(EROFS_MAGIC);
        ensure!(
            is_lazy == (snapshotter != UNPACKED),
            "{snapshotter} has {top} on {kind}"
        );
        run(command.trim())?;
        Ok(Mounted {
            target,
            command,
            top: top.to_owned(),
        })
    }

    /// Mounts the files of `mounted` once more, as for a new container of the image.
    pub(crate) fn mount_again(
        &self,
        mounted: &Mounted,
        snapshotter: &str,
        name: &str,
    ) -> anyhow::Result<Mounted> {
        self.mount(&mounted.top, snapshotter, name)
    }

    /// Returns the committed snapshots without children.
    fn tops(&self, snapshotter: &str) -> anyhow::Result<BTreeSet<String>> {
        let listed = self
            .containerd
            .ctr(&format!("snapshots --snapshotter {snapshotter} ls"))?;
        let rows: Vec<Vec<&str>> = listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        let committed = rows
            .iter()
            .filter(|row| row.last() == Some(&"Committed"))
            .map(|row| row[0]);
        let is_parent = |key: &str| {
            rows.iter()
                .any(|row| row.len() == 3 && row[1] == key && row[2] == "Committed")
        };
        Ok(committed
            .filter(|key| !is_parent(key))
            .map(str::to_owned)
            .collect())
    }

    /// Runs `script` in a container of `image`.
    pub(crate) fn run(
        &self,
        image: &str,
        snapshotter: &str,
        script: &str,
    ) -> anyhow::Result<Output> {
        let file = self.place.join("script");
        fs::write(&file, script)?;
        let id = container_id(snapshotter);
        let mount = format!(
            "type=bind,src={},dst=/script,options=rbind:ro",
            file.display()
        );
        let mut command = Command::new("ctr");
        command.args([
            "-a",
            &self.containerd.socket,
            "run",
            "--rm",
            "--snapshotter",
            snapshotter,
        ]);
        command.args(["--mount", &mount, image, &id, "/bin/sh", "/script"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().context("no output")?;
        let mut text = vec![0];
        let begun = stdout.read(&mut text)?;
        let first = Instant::now();
        stdout.read_to_end(&mut text)?;
        ensure!(
            child.wait()?.success() && begun == 1,
            "{script} failed in {image}"
        );
        Ok(Output {
            first,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Starts a container with the image's own command.
    pub(crate) fn start_container(
        &self,
        image: &str,
        snapshotter: &str,
    ) -> anyhow::Result<Container> {
        let id = container_id(snapshotter);
        let ctr = format!("ctr -a {}", self.containerd.socket);
        let line = format!("{ctr} run --rm --net-host --snapshotter {snapshotter} {image} {id}");
        let process = Running::start(&line, &self.place.join("container.log"))?;
        Ok(Container {
            process,
            kill: format!("{ctr} task kill -s SIGKILL {id}"),
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ended_by_itself = run(&self.kill);
        self.process.wait();
    }
}

/// Returns the container's name. It must be unique, because runc keeps all containers of the
/// machine in one place.
fn container_id(snapshotter: &str) -> String {
    format!("loadtest-{}-{snapshotter}", std::process::id())
}

impl Mounted {
    /// Remounts the files with none of them in the kernel's caches.
    pub(crate) fn cool(&self) -> anyhow::Result<()> {
        run(&format!("umount {}", self.target.display()))?;
        drop_caches()?;
        run(self.command.trim()).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone_already = run(&format!("umount {}", self.target.display()));
    }
}
