//! The file that gets the settings: a drop-in, containerd's file itself, or a template of k3s and
//! RKE2.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::settings;
use crate::containerd::version::Version;
use crate::failure::Failure;

/// The name of the drop-in. Files with higher numbers come after it and may replace its settings.
const DROP_IN: &str = "50-starlift.toml";
/// The folder of drop-ins beside containerd's file, if the file imports none.
const DROP_INS: &str = "conf.d";
/// k3s and RKE2 write this into the first lines of the file that they generate at each start.
const GENERATED: &str = "DO NOT EDIT";
/// Lines of a file in which that is looked for.
const HEAD_LINES: usize = 5;

/// The place for the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A file of its own, which containerd's file imports.
    DropIn(PathBuf),
    /// A file of its own, and containerd's file is changed to import its folder.
    Import { file: PathBuf, folder: PathBuf },
    /// containerd's file itself.
    File(PathBuf),
    /// The template from which k3s or RKE2 generates containerd's file.
    Template(PathBuf),
}

impl Target {
    /// Chooses the place for a containerd whose file has this text, `None` if there is no file.
    ///
    /// containerd 1.x replaces whole tables of plugins by those of imported files, so that its
    /// drop-ins would lose settings. containerd 2.x drops `snapshotter` from a file of version 2, so
    /// that such a file imports one of version 3.
    ///
    /// # Errors
    /// If the text is not TOML, or its version cannot be edited.
    pub(super) fn choose(
        version: Version,
        file: &Path,
        text: Option<&str>,
    ) -> Result<Self, Failure> {
        let unreadable = format!("{} is not TOML", file.display());
        let table: Table = text
            .unwrap_or_default()
            .parse()
            .map_err(Failure::when(unreadable))?;
        let written = table.get("version").and_then(Value::as_integer);
        let is_new = settings::reads_version_3(version);
        if is_new && let Some(folder) = imported_folder(&table, file) {
            return Ok(Self::DropIn(folder.join(DROP_IN)));
        }
        if text.is_some_and(is_generated) {
            let name = if written >= Some(3) {
                "config-v3.toml.tmpl"
            } else {
                "config.toml.tmpl"
            };
            return Ok(Self::Template(file.with_file_name(name)));
        }
        if table.is_empty() {
            return Ok(Self::File(file.to_owned()));
        }
        match written.unwrap_or(1) {
            1 if !is_new => Err(Failure::new(format!(
                "{} is of version 1, which names plugins otherwise: write it as version 2 (containerd config migrate)",
                file.display()
            ))),
            1 | 2 if is_new => Ok(Self::Import {
                file: file.to_owned(),
                folder: file.with_file_name(DROP_INS),
            }),
            _ => Ok(Self::File(file.to_owned())),
        }
    }

    /// Returns the file that gets the settings.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::DropIn(path) | Self::File(path) | Self::Template(path) => path.clone(),
            Self::Import { folder, .. } => folder.join(DROP_IN),
        }
    }

    /// Whether that file has nothing but the settings.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::DropIn(_) | Self::Import { .. })
    }
}

/// Returns the pattern by which containerd's file imports the drop-ins beside it.
pub(super) fn import_pattern(file: &Path) -> PathBuf {
    file.with_file_name(DROP_INS).join("*.toml")
}

/// Returns the files that may have the settings, whatever was chosen at the installation.
pub(super) fn candidates(file: &Path, text: Option<&str>) -> Vec<PathBuf> {
    let table = text.and_then(|text| text.parse::<Table>().ok());
    let imported = table.and_then(|table| imported_folder(&table, file));
    let mut found: Vec<PathBuf> = imported
        .into_iter()
        .chain([file.with_file_name(DROP_INS)])
        .map(|folder| folder.join(DROP_IN))
        .collect();
    found.dedup();
    found
}

/// Returns the templates beside containerd's file.
pub(super) fn templates(file: &Path) -> [PathBuf; 2] {
    ["config-v3.toml.tmpl", "config.toml.tmpl"].map(|name| file.with_file_name(name))
}

/// Whether k3s or RKE2 generate the file.
pub(super) fn is_generated(text: &str) -> bool {
    text.lines()
        .take(HEAD_LINES)
        .any(|line| line.starts_with('#') && line.contains(GENERATED))
}

/// Returns the folder whose `*.toml` files the file imports. The effective configuration is no
/// help: from 2.2 on it always names `/etc/containerd/conf.d`, which only a file that imports it
/// makes containerd read.
fn imported_folder(table: &Table, file: &Path) -> Option<PathBuf> {
    let imports = table.get("imports")?.as_array()?;
    let mut folders = imports.iter().filter_map(|pattern| {
        let pattern = Path::new(pattern.as_str()?);
        let folder = pattern.parent()?;
        let is_plain = !folder.to_string_lossy().contains(['*', '?', '[']);
        (is_plain && pattern.file_name()? == "*.toml")
            .then(|| file.parent().unwrap_or(Path::new("/")).join(folder))
    });
    folders.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version(1, 6, 20);
    const NEW: Version = Version(2, 4, 2);

    fn choose(version: Version, text: Option<&str>) -> Result<Target, Failure> {
        Target::choose(version, Path::new("/etc/containerd/config.toml"), text)
    }

    fn path(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    #[test]
    fn containerd_2_gets_a_drop_in_if_its_file_imports_some() {
        for (imports, folder) in [
            ("/etc/containerd/conf.d/*.toml", "/etc/containerd/conf.d"),
            ("extra/*.toml", "/etc/containerd/extra"),
        ] {
            let text = format!("version = 2\nimports = [{imports:?}]\n");
            let drop_in = path(folder).join(DROP_IN);
            assert_eq!(choose(NEW, Some(&text)).unwrap(), Target::DropIn(drop_in));
        }
        let one_file = "version = 3\nimports = ['/etc/containerd/one.toml', '/a*/*.toml']\n";
        assert!(matches!(
            choose(NEW, Some(one_file)).unwrap(),
            Target::File(_)
        ));
    }

    #[test]
    fn containerd_1_loses_settings_by_drop_ins_and_gets_none() {
        let text = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        assert!(matches!(choose(OLD, Some(text)).unwrap(), Target::File(_)));
    }

    #[test]
    fn a_file_of_version_2_imports_one_of_version_3_on_containerd_2() {
        let text = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n";
        let target = choose(NEW, Some(text)).unwrap();
        assert!(matches!(target, Target::Import { .. }));
        assert_eq!(
            target.path(),
            path("/etc/containerd/conf.d/50-starlift.toml")
        );
        assert!(matches!(choose(OLD, Some(text)).unwrap(), Target::File(_)));
    }

    #[test]
    fn a_file_of_version_1_is_an_error_on_containerd_1() {
        let error = choose(OLD, Some("[plugins.cri]\n")).unwrap_err();
        assert!(error.to_string().contains("config migrate"), "{error}");
        assert!(matches!(choose(OLD, Some("")).unwrap(), Target::File(_)));
        assert!(matches!(choose(NEW, None).unwrap(), Target::File(_)));
    }

    #[test]
    fn a_generated_file_has_a_template_or_a_folder() {
        let generated = "# File generated by k3s. DO NOT EDIT. Use a template instead.\nversion = ";
        let template = |text: &str| choose(OLD, Some(text)).unwrap();
        assert_eq!(
            template(&format!("{generated}2\n")),
            Target::Template(path("/etc/containerd/config.toml.tmpl"))
        );
        assert_eq!(
            choose(NEW, Some(&format!("{generated}3\n"))).unwrap(),
            Target::Template(path("/etc/containerd/config-v3.toml.tmpl"))
        );
        let imports = format!("{generated}3\nimports = ['/k3s/config-v3.toml.d/*.toml']\n");
        assert_eq!(
            choose(NEW, Some(&imports)).unwrap(),
            Target::DropIn(path("/k3s/config-v3.toml.d").join(DROP_IN))
        );
    }
}
