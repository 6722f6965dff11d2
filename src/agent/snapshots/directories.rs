//! The directories of snapshots: `<root>/snapshots/<id>/{fs,work}`, as in containerd's overlay
//! snapshotter, and `<root>/erofs/<number>`, `<root>/lazy/<number>` or
//! `<root>/lazy-noxattr/<number>` for layers that are mounted lazily.
//!
//! A directory is created under another name and renamed before the change that needs it is
//! committed. It is deleted after the change that drops it. A directory that a crash leaves in
//! between has no ID in the metadata: it is an orphan.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::record::{Kind, Lower};
use crate::agent::layer_mount::{LayerMount, erofs_mountpoint};

/// Only for the agent: the content includes setuid files.
const PRIVATE: u32 = 0o700;
const FS: u32 = 0o755;
const WORK: u32 = 0o711;

#[derive(Debug)]
pub(super) struct Directories {
    snapshots: PathBuf,
    root: PathBuf,
}

/// User and group of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(u32, u32);

impl Owner {
    pub(super) fn new(user: u32, group: u32) -> Self {
        Self(user, group)
    }
}

impl Directories {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let snapshots = root.join("snapshots");
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(&snapshots)
            .map_err(Error::at(&snapshots))?;
        Ok(Self {
            snapshots,
            root: root.to_owned(),
        })
    }

    pub(super) fn upper(&self, id: u64) -> PathBuf {
        self.of(id).join("fs")
    }

    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.of(id).join("work")
    }

    /// Returns the directory of a layer. A lazy layer of the FUSE driver is read
    /// through `mount`.
    pub(super) fn lower(&self, lower: Lower, mount: LayerMount) -> PathBuf {
        match lower {
            Lower::Own(id) => self.upper(id),
            Lower::Lazy(layer) if layer.is_erofs => erofs_mountpoint(&self.root, layer.number),
            Lower::Lazy(layer) => mount.directory(&self.root).join(layer.number.to_string()),
        }
    }

    fn of(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    pub(super) fn owner(&self, lower: Lower) -> Result<Owner, Error> {
        let path = self.lower(lower, LayerMount::Full);
        let metadata = fs::metadata(&path).map_err(Error::at(&path))?;
        Ok(Owner(metadata.uid(), metadata.gid()))
    }

    /// Creates the directory of the snapshot `id`, whose root belongs to `owner` if there is one.
    pub(super) fn create(&self, id: u64, kind: Kind, owner: Option<Owner>) -> Result<(), Error> {
        let new = tempfile::Builder::new()
            .prefix("new-")
            .permissions(Permissions::from_mode(PRIVATE))
            .tempdir_in(&self.snapshots);
        let new = new.map_err(Error::at(&self.snapshots))?;
        let upper = new.path().join("fs");
        create(&upper, FS)?;
        if let Some(Owner(user, group)) = owner {
            std::os::unix::fs::lchown(&upper, Some(user), Some(group))
                .map_err(Error::at(&upper))?;
        }
        if kind == Kind::Active {
            create(&new.path().join("work"), WORK)?;
        }
        let target = self.of(id);
        if target.exists() {
            // Left by a change that reserved this ID and was never committed.
            self.set_aside(&target)?;
        }
        fs::rename(new.path(), &target).map_err(Error::at(&target))?;
        drop(new.keep());
        // A power cut must not leave a record without its directory.
        File::open(&self.snapshots)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::at(&self.snapshots))
    }

    /// Deletes the directory of a snapshot that has no record any more.
    pub(super) fn remove(&self, id: u64) {
        remove(&self.of(id));
    }

    /// Renames all entries that belong to none of `ids`, and returns the new names, for deletion
    /// later.
    ///
    /// Must be called while no change can be made.
    pub(super) fn set_orphans_aside(&self, ids: &HashSet<u64>) -> Result<Vec<PathBuf>, Error> {
        let mut orphans = Vec::new();
        for entry in fs::read_dir(&self.snapshots).map_err(Error::at(&self.snapshots))? {
            let entry = entry.map_err(Error::at(&self.snapshots))?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u64>().ok());
            if id.is_some_and(|id| ids.contains(&id) && self.of(id) == entry.path()) {
                continue;
            }
            match self.set_aside(&entry.path()) {
                Ok(aside) => orphans.push(aside),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "orphan not renamed")
                }
            }
        }
        Ok(orphans)
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, Error> {
        let aside = self
            .snapshots
            .join(format!("old-{:016x}", rand::random::<u64>()));
        fs::rename(path, &aside).map_err(Error::at(path))?;
        Ok(aside)
    }
}

/// Deletes a tree. An entry that cannot be deleted becomes an orphan, and the next clean-up tries
/// again.
pub(super) fn remove(path: &Path) {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "snapshot directory not deleted");
        }
        _ => {}
    }
}

/// Creates a directory with exactly this mode, whatever the umask is.
fn create(path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(Error::at(path))
}
