//! The agent's root directory. Only its owner can enter it, and nobody else can change its path.
//!
//! It contains set-uid programs and device nodes of arbitrary images. The directory may have
//! existed before the agent, created by any user, so it is checked at every start.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use crate::agent::layer_mount::LayerMount;
use crate::agent::user_namespace::unmapped_user;

const PRIVATE: u32 = 0o700;
const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// The reason why a directory cannot be the root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error(
        "{path} belongs to user {owner}, who could replace the agent's files: chown it to root"
    )]
    Owner { path: PathBuf, owner: u32 },
    #[error("{0} can be changed by others: chmod go-w")]
    Writable(PathBuf),
    #[error("{0} is not a directory")]
    NoDirectory(PathBuf),
    #[error("{0} has too many symbolic links")]
    Links(PathBuf),
    #[error("{path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Creates `root` if it does not exist, and takes away everybody else's access.
///
/// Returns its path without symbolic links. A symbolic link is trusted if its owner would be
/// trusted as a directory's.
pub(crate) fn secure(root: &Path) -> Result<PathBuf, RootError> {
    let failed = |source| RootError::Io {
        path: root.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(root)
        .map_err(failed)?;
    let path = resolve(&std::path::absolute(root).map_err(failed)?, unmapped_user())?;
    fs::set_permissions(&path, Permissions::from_mode(PRIVATE)).map_err(failed)?;
    check_entries(&path)?;
    Ok(path)
}

/// Resolves an absolute path as the kernel does, and checks every directory and symbolic link on
/// the way.
///
/// In a user namespace, parents may also belong to the user `unmapped`: the machine's root, who owns
/// `/home`, has no other name there. `agent install` checks them outside, where every owner has one.
fn resolve(path: &Path, unmapped: Option<u32>) -> Result<PathBuf, RootError> {
    let mut left = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let found = fs::symlink_metadata(&next).map_err(io_at(&next))?;
        let is_parent = !left.is_empty();
        if !(is_parent && unmapped == Some(found.uid())) {
            check_owner(&next, &found)?;
        }
        if found.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(RootError::Links(path.to_owned()));
            }
            let target = fs::read_link(&next).map_err(io_at(&next))?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            left = names(&target).into_iter().chain(left).collect();
        } else if found.is_dir() {
            // The root's own mode is set afterwards.
            if !left.is_empty() {
                check_writers(&next, &found)?;
            }
            at = next;
        } else {
            return Err(RootError::NoDirectory(next));
        }
    }
    Ok(at)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), RootError> {
    let (owner, own) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner == 0 || owner == own {
        Ok(())
    } else {
        Err(RootError::Owner {
            path: path.to_owned(),
            owner,
        })
    }
}

/// In a sticky directory such as /tmp, nobody else can rename or delete the agent's entry.
fn check_writers(path: &Path, found: &Metadata) -> Result<(), RootError> {
    let mode = found.mode();
    let is_open = mode & OTHERS_WRITE != 0 || mode & GROUP_WRITES != 0 && found.gid() != 0;
    if is_open && mode & STICKY == 0 {
        Err(RootError::Writable(path.to_owned()))
    } else {
        Ok(())
    }
}

/// Refuses a root that has an entry of another user, from a time when it was open.
fn check_entries(root: &Path) -> Result<(), RootError> {
    for entry in fs::read_dir(root).map_err(io_at(root))? {
        let entry = entry.map_err(io_at(root))?;
        let path = entry.path();
        // A mount of an earlier agent may answer no requests. It is a directory, and nothing else
        // is checked.
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && LayerMount::ALL
                .iter()
                .any(|mount| path == mount.directory(root))
        {
            continue;
        }
        check_owner(&path, &fs::symlink_metadata(&path).map_err(io_at(&path))?)?;
    }
    Ok(())
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// Returns a directory whose parents are all trusted: tests run in a sticky /tmp.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn made(path: &Path, mode: u32) -> PathBuf {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        path.to_owned()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_root_that_was_open_is_closed_at_every_start() {
        let folder = folder();
        let root = made(&folder.path().join("root"), 0o777);
        for open in [0o777, 0o755, 0o4711, 0o000] {
            fs::set_permissions(&root, Permissions::from_mode(open)).unwrap();
            assert_eq!(secure(&root).unwrap(), root);
            assert_eq!(mode(&root), 0o700, "{open:o}");
        }
        let new = folder.path().join("a/b/root");
        secure(&new).unwrap();
        assert_eq!([mode(&new), mode(new.parent().unwrap())], [0o700; 2]);
    }

    #[test]
    fn a_parent_that_others_can_change_is_refused() {
        let folder = folder();
        let parent = made(&folder.path().join("parent"), 0o777);
        let root = made(&parent.join("root"), 0o700);
        assert!(matches!(secure(&root), Err(RootError::Writable(path)) if path == parent));
        fs::set_permissions(&parent, Permissions::from_mode(0o1777)).unwrap();
        secure(&root).unwrap();
        fs::set_permissions(&parent, Permissions::from_mode(0o755)).unwrap();
        secure(&root).unwrap();
    }

    #[test]
    fn another_users_root_parent_or_entry_is_refused() {
        if !is_root() {
            return;
        }
        let folder = folder();
        let parent = made(&folder.path().join("parent"), 0o755);
        let root = made(&parent.join("root"), 0o700);
        for path in [&root, &parent, &made(&root.join("snapshots"), 0o755)] {
            chown(path, Some(65534), None).unwrap();
            assert!(
                matches!(secure(&root), Err(RootError::Owner { path: found, owner: 65534 }) if found == *path)
            );
            chown(path, Some(0), None).unwrap();
        }
        secure(&root).unwrap();
    }

    #[test]
    fn parents_of_nobody_in_particular_are_for_user_namespaces() {
        if !is_root() {
            return;
        }
        let folder = folder();
        let parent = made(&folder.path().join("parent"), 0o755);
        let root = made(&parent.join("root"), 0o700);
        chown(&parent, Some(65534), None).unwrap();
        assert_eq!(resolve(&root, Some(65534)).unwrap(), root);
        assert!(resolve(&root, Some(65533)).is_err());
        fs::set_permissions(&parent, Permissions::from_mode(0o777)).unwrap();
        assert!(resolve(&root, Some(65534)).is_err());
        fs::set_permissions(&parent, Permissions::from_mode(0o755)).unwrap();
        chown(&root, Some(65534), None).unwrap();
        assert!(resolve(&root, Some(65534)).is_err());
    }

    #[test]
    fn symbolic_links_are_followed_if_only_the_owner_can_change_them() {
        let folder = folder();
        let target = made(&folder.path().join("target"), 0o755);
        let link = folder.path().join("link");
        symlink("target", &link).unwrap();
        let open = made(&folder.path().join("open"), 0o777);
        assert_eq!(secure(&link.join("root")).unwrap(), target.join("root"));
        symlink(&target, open.join("foreign")).unwrap();
        assert!(
            matches!(secure(&open.join("foreign/root")), Err(RootError::Writable(path)) if path == open)
        );
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(secure(&folder.path().join("loop")).is_err());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(secure(&folder.path().join("file")).is_err());
    }
}
