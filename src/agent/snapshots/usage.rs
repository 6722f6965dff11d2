//! The disk usage of a directory.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::error::Error;
use super::record::Usage;

/// The unit of `st_blocks`, on every file system.
const BLOCK: u64 = 512;

/// Counts blocks and inodes under `root`, itself included. A hard link counts once.
///
/// Files that vanish meanwhile are not counted.
pub(super) fn measure(root: &Path) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut count = |metadata: &Metadata| {
        if seen.insert((metadata.dev(), metadata.ino())) {
            usage.inodes += 1;
            usage.size += metadata.blocks() * BLOCK;
        }
    };
    count(&fs::symlink_metadata(root).map_err(Error::at(root))?);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::at(&folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::at(&folder))?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata.map_err(Error::at(&folder))?,
            };
            count(&metadata);
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(usage)
}
