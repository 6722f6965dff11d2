//! Installs the agent on a node. Each step is idempotent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Table;

use super::changes::{self, Change, read};
use super::hosts::Mirror;
use super::node::Node;
use super::services::Runner;
use super::settings::{self, Plugin, Setting};
use super::step::Step;
use super::target::{self, Target};
use super::{MARK, PLUGIN, edit, effective, unit};
use crate::agent::daemon::root;
use crate::containerd::services::snapshots::v1::ListSnapshotsRequest;
use crate::containerd::session::Session;
use crate::containerd::version::Version;
use crate::doctor::{self, Facts, State};
use crate::failure::Failure;

/// Time for containerd to start with the new configuration.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time between two questions to it.
const START_PAUSE: Duration = Duration::from_millis(200);

/// The command line of the agent that the unit starts.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) executable: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// A containerd before the installation.
struct Found {
    version: Version,
    /// Its file, if there is one.
    text: Option<String>,
    /// Its effective configuration.
    dump: Table,
}

/// Makes the agent the snapshotter of the node's containerd. A dry run changes nothing.
///
/// # Errors
/// If something on the node does not fit, or a step fails. Files are restored if the effective
/// configuration is not as it should be.
pub(crate) async fn install(
    node: &Node,
    agent: &Agent,
    mirror: Option<&Mirror>,
    is_dry_run: bool,
) -> Result<Vec<Step>, Failure> {
    let found = find(node).await?;
    let target = Target::choose(
        found.version,
        &node.containerd_config,
        found.text.as_deref(),
    )?;
    let containerd = containerd_changes(node, &found, &target, mirror.is_some())?;
    let (hosts, note) = hosts_changes(node, &found, mirror)?;
    let unit = unit_change(node, agent)?;
    let mut steps = vec![Step::Note(format!(
        "containerd {}, {}",
        found.version,
        node.containerd_config.display()
    ))];
    steps.extend(note);
    let changes = containerd.iter().chain(&hosts).chain(&unit);
    steps.extend(
        changes
            .filter(|change| change.is_needed())
            .map(Change::step),
    );

    let is_changed = containerd.iter().any(Change::is_needed);
    let is_restarted = is_changed || is_loaded(node).await == Some(false);
    let mut commands = Vec::new();
    if unit.iter().any(Change::is_needed) {
        commands.extend(node.manager.start_agent());
    }
    if is_restarted {
        let services = &node.containerd_services;
        commands.extend(node.manager.restart_containerd(services).await);
    }
    if !is_dry_run {
        if node.is_rootless() {
            // The agent cannot tell the owners of all parents apart, inside its user namespace.
            root::secure(&node.agent_root).map_err(Failure::when("agent.root not usable"))?;
        }
        changes::apply(&containerd)?;
        if let Err(failure) = check(node, &found, &target).await {
            changes::take_back(&containerd);
            return Err(failure);
        }
        changes::apply(&hosts)?;
        changes::apply(unit.as_slice())?;
    }
    if is_changed && !node.has_unit {
        let command = if node.is_rootless() {
            "left to you: run `starlift agent` in the namespaces of containerd, with the same --address and --root"
        } else {
            "left to you: run `starlift agent` before containerd"
        };
        steps.push(Step::Note(command.to_owned()));
    }
    let runner = Runner::choose(node.has_services, is_dry_run);
    steps.extend(runner.run(&commands).await?);
    if is_restarted && runner == Runner::Installer {
        wait_until_loaded(node).await?;
    }
    Ok(steps)
}

/// Returns the changes of hosts.toml files, or the reason why there are none.
fn hosts_changes(
    node: &Node,
    found: &Found,
    mirror: Option<&Mirror>,
) -> Result<(Vec<Change>, Option<Step>), Failure> {
    const GENERATED: &str =
        "k3s and RKE2 write hosts.toml files themselves: name the server in their registries.yaml";
    match mirror {
        Some(_) if is_generated(found) => Ok((Vec::new(), Some(Step::Note(GENERATED.to_owned())))),
        Some(mirror) => Ok((mirror.changes(&certs_dir(node, found))?, None)),
        None => Ok((Vec::new(), None)),
    }
}

async fn find(node: &Node) -> Result<Found, Failure> {
    let program = &node.containerd;
    let version = program.version().await.ok_or_else(|| {
        Failure::new(format!(
            "cannot run {}, or it prints no version: name containerd's program",
            program.path().display()
        ))
    })?;
    let dump = program.dump(&node.containerd_config).await;
    let config = node.containerd_config.display();
    Ok(Found {
        version,
        text: read(&node.containerd_config)?,
        dump: dump.map_err(Failure::when(format!("containerd cannot read {config}")))?,
    })
}

fn is_generated(found: &Found) -> bool {
    found.text.as_deref().is_some_and(target::is_generated)
}

/// Returns the folder of hosts.toml files that containerd reads, or will read.
fn certs_dir(node: &Node, found: &Found) -> PathBuf {
    let effective = settings::certs_dir(found.version, &found.dump);
    effective.unwrap_or(&node.certs_dir).to_owned()
}

/// Returns the changes of containerd's configuration.
fn containerd_changes(
    node: &Node,
    found: &Found,
    target: &Target,
    has_mirror: bool,
) -> Result<Vec<Change>, Failure> {
    if let Some(other) = settings::address(&found.dump)
        && Path::new(other) != node.agent_address
    {
        return Err(Failure::new(format!(
            "containerd has a snapshotter {PLUGIN:?} at {other} already: remove it first (docs/MIGRATION.md)"
        )));
    }
    let has_certs_dir = settings::certs_dir(found.version, &found.dump).is_some();
    let needs_certs_dir = has_mirror && !has_certs_dir && !is_generated(found);
    if needs_certs_dir && settings::has_old_mirrors(found.version, &found.dump) {
        return Err(Failure::new(
            "containerd's registry.mirrors and registry.configs exclude hosts.toml files: move them to hosts.toml files first",
        ));
    }
    let plugin = Plugin {
        address: &node.agent_address,
        root: &node.agent_root,
        certs_dir: needs_certs_dir.then_some(node.certs_dir.as_path()),
    };
    let wanted = settings::settings(found.version, &plugin, &found.dump);
    let version = settings::file_version(found.version);
    let mut changes = Vec::new();
    if let Target::Import { file, .. } = target {
        let text = found.text.as_deref().unwrap_or_default();
        let text = edit::with_import(text, &target::import_pattern(file))?;
        changes.push(Change::edit(file, Some(text))?);
    }
    let path = target.path();
    changes.push(if target.is_whole() {
        whole(&path, version, &wanted)?
    } else {
        let text = match (read(&path)?, target) {
            (Some(text), _) => text,
            (None, Target::Template(_)) => {
                let generated = found.text.as_deref().unwrap_or_default();
                format!("{MARK}\n{generated}")
            }
            (None, _) => String::new(),
        };
        Change::edit(&path, Some(edit::with_settings(&text, version, &wanted)?))?
    });
    Ok(changes)
}

/// Returns the change of a file that has nothing but the settings. If it is there, its settings
/// are in force, and those that depend on the configuration before it are among them.
fn whole(path: &Path, version: i64, wanted: &[Setting]) -> Result<Change, Failure> {
    let text = match read(path)? {
        Some(text) => edit::with_settings(&text, version, wanted)?,
        None => edit::whole(version, wanted)?,
    };
    Change::whole(path, Some(text))
}

fn unit_change(node: &Node, agent: &Agent) -> Result<Option<Change>, Failure> {
    if !node.has_unit {
        return Ok(None);
    }
    let command = unit::Command {
        executable: &agent.executable,
        arguments: agent.arguments.clone(),
        is_rootless: node.is_rootless(),
    };
    let text = unit::text(&command)?;
    Change::whole(&unit::path(&node.unit_dir), Some(text)).map(Some)
}

/// Checks the effective configuration after the changes: the agent is in it, and nothing else
/// differs.
async fn check(node: &Node, found: &Found, target: &Target) -> Result<(), Failure> {
    // A template without commands is what k3s and RKE2 generate from it.
    let file = match target {
        Target::Template(template) => template,
        _ => &node.containerd_config,
    };
    let dump = node.containerd.dump(file).await;
    let dump = dump.map_err(Failure::when(
        "containerd does not take its new configuration",
    ))?;
    let keys = settings::keys(found.version);
    let others = effective::other_changes(&found.dump, &dump, &keys);
    if !others.is_empty() {
        return Err(Failure::new(format!(
            "containerd's configuration would change in other keys, so its files are as before: {}",
            others.join(", ")
        )));
    }
    let written: Table = read(file)?
        .unwrap_or_default()
        .parse()
        .map_err(Failure::when("containerd's configuration is not TOML"))?;
    let facts = Facts {
        version: Some(found.version),
        file: &written,
        address: &node.agent_address,
        root: &node.agent_root,
        pause: &[],
    };
    let checks = doctor::judge(&dump, &facts);
    let bad = checks.iter().filter(|check| check.state == State::Bad);
    let bad: Vec<String> = bad
        .map(|check| format!("{}: {}", check.what, check.told))
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the new settings are not in force, so containerd's files are as before: {}",
        bad.join("; ")
    )))
}

/// Whether the containerd that runs has the snapshotter. `None` if it does not answer.
async fn is_loaded(node: &Node) -> Option<bool> {
    let session = Session::open(&node.containerd_address, "default")
        .await
        .ok()?;
    let request = ListSnapshotsRequest {
        snapshotter: PLUGIN.to_owned(),
        ..ListSnapshotsRequest::default()
    };
    Some(match session.snapshots().list(request).await {
        Ok(_) => true,
        // The agent behind it does not answer.
        Err(status) => status.code() == tonic::Code::Unavailable,
    })
}

async fn wait_until_loaded(node: &Node) -> Result<(), Failure> {
    let loaded = async {
        while is_loaded(node).await != Some(true) {
            tokio::time::sleep(START_PAUSE).await;
        }
    };
    tokio::time::timeout(START_LIMIT, loaded)
        .await
        .map_err(Failure::when(
            "containerd was restarted and does not have the snapshotter: its log has the reason",
        ))
}
