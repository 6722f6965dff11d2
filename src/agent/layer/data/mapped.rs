//! Memory in files that have no name: the tables of layers that nobody reads take none.
//!
//! ```text
//! tables ▶ a file in the agent's root, deleted at once ▶ mapped ▶ read as memory
//! ```
//! The kernel takes such pages back whenever it needs them, and [`MappedFiles::release`] gives them
//! back. A file belongs to one process and ends with it, so that a crash leaves nothing that could be
//! torn. It is never written again. If the disk cannot read it back, the kernel ends the agent; the
//! next one makes the tables anew.

#![expect(unsafe_code, reason = "mmap(2)")]

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Smaller tables are not worth a file: a mapping takes whole pages, and each has a cost of its own.
const MIN_SIZE: usize = 64 << 10;

/// The mapped files of a process, all in one folder.
#[derive(Debug)]
pub(super) struct MappedFiles {
    folder: PathBuf,
    all: Mutex<Vec<Weak<Mapping>>>,
}

/// Bytes in a mapped file. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct MappedBytes(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping is only read, and stays in its place until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl MappedFiles {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            all: Mutex::default(),
        }
    }

    /// Returns a copy of `bytes` in a mapped file. `None` if there are few, or the file cannot be
    /// written: they then stay where they are.
    pub(super) fn copy(&self, bytes: &[u8]) -> Option<MappedBytes> {
        if bytes.len() < MIN_SIZE {
            return None;
        }
        let mapped = Mapping::new(&self.folder, bytes).inspect_err(|error| {
            tracing::debug!(%error, "tables of a layer not mapped; they stay in memory");
        });
        let mapped = Arc::new(mapped.ok()?);
        let mut all = self.all.lock();
        all.retain(|mapping| mapping.strong_count() > 0);
        all.push(Arc::downgrade(&mapped));
        Some(MappedBytes(mapped))
    }

    /// Gives the pages of all files back. A page that is read again comes from the page cache, or
    /// from the disk if the kernel needed the memory.
    pub(super) fn release(&self) {
        let all = self.all.lock().clone();
        for mapping in all.iter().filter_map(Weak::upgrade) {
            mapping.release();
        }
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Mapping {
    fn new(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(folder)?;
        file.write_all(bytes)?;
        Self::of(&file, bytes.len())
    }

    /// Maps a file of at least `length` bytes, which nobody else has.
    fn of(file: &File, length: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses a place that is free.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        let start = NonNull::new(start?).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has these bytes as long as it lives. The file has no name, and nobody
        // writes to it or cuts it.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }

    fn release(&self) {
        // SAFETY: the pages of a shared mapping are those of the file, so that nothing is lost.
        let released = unsafe { madvise(self.start.as_ptr(), self.length, Advice::LinuxDontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of a mapped file not released");
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the place and the length are those of the mapping, and nobody has a reference to
        // it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.length) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "file not unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn bytes() -> Vec<u8> {
        (0..=u8::MAX).cycle().take(MIN_SIZE + 5).collect()
    }

    #[test]
    fn bytes_are_the_same_after_their_pages_were_released() {
        let folder = tempfile::tempdir().unwrap();
        let files = MappedFiles::new(folder.path());
        let mapped = files.copy(&bytes()).unwrap();
        assert_eq!(mapped.as_ref(), bytes());
        files.release();
        assert_eq!(mapped.as_ref(), bytes());
        assert_eq!(resident(&mapped), MIN_SIZE + 4096);
        files.release();
        assert_eq!(resident(&mapped), 0);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "the file has no name");
    }

    /// Returns how many bytes of the mapping the process holds, as the kernel counts them.
    fn resident(mapped: &MappedBytes) -> usize {
        let start = format!("{:x}-", mapped.0.start.as_ptr().addr());
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let kilobytes = line.trim().trim_end_matches(" kB").trim();
        kilobytes.parse::<usize>().unwrap() << 10
    }

    #[test]
    fn few_bytes_and_bytes_that_cannot_be_written_stay_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let files = MappedFiles::new(folder.path());
        assert!(files.copy(&bytes()[..MIN_SIZE - 1]).is_none());
        let missing = MappedFiles::new(&folder.path().join("missing"));
        assert!(missing.copy(&bytes()).is_none());
    }

    #[test]
    fn a_mapping_ends_with_its_last_owner() {
        let folder = tempfile::tempdir().unwrap();
        let files = MappedFiles::new(folder.path());
        let first = files.copy(&bytes()).unwrap();
        let other = first.clone();
        drop(first);
        assert_eq!(other.as_ref(), bytes());
        drop(other);
        files.release();
        let next = files.copy(&bytes());
        assert!(next.is_some());
        assert_eq!(files.all.lock().len(), 1);
    }
}
