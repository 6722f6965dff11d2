//! The systemd unit of the agent: `deploy/starlift-agent.service` with the paths of this node.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::MARK;
use crate::failure::Failure;

pub(super) const NAME: &str = "starlift-agent.service";
const TEXT: &str = include_str!("../../deploy/starlift-agent.service");
/// The same for the namespaces of rootless containerd.
const ROOTLESS: &str = include_str!("../../deploy/starlift-agent-rootless.service");
const COMMAND: &str = "/usr/local/bin/starlift agent\n";
const SECTION: &str = "[Unit]\n";
/// systemd ignores keys with this prefix. Another executable makes another unit, so that the agent
/// is restarted when its executable was replaced.
const EXECUTABLE: &str = "X-Starlift-Executable";

/// Bytes of the executable that are read at once.
const READ_SIZE: usize = 1 << 20;

/// The command line of the agent's service.
#[derive(Debug)]
pub(super) struct Command<'a> {
    pub(super) executable: &'a Path,
    /// Further arguments, such as `--root` with its value.
    pub(super) arguments: Vec<String>,
    /// Whether it runs in the namespaces of rootless containerd.
    pub(super) is_rootless: bool,
}

pub(super) fn path(unit_dir: &Path) -> PathBuf {
    unit_dir.join(NAME)
}

/// Returns the text of the unit.
///
/// # Errors
/// If the executable cannot be read.
pub(super) fn text(command: &Command<'_>) -> Result<String, Failure> {
    let failed = format!("cannot read {}", command.executable.display());
    let digest = digest(command.executable).map_err(Failure::when(failed))?;
    let words = [command.executable.display().to_string(), "agent".to_owned()];
    let words = words.iter().chain(&command.arguments);
    let words: Vec<String> = words.map(|word| quoted(word)).collect();
    let text = if command.is_rootless { ROOTLESS } else { TEXT };
    let text = text.replace(COMMAND, &format!("{}\n", words.join(" ")));
    let text = text.replacen(SECTION, &format!("{SECTION}{EXECUTABLE}={digest}\n"), 1);
    Ok(format!("{MARK}\n{text}"))
}

fn digest(executable: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = BufReader::with_capacity(READ_SIZE, File::open(executable)?);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(hex::encode(hash.finalize()));
        }
        let length = bytes.len();
        hash.update(bytes);
        file.consume(length);
    }
}

/// Returns a word of a command line as systemd reads it (systemd.service(5), "Command lines").
fn quoted(word: &str) -> String {
    let escaped = word.replace('%', "%%").replace('$', "$$");
    if escaped.contains([' ', '"', '\'', '\\', ';']) {
        format!("{escaped:?}")
    } else {
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_this_executable_and_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("starlift");
        std::fs::write(&executable, "1").unwrap();
        let command = Command {
            executable: &executable,
            arguments: vec!["--root".to_owned(), "/a b/100%".to_owned()],
            is_rootless: false,
        };
        let first = text(&command).unwrap();
        let line = format!(
            "ExecStart={} agent --root \"/a b/100%%\"",
            executable.display()
        );
        assert!(first.lines().any(|other| other == line), "{first}");
        assert_eq!(text(&command).unwrap(), first);
        std::fs::write(&executable, "2").unwrap();
        assert_ne!(text(&command).unwrap(), first);
        let rootless = text(&Command {
            is_rootless: true,
            ..command
        });
        let line = format!(
            "%t/containerd-rootless {} agent --root \"/a b/100%%\"\n",
            executable.display()
        );
        assert!(rootless.unwrap().contains(&line));
    }
}
