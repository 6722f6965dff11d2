//! The hosts.toml files by which containerd pulls through a Starlift server.

use std::fs;
use std::path::{Path, PathBuf};

use super::MARK;
use super::changes::{Change, read};
use crate::failure::Failure;

const FILE: &str = "hosts.toml";
/// The name of the folder for all registries without one of their own.
const DEFAULT: &str = "_default";

/// A Starlift server in front of registries.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    /// `https://starlift.example`.
    pub(crate) server: String,
    /// `docker.io`, …; `_default` for all.
    pub(crate) registries: Vec<String>,
}

impl Mirror {
    /// Returns the changes of the files in `certs_dir`.
    ///
    /// # Errors
    /// If a registry has a file already that somebody else wrote, or a name is not that of a host.
    pub(super) fn changes(&self, certs_dir: &Path) -> Result<Vec<Change>, Failure> {
        let change = |registry: &String| {
            if registry.is_empty() || registry.starts_with('.') || registry.contains('/') {
                return Err(Failure::new(format!(
                    "{registry:?} is not a registry's name"
                )));
            }
            let path = certs_dir.join(registry).join(FILE);
            if read(&path)?.is_some_and(|text| !text.starts_with(MARK)) {
                return Err(Failure::new(format!(
                    "{} is not of this program: add [host.{:?}] with capabilities = [\"pull\", \"resolve\"] as its first host yourself",
                    path.display(),
                    self.server
                )));
            }
            Change::whole(&path, Some(self.text(registry)))
        };
        self.registries.iter().map(change).collect()
    }

    fn text(&self, registry: &str) -> String {
        let own = match registry {
            DEFAULT => String::new(),
            "docker.io" => "server = \"https://registry-1.docker.io\"\n".to_owned(),
            other => format!("server = {:?}\n", format!("https://{other}")),
        };
        format!(
            "{MARK}\n{own}\n[host.{:?}]\ncapabilities = [\"pull\", \"resolve\"]\n",
            self.server
        )
    }
}

/// Returns the files in `certs_dir` that this program wrote.
pub(super) fn written(certs_dir: &Path) -> Vec<PathBuf> {
    let Ok(folders) = fs::read_dir(certs_dir) else {
        return Vec::new();
    };
    let mut files: Vec<_> = folders
        .flatten()
        .map(|folder| folder.path().join(FILE))
        .filter(|file| fs::read_to_string(file).is_ok_and(|text| text.starts_with(MARK)))
        .collect();
    files.sort();
    files
}

/// Whether `certs_dir` has files of other people.
pub(super) fn has_others(certs_dir: &Path) -> bool {
    let Ok(folders) = fs::read_dir(certs_dir) else {
        return false;
    };
    let own = written(certs_dir);
    folders
        .flatten()
        .map(|folder| folder.path().join(FILE))
        .any(|file| file.exists() && !own.contains(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_server_before_the_registry() {
        let mirror = Mirror {
            server: "https://starlift.example".to_owned(),
            registries: vec!["docker.io".to_owned()],
        };
        for (registry, own) in [
            ("docker.io", Some("https://registry-1.docker.io")),
            ("ghcr.io", Some("https://ghcr.io")),
            (DEFAULT, None),
        ] {
            let table: toml::Table = mirror.text(registry).parse().unwrap();
            assert_eq!(table.get("server").and_then(toml::Value::as_str), own);
            let host = &table["host"]["https://starlift.example"];
            assert_eq!(host["capabilities"].as_array().unwrap().len(), 2);
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mirror = |registry: &str| Mirror {
            server: "http://127.0.0.1:8080".to_owned(),
            registries: vec![registry.to_owned()],
        };
        fs::create_dir(folder.path().join("ghcr.io")).unwrap();
        fs::write(folder.path().join("ghcr.io").join(FILE), "server = 'x'\n").unwrap();
        let error = mirror("ghcr.io").changes(folder.path()).unwrap_err();
        assert!(error.to_string().contains("first host"), "{error}");
        assert!(mirror("../up").changes(folder.path()).is_err());
        assert!(mirror("docker.io").changes(folder.path()).unwrap()[0].is_needed());
        assert!(written(folder.path()).is_empty());
    }
}
