//! Judges containerd's effective configuration by the settings that silently keep pods from being
//! lazy.
//!
//! A pure function of the output of `containerd config dump`. docs/OPERATIONS.md has the same list
//! for people.

use std::path::Path;

use toml::{Table, Value};

use super::check::Check;
use crate::containerd::plugins::{CRI_1, CRI_2, TRANSFER as TRANSFER_PLUGIN, architecture};
use crate::containerd::version::Version;

const PLUGIN: &str = "snapshotter plugin";
const IMAGE_FS: &str = "image file system";
const CRI: &str = "CRI";
const TRANSFER: &str = "transfer service";
const PAUSE: &str = "pause image";

/// The facts about containerd and the agent besides the effective configuration.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) version: Option<Version>,
    /// The configuration file as it is written.
    pub(crate) file: &'a Table,
    /// The agent's socket and root.
    pub(crate) address: &'a Path,
    pub(crate) root: &'a Path,
    /// The snapshotters for which the pause image was unpacked. Empty if it was not pulled, or if
    /// containerd did not answer.
    pub(crate) pause: &'a [String],
}

/// Judges the effective configuration `dump`.
pub(crate) fn judge(dump: &Table, facts: &Facts<'_>) -> Vec<Check> {
    let Some((name, plugin)) = own_plugin(dump, facts.address) else {
        let finding = format!(
            "no proxy_plugins entry has the address {}",
            facts.address.display()
        );
        return vec![Check::bad(PLUGIN, finding, facts.lines())];
    };
    let mut checks = vec![own(name, plugin), image_fs(name, plugin, facts)];
    let cri = Cri::find(dump, facts);
    match &cri {
        Some(cri) => checks.extend(cri.judge(name, plugin, facts)),
        None => checks.push(Check::good(CRI, "off: no pods on this containerd")),
    }
    if facts.is_at_least(2, 1) {
        checks.push(transfer(dump, name, plugin));
    }
    checks
}

/// Returns the name of the image for pods' sandboxes.
pub(crate) fn pause_image(dump: &Table) -> Option<&str> {
    let plugins = dump.get("plugins")?;
    let newer = plugins
        .get(CRI_2)
        .and_then(|table| text(table.get("pinned_images")?, "sandbox"));
    newer.or_else(|| text(plugins.get(CRI_1)?, "sandbox_image"))
}

/// Returns the name of the snapshotter with this address.
pub(crate) fn snapshotter<'a>(dump: &'a Table, address: &Path) -> Option<&'a str> {
    own_plugin(dump, address).map(|(name, _)| name)
}

/// Returns the directories of hosts that CRI reads, separated by `:`.
pub(crate) fn certs_dirs<'a>(dump: &'a Table, facts: &Facts<'_>) -> Option<&'a str> {
    let cri = Cri::find(dump, facts)?;
    text(cri.table.get("registry")?, "config_path").filter(|dirs| !dirs.is_empty())
}

fn own_plugin<'a>(dump: &'a Table, address: &Path) -> Option<(&'a str, &'a Value)> {
    let plugins = dump.get("proxy_plugins").and_then(Value::as_table);
    let entry = plugins.into_iter().flatten().find(|(_, plugin)| {
        text(plugin, "type") == Some("snapshot")
            && text(plugin, "address").map(Path::new) == Some(address)
    });
    entry.map(|(name, plugin)| (name.as_str(), plugin))
}

fn own(name: &str, plugin: &Value) -> Check {
    let has = |capability: &str| {
        list(plugin, "capabilities").any(|value| value.as_str() == Some(capability))
    };
    if has("rebase") {
        let mend = format!(
            "remove \"rebase\" from proxy_plugins.{name}.capabilities: layers are then prepared without their parent, \
             and none is lazy"
        );
        return Check::bad(
            PLUGIN,
            format!("{name:?} is declared to unpack layers in parallel"),
            mend,
        );
    }
    Check::good(PLUGIN, format!("{name:?} is this agent"))
}

/// Checks the directory in which kubelets expect the images.
fn image_fs(name: &str, plugin: &Value, facts: &Facts<'_>) -> Check {
    let exported = plugin
        .get("exports")
        .and_then(|exports| text(exports, "root"));
    let line = format!("[proxy_plugins.{name}.exports]\nroot = {:?}", facts.root);
    match exported {
        Some(root) if Path::new(root) == facts.root => Check::good(IMAGE_FS, root),
        Some(root) => Check::bad(IMAGE_FS, format!("kubelets look at {root}"), line),
        None if facts.version.is_some_and(|version| !version.has_exports()) => {
            let finding = "this containerd has no setting for it: kubelets look at a directory that does not exist";
            Check::fair(
                IMAGE_FS,
                finding,
                format!(
                    "containerd 1.6.32, 1.7.16 or newer, with proxy_plugins.{name}.exports.root"
                ),
            )
        }
        None => {
            let finding =
                "kubelets look at a directory that does not exist, and never delete images";
            Check::bad(IMAGE_FS, finding, line)
        }
    }
}

/// The part of CRI that pulls images.
struct Cri<'a> {
    table: &'a Value,
    /// The table with the snapshotter: in 1.x a table inside `table`, in 2.x `table` itself.
    images: &'a Value,
    name: &'static str,
}

impl<'a> Cri<'a> {
    /// Returns the table that this version reads, or `None` if CRI is off.
    fn find(dump: &'a Table, facts: &Facts<'_>) -> Option<Self> {
        let plugins = dump.get("plugins")?;
        let is_off = |name: &str| {
            dump.get("disabled_plugins")
                .is_some_and(|off| has_text(off, name))
        };
        if is_off(CRI_1) || is_off(CRI_2) || is_off("cri") {
            return None;
        }
        let newer = plugins.get(CRI_2).map(|table| Self {
            table,
            images: table,
            name: CRI_2,
        });
        let older = plugins.get(CRI_1).map(|table| {
            let images = table.get("containerd").unwrap_or(table);
            Self {
                table,
                images,
                name: CRI_1,
            }
        });
        if facts.is_at_least(2, 0) {
            newer.or(older)
        } else {
            older.or(newer)
        }
    }

    fn judge(&self, plugin: &str, entry: &Value, facts: &Facts<'_>) -> Vec<Check> {
        let snapshotter = text(self.images, "snapshotter").unwrap_or("overlayfs");
        if snapshotter != plugin {
            return vec![self.elsewhere(snapshotter, plugin, facts)];
        }
        let mut checks = vec![self.pulls(plugin, entry, facts)];
        checks.extend(pause(plugin, facts.pause));
        checks
    }

    /// Returns the check for pods that use another snapshotter.
    fn elsewhere(&self, snapshotter: &str, plugin: &str, facts: &Facts<'_>) -> Check {
        let finding = format!("pods use {snapshotter:?}: none is lazy");
        if facts.is_at_least(2, 0) && written_for_1(facts.file) == Some(plugin) {
            let mend = format!(
                "containerd 2 silently drops `snapshotter` and `disable_snapshot_annotations` of a file of version 2: \
                 write a file of version 3\n{}",
                facts.lines()
            );
            return Check::bad(CRI, finding, mend);
        }
        let handlers = self
            .table
            .get("runtime_platforms")
            .and_then(Value::as_table);
        let handlers = handlers
            .into_iter()
            .flatten()
            .filter(|(_, one)| text(one, "snapshotter") == Some(plugin));
        let handlers: Vec<&str> = handlers.map(|(name, _)| name.as_str()).collect();
        if !handlers.is_empty() {
            let mend = "for all pods, set `snapshotter` in CRI's table";
            return Check::fair(
                CRI,
                format!("only pods of the runtime handlers {handlers:?} are lazy"),
                mend,
            );
        }
        let mend = format!(
            "snapshotter = {plugin:?} in [plugins.{:?}], or disable CRI if no kubelet uses it",
            self.name
        );
        Check::bad(CRI, finding, mend)
    }

    /// Returns the check for pods that use the agent: whether containerd passes it the labels of
    /// the layers.
    fn pulls(&self, plugin: &str, entry: &Value, facts: &Facts<'_>) -> Check {
        let has_annotations = !flag(self.images, "disable_snapshot_annotations").unwrap_or(true);
        let reasons = self.reasons_to_pull_locally(has_annotations);
        if !facts.is_at_least(2, 1) || !reasons.is_empty() {
            if !has_annotations {
                let mend = "disable_snapshot_annotations = false in CRI's table: without the annotations every layer is unpacked";
                return Check::bad(CRI, "it does not say which layers it wants", mend);
            }
            let by = if facts.is_at_least(2, 1) {
                format!(
                    ", pulled by CRI itself and not by the transfer service: {}",
                    reasons.join(", ")
                )
            } else {
                String::new()
            };
            return Check::good(CRI, format!("pods use {plugin:?}{by}"));
        }
        // The transfer service has its own check.
        let through = if has_remote_annotations(entry) {
            ""
        } else {
            ", which does not pass on the labels of the layers"
        };
        Check::good(
            CRI,
            format!("pods use {plugin:?} through the transfer service{through}"),
        )
    }

    /// Returns the settings with which CRI of 2.1 and newer silently pulls as before.
    fn reasons_to_pull_locally(&self, has_annotations: bool) -> Vec<&'static str> {
        let registry = |key: &str| {
            let table = self
                .table
                .get("registry")
                .and_then(|registry| registry.get(key))
                .and_then(Value::as_table);
            table.is_some_and(|table| !table.is_empty())
        };
        let is_on = |key: &str| {
            flag(self.table, key)
                .or_else(|| flag(self.images, key))
                .unwrap_or(false)
        };
        let downloads = self
            .table
            .get("max_concurrent_downloads")
            .and_then(Value::as_integer);
        let reasons = [
            ("use_local_image_pull", is_on("use_local_image_pull")),
            ("disable_snapshot_annotations = false", has_annotations),
            ("discard_unpacked_layers", is_on("discard_unpacked_layers")),
            ("registry.mirrors", registry("mirrors")),
            ("registry.configs", registry("configs")),
            ("registry.auths", registry("auths")),
            (
                "max_concurrent_downloads",
                downloads.is_some_and(|number| number != 3),
            ),
            ("image_pull_with_sync_fs", is_on("image_pull_with_sync_fs")),
        ];
        reasons
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(key, _)| key)
            .collect()
    }
}

/// Returns the snapshotter that a file of version 1 or 2 gives to CRI of containerd 1.x.
fn written_for_1(file: &Table) -> Option<&str> {
    let version = file.get("version").and_then(Value::as_integer).unwrap_or(1);
    let table = file.get("plugins")?.get(CRI_1)?.get("containerd")?;
    if version <= 2 {
        text(table, "snapshotter")
    } else {
        None
    }
}

/// Checks the transfer service, which `ctr`, nerdctl and Docker use, and CRI unless a setting
/// forbids it.
fn transfer(dump: &Table, name: &str, entry: &Value) -> Check {
    let plugin = dump
        .get("plugins")
        .and_then(|plugins| plugins.get(TRANSFER_PLUGIN));
    let unpacks = plugin
        .into_iter()
        .flat_map(|plugin| list(plugin, "unpack_config"))
        .any(|one| {
            let platform = text(one, "platform").unwrap_or_default();
            text(one, "snapshotter") == Some(name)
                && (platform.is_empty() || platform.starts_with("linux"))
        });
    if !unpacks {
        let lines = format!(
            "[[plugins.{TRANSFER_PLUGIN:?}.unpack_config]]\nplatform = \"linux/{}\"\nsnapshotter = {name:?}",
            architecture()
        );
        return Check::bad(TRANSFER, format!("nothing is unpacked for {name:?}"), lines);
    }
    if !has_remote_annotations(entry) {
        let lines = format!(
            "[proxy_plugins.{name}.exports]\nenable_remote_snapshot_annotations = \"true\""
        );
        return Check::bad(
            TRANSFER,
            "it does not say which layers it wants: every layer is unpacked",
            lines,
        );
    }
    Check::good(TRANSFER, format!("unpacks for {name:?}"))
}

fn has_remote_annotations(entry: &Value) -> bool {
    let exported = entry
        .get("exports")
        .and_then(|exports| text(exports, "enable_remote_snapshot_annotations"));
    exported == Some("true")
}

fn pause(plugin: &str, unpacked_for: &[String]) -> Option<Check> {
    let others = unpacked_for.join(", ");
    if unpacked_for.is_empty() {
        None
    } else if unpacked_for.iter().any(|snapshotter| snapshotter == plugin) {
        Some(Check::good(PAUSE, format!("unpacked for {others}")))
    } else {
        let mend =
            format!("ctr -n k8s.io images pull --snapshotter {plugin} IMAGE, before the first pod");
        Some(Check::bad(
            PAUSE,
            format!("unpacked for {others} only: the first pod unpacks it again"),
            mend,
        ))
    }
}

impl Facts<'_> {
    fn is_at_least(&self, major: u32, minor: u32) -> bool {
        self.version
            .is_some_and(|version| version >= Version(major, minor, 0))
    }

    /// Returns the lines that containerd's configuration needs.
    pub(crate) fn lines(&self) -> String {
        let plugin = format!(
            "add to containerd's configuration, and restart it:\n[proxy_plugins.stargz]\ntype = \"snapshot\"\n\
             address = {:?}\n[proxy_plugins.stargz.exports]\nroot = {:?}\nenable_remote_snapshot_annotations = \"true\"\n",
            self.address, self.root
        );
        let pods = "snapshotter = \"stargz\"\ndisable_snapshot_annotations = false";
        if self.is_at_least(2, 0) {
            format!(
                "{plugin}[plugins.{CRI_2:?}]\n{pods}\n[[plugins.{TRANSFER_PLUGIN:?}.unpack_config]]\n\
                 platform = \"linux/{}\"\nsnapshotter = \"stargz\"",
                architecture()
            )
        } else {
            format!("{plugin}[plugins.{CRI_1:?}.containerd]\n{pods}")
        }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn flag(value: &Value, key: &str) -> Option<bool> {
    value.get(key).and_then(Value::as_bool)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn has_text(list: &Value, text: &str) -> bool {
    list.as_array()
        .is_some_and(|list| list.iter().any(|value| value.as_str() == Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::State;

    const V1: Version = Version(1, 7, 20);
    const V2: Version = Version(2, 4, 2);
    const PLUGIN_LINES: &str = "[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/a.sock'\n\
                                [proxy_plugins.stargz.exports]\nroot = '/var/a'\n\
                                enable_remote_snapshot_annotations = 'true'\n";
    const UNPACK: &str = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\nsnapshotter = 'stargz'\n";
    const LOCAL: &str = "snapshotter = 'stargz'\ndisable_snapshot_annotations = false\n";
    const THROUGH: &str = "snapshotter = 'stargz'\ndisable_snapshot_annotations = true\n";

    fn cri_1(settings: &str) -> String {
        format!("[plugins.'io.containerd.grpc.v1.cri'.containerd]\n{settings}")
    }

    fn cri_2(settings: &str) -> String {
        format!("[plugins.'io.containerd.cri.v1.images']\n{settings}")
    }

    fn checks(version: Version, dump: &str, file: &str, pause: &[&str]) -> Vec<Check> {
        let pause: Vec<String> = pause.iter().map(|&name| name.to_owned()).collect();
        let (dump, file): (Table, Table) = (dump.parse().unwrap(), file.parse().unwrap());
        let (address, root) = (Path::new("/run/a.sock"), Path::new("/var/a"));
        judge(
            &dump,
            &Facts {
                version: Some(version),
                file: &file,
                address,
                root,
                pause: &pause,
            },
        )
    }

    /// Returns the bad checks of a configuration, with the repairs.
    fn bad(version: Version, dump: &str) -> Vec<(&'static str, String)> {
        let checks = checks(version, dump, "version = 3", &[]);
        let bad = checks.into_iter().filter(|check| check.state == State::Bad);
        bad.map(|check| (check.what, check.mend.unwrap())).collect()
    }

    #[test]
    fn a_configuration_with_everything_is_good() {
        assert_eq!(bad(V1, &format!("{PLUGIN_LINES}{}", cri_1(LOCAL))), []);
        for settings in [LOCAL, THROUGH] {
            assert_eq!(
                bad(V2, &format!("{PLUGIN_LINES}{UNPACK}{}", cri_2(settings))),
                []
            );
        }
        assert_eq!(
            bad(
                V2,
                &format!(
                    "disabled_plugins = ['io.containerd.cri.v1.images']\n{PLUGIN_LINES}{UNPACK}"
                )
            ),
            []
        );
    }

    #[test]
    fn the_plugin_is_known_by_its_address() {
        for dump in [
            "version = 2",
            &PLUGIN_LINES.replace("a.sock", "b.sock"),
            &PLUGIN_LINES.replace("'snapshot'", "'x'"),
        ] {
            let bad = bad(V1, dump);
            assert_eq!(bad[0].0, PLUGIN);
            let lines: Table = bad[0].1.split_once('\n').unwrap().1.parse().unwrap();
            assert_eq!(
                checks(V1, &lines.to_string(), "", &[])
                    .iter()
                    .filter(|check| check.state == State::Bad)
                    .count(),
                0
            );
        }
    }

    #[test]
    fn suggested_lines_pass_the_checks() {
        for version in [V1, V2] {
            let table = Table::new();
            let (address, root) = (Path::new("/run/a.sock"), Path::new("/var/a"));
            let facts = Facts {
                version: Some(version),
                file: &table,
                address,
                root,
                pause: &[],
            };
            let lines = facts.lines();
            assert_eq!(
                bad(version, lines.split_once('\n').unwrap().1),
                [],
                "{version}"
            );
        }
    }

    #[test]
    fn each_setting_that_silently_prevents_laziness_is_bad() {
        let whole = format!("{PLUGIN_LINES}{UNPACK}{}", cri_2(THROUGH));
        for (version, dump, what, mend) in [
            (
                V1,
                format!("{PLUGIN_LINES}{}", cri_1("snapshotter = 'overlayfs'")),
                CRI,
                "snapshotter = \"stargz\"",
            ),
            (
                V1,
                format!("{PLUGIN_LINES}{}", cri_1(THROUGH)),
                CRI,
                "disable_snapshot_annotations = false",
            ),
            (
                V2,
                format!(
                    "{PLUGIN_LINES}{UNPACK}{}",
                    cri_2("snapshotter = 'overlayfs'")
                ),
                CRI,
                CRI_2,
            ),
            (
                Version(2, 0, 5),
                format!("{PLUGIN_LINES}{}", cri_2(THROUGH)),
                CRI,
                "disable_snapshot_annotations = false",
            ),
            (
                V2,
                whole.replace("unpack_config]]", "other]]"),
                TRANSFER,
                "unpack_config",
            ),
            (
                V2,
                whole.replace("snapshotter = 'stargz'\n[", "snapshotter = 'overlayfs'\n["),
                TRANSFER,
                "unpack_config",
            ),
            (
                V2,
                whole.replace("'true'", "'false'"),
                TRANSFER,
                "enable_remote_snapshot_annotations",
            ),
            (
                V2,
                whole.replace("root = '/var/a'\n", ""),
                IMAGE_FS,
                "/var/a",
            ),
            (
                V2,
                whole.replace("root = '/var/a'", "root = '/var/b'"),
                IMAGE_FS,
                "/var/a",
            ),
            (
                V2,
                whole.replace("type =", "capabilities = ['rebase']\ntype ="),
                PLUGIN,
                "rebase",
            ),
            (
                V2,
                format!("{whole}max_concurrent_downloads = 5\n"),
                CRI,
                "disable_snapshot_annotations = false",
            ),
            (
                V2,
                format!("{whole}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]\n"),
                CRI,
                "annotations",
            ),
        ] {
            let bad = bad(version, &dump);
            assert_eq!(bad.len(), 1, "{dump}\n{bad:?}");
            assert_eq!(bad[0].0, what, "{dump}");
            assert!(bad[0].1.contains(mend), "{}", bad[0].1);
        }
    }

    #[test]
    fn a_file_of_version_2_is_reported_if_containerd_2_dropped_its_settings() {
        let dump = format!(
            "{PLUGIN_LINES}{UNPACK}{}",
            cri_2("snapshotter = 'overlayfs'\ndisable_snapshot_annotations = true")
        );
        let file = format!("version = 2\n{}", cri_1(LOCAL));
        let cri = checks(V2, &dump, &file, &[])
            .into_iter()
            .find(|check| check.what == CRI)
            .unwrap();
        assert_eq!(cri.state, State::Bad);
        assert!(cri.mend.unwrap().contains("version 3"));
    }

    #[test]
    fn an_old_containerd_needs_no_exports() {
        let without = PLUGIN_LINES
            .split_once("[proxy_plugins.stargz.exports]")
            .unwrap()
            .0;
        let dump = format!("{without}{}", cri_1(LOCAL));
        assert_eq!(bad(Version(1, 6, 20), &dump), []);
        assert_eq!(bad(Version(1, 6, 33), &dump).len(), 1);
    }

    #[test]
    fn pulls_by_cri_itself_are_reported_with_their_reason() {
        let dump = format!("{PLUGIN_LINES}{UNPACK}{}", cri_2(LOCAL));
        let cri = checks(V2, &dump, "", &[])
            .into_iter()
            .find(|check| check.what == CRI)
            .unwrap();
        assert_eq!(cri.state, State::Good);
        assert!(
            cri.told.contains("disable_snapshot_annotations = false"),
            "{}",
            cri.told
        );
    }

    #[test]
    fn a_pause_image_of_another_snapshotter_is_bad() {
        let dump = format!("{PLUGIN_LINES}{}", cri_1(LOCAL));
        let state = |pause: &[&str]| {
            let checks = checks(V1, &dump, "", pause);
            checks
                .into_iter()
                .find(|check| check.what == PAUSE)
                .map(|check| check.state)
        };
        assert_eq!(state(&[]), None);
        assert_eq!(state(&["overlayfs"]), Some(State::Bad));
        assert_eq!(state(&["overlayfs", "stargz"]), Some(State::Good));
    }

    #[test]
    fn one_runtime_handler_on_the_agent_is_fair() {
        let handler = "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.lazy]\nsnapshotter = 'stargz'\n";
        let dump = format!(
            "{PLUGIN_LINES}{UNPACK}{}{handler}",
            cri_2("snapshotter = 'overlayfs'\n")
        );
        let cri = checks(V2, &dump, "", &[])
            .into_iter()
            .find(|check| check.what == CRI)
            .unwrap();
        assert_eq!(cri.state, State::Fair, "{}", cri.told);
    }
}
