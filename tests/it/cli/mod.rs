//! The command line, run as a process: its output, its files, its exit codes.

mod config;
mod doctor;
mod image;
mod layer;
mod provenance;
mod reference;
mod warm;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// A working folder for commands.
struct Desk(TempDir);

/// The result of a command.
struct Ran {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `starlift` with these arguments, without any configuration of this machine.
    async fn run(&self, words: &[&str]) -> Ran {
        self.run_with(words, &[]).await
    }

    async fn run_with(&self, words: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
        command
            .args(words)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
            .env_remove("STARLIFT_CONFIG")
            .env("DOCKER_CONFIG", self.0.path())
            .envs(environment.iter().copied());
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().await.unwrap();
        Ran {
            code: status.code(),
            stdout,
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Returns the names of the folder's entries, sorted.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Ran {
    /// Returns the output of a command that must succeed.
    #[track_caller]
    fn text(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "{}{}",
            self.stderr,
            String::from_utf8_lossy(&self.stdout)
        );
        String::from_utf8(self.stdout).unwrap()
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// Returns the single error line of a command that must fail.
    #[track_caller]
    fn error(self) -> String {
        assert_eq!(
            self.code,
            Some(2),
            "{}{}",
            self.stderr,
            String::from_utf8_lossy(&self.stdout)
        );
        let line = self.stderr.trim_end();
        assert!(
            line.starts_with("error: ") && !line.contains('\n'),
            "{line}"
        );
        line.to_owned()
    }
}

/// Checks that every blob of an OCI layout has the digest in its name.
fn check_layout(dir: &Path) {
    for blob in std::fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let digest = starlift::oci::Digest::sha256_of(&std::fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str(), Some(digest.hex()));
    }
}
