//! Files by name, in a directory or a tar, and their bytes by position.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::inflate;
use super::io_error::failed;
use super::tar_index::TarIndex;
use crate::oci::Digest;
use crate::registry::Error;

/// The size of one read of a file: large enough to hash at full speed, small enough to hold many.
const CHUNK: u64 = 256 << 10;

/// Files by name.
#[derive(Debug)]
pub(super) enum Files {
    Directory(Arc<File>),
    Archive { file: Arc<File>, index: TarIndex },
}

/// The location of a file's bytes.
#[derive(Debug, Clone)]
pub(super) enum Extent {
    File {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
    Memory(Bytes),
}

impl Files {
    pub(super) fn directory(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty());
        // A missing layout is not a missing image but an error in the configuration.
        let directory = directory.map_err(|error| {
            Error::Unavailable(format!("the layout {}: {error}", path.display()))
        })?;
        Ok(Self::Directory(Arc::new(directory.into())))
    }

    /// Opens the files of a tar. A compressed one is first inflated into an unnamed file.
    pub(super) fn archive(file: File) -> Result<Self, Error> {
        let file = inflate::plain(file)?;
        let index = TarIndex::read(&file)?;
        Ok(Self::Archive {
            file: Arc::new(file),
            index,
        })
    }

    /// Opens the regular file `name`. A symbolic link that leads out of the directory is an error.
    pub(super) fn open(&self, name: &str) -> Result<Extent, Error> {
        match self {
            Self::Directory(directory) => {
                // Without NONBLOCK, opening a FIFO in the place of a blob would block.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = openat2(directory, name, flags, Mode::empty(), beneath);
                let file = File::from(file.map_err(|error| failed(&error.into()))?);
                let metadata = file.metadata().map_err(|error| failed(&error))?;
                if !metadata.is_file() {
                    return Err(Error::Malformed(format!("{name} is not a regular file")));
                }
                Ok(Extent::File {
                    file: Arc::new(file),
                    offset: 0,
                    size: metadata.len(),
                })
            }
            Self::Archive { file, index } => {
                let range = index.find(name).ok_or(Error::NotFound)?;
                Ok(Extent::File {
                    file: Arc::clone(file),
                    offset: range.start,
                    size: range.end - range.start,
                })
            }
        }
    }
}

impl Extent {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Returns the position in its file at which this extent starts, in bytes.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::File { offset, .. } => *offset,
            Self::Memory(_) => 0,
        }
    }

    /// Returns all bytes if they are at most `limit`. Blocking.
    pub(super) fn read(&self, limit: u64) -> Result<Bytes, Error> {
        if self.size() > limit {
            return Err(Error::TooLarge { limit });
        }
        self.read_at(0..self.size())
    }

    /// Returns the bytes of `range`. Blocking.
    fn read_at(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let length = usize::try_from(range.end - range.start);
        let length = length.map_err(|error| Error::Unavailable(error.to_string()))?;
        match self {
            Self::File { file, offset, .. } => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, offset + range.start)
                    .map_err(|error| failed(&error))?;
                Ok(bytes.into())
            }
            Self::Memory(bytes) => {
                let start = usize::try_from(range.start)
                    .map_err(|error| Error::Unavailable(error.to_string()))?;
                Ok(bytes.slice(start..start + length))
            }
        }
    }

    /// Returns the digest of all bytes, and the first four of them. Blocking.
    pub(super) fn digest(&self) -> Result<(Digest, Bytes), Error> {
        let mut hasher = crate::oci::digest::Hasher::new(crate::oci::digest::Algorithm::Sha256);
        let mut position = 0;
        while position < self.size() {
            let end = self.size().min(position + CHUNK);
            hasher.update(&self.read_at(position..end)?);
            position = end;
        }
        Ok((hasher.finish(), self.read_at(0..self.size().min(4))?))
    }

    /// Returns the bytes of `range`, which lies within the file, as a stream.
    pub(super) fn stream(self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, Error>> {
        let chunks = stream::try_unfold((self, range), |(extent, left)| async move {
            if left.is_empty() {
                return Ok(None);
            }
            let end = left.end.min(left.start + CHUNK);
            let read = tokio::task::spawn_blocking(move || {
                let chunk = extent.read_at(left.start..end);
                chunk.map(|chunk| (chunk, (extent, end..left.end)))
            });
            read.await
                .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
                .map(Some)
        });
        chunks.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_directory_is_opened() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("layout");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(outer.path().join("secret"), "x").unwrap();
        std::fs::write(inner.join("file"), "inside").unwrap();
        std::os::unix::fs::symlink("file", inner.join("good")).unwrap();
        std::os::unix::fs::symlink("../secret", inner.join("bad")).unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret"), inner.join("worse")).unwrap();
        let files = Files::directory(&inner).unwrap();
        assert_eq!(
            &files.open("good").unwrap().read(100).unwrap()[..],
            b"inside"
        );
        for name in ["bad", "worse", "../secret", "/etc/passwd", ".", "absent"] {
            assert!(files.open(name).is_err(), "{name}");
        }
        assert!(matches!(
            files.open("file").unwrap().read(3),
            Err(Error::TooLarge { limit: 3 })
        ));
    }
}
