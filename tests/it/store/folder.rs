//! Faults of a local folder: killed processes, full disks, manual changes to files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use starlift::oci::Digest;
use starlift::store::{Config, Error, Store};

use super::contract::{bytes_of, generation, put_image, put_layer, read, source_of};
use crate::support::eventually::{eventually, eventually_async};

/// Returns a folder for a store, and the store's configuration.
pub(super) fn folder() -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let location = dir.path().join("store").display().to_string();
    (
        dir,
        Config {
            location,
            ..Config::default()
        },
    )
}

fn in_a_year() -> SystemTime {
    SystemTime::now() + Duration::from_secs(366 * 24 * 60 * 60)
}

/// Returns the paths of all files under `root`, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn a_folder_outlives_its_store() {
    let (_dir, config) = folder();
    let image = put_image(&Store::open(&config).await.unwrap(), 1, 5 << 20)
        .await
        .unwrap();
    let reopened = Store::open(&config).await.unwrap();
    assert_eq!(
        reopened
            .image(&generation(), &image.source)
            .await
            .unwrap()
            .as_ref(),
        Some(&image)
    );
    for digest in &image.objects {
        let object = reopened.find(digest).await.unwrap().unwrap();
        assert_eq!(
            Digest::sha256_of(&read(&reopened, &object, 0..object.size).await.unwrap()),
            *digest
        );
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for location in [file.clone(), file.join("below")] {
        let config = Config {
            location: location.display().to_string(),
            ..Config::default()
        };
        let error = Store::open(&config).await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains(&config.location), "{error}");
    }
}

#[tokio::test]
async fn the_sweep_leaves_an_empty_folder() {
    let (_dir, config) = folder();
    let store = Store::open(&config).await.unwrap();
    put_image(&store, 2, 3 << 20).await.unwrap();
    drop(store.lease("left").await.unwrap());
    let root = Path::new(&config.location);
    // The files that a process leaves if it is killed during an upload while it holds a lease.
    let mut upload = store
        .upload_layer(&generation(), &source_of(3), 0)
        .await
        .unwrap();
    upload.write(bytes_of(3 << 20, 3)).await.unwrap();
    let staging = files(root)
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with("#1"))
        .unwrap();
    std::fs::copy(
        root.join(&staging),
        root.join(staging.to_string_lossy().replace("#1", "#2")),
    )
    .unwrap();
    upload.abort().await;
    std::fs::write(root.join("leases/of-a-dead-process"), "").unwrap();

    let kept = store.sweep(SystemTime::now()).await.unwrap();
    assert_eq!(
        (kept.images, kept.objects, kept.unrecorded, kept.leftovers),
        (0, 0, 0, 0)
    );
    let swept = store.sweep(in_a_year()).await.unwrap();
    assert_eq!(
        (
            swept.images,
            swept.objects,
            swept.unrecorded,
            swept.leftovers
        ),
        (1, 3, 1, 1)
    );
    assert_eq!(files(root), Vec::<PathBuf>::new());
}

/// A process that holds the lock of a lease.
struct Holder(Child);

impl Holder {
    fn of(lease: &Path) -> Self {
        std::fs::create_dir_all(lease.parent().unwrap()).unwrap();
        let waiting = lease.with_extension("locked");
        // Without `-o` the shell would hold the lock too. `exec` makes the two one process.
        let script = format!(
            "exec 9>'{}'; flock 9; touch '{}'; exec sleep 600",
            lease.display(),
            waiting.display()
        );
        let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        eventually("the lock is taken", || waiting.exists());
        std::fs::remove_file(waiting).unwrap();
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _already_dead = self.0.kill();
        let _already_waited = self.0.wait();
    }
}

#[tokio::test]
async fn a_lease_is_free_as_soon_as_its_process_is_killed() {
    let (_dir, config) = folder();
    let store = Store::open(&config).await.unwrap();
    let mut holder = Holder::of(&Path::new(&config.location).join("leases/layer"));
    assert!(store.lease("layer").await.unwrap().is_none());
    // A sweep does not take a lease from its holder, however old the lease seems.
    store.sweep(in_a_year()).await.unwrap();
    assert!(store.lease("layer").await.unwrap().is_none());
    holder.kill();
    assert!(store.lease("layer").await.unwrap().is_some());
}

/// A file system with the requested size.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts the file system. `None` if it cannot be mounted, which is a failure if `CI` is
    /// `true`.
    fn of(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "a tmpfs cannot be mounted"
        );
        println!("skipped: a tmpfs cannot be mounted");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_room_heals_it() {
    let Some(disk) = SmallDisk::of("4m") else {
        return;
    };
    let location = disk.0.path().join("store");
    let config = Config {
        location: location.display().to_string(),
        ..Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let layer = bytes_of(3 << 20, 4);
    let full = put_layer(&store, &source_of(4), &layer).await;
    assert!(matches!(full, Err(Error::Backend { .. })), "{full:?}");
    assert_eq!(
        store.layer(&generation(), &source_of(4)).await.unwrap(),
        None
    );
    std::fs::remove_file(ballast).unwrap();
    // The staging file is deleted in the background.
    eventually_async("the staging file is gone", async || {
        files(&location).is_empty()
    })
    .await;
    put_layer(&store, &source_of(4), &layer).await.unwrap();
    let object = store
        .find(&Digest::sha256_of(&layer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read(&store, &object, 0..object.size).await.unwrap(), layer);
}
