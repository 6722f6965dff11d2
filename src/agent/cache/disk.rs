//! The files of the cache.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use estargz::Digest;
use parking_lot::{Mutex, MutexGuard};

use super::CacheUsage;
use super::index::Index;
use crate::telemetry::metrics;

const NEW: &str = "new";

#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    limit: u64,
    index: Mutex<Index>,
    /// The number in the name of the next file to be written.
    next: AtomicU64,
}

impl Disk {
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let new = folder.join(NEW);
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&new)?;
        let mut index = Index::default();
        for found in files(folder)? {
            index.insert(found.digest, found.size, false);
        }
        let gone = index.shrink(limit);
        let disk = Self {
            folder: folder.to_owned(),
            limit,
            index: Mutex::new(index),
            next: AtomicU64::new(0),
        };
        gone.iter().for_each(|digest| disk.unlink(digest));
        Ok(disk)
    }

    pub(super) fn read(&self, digest: &Digest, size: u64, part: Range<u64>) -> Option<Vec<u8>> {
        let file = self.file(digest, size)?;
        if part.end > size {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(part.end.checked_sub(part.start)?).ok()?];
        match file.read_exact_at(&mut bytes, part.start) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.pass_over(digest, &error);
                None
            }
        }
    }

    /// Drops a file that is damaged or gone. A file that cannot be read at the moment stays:
    /// descriptors or memory are short, or the disk has a temporary fault.
    fn pass_over(&self, digest: &Digest, error: &io::Error) {
        if is_damage(error) {
            self.forget(digest, &error.to_string());
        } else {
            tracing::debug!(%digest, %error, "cached chunk not readable at the moment");
        }
    }

    /// Returns the chunk's file. Compares its content with its name at the first use.
    pub(super) fn file(&self, digest: &Digest, size: u64) -> Option<File> {
        let is_verified = self.index().use_now(digest)?;
        let opened = File::open(self.path(digest)).and_then(|mut file| {
            if !is_verified {
                compare(&mut file, digest, size)?;
            }
            Ok(file)
        });
        match opened {
            Ok(file) => {
                if !is_verified {
                    self.index().set_verified(digest);
                }
                Some(file)
            }
            Err(error) => {
                self.pass_over(digest, &error);
                None
            }
        }
    }

    pub(super) fn put(&self, digest: &Digest, content: &[u8]) {
        let size = content.len() as u64;
        if size > self.limit || self.holds(digest) {
            return;
        }
        // A file is in its place before it is in the index, and out of the index before it is
        // deleted.
        if let Err(error) = self.write(digest, content) {
            metrics::metrics().cache_write_failures.inc();
            tracing::debug!(%digest, %error, "chunk not written to disk");
            return;
        }
        let gone = {
            let mut index = self.index();
            index.insert(*digest, size, true);
            index.shrink(self.limit)
        };
        metrics::metrics().cache_evictions.inc_by(gone.len() as u64);
        gone.iter().for_each(|digest| self.unlink(digest));
    }

    fn write(&self, digest: &Digest, content: &[u8]) -> io::Result<()> {
        let new = self
            .folder
            .join(NEW)
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let path = self.path(digest);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(content)?;
                match fs::rename(&new, &path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
                        fs::rename(&new, &path)
                    }
                    outcome => outcome,
                }
            });
        if written.is_err() {
            // A leftover file is deleted at the next start at the latest.
            let _gone = fs::remove_file(&new);
        }
        written
    }

    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.index().contains(digest)
    }

    pub(super) fn held(&self) -> CacheUsage {
        self.index().held()
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn forget(&self, digest: &Digest, reason: &str) {
        tracing::warn!(%digest, reason, "cached chunk damaged; it is fetched again");
        metrics::metrics().cache_damaged.inc();
        self.index().remove(digest);
        self.unlink(digest);
    }

    fn unlink(&self, digest: &Digest) {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%digest, %error, "cached chunk not deleted");
            }
            _ => {}
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = hex::encode(digest.as_bytes());
        self.folder.join(&name[..2]).join(&name[2..])
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }
}

/// Whether the file itself is bad: it has the wrong length or content, or is missing.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    )
}

fn compare(file: &mut File, digest: &Digest, size: u64) -> io::Result<()> {
    let mut content = Vec::new();
    file.take(size.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() as u64 == size && Digest::of(&content) == *digest {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "content does not match its name",
        ))
    }
}

struct CachedFile {
    digest: Digest,
    size: u64,
    written: SystemTime,
}

/// Returns the chunks in a directory, the oldest first. Skips files with other names, which the
/// cache did not write.
fn files(folder: &Path) -> io::Result<Vec<CachedFile>> {
    let mut found = Vec::new();
    for shelf in fs::read_dir(folder)? {
        let shelf = shelf?;
        let (Ok(entries), Ok(prefix)) =
            (fs::read_dir(shelf.path()), shelf.file_name().into_string())
        else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Ok(digest) = format!("sha256:{prefix}{name}").parse() else {
                continue;
            };
            let metadata = entry.metadata()?;
            found.push(CachedFile {
                digest,
                size: metadata.len(),
                written: metadata.modified()?,
            });
        }
    }
    found.sort_by_key(|chunk| chunk.written);
    Ok(found)
}
