//! The structures on disk, as in Linux' `fs/erofs/erofs_fs.h`. All numbers are little-endian.

use crate::node::Kind;

/// `EROFS_SUPER_OFFSET`
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
/// `struct erofs_super_block` without extension slots.
pub(crate) const SUPERBLOCK_SIZE: usize = 128;
/// `struct erofs_deviceslot`
pub(crate) const DEVICE_SLOT_SIZE: usize = 128;
/// The device table follows the superblock: a multiple of the slot's size.
const DEVICE_TABLE_OFFSET: usize = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE;
/// The first inode follows the device table, so that the root's number fits into 16 bits.
pub(crate) const INODES_OFFSET: u64 = (DEVICE_TABLE_OFFSET + DEVICE_SLOT_SIZE) as u64;
/// Inode numbers count slots of this size (`struct erofs_inode_compact`).
pub(crate) const INODE_SLOT: u64 = 32;
/// `struct erofs_inode_extended`
pub(crate) const INODE_SIZE: usize = 64;
/// `struct erofs_dirent`
pub(crate) const DIRENT_SIZE: usize = 12;
/// `struct erofs_inode_chunk_index`
pub(crate) const CHUNK_INDEX_SIZE: usize = 8;
/// `struct erofs_xattr_ibody_header`
pub(crate) const XATTR_HEADER_SIZE: usize = 12;
/// `struct erofs_xattr_entry`; entries are aligned to it, and identifiers of shared ones count it.
pub(crate) const XATTR_ENTRY_SIZE: usize = 4;
/// `EROFS_NULL_ADDR`: a hole.
pub(crate) const NULL_ADDRESS: u32 = u32::MAX;

/// `EROFS_SUPER_MAGIC_V1`
const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`
const FEATURES_COMPATIBLE: u32 = 0x1 | 0x2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`
const FEATURES_INCOMPATIBLE: u32 = 0x4 | 0x8;
/// Where the checksum is in the superblock.
const CHECKSUM_OFFSET: usize = 4;
/// `EROFS_CHUNK_FORMAT_INDEXES`
const CHUNK_FORMAT_INDEXES: u16 = 0x20;
/// The only entry of the device table.
const DEVICE: u16 = 1;

/// The superblock's fields that are not constant.
#[derive(Debug)]
pub(crate) struct Superblock {
    /// Block size as a power of two.
    pub(crate) block_bits: u8,
    pub(crate) uuid: [u8; 16],
    /// Number of the root directory.
    pub(crate) root: u16,
    pub(crate) inodes: u64,
    /// Blocks of the image.
    pub(crate) blocks: u32,
    /// First block of the shared extended attributes, or 0.
    pub(crate) xattr_block: u32,
}

impl Superblock {
    /// `struct erofs_super_block`, with the checksum still 0.
    pub(crate) fn encode(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FEATURES_COMPATIBLE.to_le_bytes());
        put(&mut bytes, 12, &[self.block_bits]);
        put(&mut bytes, 14, &self.root.to_le_bytes());
        put(&mut bytes, 16, &self.inodes.to_le_bytes());
        put(&mut bytes, 36, &self.blocks.to_le_bytes());
        put(&mut bytes, 44, &self.xattr_block.to_le_bytes());
        put(&mut bytes, 48, &self.uuid);
        put(&mut bytes, 80, &FEATURES_INCOMPATIBLE.to_le_bytes());
        put(&mut bytes, 86, &DEVICE.to_le_bytes());
        put(&mut bytes, 88, &DEVICE_TABLE_SLOT.to_le_bytes());
        bytes
    }
}

/// `devt_slotoff`: the position of the device table in slots.
const DEVICE_TABLE_SLOT: u16 = 9;
const _: () = assert!(DEVICE_TABLE_SLOT as usize * DEVICE_SLOT_SIZE == DEVICE_TABLE_OFFSET);

/// Stores the checksum in the superblock of `head`, the first bytes of an image. It covers the rest
/// of the superblock's block (`erofs_superblock_csum_verify`).
pub(crate) fn store_checksum(head: &mut [u8], block_size: u32) {
    let offset = SUPERBLOCK_OFFSET;
    let block_size = block_size as usize;
    let length = if block_size > offset {
        block_size - offset
    } else {
        block_size
    };
    let checksum = crate::crc32c::crc32c(&head[offset..offset + length]);
    put(head, offset + CHECKSUM_OFFSET, &checksum.to_le_bytes());
}

/// `struct erofs_deviceslot` of a device of `blocks` blocks, which has the address `unified` if
/// both files are on one block device.
pub(crate) fn device_slot(blocks: u32, unified: u32) -> [u8; DEVICE_SLOT_SIZE] {
    let mut bytes = [0; DEVICE_SLOT_SIZE];
    put(&mut bytes, 64, &blocks.to_le_bytes());
    put(&mut bytes, 68, &unified.to_le_bytes());
    bytes
}

/// Where the data of an inode is (`EROFS_INODE_FLAT_PLAIN` and so on), with the field `i_u`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DataLayout {
    /// In blocks of the image, or there is none.
    Plain { block: u32 },
    /// The last part follows the inode, the rest is in blocks of the image.
    Inline { block: u32 },
    /// On the data device, in chunks of `1 << chunk_bits` blocks.
    Chunks { chunk_bits: u8 },
    /// A device file.
    Device { number: u32 },
}

impl DataLayout {
    fn number(self) -> u16 {
        match self {
            Self::Plain { .. } | Self::Device { .. } => 0,
            Self::Inline { .. } => 2,
            Self::Chunks { .. } => 4,
        }
    }

    fn union(self) -> u32 {
        match self {
            Self::Plain { block } | Self::Inline { block } => block,
            Self::Chunks { chunk_bits } => u32::from(CHUNK_FORMAT_INDEXES | u16::from(chunk_bits)),
            Self::Device { number } => number,
        }
    }
}

/// An inode's fields.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) data: DataLayout,
    /// Bytes of the extended attributes after the inode.
    pub(crate) xattr_size: usize,
    /// Kind and permissions.
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// Number for programs with 32-bit inode numbers.
    pub(crate) serial: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) links: u32,
}

impl Inode {
    /// `struct erofs_inode_extended`
    pub(crate) fn encode(&self) -> [u8; INODE_SIZE] {
        const EXTENDED: u16 = 1;
        let mut bytes = [0; INODE_SIZE];
        put(
            &mut bytes,
            0,
            &(EXTENDED | self.data.number() << 1).to_le_bytes(),
        );
        put(&mut bytes, 2, &self.xattr_count().to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.data.union().to_le_bytes());
        put(&mut bytes, 20, &self.serial.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.nanoseconds.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }

    /// `i_xattr_icount`: one for the header, and one for each four bytes after it.
    fn xattr_count(&self) -> u16 {
        let after_header = self.xattr_size.checked_sub(XATTR_HEADER_SIZE);
        after_header.map_or(0, |size| u16::try_from(size / 4 + 1).unwrap_or(u16::MAX))
    }
}

/// `struct erofs_dirent`
pub(crate) fn dirent(inode: u64, name_offset: u16, file_type: u8) -> [u8; DIRENT_SIZE] {
    let mut bytes = [0; DIRENT_SIZE];
    put(&mut bytes, 0, &inode.to_le_bytes());
    put(&mut bytes, 8, &name_offset.to_le_bytes());
    put(&mut bytes, 10, &[file_type]);
    bytes
}

/// `struct erofs_inode_chunk_index` of a chunk at this block of the data device; none is a hole.
pub(crate) fn chunk_index(block: Option<u32>) -> [u8; CHUNK_INDEX_SIZE] {
    let device = if block.is_some() { DEVICE } else { 0 };
    let mut bytes = [0; CHUNK_INDEX_SIZE];
    put(&mut bytes, 2, &device.to_le_bytes());
    put(&mut bytes, 4, &block.unwrap_or(NULL_ADDRESS).to_le_bytes());
    bytes
}

/// The kind's bits of a mode (`S_IFMT`).
pub(crate) fn mode_of(kind: &Kind<'_>) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::File { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}

/// `EROFS_FT_*`, from a mode: the same numbers as `FT_*` of Linux.
pub(crate) fn file_type(mode: u16) -> u8 {
    match mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// Linux' `new_encode_dev`.
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}
