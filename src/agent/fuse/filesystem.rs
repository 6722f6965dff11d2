//! The agent's file systems. Each has a root with an entry for each lazily mounted layer: a
//! directory with its tree, or its data file. Knows inodes, not the kernel.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use estargz::toc::{Kind, Time};

use crate::agent::erofs;
use crate::agent::erofs::Probe;
use crate::agent::layer::Layer;
use crate::agent::layer::fetch::FetchError;
use crate::agent::layer::tree::{Attributes, FileId};
use crate::agent::layers::Layers;
use crate::agent::layers::mount::Mount;
use crate::agent::layers::recorder::Recorder;
use crate::agent::layers::table::Table;
use crate::agent::numbers::{Inode, LayerNumber};

/// Pause before an unreachable registry is asked again. Each further pause is twice as long. The
/// registry client has already tried several times before that.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// How long a registry that denies access is asked again: as long as a token-checking registry
/// takes to restart. A container whose image was withdrawn waits this long for its EIO.
const REFUSED: Duration = Duration::from_secs(10);
/// The inode of the data file that is not of a layer.
pub(crate) const PROBE_INODE: Inode = Inode(u64::MAX);
/// Names read by one lookup in the root's listing.
const ROOT_PAGE: usize = 256;

/// The reason why an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("no such file")]
    NotFound,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("wrong kind of file for this operation")]
    Invalid,
    #[error("no such attribute")]
    NoAttribute,
    #[error("content not available")]
    Unreadable,
}

/// A file system. Its answers block on the disk at most.
#[derive(Debug, Clone)]
pub(crate) struct FileSystem {
    table: Arc<Table>,
    recorder: Arc<Recorder>,
    probe: Arc<Probe>,
    view: View,
}

/// How a layer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Tree,
    /// As one file, which has the inode of the tree's root.
    Data,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub name: Vec<u8>,
    pub inode: Inode,
    pub attributes: Attributes,
    /// The position after this name, from which a listing continues.
    pub next: u64,
}

/// A file of a layer or its data file, opened for reading.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    layer: Arc<Layer>,
    content: Content,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    File(FileId),
    Data,
}

impl FileSystem {
    /// Creates a file system with the layers' trees.
    pub(crate) fn new(layers: &Layers) -> Self {
        Self::with(layers, View::Tree)
    }

    /// Creates a file system with the layers' data files.
    pub(crate) fn of_data(layers: &Layers) -> Self {
        Self::with(layers, View::Data)
    }

    fn with(layers: &Layers, view: View) -> Self {
        Self {
            table: Arc::clone(layers.table()),
            recorder: Arc::clone(layers.recorder()),
            probe: Arc::clone(layers.drivers().probe()),
            view,
        }
    }

    fn at(&self, inode: Inode) -> Result<(Arc<Mount>, Arc<Layer>, FileId), Error> {
        let (mount, id) = self.table.at(inode).ok_or(Error::NotFound)?;
        let layer = self
            .table
            .layer(&mount)
            .map(Arc::clone)
            .map_err(|_logged_already| Error::Unreadable)?;
        Ok((mount, layer, id))
    }

    fn root(&self) -> Attributes {
        Attributes {
            kind: Kind::Directory,
            // Containers and overlayfs reach a layer by its path as root. Nobody else may pass this
            // directory.
            mode: 0o700,
            uid: 0,
            gid: 0,
            links: u32::try_from(self.table.len()).unwrap_or(u32::MAX - 2) + 2,
            size: 0,
            modified: Time::default(),
            device: (0, 0),
        }
    }

    pub(crate) fn attributes(&self, inode: Inode) -> Result<Attributes, Error> {
        if inode == Inode::ROOT {
            return Ok(self.root());
        }
        if self.view == View::Data {
            return Ok(data_file(self.data_size(inode)?));
        }
        let (_, layer, id) = self.at(inode)?;
        layer.tree().attributes(id).ok_or(Error::NotFound)
    }

    /// Returns the size of a data file. A layer that is mounted as EROFS need not be loaded.
    fn data_size(&self, inode: Inode) -> Result<u64, Error> {
        if inode == PROBE_INODE {
            return Ok(erofs::PROBE_SIZE);
        }
        let (mount, _) = self.table.at(inode).ok_or(Error::NotFound)?;
        match mount.record.data_size {
            Some(size) => Ok(size),
            None => Ok(self.at(inode)?.1.data().places().size()),
        }
    }

    /// Returns the content of the data file that is not of a layer. `None` if it cannot be read.
    pub(crate) fn probe(&self) -> Option<&'static [u8]> {
        self.probe.content()
    }

    /// Returns the inode with this name in a directory. `.` and `/` name any inode itself: the
    /// kernel looks up `.` for an inode that it has forgotten, and `/` because an entry that it
    /// found by a file handle has no other name.
    pub(crate) fn lookup(&self, parent: Inode, name: &[u8]) -> Result<(Inode, Attributes), Error> {
        let inode = if name == b"." || name == b"/" {
            parent
        } else if self.view == View::Data && name == erofs::PROBE.as_bytes() {
            PROBE_INODE
        } else if parent == Inode::ROOT {
            self.table
                .by_name(name)
                .ok_or(Error::NotFound)?
                .inode(FileId::ROOT)
        } else {
            let (mount, layer, id) = self.at(parent)?;
            mount.inode(layer.tree().lookup(id, name).ok_or(Error::NotFound)?)
        };
        Ok((inode, self.attributes(inode)?))
    }

    /// Calls `take` with the names in a directory from `start` on, which is 0 or a name's `next`,
    /// until it returns false.
    pub(crate) fn list(
        &self,
        inode: Inode,
        start: u64,
        mut take: impl FnMut(Listed) -> bool,
    ) -> Result<(), Error> {
        if inode == Inode::ROOT {
            for mount in self.table.after(LayerNumber(start), ROOT_PAGE) {
                // A layer that cannot be read is not listed. A lookup of its name returns the
                // error.
                let inode = mount.inode(FileId::ROOT);
                let Ok(attributes) = self.attributes(inode) else {
                    continue;
                };
                let number = mount.record.number;
                if !take(Listed {
                    name: number.to_string().into(),
                    inode,
                    attributes,
                    next: number.0,
                }) {
                    break;
                }
            }
            return Ok(());
        }
        let (mount, layer, id) = self.at(inode)?;
        let tree = layer.tree();
        if self.view == View::Data
            || tree
                .attributes(id)
                .is_none_or(|attributes| attributes.kind != Kind::Directory)
        {
            return Err(Error::NotDirectory);
        }
        for entry in tree.entries(id, usize::try_from(start).unwrap_or(usize::MAX)) {
            let Some(attributes) = tree.attributes(entry.id) else {
                continue;
            };
            let listed = Listed {
                name: entry.name.to_vec(),
                inode: mount.inode(entry.id),
                attributes,
                next: entry.next as u64,
            };
            if !take(listed) {
                break;
            }
        }
        Ok(())
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn target(&self, inode: Inode) -> Result<Vec<u8>, Error> {
        let (_, layer, id) = self.at(inode)?;
        layer
            .tree()
            .target(id)
            .map(<[u8]>::to_vec)
            .ok_or(Error::Invalid)
    }

    pub(crate) fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>, Error> {
        if inode == Inode::ROOT || self.view == View::Data {
            return Err(Error::NoAttribute);
        }
        let (_, layer, id) = self.at(inode)?;
        layer
            .tree()
            .xattr(id, name)
            .map(<[u8]>::to_vec)
            .ok_or(Error::NoAttribute)
    }

    /// Returns the names of the extended attributes, each followed by a zero byte.
    pub(crate) fn xattrs(&self, inode: Inode) -> Result<Vec<u8>, Error> {
        if inode == Inode::ROOT || self.view == View::Data {
            return Ok(Vec::new());
        }
        let (_, layer, id) = self.at(inode)?;
        Ok(layer
            .tree()
            .xattrs(id)
            .flat_map(|(name, _)| name.iter().copied().chain([0]))
            .collect())
    }

    /// Returns the regular file to read `length` bytes from at `offset`, and records the read.
    pub(crate) fn read(&self, inode: Inode, offset: u64, length: u64) -> Result<Opened, Error> {
        if inode == Inode::ROOT {
            return Err(Error::IsDirectory);
        }
        let (mount, layer, id) = self.at(inode)?;
        let number = mount.record.number;
        if self.view == View::Data {
            return Ok(self.read_data(number, layer, offset, length));
        }
        let id = regular(&layer, id)?;
        let part = || layer.chunks_at(id, offset, length);
        self.recorder.note(number, id, part);
        let content = Content::File(id);
        Ok(Opened { layer, content })
    }

    fn read_data(
        &self,
        number: LayerNumber,
        layer: Arc<Layer>,
        offset: u64,
        length: u64,
    ) -> Opened {
        let recorder = &self.recorder;
        if recorder.is_running() {
            for (id, part) in layer.files_at(offset..offset.saturating_add(length)) {
                recorder.note(number, id, || Some(part.clone()));
            }
        }
        let content = Content::Data;
        Opened { layer, content }
    }

    /// Returns the number of files and directories in all layers.
    pub(crate) fn inodes(&self) -> u64 {
        self.table
            .all()
            .iter()
            .map(|mount| u64::from(mount.record.inodes))
            .sum()
    }
}

/// Returns the ID of a file, if it is a regular file.
fn regular(layer: &Layer, id: FileId) -> Result<FileId, Error> {
    let attributes = layer.tree().attributes(id);
    match attributes.map(|attributes| attributes.kind) {
        Some(Kind::File) => Ok(id),
        Some(Kind::Directory) => Err(Error::IsDirectory),
        _ => Err(Error::Invalid),
    }
}

fn data_file(size: u64) -> Attributes {
    Attributes {
        kind: Kind::File,
        mode: 0o400,
        uid: 0,
        gid: 0,
        links: 1,
        size,
        modified: Time::default(),
        device: (0, 0),
    }
}

impl Opened {
    /// Returns bytes from `offset` on, fewer at the file's end, if they are on this node.
    pub(crate) fn read_held(&self, offset: u64, length: u64) -> Option<Bytes> {
        match self.content {
            Content::File(id) => self.layer.read_held(id, offset, length),
            Content::Data => self.layer.read_data_held(self.part(offset, length)),
        }
    }

    /// Returns the range of the data file, which ends with the file.
    fn part(&self, offset: u64, length: u64) -> Range<u64> {
        let size = self.layer.data().places().size();
        let end = offset.saturating_add(length).min(size);
        offset.min(end)..end
    }

    async fn read_once(&self, offset: u64, length: u64) -> Result<Bytes, FetchError> {
        match self.content {
            Content::File(id) => self.layer.read(id, offset, length).await,
            Content::Data => self.layer.read_data(self.part(offset, length)).await,
        }
    }

    /// Returns bytes from `offset` on, from the registry if need be. Retries while the registry is
    /// unreachable, and for a while if it denies access. The caller must set a timeout.
    ///
    /// Cancel safe: bytes in transit arrive all the same.
    ///
    /// # Errors
    /// If the registry does not have the bytes, denies access, or returns other bytes.
    pub(crate) async fn read(&self, offset: u64, length: u64) -> Result<Bytes, FetchError> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.read_once(offset, length).await {
                Err(error)
                    if error.is_transient() || (error.is_denial() && begun.elapsed() < REFUSED) =>
                {
                    tokio::time::sleep(pause).await;
                }
                outcome => return outcome,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Returns the bytes received for the file's layer so far.
    pub(crate) fn received(&self) -> u64 {
        self.layer.traffic().received()
    }

    /// Returns the layer's digest, for the log.
    pub(crate) fn layer(&self) -> &crate::oci::Digest {
        &self.layer.blob().digest
    }
}
