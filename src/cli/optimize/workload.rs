//! The flags for the workload, which override the image's configuration.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::recording::workload::{Mount, Overrides};

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

    /// Returns the flags that replace parts of the image's configuration.
    pub(super) fn overrides(&self) -> Overrides {
        let words = |flag: &Option<Words>| flag.clone().map(|Words(words)| words);
        Overrides {
            entrypoint: words(&self.entrypoint),
            args: words(&self.args),
            env: self.env.clone(),
            env_file: self.env_file.clone(),
            user: self.user.clone(),
            cwd: self.cwd.clone(),
        }
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

    #[test]
    fn flags_become_overrides() {
        assert_eq!(args(&[]).overrides(), Overrides::default());
        assert_eq!(args(&[]).until(), Until::After(Duration::from_secs(10)));
        assert_eq!(args(&["--wait-on-signal"]).until(), Until::Interrupt);
        let flags = ["--entrypoint", "[]", "--args", r#"["x"]"#, "--user", "1:2"];
        let expected = Overrides {
            entrypoint: Some(Vec::new()),
            args: Some(vec!["x".to_owned()]),
            user: Some("1:2".to_owned()),
            ..Overrides::default()
        };
        assert_eq!(args(&flags).overrides(), expected);
    }

    #[test]
    fn invalid_flags_are_rejected() {
        for wrong in ["/bin/sh", r#"{"a": 1}"#, "[1]"] {
            assert!(wrong.parse::<Words>().is_err(), "{wrong:?}");
        }
        assert!(Line::try_parse_from(["test", "--period", "1", "--wait-on-signal"]).is_err());
    }
}
