//! Today's clients, which Debian 12 does not have. `.ci/clients` builds them once per machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/clients");
    let output = Command::new(script).arg("path").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
});

/// Returns the folder in which their executables are, or would be.
pub(crate) fn folder() -> &'static Path {
    &FOLDER
}
