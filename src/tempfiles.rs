//! Files that are written under a temporary name and renamed when whole: nothing half-written is ever seen.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// What temporary files of ours begin with.
const PREFIX: &str = ".starlift-";

/// What any new file has under the usual umask.
const MODE: u32 = 0o644;

/// A temporary file that can be renamed to `path`: in the same folder, gone when dropped.
pub(crate) fn new_file_for(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)
}

/// Renames a finished temporary file to `path`, on disk before it is visible.
pub(crate) fn keep(file: NamedTempFile, path: &Path) -> io::Result<()> {
    sync(file.as_file())?;
    file.persist(path)?;
    Ok(())
}

/// Makes a finished file readable for others and puts it on disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

/// Writes `bytes` to `path`, all or nothing.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = new_file_for(path)?;
    file.write_all(bytes)?;
    keep(file, path)
}
