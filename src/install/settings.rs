//! The keys of containerd's configuration that make the agent its snapshotter, by version.

use std::path::Path;

use toml::Table;
use toml_edit::{Array, InlineTable, Value};

use super::PLUGIN;
use crate::containerd::plugins::{CRI_1, CRI_2, TRANSFER, architecture};
use crate::containerd::version::Version;

/// The first containerd that reads files of version 3.
const VERSION_3: Version = Version(2, 0, 0);
/// The first containerd whose transfer service unpacks for named snapshotters.
const UNPACKS: Version = Version(2, 1, 0);

/// One key with its value.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) path: Vec<&'static str>,
    pub(super) value: Value,
}

/// The agent, as containerd's configuration names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plugin<'a> {
    pub(super) address: &'a Path,
    pub(super) root: &'a Path,
    /// The folder of hosts.toml files, if containerd has none yet.
    pub(super) certs_dir: Option<&'a Path>,
}

/// Whether this containerd reads files of version 3.
pub(super) fn reads_version_3(version: Version) -> bool {
    version >= VERSION_3
}

/// Returns the version of files for this containerd.
pub(super) fn file_version(version: Version) -> i64 {
    if reads_version_3(version) { 3 } else { 2 }
}

/// Returns the settings for a containerd with the effective configuration `dump`.
pub(super) fn settings(version: Version, plugin: &Plugin<'_>, dump: &Table) -> Vec<Setting> {
    let text = |path: &Path| Value::from(path.to_string_lossy().into_owned());
    let own = |keys: &[&'static str], value: Value| Setting {
        path: [&["proxy_plugins", PLUGIN] as &[_], keys].concat(),
        value,
    };
    let mut settings = vec![
        own(&["type"], "snapshot".into()),
        own(&["address"], text(plugin.address)),
        own(&["exports", "root"], text(plugin.root)),
        own(
            &["exports", "enable_remote_snapshot_annotations"],
            "true".into(),
        ),
    ];
    let (images, registry) = cri(version);
    settings.extend([
        Setting {
            path: [images.as_slice(), &["snapshotter"]].concat(),
            value: PLUGIN.into(),
        },
        Setting {
            path: [images.as_slice(), &["disable_snapshot_annotations"]].concat(),
            value: false.into(),
        },
    ]);
    if let Some(certs_dir) = plugin.certs_dir {
        let path = [registry.as_slice(), &["config_path"]].concat();
        let value = text(certs_dir);
        settings.push(Setting { path, value });
    }
    settings.extend(unpacking(version, dump));
    settings
}

/// Returns the paths of all keys that the settings of this version can have.
pub(super) fn keys(version: Version) -> Vec<Vec<&'static str>> {
    let (images, registry) = cri(version);
    vec![
        vec!["proxy_plugins", PLUGIN],
        [images.as_slice(), &["snapshotter"]].concat(),
        [images.as_slice(), &["disable_snapshot_annotations"]].concat(),
        [registry.as_slice(), &["config_path"]].concat(),
        vec!["plugins", TRANSFER, "unpack_config"],
    ]
}

/// Returns the folder of hosts.toml files in the effective configuration.
pub(super) fn certs_dir(version: Version, dump: &Table) -> Option<&Path> {
    let (_, registry) = cri(version);
    let path = at(dump, &registry)?.get("config_path")?.as_str()?;
    let first = path.split(':').next().filter(|first| !first.is_empty())?;
    Some(Path::new(first))
}

/// Whether CRI has mirrors or logins of the old kind, which exclude hosts.toml files.
pub(super) fn has_old_mirrors(version: Version, dump: &Table) -> bool {
    let (_, registry) = cri(version);
    let has = |key: &str| {
        let table = at(dump, &registry).and_then(|registry| registry.get(key)?.as_table());
        table.is_some_and(|table| !table.is_empty())
    };
    has("mirrors") || has("configs")
}

/// Returns the address of the snapshotter in the effective configuration, if there is one.
pub(super) fn address(dump: &Table) -> Option<&str> {
    at(dump, &["proxy_plugins", PLUGIN])?
        .get("address")?
        .as_str()
}

/// Returns the snapshotter of pods in the effective configuration.
pub(super) fn pods_snapshotter(version: Version, dump: &Table) -> Option<&str> {
    let (images, _) = cri(version);
    at(dump, &images)?.get("snapshotter")?.as_str()
}

/// Returns the tables of CRI's images and of its registries.
fn cri(version: Version) -> (Vec<&'static str>, Vec<&'static str>) {
    if reads_version_3(version) {
        (vec!["plugins", CRI_2], vec!["plugins", CRI_2, "registry"])
    } else {
        (
            vec!["plugins", CRI_1, "containerd"],
            vec!["plugins", CRI_1, "registry"],
        )
    }
}

/// Returns the list of snapshotters for which the transfer service unpacks. A file's list replaces
/// the one before it, so that the entries of others are repeated.
fn unpacking(version: Version, dump: &Table) -> Option<Setting> {
    if version < UNPACKS {
        return None;
    }
    let others = at(dump, &["plugins", TRANSFER])
        .and_then(|table| table.get("unpack_config")?.as_array().cloned())
        .unwrap_or_default();
    let is_own = |entry: &toml::Value| {
        entry.get("snapshotter").and_then(toml::Value::as_str) == Some(PLUGIN)
    };
    if others.iter().any(is_own) {
        return None;
    }
    let platform = format!("linux/{}", architecture());
    let mut list = Array::new();
    list.push(entry(&platform, PLUGIN));
    if others.is_empty() {
        list.push(entry(&platform, "overlayfs"));
    }
    for other in others.iter().filter_map(toml::Value::as_table) {
        list.push(other.iter().filter_map(set_key).collect::<InlineTable>());
    }
    Some(Setting {
        path: vec!["plugins", TRANSFER, "unpack_config"],
        value: list.into(),
    })
}

fn entry(platform: &str, snapshotter: &str) -> InlineTable {
    [("platform", platform), ("snapshotter", snapshotter)]
        .into_iter()
        .collect()
}

/// Returns a key of an entry unless it has its default, which the dump shows too.
fn set_key((key, value): (&String, &toml::Value)) -> Option<(String, Value)> {
    let value = match value {
        toml::Value::String(text) if !text.is_empty() => Value::from(text),
        toml::Value::Boolean(true) => Value::from(true),
        toml::Value::Array(list) if !list.is_empty() => {
            list.iter().filter_map(toml::Value::as_str).collect()
        }
        _ => return None,
    };
    Some((key.clone(), value))
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter()
        .try_fold(table, |table, key| table.get(*key)?.as_table())
}
