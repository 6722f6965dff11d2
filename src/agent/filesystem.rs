//! The agent's file system: a root with a directory for each lazily mounted layer. Knows inodes,
//! not the kernel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use estargz::toc::{Kind, Time};

use super::fetch::FetchError;
use super::layer::Layer;
use super::layers::Layers;
use super::mount::{Mount, ROOT_INODE};
use super::tree::{Attributes, FileId};

/// Pause before an unreachable registry is asked again. Each further pause is twice as long. The
/// registry client has already tried several times before that.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// How long a registry that denies access is asked again: as long as a token-checking registry
/// takes to restart. A container whose image was withdrawn waits this long for its EIO.
const REFUSED: Duration = Duration::from_secs(10);
/// Names read by one lookup in the root's listing.
const ROOT_PAGE: usize = 256;

/// The reason why an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
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

/// The file system. Its answers block on the disk at most.
#[derive(Debug, Clone)]
pub struct FileSystem {
    layers: Arc<Layers>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub inode: u64,
    pub attributes: Attributes,
    /// The position after this name, from which a listing continues.
    pub next: u64,
}

/// A file of a layer, opened for reading.
#[derive(Debug, Clone)]
pub struct Opened {
    number: u64,
    layer: Arc<Layer>,
    id: FileId,
}

impl FileSystem {
    pub fn new(layers: Arc<Layers>) -> Self {
        Self { layers }
    }

    fn at(&self, inode: u64) -> Result<(Arc<Mount>, Arc<Layer>, FileId), Error> {
        let (mount, id) = self.layers.at(inode).ok_or(Error::NotFound)?;
        let layer = self
            .layers
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
            links: u32::try_from(self.layers.len()).unwrap_or(u32::MAX - 2) + 2,
            size: 0,
            modified: Time::default(),
            device: (0, 0),
        }
    }

    pub fn attributes(&self, inode: u64) -> Result<Attributes, Error> {
        if inode == ROOT_INODE {
            return Ok(self.root());
        }
        let (_, layer, id) = self.at(inode)?;
        layer.tree().attributes(id).ok_or(Error::NotFound)
    }

    /// Returns the inode with this name in a directory. `.` and `/` name any inode itself: the
    /// kernel looks up `.` for an inode that it has forgotten, and `/` because an entry that it
    /// found by a file handle has no other name.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<(u64, Attributes), Error> {
        let inode = if name == b"." || name == b"/" {
            parent
        } else if parent == ROOT_INODE {
            self.layers
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
    pub fn list(
        &self,
        inode: u64,
        start: u64,
        mut take: impl FnMut(Listed) -> bool,
    ) -> Result<(), Error> {
        if inode == ROOT_INODE {
            for mount in self.layers.after(start, ROOT_PAGE) {
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
                    next: number,
                }) {
                    break;
                }
            }
            return Ok(());
        }
        let (mount, layer, id) = self.at(inode)?;
        let tree = layer.tree();
        if tree
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
    pub fn target(&self, inode: u64) -> Result<Vec<u8>, Error> {
        let (_, layer, id) = self.at(inode)?;
        layer
            .tree()
            .target(id)
            .map(<[u8]>::to_vec)
            .ok_or(Error::Invalid)
    }

    pub fn xattr(&self, inode: u64, name: &[u8]) -> Result<Vec<u8>, Error> {
        if inode == ROOT_INODE {
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
    pub fn xattrs(&self, inode: u64) -> Result<Vec<u8>, Error> {
        if inode == ROOT_INODE {
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
    pub fn read(&self, inode: u64, offset: u64, length: u64) -> Result<Opened, Error> {
        let opened = self.file(inode)?;
        let part = || opened.layer.chunks_at(opened.id, offset, length);
        self.layers.recorder().note(opened.number, opened.id, part);
        Ok(opened)
    }

    fn file(&self, inode: u64) -> Result<Opened, Error> {
        if inode == ROOT_INODE {
            return Err(Error::IsDirectory);
        }
        let (mount, layer, id) = self.at(inode)?;
        match layer
            .tree()
            .attributes(id)
            .map(|attributes| attributes.kind)
        {
            Some(Kind::File) => Ok(Opened {
                number: mount.record.number,
                layer,
                id,
            }),
            Some(Kind::Directory) => Err(Error::IsDirectory),
            _ => Err(Error::Invalid),
        }
    }

    /// Returns the number of files and directories in all layers.
    pub fn inodes(&self) -> u64 {
        self.layers
            .after(0, usize::MAX)
            .iter()
            .map(|mount| u64::from(mount.record.inodes))
            .sum()
    }
}

impl Opened {
    /// Returns bytes from `offset` on, fewer at the file's end, if they are on this node.
    pub fn read_held(&self, offset: u64, length: u64) -> Option<Bytes> {
        self.layer.read_held(self.id, offset, length)
    }

    /// Returns bytes from `offset` on, from the registry if need be. Retries while the registry is
    /// unreachable, and for a while if it denies access. The caller must set a timeout.
    ///
    /// Cancel safe: bytes in transit arrive all the same.
    ///
    /// # Errors
    /// If the registry does not have the bytes, denies access, or returns other bytes.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, FetchError> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.layer.read(self.id, offset, length).await {
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
    pub fn received(&self) -> u64 {
        self.layer.traffic().received()
    }

    /// Returns the layer's digest, for the log.
    pub fn layer(&self) -> &crate::oci::Digest {
        &self.layer.blob().digest
    }
}
