//! The folder of this user for images and programs that are made once per machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Returns the folder.
pub(crate) fn dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let dir = cache.expect("HOME is set").join("starlift-tests");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Returns the folder for the images of `script`. A changed script has another folder.
pub(crate) fn of_script(script: &Path) -> PathBuf {
    let version = hex::encode(&Sha256::digest(fs::read(script).unwrap())[..6]);
    let folder = dir().join(version);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the path of `name` in `folder`. `make` makes it, unless this machine has made it before.
pub(crate) fn made<E>(
    folder: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let (finished, partial) = (folder.join(name), folder.join(format!("{name}.partial")));
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    if !finished.exists() {
        let _absent = fs::remove_dir_all(&partial);
        make(&partial)?;
        fs::rename(&partial, &finished).unwrap();
    }
    Ok(finished)
}
