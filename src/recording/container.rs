//! A container run by runc, removed when dropped. Its output goes to standard error, because it is
//! not a result of the command.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::failure::Failure;

const RUNTIME: &str = "runc";
/// How long a workload may take after its stop signal, as in `ctr-remote`.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running container. Dropping it removes it with all its processes.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    /// The runtime's own records of it.
    state: PathBuf,
    log: PathBuf,
    pid: PathBuf,
    child: Child,
    _warden: Warden,
}

/// A process that removes the container when this process drops it or exits, even if it is killed.
#[derive(Debug)]
struct Warden(std::process::Child);

/// The end of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exited(ExitStatus),
    Stopped,
}

/// Checks that this machine has a runtime.
pub(crate) fn check() -> Result<(), Failure> {
    let runs = std::process::Command::new(RUNTIME)
        .arg("--version")
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .status();
    match runs {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!(
            "{RUNTIME} --version failed: {status}"
        ))),
        Err(error) => Err(Failure::when(format!(
            "{RUNTIME}, which runs the workload, cannot be run"
        ))(error)),
    }
}

impl Container {
    /// Starts the container that `bundle` describes. The runtime keeps its files in `root`.
    pub(crate) fn start(root: &Path, bundle: &Path) -> Result<Self, Failure> {
        let cannot = || Failure::when("workload cannot be started");
        // It also names the control group, so it must be unique on the machine.
        let id = format!(
            "starlift-optimize-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let [state, log, pid] = ["runc", "runc.log", "pid"].map(|name| root.join(name));
        let warden = Warden::of(&state, &id).map_err(cannot())?;
        let output = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
        let child = Command::new(RUNTIME)
            .args(["--log-format", "json", "--log"])
            .arg(&log)
            .arg("--root")
            .arg(&state)
            .args(["run", "--pid-file"])
            .arg(&pid)
            .arg("--bundle")
            .arg(bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(output().map_err(cannot())?)
            .stderr(Stdio::inherit())
            // An interrupt from the keyboard is for this process, which then stops the workload.
            .process_group(0)
            // While the runtime is still starting, there is no container yet that could be removed.
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot())?;
        Ok(Self {
            id,
            state,
            log,
            pid,
            child,
            _warden: warden,
        })
    }

    /// Waits for the workload to end. When `stop_requested` completes, stops it with `signal`.
    ///
    /// # Errors
    /// If the workload could not be started.
    pub(crate) async fn wait(
        &mut self,
        stop_requested: impl Future<Output = ()>,
        signal: &str,
    ) -> Result<End, Failure> {
        let exited = tokio::select! {
            exited = self.child.wait() => Some(exited),
            () = stop_requested => None,
        };
        let cannot = Failure::when("waiting for the workload failed");
        match exited.transpose().map_err(cannot)? {
            Some(status) => self.exited(status),
            None => {
                self.stop(signal).await;
                Ok(End::Stopped)
            }
        }
    }

    /// Returns the workload's exit code. If there was no workload, the runtime's own code is an
    /// error.
    fn exited(&self, status: ExitStatus) -> Result<End, Failure> {
        if self.pid.exists() {
            return Ok(End::Exited(status));
        }
        let reason = std::fs::read_to_string(&self.log)
            .ok()
            .and_then(|log| last_message(&log));
        let reason = reason.unwrap_or_else(|| format!("{RUNTIME} ended with {status}"));
        Err(Failure::new(format!(
            "workload could not be started: {reason}"
        )))
    }

    async fn stop(&mut self, signal: &str) {
        for signal in [signal, "KILL"] {
            // A workload that has just ended is not a failure. One that cannot be stopped is
            // removed by force.
            let _stopped = self.runtime().args(["kill", &self.id, signal]).status();
            if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    fn runtime(&self) -> std::process::Command {
        let mut command = std::process::Command::new(RUNTIME);
        command
            .arg("--root")
            .arg(&self.state)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Warden {
    fn of(state: &Path, id: &str) -> io::Result<Self> {
        // Its standard input ends when the only process with the other end, this one, exits.
        let script = format!("read -r _; exec {RUNTIME} --root \"$1\" delete --force \"$2\"");
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &script, "warden"])
            .arg(state)
            .arg(id)
            .process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // The exit code is ignored: nothing is left to remove if the workload ended by itself.
        let _removed = self.0.wait();
    }
}

/// Returns the runtime's last error message from its log of JSON lines.
fn last_message(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut lines = log
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines
        .find(|line| line.level == "error")
        .map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_last_error_is_returned() {
        let log = "{\"level\":\"error\",\"msg\":\"no such file\",\"time\":\"t\"}\n{\"level\":\"info\",\"msg\":\"x\"}\nhalf {";
        assert_eq!(last_message(log).as_deref(), Some("no such file"));
        assert_eq!(last_message(""), None);
    }
}
