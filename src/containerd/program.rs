//! The program `containerd`: its version, and the configuration that it would run with.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use toml::Table;

use super::version::Version;

/// Time limit of one run of the program.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most characters of a failed command's error output, so that it fits on a few lines.
const MAX_ERROR_CHARS: usize = 400;

/// A configuration file without any setting.
const NO_FILE: &str = "/dev/null";

/// The executable of a containerd.
#[derive(Debug, Clone)]
pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns its version, or `None` if it does not print one.
    pub(crate) async fn version(&self) -> Option<Version> {
        let output = self.answer(["--version"]).await.ok()?;
        Version::of_output(&output)
    }

    /// Returns the effective configuration: `file` with its imports and defaults, after migration.
    /// If there is no such file, they are the defaults alone, with which containerd starts then.
    ///
    /// # Errors
    /// If the program cannot be run, or does not accept the file.
    pub(crate) async fn dump(&self, file: &Path) -> io::Result<Table> {
        // containerd 1.6 starts without the file, but dumps only a file that exists.
        let file = if file.exists() {
            file
        } else {
            NO_FILE.as_ref()
        };
        let arguments = [OsStr::new("--config"), file.as_os_str()];
        let arguments = arguments
            .into_iter()
            .chain(["config", "dump"].map(OsStr::new));
        let dump = self.answer(arguments).await?;
        dump.parse().map_err(io::Error::other)
    }

    /// Runs the program, and returns its standard output.
    async fn answer(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> io::Result<String> {
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(Stdio::null());
        let output = command.kill_on_drop(true).output();
        let output = tokio::time::timeout(ANSWER_LIMIT, output)
            .await
            .map_err(io::Error::from)??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let errors = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(MAX_ERROR_CHARS)
            .collect::<String>();
        Err(io::Error::other(errors.trim().to_owned()))
    }
}
