//! Mounting EROFS over two files, in place of an earlier mount of the same layer.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::agent::mountpoint;
use crate::agent::numbers::LayerNumber;

/// The kernel's messages about a failed mount that are reported.
const MAX_MESSAGES: usize = 4;
const MAX_MESSAGE_LEN: usize = 256;

/// Mounts EROFS on the directory `at`. `image` holds the metadata, `data` the content. A mount that
/// is there already is replaced; there is no moment without one, except before Linux 6.5 or where
/// the kernel does not mount beneath another mount.
///
/// # Errors
/// If the kernel refuses the files, with its reason.
pub(super) fn mount(image: &Path, data: &Path, at: &Path) -> io::Result<()> {
    let mount = open(image, data)?;
    place(&mount, at)
}

/// Creates a mount that is in no directory yet.
fn open(image: &Path, data: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configure = || {
        fsconfig_set_string(context.as_fd(), "source", image)?;
        fsconfig_set_string(context.as_fd(), "device", data)?;
        fsconfig_create(context.as_fd())
    };
    configure().map_err(|error| explained(&context, error.into()))?;
    // As for the FUSE mounts: containers have the flags of their own overlay, or of a bind mount
    // that containerd remounts with its own.
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOATIME
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        flags,
    )?)
}

/// Adds the kernel's messages (fsopen(2)) to an error.
fn explained(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut messages = Vec::new();
    let mut message = [0; MAX_MESSAGE_LEN];
    while messages.len() < MAX_MESSAGES
        && let Ok(length) = rustix::io::read(context, &mut message[..])
    {
        messages.push(
            String::from_utf8_lossy(&message[..length])
                .trim()
                .to_owned(),
        );
    }
    if messages.is_empty() {
        error
    } else {
        io::Error::new(error.kind(), format!("{error}: {}", messages.join("; ")))
    }
}

fn place(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let attach = |flags| {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mount.as_fd(), "", CWD, at, flags)
    };
    if !mountpoint::is_mounted(at)? {
        return Ok(attach(MoveMountFlags::empty())?);
    }
    match attach(MoveMountFlags::MOVE_MOUNT_BENEATH) {
        Ok(()) => Ok(unmount(at, UnmountFlags::DETACH)?),
        Err(error) => {
            tracing::debug!(%error, path = %at.display(), "EROFS not mounted beneath the earlier mount");
            mountpoint::clear(at)?;
            Ok(attach(MoveMountFlags::empty())?)
        }
    }
}

/// Shows the directory `tree` in the place of an EROFS mount.
pub(super) fn bind(tree: &Path, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    mountpoint::clear(at)?;
    Ok(rustix::mount::mount_bind(tree, at)?)
}

/// Returns the numbered mountpoints in `folder`, and whether the topmost mount there is EROFS
/// (proc_pid_mountinfo(5)).
pub(super) fn mounted_in(folder: &Path) -> io::Result<HashMap<LayerNumber, bool>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut prefix = mountpoint::escape(folder.as_os_str().as_bytes());
    prefix.push(b'/');
    // The topmost mount comes last.
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| numbered(line, &prefix))
        .collect())
}

fn numbered(line: &[u8], prefix: &[u8]) -> Option<(LayerNumber, bool)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let name = fields.nth(4)?.strip_prefix(prefix)?;
    let number = LayerNumber::from_name(name)?;
    // The fields before the separator vary in number.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((number, kind == b"erofs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_mountpoints_are_found_with_their_kind() {
        let line = |path: &str, kind: &str| {
            format!("36 35 0:42 / {path} ro,nosuid shared:1 - {kind} source ro").into_bytes()
        };
        let found = |path, kind| numbered(&line(path, kind), b"/a\\040b/erofs/");
        assert_eq!(
            found("/a\\040b/erofs/7", "erofs"),
            Some((LayerNumber(7), true))
        );
        assert_eq!(
            found("/a\\040b/erofs/7", "fuse.starlift"),
            Some((LayerNumber(7), false))
        );
        for path in [
            "/a\\040b/erofs/probe",
            "/a\\040b/erofs/7/x",
            "/b/erofs/7",
            "/",
        ] {
            assert_eq!(found(path, "erofs"), None, "{path}");
        }
        assert_eq!(numbered(b"", b"/"), None);
    }
}
