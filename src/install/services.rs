//! The services of a node: those of the machine's systemd, of a user's, or none.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::step::Step;
use super::unit;
use crate::failure::Failure;

/// Exists if systemd is the init of this machine (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Runs the commands of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runner {
    Installer,
    /// The commands are shown to people, who run them.
    People,
    /// A dry run.
    Nobody,
}

/// The systemd that has the services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Manager {
    /// The machine's.
    Machine,
    /// A user's, with its runtime directory.
    User(PathBuf),
}

impl Manager {
    /// Whether it runs.
    pub(super) fn runs(&self) -> bool {
        match self {
            Self::Machine => Path::new(SYSTEMD).is_dir(),
            Self::User(runtime) => runtime.join("systemd").is_dir(),
        }
    }

    fn systemctl(&self, arguments: &[&str]) -> Vec<String> {
        let user: &[&str] = match self {
            Self::Machine => &[],
            Self::User(_) => &["--user"],
        };
        let words = ["systemctl"].iter().chain(user).chain(arguments);
        words.map(|&word| word.to_owned()).collect()
    }

    /// The commands that make the agent's unit run. A new unit also restarts an agent that runs.
    pub(super) fn start_agent(&self) -> Vec<Vec<String>> {
        vec![
            self.reload(),
            self.systemctl(&["enable", unit::NAME]),
            self.systemctl(&["restart", unit::NAME]),
        ]
    }

    /// The command that makes the agent's unit stop, before its file is deleted.
    pub(super) fn stop_agent(&self) -> Vec<Vec<String>> {
        vec![self.systemctl(&["disable", "--now", unit::NAME])]
    }

    /// The command that makes systemd forget a unit whose file was deleted.
    pub(super) fn reload(&self) -> Vec<String> {
        self.systemctl(&["daemon-reload"])
    }

    /// Returns the command that restarts the one of `services` that runs, or the first one.
    pub(super) async fn restart_containerd(&self, services: &[String]) -> Vec<Vec<String>> {
        let mut running = services.first();
        for service in services {
            if run(&self.systemctl(&["is-active", "--quiet", service]))
                .await
                .is_ok()
            {
                running = Some(service);
            }
        }
        running
            .into_iter()
            .map(|service| self.systemctl(&["restart", service]))
            .collect()
    }
}

impl Runner {
    pub(super) fn choose(has_services: bool, is_dry_run: bool) -> Self {
        match (has_services, is_dry_run) {
            (false, _) => Self::People,
            (true, true) => Self::Nobody,
            (true, false) => Self::Installer,
        }
    }

    /// Runs the commands in order, and returns the steps.
    ///
    /// # Errors
    /// If a command cannot be run, or fails.
    pub(super) async fn run(self, commands: &[Vec<String>]) -> Result<Vec<Step>, Failure> {
        let mut steps = Vec::new();
        for command in commands {
            let line = command.join(" ");
            match self {
                Self::People => steps.push(Step::Note(format!("left to you: {line}"))),
                Self::Nobody => steps.push(Step::Run(line)),
                Self::Installer => {
                    run(command).await?;
                    steps.push(Step::Run(line));
                }
            }
        }
        Ok(steps)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be run, or fails.
async fn run(command: &[String]) -> Result<(), Failure> {
    let shown = command.join(" ");
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let mut child = Command::new(program);
    child
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = child
        .output()
        .await
        .map_err(Failure::when(format!("cannot run {shown}")))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{shown} failed: {}", errors.trim())))
}
