//! An image before it is laid out: inodes, names, and their targets.

use std::fmt;
use std::io::Write;

use crate::chunks::{self, Geometry, Piece};
use crate::error::ImageError;
use crate::format::{device_number, mode_of};
use crate::layout::Layout;
use crate::limits::{
    MAX_BLOCK_SIZE, MAX_DEVICE_BLOCKS, MAX_FILE_SIZE, MAX_MAJOR, MAX_MINOR, MAX_NAME, MAX_NODES,
    MAX_SYMLINK_TARGET, MIN_BLOCK_SIZE,
};
use crate::node::{Attributes, Data, Extent, Kind, NodeId};
use crate::xattr::{XattrList, XattrTable};

/// The properties of an [`Image`].
#[derive(Clone, Debug)]
pub struct Builder {
    block_size: u32,
    uuid: [u8; 16],
    device_blocks: Option<u64>,
    root: Attributes,
}

impl Builder {
    /// Sets the block size in bytes: 4096 if it is not set. It is also the alignment of files on
    /// the data device.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Sets the UUID of the file system: zeros if it is not set. Overlayfs distinguishes its lower
    /// layers by it, so each layer should have its own, such as the first bytes of a digest.
    #[must_use]
    pub fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = uuid;
        self
    }

    /// Sets the size of the data device in blocks. No extent may end after it. If it is not set,
    /// the device ends with the last extent.
    #[must_use]
    pub fn device(mut self, blocks: u64) -> Self {
        self.device_blocks = Some(blocks);
        self
    }

    /// Sets the attributes of the root directory.
    #[must_use]
    pub fn root(mut self, attributes: Attributes) -> Self {
        self.root = attributes;
        self
    }

    /// Returns an image with an empty root directory.
    ///
    /// # Errors
    ///
    /// If the block size, the device's size or the root's attributes are out of range.
    pub fn build(self) -> Result<Image, ImageError> {
        let geometry = Geometry {
            block_bits: block_bits(self.block_size)?,
            device_blocks: device_blocks(self.device_blocks.unwrap_or(MAX_DEVICE_BLOCKS))?,
        };
        let mut image = Image::empty(geometry, self.uuid);
        image.device_end = self.device_blocks.map_or(0, |_| geometry.device_blocks);
        image.add(Kind::Directory, &self.root)?;
        Ok(image)
    }
}

/// An image in memory: inodes and their names.
pub struct Image {
    pub(crate) geometry: Geometry,
    pub(crate) uuid: [u8; 16],
    /// Size of the data device in blocks, as far as it is known.
    pub(crate) device_end: u32,
    pub(crate) inodes: Vec<Inode>,
    pub(crate) links: Vec<Link>,
    pieces: Vec<Piece>,
    pub(crate) xattrs: XattrTable,
    /// Names and symbolic links' targets.
    bytes: Vec<u8>,
}

/// An inode. Its number in the image is the position in [`Image::inodes`].
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) seconds: i64,
    /// Bytes of a regular file or a symbolic link.
    pub(crate) size: u64,
    pub(crate) content: Content,
    pub(crate) nanoseconds: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names; of a directory also its subdirectories and itself.
    pub(crate) links: u32,
    pub(crate) xattrs: XattrList,
    /// Kind and permissions.
    pub(crate) mode: u16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// The parent is not known before the directory has a name; the root is its own parent.
    Directory {
        parent: Option<u32>,
    },
    File {
        data: FileData,
        chunk_bits: u8,
    },
    Symlink {
        target: u32,
    },
    Device {
        number: u32,
    },
    Empty,
}

/// Where a regular file is on the data device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FileData {
    Contiguous {
        device_block: u32,
        blocks: u32,
    },
    /// A part of [`Image::pieces`].
    Pieces {
        first: u32,
        count: u32,
    },
}

/// A name in a directory.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) parent: u32,
    pub(crate) node: u32,
    name: u32,
    length: u8,
}

impl Image {
    /// Returns a builder for images with blocks of 4096 bytes and no data.
    pub fn builder() -> Builder {
        Builder {
            block_size: 4096,
            uuid: [0; 16],
            device_blocks: None,
            root: Attributes::default(),
        }
    }

    fn empty(geometry: Geometry, uuid: [u8; 16]) -> Self {
        Self {
            geometry,
            uuid,
            device_end: 0,
            inodes: Vec::new(),
            links: Vec::new(),
            pieces: Vec::new(),
            xattrs: XattrTable::default(),
            bytes: Vec::new(),
        }
    }

    /// Returns the root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds an inode that has no name yet.
    ///
    /// # Errors
    ///
    /// If a value is out of range or an extent is not on the data device.
    pub fn add(&mut self, kind: Kind<'_>, attributes: &Attributes) -> Result<NodeId, ImageError> {
        if self.inodes.len() >= MAX_NODES {
            return Err(ImageError::TooManyNodes);
        }
        if attributes.permissions > 0o7777 {
            return Err(ImageError::Permissions(attributes.permissions));
        }
        if attributes.modified.nanoseconds >= 1_000_000_000 {
            return Err(ImageError::Nanoseconds(attributes.modified.nanoseconds));
        }
        let node =
            u32::try_from(self.inodes.len()).map_err(|_too_many| ImageError::TooManyNodes)?;
        let (content, size) = self.content(kind)?;
        self.inodes.push(Inode {
            seconds: attributes.modified.seconds,
            size,
            content,
            nanoseconds: attributes.modified.nanoseconds,
            uid: attributes.uid,
            gid: attributes.gid,
            // A directory is its own "." and, the root, its own "..".
            links: if kind == Kind::Directory {
                1 + u32::from(node == 0)
            } else {
                0
            },
            xattrs: XattrList::default(),
            mode: mode_of(&kind) | attributes.permissions,
        });
        Ok(NodeId(node))
    }

    /// Gives `node` the name `name` in the directory `parent`. A node that is not a directory may
    /// have many names. Whether the directory has the name already is checked by
    /// [`layout`](Image::layout).
    ///
    /// # Errors
    ///
    /// If the name is not a file name, `parent` is not a directory, or `node` is a directory that
    /// has a name.
    pub fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<(), ImageError> {
        check_name(name)?;
        if !matches!(self.inode(parent)?.content, Content::Directory { .. }) {
            return Err(ImageError::NotADirectory(parent));
        }
        let inode = self
            .inodes
            .get_mut(node.index())
            .ok_or(ImageError::UnknownNode(node))?;
        let is_directory = if let Content::Directory { parent: known } = &mut inode.content {
            if known.is_some() {
                return Err(ImageError::DirectoryLink(node));
            }
            *known = Some(parent.0);
            true
        } else {
            false
        };
        inode.links = inode.links.checked_add(1).ok_or(ImageError::TooManyNodes)?;
        if is_directory {
            self.inodes[parent.index()].links += 1;
        }
        let offset = self.store(name)?;
        let length =
            u8::try_from(name.len()).map_err(|_too_long| ImageError::NameLength(name.len()))?;
        self.links.push(Link {
            parent: parent.0,
            node: node.0,
            name: offset,
            length,
        });
        Ok(())
    }

    /// Adds an inode and gives it a name: [`add`](Image::add) and [`link`](Image::link).
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        kind: Kind<'_>,
        attributes: &Attributes,
    ) -> Result<NodeId, ImageError> {
        let node = self.add(kind, attributes)?;
        self.link(parent, name, node)?;
        Ok(node)
    }

    /// Adds an extended attribute. `name` is the whole name, such as `security.capability`. The
    /// value of a POSIX ACL is the one that `getxattr(2)` returns. Whether the node has the
    /// attribute already is checked by [`layout`](Image::layout).
    ///
    /// # Errors
    ///
    /// If the format has no place for attributes of this name, or name or value are too long.
    pub fn add_xattr(&mut self, node: NodeId, name: &[u8], value: &[u8]) -> Result<(), ImageError> {
        let inode = self
            .inodes
            .get_mut(node.index())
            .ok_or(ImageError::UnknownNode(node))?;
        self.xattrs.add(&mut inode.xattrs, name, value)
    }

    /// Returns the number of inodes, the root included.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Sorts the directories and gives every inode its place.
    ///
    /// # Errors
    ///
    /// If a directory has a name twice or a node has an attribute twice, if a node cannot be
    /// reached from the root, or if the image would be too large.
    pub fn layout(self) -> Result<Layout, ImageError> {
        Layout::new(self)
    }

    /// Lays the image out and writes it in one pass. `writer` receives large pieces and needs no
    /// buffer.
    ///
    /// # Errors
    ///
    /// Those of [`layout`](Image::layout) and of `writer`.
    pub fn write_to(self, writer: impl Write) -> Result<(), ImageError> {
        self.layout()?.write_to(writer)
    }

    fn inode(&self, node: NodeId) -> Result<&Inode, ImageError> {
        self.inodes
            .get(node.index())
            .ok_or(ImageError::UnknownNode(node))
    }

    fn content(&mut self, kind: Kind<'_>) -> Result<(Content, u64), ImageError> {
        match kind {
            Kind::Directory => {
                let parent = self.inodes.is_empty().then_some(0);
                Ok((Content::Directory { parent }, 0))
            }
            Kind::File { size, data } => Ok((self.file(size, data)?, size)),
            Kind::Symlink(target) => Ok((self.symlink(target)?, target.len() as u64)),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                Ok((device(major, minor)?, 0))
            }
            Kind::Fifo | Kind::Socket => Ok((Content::Empty, 0)),
        }
    }

    fn file(&mut self, size: u64, data: Data<'_>) -> Result<Content, ImageError> {
        if size > MAX_FILE_SIZE {
            return Err(ImageError::FileSize(size));
        }
        let whole;
        let extents: &[Extent] = match data {
            Data::At(device_offset) if size > 0 => {
                whole = [Extent {
                    offset: 0,
                    device_offset,
                    length: size,
                }];
                &whole
            }
            Data::At(_) | Data::Hole => &[],
            Data::Extents(extents) => extents,
        };
        let pieces = chunks::pieces(size, extents, self.geometry)?;
        let chunk_bits = chunks::chunk_bits(self.geometry.blocks(size), &pieces)?;
        let ends = pieces.iter().map(|piece| piece.device_block + piece.blocks);
        self.device_end = ends.fold(self.device_end, u32::max);
        let data = match pieces[..] {
            [
                Piece {
                    block: 0,
                    device_block,
                    blocks,
                },
            ] => FileData::Contiguous {
                device_block,
                blocks,
            },
            _ => self.store_pieces(&pieces)?,
        };
        Ok(Content::File { data, chunk_bits })
    }

    fn store_pieces(&mut self, pieces: &[Piece]) -> Result<FileData, ImageError> {
        let narrow = |length| u32::try_from(length).map_err(|_too_many| ImageError::ImageSize);
        let (first, count) = (narrow(self.pieces.len())?, narrow(pieces.len())?);
        self.pieces.extend(pieces);
        Ok(FileData::Pieces { first, count })
    }

    fn symlink(&mut self, target: &[u8]) -> Result<Content, ImageError> {
        if target.is_empty() || target.len() > MAX_SYMLINK_TARGET {
            return Err(ImageError::SymlinkLength(target.len()));
        }
        if target.contains(&0) {
            return Err(ImageError::SymlinkTarget);
        }
        Ok(Content::Symlink {
            target: self.store(target)?,
        })
    }

    fn store(&mut self, bytes: &[u8]) -> Result<u32, ImageError> {
        let offset = u32::try_from(self.bytes.len()).map_err(|_too_large| ImageError::ImageSize)?;
        self.bytes.extend(bytes);
        Ok(offset)
    }

    pub(crate) fn name(&self, link: &Link) -> &[u8] {
        name(&self.bytes, link)
    }

    /// The target of a symbolic link of `size` bytes.
    pub(crate) fn target(&self, target: u32, size: u64) -> &[u8] {
        let bytes = &self.bytes[target as usize..];
        &bytes[..usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len())]
    }

    pub(crate) fn pieces(&self, data: FileData) -> impl Iterator<Item = Piece> {
        let (whole, pieces) = match data {
            FileData::Contiguous {
                device_block,
                blocks,
            } => (
                Some(Piece {
                    block: 0,
                    device_block,
                    blocks,
                }),
                &[][..],
            ),
            FileData::Pieces { first, count } => {
                (None, &self.pieces[first as usize..][..count as usize])
            }
        };
        whole.into_iter().chain(pieces.iter().copied())
    }

    /// Sorts the names of each directory as the kernel's search needs them: by their bytes.
    pub(crate) fn sort_links(&mut self) {
        let bytes = &self.bytes;
        self.links.sort_unstable_by(|a, b| {
            a.parent
                .cmp(&b.parent)
                .then_with(|| name(bytes, a).cmp(name(bytes, b)))
        });
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("inodes", &self.inodes.len())
            .field("names", &self.links.len())
            .finish_non_exhaustive()
    }
}

fn name<'a>(bytes: &'a [u8], link: &Link) -> &'a [u8] {
    &bytes[link.name as usize..][..usize::from(link.length)]
}

fn block_bits(size: u32) -> Result<u8, ImageError> {
    let valid = size.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size);
    let bits = valid
        .then(|| size.ilog2())
        .and_then(|bits| u8::try_from(bits).ok());
    bits.ok_or(ImageError::BlockSize(size))
}

fn device_blocks(blocks: u64) -> Result<u32, ImageError> {
    let narrow = u32::try_from(blocks)
        .ok()
        .filter(|_| blocks <= MAX_DEVICE_BLOCKS);
    narrow.ok_or(ImageError::DeviceSize(blocks))
}

fn check_name(name: &[u8]) -> Result<(), ImageError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(ImageError::NameLength(name.len()));
    }
    if matches!(name, b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(ImageError::Name(name.to_vec()));
    }
    Ok(())
}

fn device(major: u32, minor: u32) -> Result<Content, ImageError> {
    if major > MAX_MAJOR || minor > MAX_MINOR {
        return Err(ImageError::DeviceNumber { major, minor });
    }
    Ok(Content::Device {
        number: device_number(major, minor),
    })
}
