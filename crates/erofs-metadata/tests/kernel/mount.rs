//! Mounting an image with its data, after erofs-utils has checked it.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_metadata::{Image, ImageError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

/// A mounted image. Dropping it unmounts it.
pub(crate) struct Mounted {
    _mount: Mount,
    folder: TempDir,
}

/// A tree mounted somewhere in a folder of its own. Dropping it unmounts it.
pub(crate) struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _not_mounted = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Mounted {
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }
}

/// Writes `image`, has it checked by erofs-utils, and mounts it over a file with this content.
pub(crate) fn mount(image: Image, data: &[u8]) -> Mounted {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data"), data).unwrap();
    mount_in(folder, image)
}

/// As [`mount`], with a sparse data file: the bytes at each offset.
pub(crate) fn mount_sparse(image: Image, size: u64, data: &[(u64, &[u8])]) -> Mounted {
    use std::os::unix::fs::FileExt;

    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("data")).unwrap();
    file.set_len(size).unwrap();
    data.iter()
        .for_each(|(offset, bytes)| file.write_all_at(bytes, *offset).unwrap());
    mount_in(folder, image)
}

fn mount_in(folder: TempDir, image: Image) -> Mounted {
    let (metadata, data, root) = (
        folder.path().join("metadata"),
        folder.path().join("data"),
        folder.path().join("root"),
    );
    image.write_to(File::create(&metadata).unwrap()).unwrap();
    fs::create_dir(&root).unwrap();
    check(&metadata, &data);
    Mounted {
        _mount: mount_erofs(&metadata, Some(&data), &root).unwrap(),
        folder,
    }
}

/// `mount(2)` as the crate's documentation describes it.
pub(crate) fn mount_erofs(
    metadata: &Path,
    data: Option<&Path>,
    root: &Path,
) -> Result<Mount, Errno> {
    let options = data.map(|data| CString::new(format!("device={}", data.display())).unwrap());
    rustix::mount::mount(
        metadata,
        root,
        "erofs",
        MountFlags::RDONLY,
        options.as_deref(),
    )?;
    Ok(Mount(root.to_owned()))
}

/// Mounts an overlay of `layers`, the topmost first.
pub(crate) fn overlay(layers: &[PathBuf], root: &Path) -> Mount {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| layer.display().to_string())
        .collect();
    let options = CString::new(format!("lowerdir={}", layers.join(":"))).unwrap();
    rustix::mount::mount(
        "overlay",
        root,
        "overlay",
        MountFlags::RDONLY,
        Some(&*options),
    )
    .unwrap();
    Mount(root.to_owned())
}

/// Has an image with blocks of 4096 bytes checked by erofs-utils: 1.5 knows no others.
pub(crate) fn check(metadata: &Path, data: &Path) {
    if fs::read(metadata).unwrap()[1024 + 12] != 12 {
        return;
    }
    let device = format!("--device={}", data.display());
    let arguments: [&[&str]; 4] = [
        &["fsck.erofs", &device],
        &["dump.erofs", &device, "-s"],
        &["dump.erofs", &device, "-S"],
        &["dump.erofs", &device, "--path=/", "--ls"],
    ];
    for arguments in arguments {
        // fsck.erofs calls itself for each directory.
        let output = Command::new("sh")
            .args(["-c", "ulimit -s unlimited; exec \"$@\"", "sh"])
            .args(arguments)
            .arg(metadata)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{said}",
            output.status
        );
        // Random names contain "<E>" now and then.
        let is_error = |line: &str| line.starts_with("<E> erofs:");
        assert!(!said.lines().any(is_error), "{arguments:?}: {said}");
    }
}

/// Whether this machine can run the tests. If not, the reason is printed.
pub(crate) fn available() -> bool {
    match missing() {
        None => true,
        Some(reason) => {
            let required = std::env::var_os("CI").is_some_and(|value| value == "true") && is_root();
            assert!(!required, "{reason}");
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn missing() -> Option<String> {
    if !is_root() {
        return Some("mounting needs root".to_owned());
    }
    for tool in ["fsck.erofs", "dump.erofs"] {
        if Command::new(tool).arg("-V").output().is_err() {
            return Some(format!("{tool} is not installed (package erofs-utils)"));
        }
    }
    probe()
        .err()
        .map(|error| format!("this kernel mounts no EROFS over plain files: {error}"))
}

fn probe() -> Result<(), Errno> {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, data) = (folder.path().join("metadata"), folder.path().join("data"));
    let written: Result<(), ImageError> = Image::builder()
        .build()
        .unwrap()
        .write_to(File::create(&metadata).unwrap());
    written.unwrap();
    fs::write(&data, [0; 4096]).unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    mount_erofs(&metadata, Some(&data), &root).map(drop)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
