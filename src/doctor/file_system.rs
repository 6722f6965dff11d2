//! The file system of the agent's root, and whether the overlay of a container can be put on it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::check::Check;
use crate::agent::snapshots::needs_user_attributes;

const WHAT: &str = "file system";
/// File systems whose files are in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// File systems of other machines. `fuse.…` and `nfs4` are among them by their beginning.
const REMOTE: [&str; 8] = [
    "nfs",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "virtiofs",
    "fuse.",
    "glusterfs",
];

/// Checks the file system of `root`, or of the directory in which it would be created.
pub(super) fn check(root: &Path) -> Check {
    let Some(existing) = root.ancestors().find(|path| path.is_dir()) else {
        return Check::bad(
            WHAT,
            format!("{} is no path", root.display()),
            "name the root",
        );
    };
    let kind = kind_of(existing);
    let shown = kind.as_deref().unwrap_or("of an unknown kind");
    if rustix::process::geteuid().is_root()
        && let Err(error) = try_overlay(existing)
    {
        let finding = format!("{shown}, which takes no container's overlay: {error}");
        let mend = "agent.root on ext4, XFS or Btrfs. In a container, such as a KinD node, give it a volume";
        return Check::bad(WHAT, finding, mend);
    }
    if IN_MEMORY.contains(&shown) {
        let mend = "agent.root on a disk: here the images take memory, and are lost at a restart";
        return Check::fair(WHAT, shown, mend);
    }
    if REMOTE.iter().any(|remote| shown.starts_with(remote)) {
        let mend =
            "agent.root on a local disk: here every read of a container depends on another machine";
        return Check::fair(WHAT, shown, mend);
    }
    Check::good(WHAT, format!("{shown}, takes the overlay of containers"))
}

/// Mounts an overlay that has its upper directory on this file system, without attaching it
/// anywhere: it is gone with its descriptor.
fn try_overlay(folder: &Path) -> io::Result<()> {
    let trial = tempfile::Builder::new()
        .prefix(".starlift-doctor-")
        .tempdir_in(folder)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    for (option, name) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        let directory: PathBuf = trial.path().join(name);
        fs::create_dir(&directory)?;
        fsconfig_set_string(context, option, directory.as_os_str())?;
    }
    if needs_user_attributes(folder) {
        fsconfig_set_flag(context, "userxattr")?;
    }
    fsconfig_create(context)?;
    let mounted = fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    // The kernel leaves a directory in `work` that only root may delete, and that is busy until then.
    drop(mounted);
    Ok(())
}

/// Returns the kind of the file system at a directory, as `mount` names it.
fn kind_of(directory: &Path) -> Option<String> {
    let directory = fs::canonicalize(directory).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    kind_in(&mounts, &directory)
}

/// Returns the kind of the last mount among those that are nearest to `directory` (proc(5),
/// `/proc/pid/mountinfo`).
fn kind_in(mounts: &str, directory: &Path) -> Option<String> {
    let mut nearest: Option<(PathBuf, &str)> = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(at), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else {
            continue;
        };
        let at = PathBuf::from(unescaped(at));
        let is_nearer = nearest
            .as_ref()
            .is_none_or(|(best, _)| at.starts_with(best));
        if directory.starts_with(&at) && is_nearer {
            nearest = Some((at, kind));
        }
    }
    nearest.map(|(_, kind)| kind.to_owned())
}

/// Returns a path of mountinfo, which has blanks and backslashes as octal numbers.
fn unescaped(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_and_last_mount_has_the_kind() {
        let mounts = "20 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      21 20 0:30 / /a rw - tmpfs tmpfs rw\n\
                      22 20 0:31 / /a rw shared:1 - xfs /dev/b rw\n\
                      23 22 0:32 / /a/with\\040blank rw - nfs4 host:/ rw\n";
        for (directory, kind) in [
            ("/", "ext4"),
            ("/ab", "ext4"),
            ("/a/x", "xfs"),
            ("/a/with blank/x", "nfs4"),
        ] {
            let found = kind_in(mounts, Path::new(directory));
            assert_eq!(found.as_deref(), Some(kind), "{directory}");
        }
    }
}
