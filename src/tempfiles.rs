//! Files that are written under a temporary name and renamed once they are complete, so that no
//! reader ever sees a partial file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// The prefix of the names of Starlift's temporary files.
const PREFIX: &str = ".starlift-";

/// The mode of any new file under the usual umask (022).
const MODE: u32 = 0o644;

/// Creates a temporary file in the folder of `path`, so that it can be renamed to `path`. It is
/// deleted when dropped.
pub(crate) fn new_file_for(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)
}

/// Renames a finished temporary file to `path`. The file is on disk before it becomes visible.
pub(crate) fn keep(file: NamedTempFile, path: &Path) -> io::Result<()> {
    sync(file.as_file())?;
    file.persist(path)?;
    Ok(())
}

/// Makes a finished file readable for other users and flushes it to disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

/// Writes `bytes` to `path` atomically.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = new_file_for(path)?;
    file.write_all(bytes)?;
    keep(file, path)
}
