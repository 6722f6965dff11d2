//! The services of a node: systemd's, or none.

use std::path::Path;
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

/// Whether systemd runs the services of this machine.
pub(super) fn has_systemd() -> bool {
    Path::new(SYSTEMD).is_dir()
}

/// The commands that make the agent's unit run. A new unit also restarts an agent that runs.
pub(super) fn start_agent() -> Vec<Vec<String>> {
    vec![
        reload(),
        systemctl(&["enable", unit::NAME]),
        systemctl(&["restart", unit::NAME]),
    ]
}

/// The command that makes the agent's unit stop, before its file is deleted.
pub(super) fn stop_agent() -> Vec<Vec<String>> {
    vec![systemctl(&["disable", "--now", unit::NAME])]
}

/// The command that makes systemd forget a unit whose file was deleted.
pub(super) fn reload() -> Vec<String> {
    systemctl(&["daemon-reload"])
}

/// Returns the command that restarts the one of `services` that runs, or the first one.
pub(super) async fn restart_containerd(services: &[String]) -> Vec<Vec<String>> {
    let mut running = services.first();
    for service in services {
        if run(&systemctl(&["is-active", "--quiet", service]))
            .await
            .is_ok()
        {
            running = Some(service);
        }
    }
    running
        .into_iter()
        .map(|service| systemctl(&["restart", service]))
        .collect()
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

fn systemctl(arguments: &[&str]) -> Vec<String> {
    let words = ["systemctl"].iter().chain(arguments);
    words.map(|&word| word.to_owned()).collect()
}
