//! Chunks on this node: on disk by the digest of their content, the newest in memory as well.
//!
//! ```text
//! <root>/cache/ab/cdef…   one chunk, uncompressed, under its SHA-256
//! <root>/cache/new/       files being written; a start deletes all that it finds there
//! ```
//! Layers and images with the same chunk share it. A file is compared with its name the first time
//! it is used after a start. A file that a power cut or the disk damaged is deleted and fetched
//! again. A full disk is not an error: chunks then live only in memory.

mod disk;
mod index;

use std::io;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use bytesize::ByteSize;
use estargz::Digest;

use self::disk::Disk;

/// The cache of a node. Every call blocks, on the disk at most.
#[derive(Debug)]
pub struct Cache {
    memory: moka::sync::Cache<Digest, Bytes>,
    disk: Disk,
}

/// The content of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheUsage {
    pub chunks: u64,
    pub bytes: u64,
}

impl Cache {
    /// Opens the cache in `folder` with the chunks that it holds, and evicts those in excess of
    /// `limit`.
    ///
    /// # Errors
    /// If the directory cannot be created or read.
    pub fn open(folder: &Path, limit: ByteSize, memory: ByteSize) -> io::Result<Self> {
        let weight = |_: &Digest, content: &Bytes| u32::try_from(content.len()).unwrap_or(u32::MAX);
        let memory = moka::sync::Cache::builder()
            .max_capacity(memory.as_u64())
            .weigher(weight)
            .build();
        Ok(Self {
            memory,
            disk: Disk::open(folder, limit.as_u64())?,
        })
    }

    /// Returns a part of the chunk with this digest and size, if it is cached.
    pub fn read(&self, digest: &Digest, size: u64, part: Range<u64>) -> Option<Bytes> {
        match self.memory.get(digest) {
            Some(content) => slice(&content, part),
            None => self.disk.read(digest, size, part).map(Bytes::from),
        }
    }

    /// Stores a chunk, whose content must have this digest.
    pub fn put(&self, digest: Digest, content: &Bytes) {
        self.memory.insert(digest, content.clone());
        // Without this call, moka shrinks to its capacity only after some hundred chunks, however
        // large they are.
        self.memory.run_pending_tasks();
        self.disk.put(&digest, content);
    }

    /// Whether the chunk is cached. A file that was not compared yet counts.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.disk.holds(digest) || self.memory.contains_key(digest)
    }

    /// Whether the chunk is on disk.
    pub fn keeps(&self, digest: &Digest) -> bool {
        self.disk.holds(digest)
    }

    pub fn held(&self) -> CacheUsage {
        self.disk.held()
    }

    /// Returns the most bytes that are stored on disk.
    pub fn limit(&self) -> u64 {
        self.disk.limit()
    }

    /// Whether prefetched data can be stored without an eviction. A fifth of the space is left for
    /// data that is read.
    pub fn has_room(&self) -> bool {
        self.held().bytes < self.limit() / 5 * 4
    }
}

/// Returns the bytes at `part`, or `None` if the content ends before.
fn slice(content: &Bytes, part: Range<u64>) -> Option<Bytes> {
    let (start, end) = (
        usize::try_from(part.start).ok()?,
        usize::try_from(part.end).ok()?,
    );
    (start <= end && end <= content.len()).then(|| content.slice(start..end))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn open(&self, limit: u64) -> Cache {
            Cache::open(&self.0.path().join("cache"), ByteSize(limit), ByteSize(0)).unwrap()
        }

        fn file(&self, digest: &Digest) -> PathBuf {
            let hex = hex::encode(digest.as_bytes());
            self.0.path().join("cache").join(&hex[..2]).join(&hex[2..])
        }
    }

    fn chunk(number: u8, size: usize) -> (Digest, Bytes) {
        let content = Bytes::from(vec![number; size]);
        (Digest::of(&content), content)
    }

    #[test]
    fn chunks_are_read_in_part_and_again_after_a_restart() {
        let folder = Folder::new();
        let (digest, content) = chunk(1, 1000);
        let cache = folder.open(10_000);
        assert_eq!(cache.read(&digest, 1000, 0..10), None);
        cache.put(digest, &content);
        assert_eq!(
            cache.read(&digest, 1000, 990..1000).unwrap(),
            content.slice(990..)
        );
        assert_eq!(cache.read(&digest, 1000, 990..1001), None, "beyond the end");
        drop(cache);
        let cache = folder.open(10_000);
        assert_eq!(
            cache.held(),
            CacheUsage {
                chunks: 1,
                bytes: 1000
            }
        );
        assert_eq!(cache.read(&digest, 1000, 0..1000).unwrap(), content);
        assert!(cache.disk.file(&digest, 1000).is_some());
    }

    #[test]
    fn torn_and_damaged_files_are_noticed_and_deleted() {
        let folder = Folder::new();
        let chunks = [chunk(1, 1000), chunk(2, 1000), chunk(3, 1000)];
        let cache = folder.open(10_000);
        chunks
            .iter()
            .for_each(|(digest, content)| cache.put(*digest, content));
        drop(cache);
        fs::write(folder.file(&chunks[0].0), vec![1; 999]).unwrap();
        fs::write(folder.file(&chunks[1].0), vec![3; 1000]).unwrap();
        fs::write(folder.0.path().join("cache/new/half"), "half").unwrap();
        let cache = folder.open(10_000);
        assert_eq!(cache.read(&chunks[0].0, 1000, 0..1), None);
        assert!(cache.disk.file(&chunks[1].0, 1000).is_none());
        assert!(cache.read(&chunks[2].0, 1000, 0..1).is_some());
        assert_eq!(
            cache.held(),
            CacheUsage {
                chunks: 1,
                bytes: 1000
            }
        );
        assert!(!folder.file(&chunks[0].0).exists() && !folder.file(&chunks[1].0).exists());
        assert_eq!(
            fs::read_dir(folder.0.path().join("cache/new"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn the_least_recently_used_are_evicted_first_and_an_open_file_stays_readable() {
        let folder = Folder::new();
        let chunks = [chunk(1, 1000), chunk(2, 1000), chunk(3, 1000)];
        let cache = folder.open(2_500);
        cache.put(chunks[0].0, &chunks[0].1);
        cache.put(chunks[1].0, &chunks[1].1);
        let open = cache.disk.file(&chunks[1].0, 1000).unwrap();
        cache.read(&chunks[0].0, 1000, 0..1).unwrap();
        cache.put(chunks[2].0, &chunks[2].1);
        assert_eq!(
            chunks.each_ref().map(|(digest, _)| cache.holds(digest)),
            [true, false, true]
        );
        assert_eq!(
            cache.held(),
            CacheUsage {
                chunks: 2,
                bytes: 2000
            }
        );
        assert!(!folder.file(&chunks[1].0).exists());
        assert_eq!(io::read_to_string(open).unwrap().len(), 1000);
        drop(cache);
        assert_eq!(
            folder.open(1_500).held().chunks,
            1,
            "a smaller limit applies at once"
        );
    }

    #[test]
    fn an_oversized_chunk_and_a_known_chunk_change_nothing() {
        let folder = Folder::new();
        let cache = folder.open(2_500);
        let (small, large) = (chunk(1, 1000), chunk(2, 3000));
        cache.put(small.0, &small.1);
        cache.put(small.0, &small.1);
        cache.put(large.0, &large.1);
        assert_eq!(
            cache.held(),
            CacheUsage {
                chunks: 1,
                bytes: 1000
            }
        );
    }

    #[test]
    fn chunks_stay_in_memory_if_the_disk_cannot_be_written() {
        let folder = Folder::new();
        let path = folder.0.path().join("cache");
        let cache = Cache::open(&path, ByteSize(10_000), ByteSize(10_000)).unwrap();
        fs::remove_dir_all(path.join("new")).unwrap();
        let (digest, content) = chunk(1, 1000);
        cache.put(digest, &content);
        assert_eq!(cache.held(), CacheUsage::default());
        assert_eq!(
            cache.read(&digest, 1000, 5..10).unwrap(),
            content.slice(5..10)
        );
    }
}
