//! The files of objects whose ranges were read a moment ago, kept open.
//!
//! Lazy clients request many small ranges of few layers. Bytes that are in the page cache are
//! copied by one system call on the thread that has the request; a lookup of the path, an open and
//! two hops to another thread cost more than the copy.

use std::fs::File;
use std::hash::Hash;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// How long a file that nobody reads stays open. The blocks of a deleted file are freed no later.
const IDLE: Duration = Duration::from_secs(30);
/// How long a file stays open. A file that was replaced in the folder is noticed no later.
const LIFETIME: Duration = Duration::from_secs(120);

/// The open files, by the names of what they hold. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct OpenFiles<K: Hash + Eq + Send + Sync + 'static>(Cache<K, Arc<OpenFile>>);

/// The open file of an object.
#[derive(Debug)]
pub(super) struct OpenFile(File);

impl<K: Hash + Eq + Send + Sync + 'static> OpenFiles<K> {
    /// Keeps at most `most` files open.
    pub(super) fn new(most: u64) -> Self {
        let files = Cache::builder()
            .max_capacity(most)
            .time_to_idle(IDLE)
            .time_to_live(LIFETIME);
        Self(files.build())
    }

    pub(super) fn get(&self, name: &K) -> Option<Arc<OpenFile>> {
        self.0.get(name)
    }

    pub(super) fn keep(&self, name: K, file: File) {
        self.0.insert(name, Arc::new(file.into()));
    }

    /// Opens a file of `size` bytes. Blocking. Does nothing if it cannot be opened or has another
    /// size, because an ordinary read finds out why.
    pub(super) fn open(&self, name: K, path: &Path, size: u64) {
        let Ok(file) = File::open(path) else {
            return;
        };
        if file.metadata().is_ok_and(|meta| meta.len() == size) {
            self.keep(name, file);
        }
    }

    pub(super) fn close(&self, name: &K) {
        self.0.invalidate(name);
    }
}

impl From<File> for OpenFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl OpenFile {
    /// Fills `buffer` with the bytes at `offset`. Blocking.
    ///
    /// # Errors
    /// If the file cannot be read, or ends before.
    pub(super) fn read_exact(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    /// Fills `buffer` with the bytes at `offset`, and returns whether it is full. It is not if some
    /// of them are not in the page cache, or the file ends before. Never waits for the disk (Linux,
    /// preadv2(2), `RWF_NOWAIT`).
    pub(super) fn read_cached(&self, mut buffer: &mut [u8], mut offset: u64) -> bool {
        while !buffer.is_empty() {
            let slices = &mut [IoSliceMut::new(buffer)];
            match preadv2(&self.0, slices, offset, ReadWriteFlags::NOWAIT) {
                Ok(0) => return false,
                Ok(read) => {
                    offset += read as u64;
                    buffer = buffer.get_mut(read..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn bytes_in_the_page_cache_are_read_and_a_short_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        std::fs::write(&path, b"0123456789").unwrap();
        let (files, digest) = (OpenFiles::new(9), Digest::sha256_of(b"object"));
        files.open(digest.clone(), &path, 9);
        assert!(files.get(&digest).is_none(), "the size differs");
        files.open(digest.clone(), &path, 10);
        let file = files.get(&digest).unwrap();
        let mut buffer = [0; 4];
        assert!(file.read_cached(&mut buffer, 3));
        assert_eq!(&buffer, b"3456");
        assert!(!file.read_cached(&mut buffer, 8), "the file ends before");
        files.close(&digest);
        assert!(files.get(&digest).is_none());
    }

    #[test]
    fn bytes_that_are_not_in_the_page_cache_are_left_to_an_ordinary_read() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("object");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let file = OpenFile::from(file);
        let mut buffer = vec![0; 1 << 20];
        assert!(!file.read_cached(&mut buffer, 0));
    }
}
