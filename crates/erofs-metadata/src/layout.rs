//! The first pass: where every inode and every block goes.
//!
//! ```text
//! superblock │ device table │ inodes, root first │ blocks of directories │ shared attributes
//! 1024         1152           1280                 next block              next block
//! ```
//!
//! The inodes of one directory are next to each other, in the order of their names, and a
//! directory's own entries follow its inode if they fit into its block.

use std::fmt;
use std::io::Write;

use crate::chunks;
use crate::directory::{self, Entry};
use crate::error::ImageError;
use crate::format::{CHUNK_INDEX_SIZE, INODE_SIZE, INODE_SLOT, INODES_OFFSET, file_type};
use crate::image::{Content, Image, Inode, Link};
use crate::limits::MAX_IMAGE_SIZE;
use crate::node::NodeId;
use crate::write;

const INODE: u64 = INODE_SIZE as u64;
const INDEX: u64 = CHUNK_INDEX_SIZE as u64;

/// An image whose inodes have their places.
pub struct Layout {
    pub(crate) image: Image,
    /// The inodes in the order of their places.
    pub(crate) order: Vec<u32>,
    places: Vec<Place>,
    /// First block of directories' and symbolic links' blocks.
    pub(crate) data_block: u32,
    /// First block of the shared extended attributes.
    pub(crate) xattr_block: u32,
    /// Blocks of the image.
    pub(crate) blocks: u32,
}

/// The place of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// Number of its slot, which is its inode number; 0 before it has a place.
    pub(crate) slot: u32,
    /// First of its blocks, from [`Layout::data_block`].
    pub(crate) block: u32,
}

/// Where the content of a directory or a symbolic link is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Bytes in blocks.
    pub(crate) in_blocks: u64,
    /// Bytes after the inode.
    pub(crate) tail: u64,
}

impl Layout {
    pub(crate) fn new(mut image: Image) -> Result<Self, ImageError> {
        image.sort_links();
        image.xattrs.share()?;
        let nodes = image.inodes.len();
        let mut layout = Self {
            image,
            order: Vec::with_capacity(nodes),
            places: vec![Place::default(); nodes],
            data_block: 0,
            xattr_block: 0,
            blocks: 0,
        };
        let ends = layout.place_tree()?;
        layout.place_areas(&ends)?;
        Ok(layout)
    }

    /// Returns the size of the image in bytes: whole blocks.
    pub fn size(&self) -> u64 {
        u64::from(self.blocks) << self.image.geometry.block_bits
    }

    /// Returns the number of inodes, the root included.
    pub fn inodes(&self) -> usize {
        self.image.inodes()
    }

    /// Returns the inode number that `stat(2)` reports for `node`, or none if the image has no such
    /// node.
    pub fn inode_number(&self, node: NodeId) -> Option<u64> {
        self.places
            .get(node.index())
            .map(|place| u64::from(place.slot))
    }

    /// Writes the image in one pass. `writer` receives large pieces and needs no buffer.
    ///
    /// # Errors
    ///
    /// If `writer` fails.
    pub fn write_to(&self, writer: impl Write) -> Result<(), ImageError> {
        write::write(self, writer).map_err(ImageError::Write)
    }

    pub(crate) fn place(&self, node: u32) -> Place {
        self.places[node as usize]
    }

    pub(crate) fn inode(&self, node: u32) -> &Inode {
        &self.image.inodes[node as usize]
    }

    pub(crate) fn block_size(&self) -> u64 {
        self.image.geometry.block_size()
    }

    /// Bytes of a directory's, file's or symbolic link's content.
    pub(crate) fn content_size(&self, node: u32) -> u64 {
        let inode = self.inode(node);
        match inode.content {
            Content::Directory { .. } => {
                let names = self.entries(node).map(|entry| entry.name);
                directory::size(
                    names,
                    usize::try_from(self.block_size()).unwrap_or(usize::MAX),
                )
            }
            Content::File { .. }
            | Content::Symlink { .. }
            | Content::Device { .. }
            | Content::Empty => inode.size,
        }
    }

    /// Returns the place of content of `size` bytes, after `xattrs` bytes of attributes. An inode and
    /// the content behind it are in one block, or no content is behind it.
    pub(crate) fn split(&self, size: u64, xattrs: u64) -> Split {
        let tail = size % self.block_size();
        let fits = INODE + xattrs + tail <= self.block_size();
        let tail = if fits { tail } else { 0 };
        Split {
            in_blocks: size - tail,
            tail,
        }
    }

    /// The entries of a directory, itself and its parent included, in the order of their names.
    pub(crate) fn entries(&self, directory: u32) -> impl Iterator<Item = Entry<'_>> {
        let links = self.children(directory);
        let parent = match self.inode(directory).content {
            Content::Directory {
                parent: Some(parent),
            } => parent,
            _ => directory,
        };
        let dot = links.partition_point(|link| self.image.name(link) < &b"."[..]);
        let dot_dot = links.partition_point(|link| self.image.name(link) < &b".."[..]);
        let named = |link: &Link| self.entry(self.image.name(link), link.node);
        let before = links[..dot]
            .iter()
            .map(named)
            .chain([self.entry(b".", directory)]);
        let between = links[dot..dot_dot]
            .iter()
            .map(named)
            .chain([self.entry(b"..", parent)]);
        before
            .chain(between)
            .chain(links[dot_dot..].iter().map(named))
    }

    fn entry<'a>(&self, name: &'a [u8], node: u32) -> Entry<'a> {
        Entry {
            name,
            inode: u64::from(self.place(node).slot),
            file_type: file_type(self.inode(node).mode),
        }
    }

    fn children(&self, directory: u32) -> &[Link] {
        let links = &self.image.links;
        let start = links.partition_point(|link| link.parent < directory);
        let length = links[start..].partition_point(|link| link.parent == directory);
        &links[start..start + length]
    }

    /// Gives every inode its place, directory by directory.
    fn place_tree(&mut self) -> Result<Ends, ImageError> {
        let mut ends = Ends {
            inodes: INODES_OFFSET,
            blocks: 0,
        };
        self.place_inode(0, &mut ends)?;
        let mut directories = vec![0];
        while let Some(directory) = directories.pop() {
            self.check_names(directory)?;
            let children: Vec<u32> = self
                .children(directory)
                .iter()
                .map(|link| link.node)
                .collect();
            for node in &children {
                if self.place(*node).slot == 0 {
                    self.place_inode(*node, &mut ends)?;
                }
            }
            let is_directory =
                |node: &u32| matches!(self.inode(*node).content, Content::Directory { .. });
            directories.extend(children.into_iter().rev().filter(is_directory));
        }
        match self.places.iter().position(|place| place.slot == 0) {
            Some(node) => Err(ImageError::Unreachable(NodeId(
                u32::try_from(node).unwrap_or(u32::MAX),
            ))),
            None => Ok(ends),
        }
    }

    fn check_names(&self, directory: u32) -> Result<(), ImageError> {
        let links = self.children(directory);
        let name = |link| self.image.name(link);
        match links
            .windows(2)
            .find(|pair| name(&pair[0]) == name(&pair[1]))
        {
            Some(pair) => Err(ImageError::DuplicateName {
                parent: NodeId(directory),
                name: name(&pair[0]).to_vec(),
            }),
            None => Ok(()),
        }
    }

    fn place_inode(&mut self, node: u32, ends: &mut Ends) -> Result<(), ImageError> {
        let xattrs = u64::from(
            self.image
                .xattrs
                .size(self.inode(node).xattrs, NodeId(node))?,
        );
        let head = INODE + xattrs;
        let (together, length, in_blocks) = match self.inode(node).content {
            Content::Directory { .. } | Content::Symlink { .. } => {
                let split = self.split(self.content_size(node), xattrs);
                let together = if split.tail > 0 {
                    head + split.tail
                } else {
                    INODE
                };
                (together, head + split.tail, split.in_blocks)
            }
            Content::File { chunk_bits, .. } => {
                let blocks = self.image.geometry.blocks(self.inode(node).size);
                let indexes = chunks::chunk_count(blocks, chunk_bits.into()) * INDEX;
                (INODE, head.next_multiple_of(INDEX) + indexes, 0)
            }
            Content::Device { .. } | Content::Empty => (INODE, head, 0),
        };
        let start = fit(ends.inodes, together, self.block_size());
        let slot = u32::try_from(start / INODE_SLOT).map_err(|_too_large| ImageError::ImageSize)?;
        self.places[node as usize] = Place {
            slot,
            block: ends.take_blocks(self.image.geometry.blocks(in_blocks))?,
        };
        self.order.push(node);
        ends.inodes = (start + length).next_multiple_of(INODE_SLOT);
        Ok(())
    }

    fn place_areas(&mut self, ends: &Ends) -> Result<(), ImageError> {
        let geometry = self.image.geometry;
        let data = geometry.blocks(ends.inodes);
        let xattrs = data + u64::from(ends.blocks);
        let end = xattrs + geometry.blocks(self.image.xattrs.shared_size());
        if end * geometry.block_size() > MAX_IMAGE_SIZE {
            return Err(ImageError::ImageSize);
        }
        let narrow = |block: u64| u32::try_from(block).map_err(|_too_large| ImageError::ImageSize);
        (self.data_block, self.xattr_block, self.blocks) =
            (narrow(data)?, narrow(xattrs)?, narrow(end)?);
        Ok(())
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout")
            .field("image", &self.image)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

/// The ends of the space that is allocated.
#[derive(Debug)]
struct Ends {
    /// End of the inodes in bytes.
    inodes: u64,
    /// Blocks of directories and symbolic links.
    blocks: u32,
}

impl Ends {
    fn take_blocks(&mut self, blocks: u64) -> Result<u32, ImageError> {
        let first = self.blocks;
        let end = u64::from(first) + blocks;
        self.blocks = u32::try_from(end).map_err(|_too_large| ImageError::ImageSize)?;
        Ok(first)
    }
}

/// The first place from `at` on where `length` bytes stay in one block.
fn fit(at: u64, length: u64, block_size: u64) -> u64 {
    let room = block_size - at % block_size;
    if length > room { at + room } else { at }
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn inodes_stay_in_a_block() {
        assert_eq!(fit(1280, 64, 4096), 1280);
        assert_eq!(fit(4032, 64, 4096), 4032);
        assert_eq!(fit(4064, 64, 4096), 4096);
        assert_eq!(fit(1280, 4096, 4096), 4096);
        assert_eq!(fit(8192, 4096, 4096), 8192);
    }
}
