//! The disk space of all data files, as the file system counts it.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The unit of `st_blocks` (stat(2)).
const SECTOR: u64 = 512;
/// The free space if none is configured, and the share of a small file system. kubelet evicts pods
/// when a tenth is left.
const MIN_FREE: u64 = 1 << 30;
const MIN_FREE_SHARE: u64 = 10;
/// Each eviction frees this share of all more than it must, so that evictions are few.
const SLACK_SHARE: u64 = 32;

/// What files take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The free space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeSpace {
    pub bytes: u64,
    /// The bytes that have to be free before anything is prefetched.
    pub floor: u64,
}

/// The space of all data files, its limits, and what else they share.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    limit: u64,
    min_free: Option<u64>,
    table: Mutex<Table>,
    /// Data files that are open.
    open: AtomicUsize,
    /// Advances with each chunk that is written.
    clock: AtomicU32,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<String, Usage>,
    total: Usage,
}

impl FreeSpace {
    /// Returns the free space of the file system of `path`. The floor is `min_free`; if `None`, 1
    /// GiB or a tenth of a small file system.
    ///
    /// # Errors
    /// If the path cannot be looked at.
    pub fn at(path: &Path, min_free: Option<u64>) -> io::Result<Self> {
        let found = rustix::fs::statvfs(path)?;
        let share = found.f_blocks * found.f_frsize / MIN_FREE_SHARE;
        Ok(Self {
            bytes: found.f_bavail * found.f_frsize,
            floor: min_free.unwrap_or(MIN_FREE.min(share)),
        })
    }

    /// Returns the bytes that are missing.
    pub fn shortage(self) -> u64 {
        self.floor.saturating_sub(self.bytes)
    }
}

impl Usage {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.blocks() * SECTOR,
            inodes: 1,
        }
    }
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            inodes: self.inodes + other.inodes,
        }
    }
}

impl Space {
    pub(super) fn new(folder: &Path, limit: u64, min_free: Option<u64>) -> Self {
        Self {
            folder: folder.to_owned(),
            limit,
            min_free,
            table: Mutex::default(),
            open: AtomicUsize::default(),
            clock: AtomicU32::default(),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Sets what the files of a layer take.
    pub(super) fn set(&self, name: &str, usage: Usage) {
        let mut table = self.table.lock();
        let before = match table.by_name.get_mut(name) {
            Some(known) => std::mem::replace(known, usage),
            None => table
                .by_name
                .insert(name.to_owned(), usage)
                .unwrap_or_default(),
        };
        table.total.bytes = table.total.bytes + usage.bytes - before.bytes;
        table.total.inodes = table.total.inodes + usage.inodes - before.inodes;
        if usage == Usage::default() {
            table.by_name.remove(name);
        }
    }

    pub(super) fn of(&self, name: &str) -> Usage {
        self.table
            .lock()
            .by_name
            .get(name)
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn total(&self) -> Usage {
        self.table.lock().total
    }

    /// Returns the bytes to free so that the files are within their limit again and the file system
    /// has its free space. 0 if they are.
    pub(super) fn excess(&self) -> u64 {
        let bytes = self.total().bytes;
        let excess = bytes.saturating_sub(self.limit).max(self.shortage());
        let slack = if excess > 0 { bytes / SLACK_SHARE } else { 0 };
        (excess + slack).min(bytes)
    }

    /// Whether data that nobody waits for can be written without an eviction. A fifth of the limit
    /// is left for data that is read.
    pub(super) fn has_room(&self) -> bool {
        self.total().bytes < self.limit / 5 * 4 && self.shortage() == 0
    }

    /// Returns the free space of the file system. `None` if it is not known at the moment.
    pub(super) fn free(&self) -> Option<FreeSpace> {
        FreeSpace::at(&self.folder, self.min_free).ok()
    }

    fn shortage(&self) -> u64 {
        self.free().map_or(0, FreeSpace::shortage)
    }

    /// Returns the time of a chunk that is written now.
    pub(super) fn tick(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Returns the time of a chunk that is read now: later than that of every chunk written before.
    pub(super) fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed).wrapping_add(1)
    }

    pub(super) fn open_files(&self) -> &AtomicUsize {
        &self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_counted_once_for_each_layer() {
        let space = Space::new(Path::new("/nonexistent"), 1000, None);
        let usage = |bytes| Usage { bytes, inodes: 2 };
        space.set("a", usage(300));
        space.set("b", usage(500));
        space.set("a", usage(400));
        assert_eq!(
            (space.total(), space.excess()),
            (
                Usage {
                    bytes: 900,
                    inodes: 4
                },
                0
            )
        );
        assert!(!space.has_room());
        space.set("a", usage(640));
        assert_eq!(space.excess(), 140 + 1140 / SLACK_SHARE);
        space.set("b", Usage::default());
        assert_eq!(
            (space.total(), space.of("b")),
            (usage(640), Usage::default())
        );
        assert!(space.has_room());
    }

    #[test]
    fn free_space_below_the_floor_is_an_excess_of_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), u64::MAX, Some(u64::MAX));
        assert!(!space.has_room());
        assert_eq!(space.excess(), 0, "there is nothing to free");
        let usage = Usage {
            bytes: 700,
            inodes: 2,
        };
        space.set("a", usage);
        assert_eq!(space.excess(), 700);
        let space = Space::new(folder.path(), u64::MAX, Some(0));
        space.set("a", usage);
        assert_eq!(space.excess(), 0);
    }
}
