//! Mounts that only this process sees. They end with the process, however it ends.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::failure::Failure;

/// The kernel takes at most a page of mount options.
const MAX_OPTIONS: usize = 4095;
/// Characters that overlayfs does not read as part of a path.
const SPECIAL: [char; 3] = [':', ',', '\\'];

/// Moves this thread, and the threads that it starts, into their own mount namespace, which still
/// receives mounts made outside.
///
/// # Errors
/// If the process lacks the privilege.
#[expect(
    unsafe_code,
    reason = "unshare can separate the descriptor tables of threads; with this flag it does not"
)]
pub(crate) fn keep_to_ourselves() -> Result<(), Failure> {
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .and_then(|()| {
            mount_change(
                "/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
        })
        .map_err(Failure::when(
            "running a workload requires root to mount its layers; --record-in runs nothing",
        ))
}

/// A container's root file system: the layers, and above them writable memory. Unmounted when
/// dropped.
#[derive(Debug)]
pub(crate) struct RootFs {
    scratch: PathBuf,
    pub(crate) path: PathBuf,
}

impl RootFs {
    /// Mounts the layers, lowest first, over each other on a directory below `root`.
    pub(crate) fn mount(root: &Path, layers: &[PathBuf]) -> Result<Self, Failure> {
        let rootfs = Self {
            scratch: root.join("scratch"),
            path: root.join("rootfs"),
        };
        let options = options(&rootfs.scratch, layers)?;
        rootfs
            .fill(&options)
            .map_err(Failure::when("overlay mount of the layers failed"))?;
        Ok(rootfs)
    }

    fn fill(&self, options: &CStr) -> io::Result<()> {
        fs::create_dir(&self.scratch)?;
        fs::create_dir(&self.path)?;
        mount(
            "tmpfs",
            &self.scratch,
            "tmpfs",
            MountFlags::empty(),
            c"mode=0700",
        )?;
        fs::create_dir(self.scratch.join("upper"))?;
        fs::create_dir(self.scratch.join("work"))?;
        mount(
            "overlay",
            &self.path,
            "overlay",
            MountFlags::empty(),
            options,
        )?;
        Ok(())
    }
}

impl Drop for RootFs {
    fn drop(&mut self) {
        for path in [&self.path, &self.scratch] {
            // Fails if nothing was mounted. Otherwise the mount ends with this process.
            let _gone_later = unmount(path, UnmountFlags::DETACH);
        }
    }
}

fn options(scratch: &Path, layers: &[PathBuf]) -> Result<CString, Failure> {
    let lowers: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let scratch = scratch.display().to_string();
    if scratch.contains(SPECIAL) {
        return Err(Failure::new(format!(
            "overlayfs cannot mount in {scratch}: set TMPDIR to a path without {SPECIAL:?}"
        )));
    }
    let options = format!(
        "workdir={scratch}/work,upperdir={scratch}/upper,lowerdir={}",
        lowers.join(":")
    );
    if options.len() > MAX_OPTIONS {
        let count = layers.len();
        return Err(Failure::new(format!(
            "mount options for {count} layers are too long: set TMPDIR to a shorter path"
        )));
    }
    CString::new(options).map_err(Failure::from_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_comes_first_and_special_paths_are_rejected() {
        let layers = |count: usize| {
            (0..count)
                .map(|layer| PathBuf::from(format!("/t/lazy/{layer}")))
                .collect::<Vec<_>>()
        };
        let written = options(Path::new("/t/s"), &layers(2)).unwrap();
        assert_eq!(
            written.to_str().unwrap(),
            "workdir=/t/s/work,upperdir=/t/s/upper,lowerdir=/t/lazy/1:/t/lazy/0"
        );
        assert!(options(Path::new("/t:/s"), &layers(2)).is_err());
        assert!(options(Path::new("/t/s"), &layers(1000)).is_err());
    }
}
