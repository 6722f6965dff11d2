//! The workload of a recording: a command, its environment and its mounts.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::failure::Failure;

/// The default environment of a container, which the image may override (containerd,
/// `oci.defaultUnixEnv`).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// The settings that replace parts of an image's configuration; `None` for the image's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) args: Option<Vec<String>>,
    /// Environment variables to set, `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    /// A file with environment variables, one on each line. They come last.
    pub(crate) env_file: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) cwd: Option<String>,
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

impl Overrides {
    /// Returns the workload to run. As in the reference, entrypoint and command are replaced
    /// separately.
    pub(super) fn workload(&self, config: &RunConfig) -> Result<Workload, Failure> {
        let chosen = |words: &Option<Vec<String>>, own: &Option<Vec<String>>| {
            words.clone().or(own.clone()).unwrap_or_default()
        };
        let args = [
            chosen(&self.entrypoint, &config.entrypoint),
            chosen(&self.args, &config.cmd),
        ]
        .concat();
        if args.is_empty() {
            return Err(Failure::new(
                "the image has neither entrypoint nor command: name a command with --args",
            ));
        }
        let text = |text: &Option<String>, own: &Option<String>| {
            text.clone().or(own.clone()).unwrap_or_default()
        };
        let cwd = Some(text(&self.cwd, &config.working_dir)).filter(|cwd| !cwd.is_empty());
        Ok(Workload {
            args,
            env: self.environment(config)?,
            user: text(&self.user, &config.user),
            cwd: cwd.unwrap_or_else(|| "/".to_owned()),
        })
    }

    /// Returns the environment variables. A later setting of a variable replaces the earlier one,
    /// in its place.
    fn environment(&self, config: &RunConfig) -> Result<Vec<String>, Failure> {
        let file = match &self.env_file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(Failure::when(format!("{} cannot be read", file.display())))?,
            None => String::new(),
        };
        let own = config.env.iter().flatten().map(String::as_str);
        let settings = own
            .chain(self.env.iter().map(String::as_str))
            .chain(file.lines().filter(|line| !line.is_empty()));
        let mut environment = vec![DEFAULT_PATH.to_owned()];
        for setting in settings {
            let name = |setting: &str| setting.split('=').next().map(str::to_owned);
            match environment
                .iter_mut()
                .find(|earlier| name(earlier) == name(setting))
            {
                Some(earlier) => setting.clone_into(earlier),
                None => environment.push(setting.to_owned()),
            }
        }
        if let Some(wrong) = environment
            .iter()
            .find(|setting| !setting.contains('=') || setting.starts_with('='))
        {
            return Err(Failure::new(format!(
                "{wrong:?} is not an environment variable: NAME=VALUE"
            )));
        }
        Ok(environment)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        let config = serde_json::json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["A=1", "PATH=/x"],
            "User": "app", "WorkingDir": "/srv", "StopSignal": "SIGQUIT", "Labels": {"x": "y"}});
        serde_json::from_value(config).unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn without_overrides_the_images_configuration_is_run() {
        let none = Overrides::default();
        let workload = none.workload(&config()).unwrap();
        assert_eq!(workload.args, ["/entry", "a", "b"]);
        assert_eq!(
            (workload.user.as_str(), workload.cwd.as_str()),
            ("app", "/srv")
        );
        assert_eq!(workload.env, ["PATH=/x", "A=1"]);
        assert!(
            none.workload(&RunConfig::default()).is_err(),
            "nothing to run"
        );
        let nulls =
            serde_json::from_str::<RunConfig>(r#"{"Cmd": ["x"], "Entrypoint": null, "Env": null}"#)
                .unwrap();
        let workload = none.workload(&nulls).unwrap();
        assert_eq!(
            (workload.args, workload.env, workload.cwd),
            (words(&["x"]), words(&[DEFAULT_PATH]), "/".to_owned())
        );
    }

    #[test]
    fn each_override_replaces_its_part_of_the_configuration() {
        let overrides = Overrides {
            entrypoint: Some(words(&["/bin/cat"])),
            env: words(&["A=2=3", "B="]),
            cwd: Some("/".to_owned()),
            ..Overrides::default()
        };
        let workload = overrides.workload(&config()).unwrap();
        assert_eq!(workload.args, ["/bin/cat", "a", "b"]);
        assert_eq!(
            (workload.env, workload.cwd),
            (words(&["PATH=/x", "A=2=3", "B="]), "/".to_owned())
        );
        let overrides = Overrides {
            entrypoint: Some(Vec::new()),
            args: Some(words(&["x"])),
            user: Some("1:2".to_owned()),
            ..Overrides::default()
        };
        let workload = overrides.workload(&config()).unwrap();
        assert_eq!(
            (workload.args, workload.user.as_str()),
            (words(&["x"]), "1:2")
        );
        for wrong in ["A", "=x"] {
            let overrides = Overrides {
                env: words(&[wrong]),
                ..Overrides::default()
            };
            assert!(overrides.workload(&config()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn mounts_are_parsed_as_flags_name_them() {
        let mount: Mount = "type=bind,src=/a,dst=/b=c,options=rbind:ro"
            .parse()
            .unwrap();
        assert_eq!(mount, Mount::of_file("/a".to_owned(), "/b=c"));
        for wrong in ["", "type", "type=bind", "dst=relative", "dst=/x,size=1"] {
            assert!(wrong.parse::<Mount>().is_err(), "{wrong:?}");
        }
    }
}
