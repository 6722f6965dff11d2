//! A disk that fails for a moment fails the operations of that moment, and nothing else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, StorageBackend};

use super::*;

/// A file whose writes fail while the disk is full, as ENOSPC does.
#[derive(Debug)]
struct Disk {
    file: File,
    is_full: Arc<AtomicBool>,
}

impl Disk {
    fn checked(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::Relaxed) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.checked()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.checked()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.checked()?;
        self.file.write_all_at(data, offset)
    }
}

/// Snapshots whose metadata is on a disk that can be full.
struct Node {
    root: tempfile::TempDir,
    snapshots: Snapshots,
    is_full: Arc<AtomicBool>,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(root.path()).unwrap();
        let node = Self {
            root,
            snapshots,
            is_full: Arc::default(),
        };
        node.put_on_the_disk();
        node
    }

    /// Inserts the disk between redb and the file.
    fn put_on_the_disk(&self) {
        let mut db = self.snapshots.metadata.database().write();
        *db = None;
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.root.path().join("metadata.db"))
            .unwrap();
        let disk = Disk {
            file,
            is_full: Arc::clone(&self.is_full),
        };
        *db = Some(Database::builder().create_with_backend(disk).unwrap());
    }

    fn prepare(&self, key: &str) -> Result<Vec<Mount>, Error> {
        self.snapshots.prepare(key, None, Labels::new())
    }

    fn names(&self) -> Vec<String> {
        let all = self.snapshots.list(&Filter::parse(&[]).unwrap()).unwrap();
        all.into_iter().map(|info| info.name).collect()
    }
}

#[test]
fn a_disk_that_was_full_leaves_the_snapshots_usable() {
    let node = Node::new();
    node.prepare("before").unwrap();
    node.is_full.store(true, Ordering::Relaxed);
    let error = node.prepare("meanwhile").unwrap_err();
    assert!(error.is_io(), "{error}");
    node.is_full.store(false, Ordering::Relaxed);
    node.prepare("after").unwrap();
    node.snapshots.remove("before").unwrap();
    assert_eq!(node.names(), ["after"], "only the failed change is missing");
    let directories = std::fs::read_dir(node.root.path().join("snapshots"))
        .unwrap()
        .count();
    assert_eq!(directories, 1, "the others leave no directory");
}

#[test]
fn snapshots_are_read_and_removed_after_a_change_that_failed() {
    let node = Node::new();
    node.prepare("kept").unwrap();
    for round in 0..3 {
        node.put_on_the_disk();
        node.is_full.store(true, Ordering::Relaxed);
        assert!(
            node.snapshots
                .commit("committed", "kept", None, Labels::new())
                .is_err(),
            "{round}"
        );
        assert_eq!(
            node.snapshots.stat("kept").unwrap().kind,
            Kind::Active,
            "{round}"
        );
        node.is_full.store(false, Ordering::Relaxed);
        assert_eq!(node.names(), ["kept"], "{round}");
    }
    node.snapshots
        .commit("committed", "kept", None, Labels::new())
        .unwrap();
    assert_eq!(
        node.snapshots.stat("committed").unwrap().kind,
        Kind::Committed
    );
}

#[test]
fn missing_metadata_is_not_created_again() {
    let node = Node::new();
    node.prepare("kept").unwrap();
    let (file, aside) = (
        node.root.path().join("metadata.db"),
        node.root.path().join("aside"),
    );
    // The state after an error if the file could not be opened again.
    *node.snapshots.metadata.database().write() = None;
    std::fs::rename(&file, &aside).unwrap();
    assert!(node.prepare("without").unwrap_err().is_io());
    assert!(!file.exists());
    std::fs::rename(&aside, &file).unwrap();
    node.prepare("after").unwrap();
    assert_eq!(node.names(), ["after", "kept"]);
}
