//! The two files of a layer: its content and the map of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use estargz::Digest;
use rustix::fs::{FallocateFlags, fallocate};

use super::crash::step;
use super::map::{Boot, Map, State, Subject};
use super::space::{Space, Usage};

/// Where the files of a layer are, and what they must be.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) data: PathBuf,
    pub(super) map: PathBuf,
    pub(super) toc: Digest,
    pub(super) chunks: u32,
    pub(super) size: u64,
    pub(super) boot: Boot,
    pub(super) space: Arc<Space>,
}

/// The open files of a layer.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) data: File,
    pub(super) map: Map,
    /// The inode of the data file.
    pub(super) inode: u64,
    pub(super) is_writable: bool,
    /// What the map takes on disk.
    map_usage: Usage,
    space: Arc<Space>,
}

/// The files that were found.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// Files that cannot be used, and the reason.
    Damaged(&'static str),
    Files(Files, Vec<State>),
}

impl Site {
    /// Opens the files and reads the map.
    ///
    /// # Errors
    /// If they cannot be read at the moment.
    pub(super) fn open(&self) -> io::Result<Found> {
        let (data, is_writable) = match open(&self.data) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let has_map = fs::symlink_metadata(&self.map).is_ok();
                return Ok(if has_map {
                    Found::Damaged("no data file")
                } else {
                    Found::Nothing
                });
            }
            Err(error) => return Err(error),
        };
        let map = match open(&self.map) {
            Ok((map, _)) => Map::new(map),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Found::Damaged("no map"));
            }
            Err(error) => return Err(error),
        };
        let metadata = data.metadata()?;
        if metadata.len() != self.size {
            return Ok(Found::Damaged("data file of another size"));
        }
        let subject = self.subject(metadata.ino());
        let Some((states, is_stale)) = map.read(&subject, self.boot)? else {
            return Ok(Found::Damaged("map damaged or of another layer"));
        };
        let map = if is_stale {
            self.renewed(map, &subject, &states)
        } else {
            map
        };
        let files = self.files(data, map, metadata.ino(), is_writable)?;
        Ok(Found::Files(files, states))
    }

    /// Returns the map for the present boot. On a disk that cannot be written it stays as it is,
    /// and its chunks are as doubtful at the next start.
    fn renewed(&self, map: Map, subject: &Subject, states: &[State]) -> Map {
        match Map::create(&self.map, subject, self.boot, states.iter().copied()) {
            Ok(new) => new,
            Err(error) => {
                tracing::debug!(%error, map = %self.map.display(), "map not renewed");
                map
            }
        }
    }

    /// Creates the files, in place of any that exist.
    pub(super) fn create(&self) -> io::Result<Files> {
        if let Some(folder) = self.data.parent() {
            make_folder(folder)?;
        }
        self.remove()?;
        step();
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.data)?;
        let made = self.fill(&data);
        let (map, inode) = made.inspect_err(|_| drop(fs::remove_file(&self.data)))?;
        self.files(data, map, inode, true)
    }

    fn fill(&self, data: &File) -> io::Result<(Map, u64)> {
        step();
        data.set_len(self.size)?;
        let inode = data.metadata()?.ino();
        let states = std::iter::repeat_n(State::Absent, self.chunks as usize);
        let map = Map::create(&self.map, &self.subject(inode), self.boot, states)?;
        Ok((map, inode))
    }

    /// Deletes the files. The map goes first: content without a map is not read.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.map)?;
        step();
        remove(&self.data)
    }

    fn subject(&self, inode: u64) -> Subject {
        Subject {
            chunks: self.chunks,
            toc: self.toc,
            inode,
        }
    }

    fn files(&self, data: File, map: Map, inode: u64, is_writable: bool) -> io::Result<Files> {
        let map_usage = Usage::of(&map.file().metadata()?);
        self.space.open_files().fetch_add(1, Ordering::Relaxed);
        Ok(Files {
            data,
            map,
            inode,
            is_writable,
            map_usage,
            space: Arc::clone(&self.space),
        })
    }
}

impl Files {
    /// Frees blocks. Content that cannot be freed is overwritten later.
    pub(super) fn punch_hole(&self, range: &Range<u64>) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let freed = fallocate(&self.data, flags, range.start, range.end - range.start);
        if let Err(error) = freed {
            tracing::debug!(%error, "blocks not freed");
        }
    }

    /// Returns what the files take on disk. `None` if the data file was deleted by somebody else.
    pub(super) fn usage(&self) -> io::Result<Option<Usage>> {
        let data = self.data.metadata()?;
        Ok((data.nlink() > 0).then(|| Usage::of(&data) + self.map_usage))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.space.open_files().fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the map says of each chunk of the data file that it is durable. A layer with holes counts
/// as one that lacks something.
pub(super) fn is_durable(data: &Path, map: &Path, toc: &Digest) -> bool {
    let states = || {
        let (inode, map) = (fs::metadata(data)?.ino(), File::open(map)?);
        let map = Map::new(map);
        let subject = Subject {
            chunks: map.chunks()?,
            toc: *toc,
            inode,
        };
        map.read(&subject, Boot::current())
    };
    match states() {
        Ok(Some((states, _))) => states.iter().all(|state| *state == State::Durable),
        Ok(None) | Err(_) => false,
    }
}

pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a file for writing too, if that is possible. Returns whether it is.
fn open(path: &Path) -> io::Result<(File, bool)> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if is_read_only(&error) => Ok((File::open(path)?, false)),
        outcome => Ok((outcome?, true)),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}
