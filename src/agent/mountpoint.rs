//! The directory on which the layers are mounted, and the mount there.
//!
//! Any process with the rights can unmount it while containers run on its layers. A clone of the
//! mount, which is in no directory, then keeps the file system alive. The clone is moved into the
//! place and another clone is made.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

/// The kernel's read-ahead in KiB. A few chunks more would cost more than they save.
const READ_AHEAD_KIB: &str = "512";

/// A mount in its place.
#[derive(Debug)]
pub(crate) struct Mountpoint {
    path: PathBuf,
    /// The device number of the file system.
    device: u64,
    /// The clone (Linux 5.2).
    spare: Option<OwnedFd>,
}

impl Mountpoint {
    /// Creates the mountpoint `path` of the file system `device`. `spare` is a clone that an
    /// earlier agent made.
    pub(crate) fn new(path: &Path, device: u64, spare: Option<OwnedFd>) -> Self {
        let mut mountpoint = Self {
            path: path.to_owned(),
            device,
            spare,
        };
        if mountpoint.is_in_place() {
            mountpoint.clone_mount();
        }
        mountpoint
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the clone, for a keeper.
    pub(crate) fn spare(&self) -> Option<BorrowedFd<'_>> {
        self.spare.as_ref().map(|spare| spare.as_fd())
    }

    /// Whether the topmost file system mounted here is this one. Asks the kernel, which does not
    /// ask the agent.
    pub(crate) fn is_in_place(&self) -> bool {
        device_at(&self.path).is_ok_and(|device| device == self.device)
    }

    /// Puts the file system back after it was unmounted.
    ///
    /// # Errors
    /// If there is no clone, or it cannot be moved.
    pub(crate) fn put_back(&mut self) -> io::Result<()> {
        let spare = self
            .spare
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        fs::create_dir_all(&self.path)?;
        move_mount(
            spare,
            "",
            CWD,
            &self.path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        self.clone_mount();
        if self.is_in_place() {
            Ok(())
        } else {
            Err(io::Error::other("another file system was put back"))
        }
    }

    fn clone_mount(&mut self) {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match open_tree(CWD, &self.path, flags) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) => tracing::debug!(%error, "mount not cloned"),
        }
    }
}

/// Returns the device number of the file system at `path`.
pub(crate) fn device_at(path: &Path) -> io::Result<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::empty())?;
    Ok(rustix::fs::makedev(
        found.stx_dev_major,
        found.stx_dev_minor,
    ))
}

/// Unmounts everything that is mounted on `at`. Open files keep a file system alive. Returns
/// whether anything was mounted.
pub(crate) fn clear(at: &Path) -> io::Result<bool> {
    let mut was_mounted = false;
    while mounted(at)?.is_some() {
        rustix::mount::unmount(at, UnmountFlags::DETACH)?;
        was_mounted = true;
    }
    Ok(was_mounted)
}

/// Whether anything is mounted on `at`.
pub(crate) fn is_mounted(at: &Path) -> io::Result<bool> {
    Ok(mounted(at)?.is_some())
}

/// Makes the kernel read further ahead than its default of 128 KiB, because each request has a
/// cost.
///
/// Looks the mount up in /proc, because a look at the directory itself would ask the agent.
pub(crate) fn read_further_ahead(at: &Path) {
    let set = mounted(at).and_then(|device| {
        let device = device.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        fs::write(
            format!("/sys/class/bdi/{device}/read_ahead_kb"),
            READ_AHEAD_KIB,
        )
    });
    if let Err(error) = set {
        tracing::debug!(%error, "kernel's read-ahead not changed");
    }
}

/// Returns the device number, `major:minor`, of the topmost mount on `at` (proc_pid_mountinfo(5)).
fn mounted(at: &Path) -> io::Result<Option<String>> {
    let mut table = Vec::new();
    File::open("/proc/self/mountinfo")?.read_to_end(&mut table)?;
    let escaped = escape(at.as_os_str().as_bytes());
    // The topmost mount comes last.
    let mut on_it = table.split(|byte| *byte == b'\n').rev().filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = fields.next()?;
        (fields.nth(1)? == escaped).then(|| String::from_utf8_lossy(device).into_owned())
    });
    Ok(on_it.next())
}

/// Escapes a path as mountinfo does: blanks and backslashes in octal.
pub(super) fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").as_bytes()),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_place() {
        assert!(mounted(Path::new("/proc")).unwrap().is_some());
        assert_eq!(mounted(Path::new("/proc/self")).unwrap(), None);
        assert_eq!(escape(b"/a b\\c"), b"/a\\040b\\134c");
    }

    #[test]
    fn another_file_system_in_the_place_is_noticed() {
        let proc = Mountpoint {
            path: "/proc".into(),
            device: device_at(Path::new("/proc")).unwrap(),
            spare: None,
        };
        assert!(proc.is_in_place());
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Mountpoint {
            path: folder.path().to_owned(),
            ..proc
        };
        assert!(!elsewhere.is_in_place());
        let gone = Mountpoint {
            path: folder.path().join("gone"),
            ..elsewhere
        };
        assert!(!gone.is_in_place());
    }
}
