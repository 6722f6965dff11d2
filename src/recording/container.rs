//! A container of runc's that lives as long as it is held. Its output goes to standard error: nothing of it is a result.

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
/// How long a workload may take to heed its stop signal, as in the reference.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removed with all its processes when dropped.
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

/// A process that removes a container when this one lets go of it, if only by being killed.
#[derive(Debug)]
struct Warden(std::process::Child);

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exited(ExitStatus),
    Stopped,
}

/// Whether there is a runtime on this machine.
pub(crate) fn check() -> Result<(), Failure> {
    let runs = std::process::Command::new(RUNTIME)
        .arg("--version")
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .status();
    match runs {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("{RUNTIME} does not work: {status}"))),
        Err(error) => Err(Failure::when(format!(
            "{RUNTIME}, which runs the workload, cannot be run"
        ))(error)),
    }
}

impl Container {
    /// Starts the container that `bundle` describes; `root` is for the runtime's files.
    pub(crate) fn start(root: &Path, bundle: &Path) -> Result<Self, Failure> {
        let cannot = || Failure::when("the workload cannot be started");
        // Its control group is named by it, on the whole machine.
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
            // An interrupt from the keyboard is for us to act on.
            .process_group(0)
            // One that is still starting has no container yet that could be removed.
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

    /// Waits for the workload to end, and stops it by `signal` when `enough` is over.
    ///
    /// # Errors
    /// When it could not be started.
    pub(crate) async fn wait(
        &mut self,
        enough: impl Future<Output = ()>,
        signal: &str,
    ) -> Result<End, Failure> {
        let exited = tokio::select! {
            exited = self.child.wait() => Some(exited),
            () = enough => None,
        };
        let cannot = Failure::when("the workload cannot be waited for");
        match exited.transpose().map_err(cannot)? {
            Some(status) => self.exited(status),
            None => {
                self.stop(signal).await;
                Ok(End::Stopped)
            }
        }
    }

    /// The runtime ends with the workload's exit code, and with one of its own where there was no workload.
    fn exited(&self, status: ExitStatus) -> Result<End, Failure> {
        if self.pid.exists() {
            return Ok(End::Exited(status));
        }
        let reason = std::fs::read_to_string(&self.log)
            .ok()
            .and_then(|log| last_message(&log));
        let reason = reason.unwrap_or_else(|| format!("{RUNTIME} ended with {status}"));
        Err(Failure::new(format!(
            "the workload could not be started: {reason}"
        )))
    }

    async fn stop(&mut self, signal: &str) {
        for signal in [signal, "KILL"] {
            // One that has just ended is no failure; one that cannot be stopped is removed by force.
            let _stopped = self.runtime().args(["kill", &self.id, signal]).status();
            if tokio::time::timeout(PATIENCE, self.child.wait())
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
        // Its standard input ends with the last process that holds the other end, which is this one.
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
        // There is nothing left to be removed where the workload ended by itself.
        let _removed = self.0.wait();
    }
}

/// What the runtime said last, in its log of JSON lines.
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
    fn the_runtimes_last_error_is_told() {
        let log = "{\"level\":\"error\",\"msg\":\"no such file\",\"time\":\"t\"}\n{\"level\":\"info\",\"msg\":\"x\"}\nhalf {";
        assert_eq!(last_message(log).as_deref(), Some("no such file"));
        assert_eq!(last_message(""), None);
    }
}
