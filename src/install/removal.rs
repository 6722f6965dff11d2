//! Undoes an installation.

use std::path::Path;

use super::changes::{self, Change, backup, read};
use super::node::Node;
use super::step::Step;
use super::{MARK, PLUGIN, edit, hosts, services, settings, target, unit};
use crate::containerd::services::snapshots::v1::ListSnapshotsRequest;
use crate::containerd::session::Session;
use crate::containerd::version::Version;
use crate::failure::Failure;

/// Removes the agent from the node's containerd. A dry run changes nothing.
///
/// # Errors
/// If images or containers need the agent and `is_forced` is not set, if a step fails, or if the
/// effective configuration still has the agent. The files are restored then.
pub(crate) async fn uninstall(
    node: &Node,
    is_forced: bool,
    is_dry_run: bool,
) -> Result<Vec<Step>, Failure> {
    if !is_forced {
        refuse_if_needed(node).await?;
    }
    let version = node.containerd.version().await.ok_or_else(|| {
        let program = node.containerd.path().display();
        Failure::new(format!("cannot run {program}: name containerd's program"))
    })?;
    let containerd = containerd_changes(node, version)?;
    let hosts = hosts_changes(node, version).await?;
    let unit = unit_change(node)?;
    let changes = containerd.iter().chain(&hosts);
    let changes = changes.filter(|change| change.is_needed());
    let mut steps: Vec<Step> = changes.map(Change::step).collect();
    let mut commands = Vec::new();
    if containerd.iter().any(Change::is_needed) {
        let services = &node.containerd_services;
        commands.extend(node.manager.restart_containerd(services).await);
    }
    if unit.is_some() {
        commands.extend(node.manager.stop_agent());
    }
    if !is_dry_run {
        changes::apply(&containerd)?;
        if let Err(failure) = check(node, version).await {
            changes::take_back(&containerd);
            return Err(failure);
        }
        changes::apply(&hosts)?;
    }
    let runner = services::Runner::choose(node.has_services, is_dry_run);
    steps.extend(runner.run(&commands).await?);
    if let Some(unit) = unit {
        steps.push(unit.step());
        if !is_dry_run {
            changes::apply(&[unit])?;
        }
        steps.extend(runner.run(&[node.manager.reload()]).await?);
    }
    if node.agent_root.exists() {
        steps.push(Step::Note(format!(
            "once the agent is stopped, `starlift agent unmount` and the deletion of {} remove the rest",
            node.agent_root.display()
        )));
    }
    Ok(steps)
}

/// Returns the deletion of the agent's unit, if the installation wrote it.
fn unit_change(node: &Node) -> Result<Option<Change>, Failure> {
    let path = unit::path(&node.unit_dir);
    match read(&path)? {
        Some(text) if text.starts_with(MARK) => Change::whole(&path, None).map(Some),
        _ => Ok(None),
    }
}

/// Fails if the agent holds snapshots: images and containers would lose their file systems.
async fn refuse_if_needed(node: &Node) -> Result<(), Failure> {
    if !node.agent_root.exists() {
        return Ok(());
    }
    let session = Session::open(&node.agent_address, "default").await;
    let session = session.map_err(Failure::when(
        "the agent does not answer, so that it is not known whether images need it (start it, or use --force)",
    ))?;
    let failed = "the agent cannot list its snapshots";
    let listed = session
        .snapshots()
        .list(ListSnapshotsRequest::default())
        .await;
    let mut listed = listed.map_err(Failure::when(failed))?.into_inner();
    let mut snapshots = 0;
    while let Some(answer) = listed.message().await.map_err(Failure::when(failed))? {
        snapshots += answer.info.len();
    }
    if snapshots == 0 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{snapshots} snapshots of images and containers are left: drain the node and remove its images first (crictl rmi --prune, ctr images rm), or use --force"
    )))
}

fn containerd_changes(node: &Node, version: Version) -> Result<Vec<Change>, Failure> {
    let file = &node.containerd_config;
    let text = read(file)?;
    let mut changes = Vec::new();
    for path in target::candidates(file, text.as_deref()) {
        if read(&path)?.is_some_and(|text| text.starts_with(MARK)) {
            changes.push(Change::whole(&path, None)?);
        }
    }
    // A generated file is not edited; its templates are.
    let is_generated = text.as_deref().is_some_and(target::is_generated);
    let templates = target::templates(file);
    let edited: &[_] = if is_generated {
        &templates
    } else {
        std::slice::from_ref(file)
    };
    for path in edited {
        changes.extend(undo(path, node, version)?);
    }
    Ok(changes)
}

/// Returns the change that takes the settings out of a file.
fn undo(path: &Path, node: &Node, version: Version) -> Result<Option<Change>, Failure> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let original = read(&backup(path))?;
    let mut keys = settings::keys(version);
    if hosts::has_others(&node.certs_dir) {
        keys.retain(|key| key.last() != Some(&"config_path"));
    }
    let without = edit::without_settings(
        &text,
        &keys,
        original.as_deref(),
        &node.agent_address,
        &target::import_pattern(&node.containerd_config),
    )?;
    if without == text {
        return Ok(None);
    }
    let is_empty = without
        .lines()
        .all(|line| line.trim().is_empty() || line.starts_with("version"));
    let is_own = text.starts_with(MARK) || original.is_none() && is_empty;
    let change = if is_own {
        Change::whole(path, None)
    } else {
        Change::edit(path, Some(without))
    };
    change.map(Some)
}

/// Returns the changes that delete the hosts.toml files of the installation.
async fn hosts_changes(node: &Node, version: Version) -> Result<Vec<Change>, Failure> {
    let dump = node.containerd.dump(&node.containerd_config).await;
    let effective = dump.ok();
    let effective = effective
        .as_ref()
        .and_then(|dump| settings::certs_dir(version, dump));
    let files = hosts::written(effective.unwrap_or(&node.certs_dir));
    files.iter().map(|file| Change::whole(file, None)).collect()
}

/// Checks that the effective configuration has the agent nowhere.
async fn check(node: &Node, version: Version) -> Result<(), Failure> {
    let dump = node.containerd.dump(&node.containerd_config).await;
    let dump = dump.map_err(Failure::when("containerd does not take its configuration"))?;
    let is_generated =
        read(&node.containerd_config)?.is_some_and(|text| target::is_generated(&text));
    let address = settings::address(&dump).map(Path::new);
    let is_plugin = address == Some(node.agent_address.as_path());
    // Another program may serve the snapshotter of this name.
    let is_pods = address.is_none() && settings::pods_snapshotter(version, &dump) == Some(PLUGIN);
    // k3s and RKE2 generate their file again at the restart.
    if !is_generated && (is_plugin || is_pods) {
        return Err(Failure::new(
            "containerd's configuration still has the agent, in a file that `agent install` did not write: take it out there; nothing was changed",
        ));
    }
    Ok(())
}
