//! The flags for the workload, which override the image's configuration.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::failure::Failure;
use crate::recording::workload::{Mount, RunConfig, Workload};

/// The default environment of a container, which the image may override (containerd,
/// `oci.defaultUnixEnv`).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Flags for the workload, with the reference's names.
#[derive(Debug, clap::Args)]
pub(super) struct WorkloadArgs {
    /// The entrypoint instead of the image's, a JSON array
    #[arg(long, value_name = "JSON")]
    entrypoint: Option<Words>,
    /// The command instead of the image's, a JSON array
    #[arg(long, value_name = "JSON")]
    args: Option<Words>,
    /// Set an environment variable (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Set the environment variables in a file, one on each line
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// The user instead of the image's
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The working directory instead of the image's
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Add a mount to the container (repeatable):
    /// type=bind,source=/path,destination=/path,options=rbind:ro
    #[arg(long, value_name = "MOUNT")]
    pub(super) mount: Vec<Mount>,
    /// Use this machine's network; without this flag there is only a loopback interface
    #[arg(long)]
    pub(super) net_host: bool,
    /// Seconds after which the workload is stopped, unless it has ended by itself
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        conflicts_with = "wait_on_signal"
    )]
    period: u32,
    /// Let the workload run until it ends or Ctrl-C (SIGINT) is pressed
    #[arg(long)]
    wait_on_signal: bool,
}

/// Words of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words(Vec<String>);

/// The time at which a workload is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    After(Duration),
    Interrupt,
}

impl WorkloadArgs {
    /// Returns the time at which the workload is stopped.
    pub(super) fn until(&self) -> Until {
        if self.wait_on_signal {
            Until::Interrupt
        } else {
            Until::After(Duration::from_secs(self.period.into()))
        }
    }

    /// Returns the workload to run. As in the reference, entrypoint and command are replaced
    /// separately.
    pub(super) fn workload(&self, config: &RunConfig) -> Result<Workload, Failure> {
        let chosen = |flag: &Option<Words>, own: &Option<Vec<String>>| match flag {
            Some(Words(words)) => words.clone(),
            None => own.clone().unwrap_or_default(),
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
        let text = |flag: &Option<String>, own: &Option<String>| {
            flag.clone().or(own.clone()).unwrap_or_default()
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

impl FromStr for Words {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = r#"expected a JSON array of strings, as in '["/bin/sh", "-c", "true"]'"#;
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| format!("{expected}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: WorkloadArgs,
    }

    fn args(flags: &[&str]) -> WorkloadArgs {
        Line::try_parse_from([&["test"], flags].concat())
            .unwrap()
            .args
    }

    fn config() -> RunConfig {
        let config = serde_json::json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["A=1", "PATH=/x"],
            "User": "app", "WorkingDir": "/srv", "StopSignal": "SIGQUIT", "Labels": {"x": "y"}});
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn without_flags_the_images_configuration_is_run() {
        let workload = args(&[]).workload(&config()).unwrap();
        assert_eq!(workload.args, ["/entry", "a", "b"]);
        assert_eq!(
            (workload.user.as_str(), workload.cwd.as_str()),
            ("app", "/srv")
        );
        assert_eq!(workload.env, ["PATH=/x", "A=1"]);
        assert_eq!(args(&[]).until(), Until::After(Duration::from_secs(10)));
        assert!(
            args(&[]).workload(&RunConfig::default()).is_err(),
            "nothing to run"
        );
        let nulls =
            serde_json::from_str::<RunConfig>(r#"{"Cmd": ["x"], "Entrypoint": null, "Env": null}"#)
                .unwrap();
        let workload = args(&[]).workload(&nulls).unwrap();
        assert_eq!(
            (workload.args, workload.env, workload.cwd),
            (
                vec!["x".to_owned()],
                vec![DEFAULT_PATH.to_owned()],
                "/".to_owned()
            )
        );
    }

    #[test]
    fn each_flag_overrides_its_part_of_the_configuration() {
        let workload = args(&[
            "--entrypoint",
            r#"["/bin/cat"]"#,
            "--env",
            "A=2=3",
            "--env",
            "B=",
            "--cwd",
            "/",
        ]);
        let workload = workload.workload(&config()).unwrap();
        assert_eq!(workload.args, ["/bin/cat", "a", "b"]);
        assert_eq!(
            (workload.env, workload.cwd),
            (
                ["PATH=/x", "A=2=3", "B="].map(str::to_owned).to_vec(),
                "/".to_owned()
            )
        );
        let workload = args(&["--entrypoint", "[]", "--args", r#"["x"]"#, "--user", "1:2"])
            .workload(&config())
            .unwrap();
        assert_eq!(
            (workload.args, workload.user.as_str()),
            (vec!["x".to_owned()], "1:2")
        );
        assert_eq!(args(&["--wait-on-signal"]).until(), Until::Interrupt);
        for wrong in [["--env", "A"], ["--env", "=x"]] {
            assert!(args(&wrong).workload(&config()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn invalid_flags_are_rejected() {
        let mount: Mount = "type=bind,src=/a,dst=/b=c,options=rbind:ro"
            .parse()
            .unwrap();
        assert_eq!(mount, Mount::of_file("/a".to_owned(), "/b=c"));
        for wrong in ["", "type", "type=bind", "dst=relative", "dst=/x,size=1"] {
            assert!(wrong.parse::<Mount>().is_err(), "{wrong:?}");
        }
        for wrong in ["/bin/sh", r#"{"a": 1}"#, "[1]"] {
            assert!(wrong.parse::<Words>().is_err(), "{wrong:?}");
        }
        assert!(Line::try_parse_from(["test", "--period", "1", "--wait-on-signal"]).is_err());
    }
}
