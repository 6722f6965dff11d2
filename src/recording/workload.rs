//! The workload of a recording: a command, its environment and its mounts.

use std::str::FromStr;

use serde::Deserialize;

/// A mount of the runtime's configuration (OCI runtime-spec, config.md, "Mounts").
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Mount {
    #[serde(rename = "type")]
    kind: String,
    source: String,
    destination: String,
    options: Vec<String>,
}

/// The `config` of an image's configuration (OCI image-spec, config.md): the fields that describe
/// the process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) user: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
}

/// A command to run, with its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    /// `user[:group]`, each a name or a number. Empty means root.
    pub(crate) user: String,
    pub(crate) cwd: String,
}

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mount = Self::default();
        for field in text.split(',') {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| format!("{field:?} is not KEY=VALUE"))?;
            match key {
                "type" => value.clone_into(&mut mount.kind),
                "source" | "src" => value.clone_into(&mut mount.source),
                "destination" | "dst" => value.clone_into(&mut mount.destination),
                "options" => mount.options = value.split(':').map(str::to_owned).collect(),
                _ => {
                    return Err(format!(
                        "{key:?} is not one of type, source, destination, options"
                    ));
                }
            }
        }
        if mount.destination.starts_with('/') {
            Ok(mount)
        } else {
            Err("destination is not an absolute path".to_owned())
        }
    }
}

impl Mount {
    /// Mounts a file of this machine in the container, read-only.
    pub(crate) fn of_file(source: String, destination: &str) -> Self {
        let options = ["rbind", "ro"].map(str::to_owned).to_vec();
        Self {
            kind: "bind".to_owned(),
            source,
            destination: destination.to_owned(),
            options,
        }
    }
}
