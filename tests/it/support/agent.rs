//! The real executable as a node agent, and what containerd's configuration needs to know it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::place::{Daemon, Place};
use super::systemd::Manager;

/// `starlift agent` in a process of its own; drop it after the containerd that uses it.
///
/// Dropped, it unmounts what is lazy, unless another agent of the same place took over.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) daemon: Daemon,
    pub(crate) socket: PathBuf,
    pub(crate) root: PathBuf,
}

/// Configuration as the environment has it: `("READ_TIMEOUT", "2s")`.
pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// Keys of `[agent]`, and of `[pull]` behind `PULL_`. Servers on loopback are named, unless the settings say otherwise.
fn environment(settings: Settings<'_>) -> impl Iterator<Item = (String, &str)> {
    let variable = |key: &str| match key.strip_prefix("PULL_") {
        Some(_) => format!("STARLIFT_{key}"),
        None => format!("STARLIFT_AGENT_{key}"),
    };
    let servers = [("PULL_SERVERS", "127.0.0.1")];
    servers
        .into_iter()
        .chain(settings.iter().copied())
        .map(move |(key, value)| (variable(key), value))
}

impl Agent {
    /// Serves the snapshots in the place's directory `agent`; a second start finds those of the first.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_with(place, &[])
    }

    pub(crate) fn start_with(place: &Place, settings: Settings<'_>) -> Self {
        Self::start_as(Path::new(env!("CARGO_BIN_EXE_starlift")), place, settings)
    }

    /// With another executable.
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
        // The socket takes calls before anyone answers them; the status is answered when everything is.
        let daemon = place.daemon("agent", &mut command, || status(&root).is_some());
        Self {
            daemon,
            socket,
            root,
        }
    }

    /// As a service of systemd's, which keeps its descriptors.
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

    /// What `starlift agent status --json` prints.
    pub(crate) fn status(&self) -> Value {
        status(&self.root).expect("the agent answers")
    }

    /// The line of its metrics that begins with `name`.
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

    /// What containerd's configuration needs to know it as the snapshotter `name`.
    pub(crate) fn plugin(&self, name: &str) -> String {
        format!(
            "[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            self.socket.display()
        )
    }

    /// The directories of lazy layers.
    pub(crate) fn lazy(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root.join("lazy")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The directories of ordinary snapshots that are there.
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
