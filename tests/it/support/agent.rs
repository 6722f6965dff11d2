//! The real executable as a node agent, and its entry in containerd's configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::place::{Daemon, Place};
use super::systemd::Manager;

/// `starlift agent` in a separate process. Must be dropped after the containerd that uses it.
///
/// On drop it unmounts the lazy layers, unless another agent of the same workspace took over.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) daemon: Daemon,
    pub(crate) socket: PathBuf,
    pub(crate) root: PathBuf,
}

/// Configuration keys and values for the environment: `("READ_TIMEOUT", "2s")`.
pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// Whether the test that runs is one of those over the EROFS driver. `STARLIFT_TEST_DRIVER=erofs`
/// chooses it for all tests.
pub(crate) fn is_erofs() -> bool {
    is_of("::erofs::")
        || std::env::var("STARLIFT_TEST_DRIVER").is_ok_and(|driver| driver == "erofs")
}

/// Whether the test that runs is in this module. nextest names the test in the arguments, libtest by
/// the thread.
fn is_of(module: &str) -> bool {
    let is_named = |name: &str| format!("::{name}").contains(module);
    std::thread::current().name().is_some_and(is_named)
        || std::env::args().any(|argument| is_named(&argument))
}

/// Keys of `[agent]`, and of `[pull]` and `[traces]` after `PULL_` and `TRACES_`. Servers on loopback are Starlift servers,
/// unless the settings say otherwise.
fn environment(settings: Settings<'_>) -> impl Iterator<Item = (String, &str)> {
    let variable = |key: &str| match key.split_once('_') {
        Some(("PULL" | "TRACES", _)) => format!("STARLIFT_{key}"),
        _ => format!("STARLIFT_AGENT_{key}"),
    };
    // The other tests run over the driver that a node has.
    let driver = match () {
        () if is_erofs() => "erofs",
        () if is_of("::agent::") => "fuse",
        () => "auto",
    };
    let defaults = [("PULL_SERVERS", "127.0.0.1"), ("DRIVER", driver)];
    defaults
        .into_iter()
        .chain(settings.iter().copied())
        .map(move |(key, value)| (variable(key), value))
}

impl Agent {
    /// Serves the snapshots in the workspace's directory `agent`. A second start finds those of the
    /// first.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_with(place, &[])
    }

    pub(crate) fn start_with(place: &Place, settings: Settings<'_>) -> Self {
        Self::start_as(Path::new(env!("CARGO_BIN_EXE_starlift")), place, settings)
    }

    /// Starts another executable.
    pub(crate) fn start_as(executable: &Path, place: &Place, settings: Settings<'_>) -> Self {
        let (socket, root) = (place.path().join("agent.sock"), place.dir("agent"));
        let mut command = Command::new(executable);
        command
            .current_dir(place.path())
            .arg("agent")
            .arg("--address")
            .arg(&socket)
            .arg("--root")
            .arg(&root);
        command.envs(environment(settings));
        // The socket accepts calls before they are answered. The status is answered only when
        // everything works.
        let daemon = place.daemon("agent", &mut command, || status(&root).is_some());
        Self {
            daemon,
            socket,
            root,
        }
    }

    /// Starts the agent as a systemd service. systemd keeps its descriptors.
    pub(crate) fn start_under(
        manager: &mut Manager,
        place: &Place,
        settings: Settings<'_>,
    ) -> Self {
        let (socket, root) = (place.path().join("agent.sock"), place.dir("agent"));
        let mut command = manager.command(env!("CARGO_BIN_EXE_starlift"));
        command
            .current_dir(place.path())
            .arg("agent")
            .arg("--address")
            .arg(&socket)
            .arg("--root")
            .arg(&root);
        command.envs(environment(settings));
        let daemon = place.spawn("agent", &mut command, || {
            manager.listen();
            manager.is_ready && status(&root).is_some()
        });
        Self {
            daemon,
            socket,
            root,
        }
    }

    /// Returns the output of `starlift agent status --json`.
    pub(crate) fn status(&self) -> Value {
        status(&self.root).expect("the agent answers")
    }

    /// Returns the value of the metric whose line begins with `name`.
    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let mut curl = Command::new("curl");
        let output = curl
            .args(["-sf", "--unix-socket"])
            .arg(self.root.join("api.sock"))
            .arg("http://agent/metrics");
        let text = String::from_utf8(output.output().unwrap().stdout).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// Returns the entry in containerd's configuration for the snapshotter `name`. The transfer
    /// service of 2.x unpacks for it and for overlayfs.
    pub(crate) fn plugin(&self, name: &str) -> String {
        let (socket, root) = (&self.socket, &self.root);
        let unpack = |snapshotter: &str| {
            format!(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 platform = \"linux\"\nsnapshotter = {snapshotter:?}\n"
            )
        };
        format!(
            "[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = {socket:?}\n\
             [proxy_plugins.{name}.exports]\nroot = {root:?}\n\
             enable_remote_snapshot_annotations = \"true\"\n{}{}",
            unpack(name),
            unpack("overlayfs"),
        )
    }

    /// Returns the directories of lazy layers, which every driver has.
    pub(crate) fn lazy(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root.join("lazy")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Returns the directories of ordinary snapshots.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root.join("snapshots")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.daemon.kill();
        if status(&self.root).is_none() {
            let mut unmount = Command::new(env!("CARGO_BIN_EXE_starlift"));
            let _ = unmount
                .args(["agent", "unmount", "--root"])
                .arg(&self.root)
                .output();
        }
    }
}

fn status(root: &Path) -> Option<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
    let output = command
        .args(["agent", "status", "--json", "--root"])
        .arg(root)
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).unwrap())
}
