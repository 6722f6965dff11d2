//! The second pass: the bytes of an image, from its beginning to its end.

use std::io::{self, Write};

use crate::chunks;
use crate::directory::Packer;
use crate::format::{
    self, CHUNK_INDEX_SIZE, DataLayout, INODE_SLOT, SUPERBLOCK_OFFSET, Superblock, chunk_index,
    device_slot,
};
use crate::image::Content;
use crate::layout::{Layout, Split};

/// Bytes that the writer receives at once.
const PIECE: usize = 256 * 1024;

pub(crate) fn write(layout: &Layout, writer: impl Write) -> io::Result<()> {
    let mut out = Output::new(writer, layout.block_size());
    write_head(layout, &mut out)?;
    for (serial, node) in (1..).zip(&layout.order) {
        out.pad_to(u64::from(layout.place(*node).slot) * INODE_SLOT)?;
        write_inode(layout, *node, serial, &mut out)?;
    }
    for node in &layout.order {
        write_blocks(layout, *node, &mut out)?;
    }
    out.pad_to(u64::from(layout.xattr_block) * layout.block_size())?;
    for entry in layout.image.xattrs.shared() {
        out.put(entry)?;
    }
    out.pad_to(layout.size())?;
    out.finish()
}

fn write_head<W: Write>(layout: &Layout, out: &mut Output<W>) -> io::Result<()> {
    let device_blocks = layout.image.device_end;
    let superblock = Superblock {
        block_bits: layout.image.geometry.block_bits,
        uuid: layout.image.uuid,
        root: u16::try_from(layout.place(0).slot).map_err(io::Error::other)?,
        inodes: layout.inodes() as u64,
        blocks: layout.blocks,
        xattr_block: if layout.image.xattrs.shared_size() > 0 {
            layout.xattr_block
        } else {
            0
        },
    };
    // Where the data would be if it followed the metadata on one block device.
    let unified = if layout.blocks.checked_add(device_blocks).is_some() {
        layout.blocks
    } else {
        0
    };
    out.pad_to(SUPERBLOCK_OFFSET as u64)?;
    out.put(&superblock.encode())?;
    out.put(&device_slot(device_blocks, unified))
}

fn write_inode<W: Write>(
    layout: &Layout,
    node: u32,
    serial: u32,
    out: &mut Output<W>,
) -> io::Result<()> {
    let inode = layout.inode(node);
    let xattrs = layout.image.xattrs.encode(inode.xattrs);
    let size = layout.content_size(node);
    let split = layout.split(size, xattrs.len() as u64);
    let encoded = format::Inode {
        data: data_layout(layout, node, split),
        xattr_size: xattrs.len(),
        mode: inode.mode,
        size,
        serial,
        uid: inode.uid,
        gid: inode.gid,
        seconds: inode.seconds,
        nanoseconds: inode.nanoseconds,
        links: inode.links,
    };
    out.put(&encoded.encode())?;
    out.put(&xattrs)?;
    match inode.content {
        Content::File { data, chunk_bits } => {
            let blocks = layout.image.geometry.blocks(size);
            out.align(CHUNK_INDEX_SIZE as u64)?;
            let mut addresses = chunks::addresses(blocks, chunk_bits, layout.image.pieces(data));
            addresses.try_for_each(|address| out.put(&chunk_index(address)))
        }
        Content::Directory { .. } if split.tail > 0 => out.put(&directory_tail(layout, node)),
        Content::Symlink { target } if split.tail > 0 => {
            let target = layout.image.target(target, size);
            out.put(&target[in_memory(split.in_blocks)..])
        }
        Content::Directory { .. }
        | Content::Symlink { .. }
        | Content::Device { .. }
        | Content::Empty => Ok(()),
    }
}

fn data_layout(layout: &Layout, node: u32, split: Split) -> DataLayout {
    let inode = layout.inode(node);
    let block = layout.data_block + layout.place(node).block;
    match inode.content {
        Content::Directory { .. } | Content::Symlink { .. } if split.tail > 0 => {
            DataLayout::Inline { block }
        }
        Content::Directory { .. } | Content::Symlink { .. } => DataLayout::Plain { block },
        Content::File { chunk_bits, .. } if inode.size > 0 => DataLayout::Chunks { chunk_bits },
        Content::File { .. } | Content::Empty => DataLayout::Plain { block: 0 },
        Content::Device { number } => DataLayout::Device { number },
    }
}

/// Writes the blocks of a directory or a symbolic link.
fn write_blocks<W: Write>(layout: &Layout, node: u32, out: &mut Output<W>) -> io::Result<()> {
    let inode = layout.inode(node);
    if !matches!(
        inode.content,
        Content::Directory { .. } | Content::Symlink { .. }
    ) {
        return Ok(());
    }
    let xattrs = layout.image.xattrs.encode(inode.xattrs).len() as u64;
    let split = layout.split(layout.content_size(node), xattrs);
    if split.in_blocks == 0 {
        return Ok(());
    }
    let block = u64::from(layout.data_block + layout.place(node).block);
    out.pad_to(block * layout.block_size())?;
    match inode.content {
        Content::Symlink { target } => {
            let target = layout.image.target(target, inode.size);
            out.put(&target[..in_memory(split.in_blocks)])
        }
        _ => write_directory_blocks(layout, node, split, out),
    }
}

fn write_directory_blocks<W: Write>(
    layout: &Layout,
    node: u32,
    split: Split,
    out: &mut Output<W>,
) -> io::Result<()> {
    let mut packer = packer(layout);
    for entry in layout.entries(node) {
        if let Some(block) = packer.push(entry) {
            out.put(&block)?;
        }
    }
    match split.tail {
        0 => out.put(&packer.take()),
        _ => Ok(()),
    }
}

fn directory_tail(layout: &Layout, node: u32) -> Vec<u8> {
    let mut packer = packer(layout);
    for entry in layout.entries(node) {
        packer.push(entry);
    }
    packer.take()
}

/// A size of something that is in memory, or shorter than a block.
fn in_memory(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn packer<'a>(layout: &Layout) -> Packer<'a> {
    Packer::new(in_memory(layout.block_size()))
}

/// A buffer in front of the writer that knows its position. The superblock's checksum is stored
/// before the first piece is passed on.
struct Output<W> {
    writer: W,
    buffer: Vec<u8>,
    /// Bytes passed on.
    written: u64,
    block_size: u64,
}

impl<W: Write> Output<W> {
    fn new(writer: W, block_size: u64) -> Self {
        Self {
            writer,
            buffer: Vec::with_capacity(PIECE),
            written: 0,
            block_size,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes zeros up to `position`.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position() < position {
            let missing = in_memory(position - self.position());
            self.put(&ZEROS[..missing.min(ZEROS.len())])?;
        }
        Ok(())
    }

    fn align(&mut self, alignment: u64) -> io::Result<()> {
        self.pad_to(self.position().next_multiple_of(alignment))
    }

    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.written == 0 {
            format::store_checksum(
                &mut self.buffer,
                u32::try_from(self.block_size).map_err(io::Error::other)?,
            );
        }
        self.writer.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.writer.flush()
    }
}
