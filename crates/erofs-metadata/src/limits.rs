//! Limits of the format and of Linux.

/// Smallest block size in bytes that Linux mounts. Sizes other than 4096 need Linux 6.4.
pub const MIN_BLOCK_SIZE: u32 = 512;

/// Largest block size in bytes that Linux mounts on every machine: the smallest page.
pub const MAX_BLOCK_SIZE: u32 = 4096;

/// Most blocks of the data device: addresses have 32 bits, and the last is the address of a hole.
/// With blocks of 4096 bytes this is one block less than 16 TiB.
pub const MAX_DEVICE_BLOCKS: u64 = u32::MAX as u64;

/// Longest name of a directory entry in bytes (`EROFS_NAME_LEN`).
pub const MAX_NAME: usize = 255;

/// Longest target of a symbolic link in bytes (Linux' `PATH_MAX` without the final zero).
pub const MAX_SYMLINK_TARGET: usize = 4095;

/// Largest file in bytes: Linux' largest offset, in whole pages.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64 & !4095;

/// Most chunk indexes of one file. Each takes 8 bytes of metadata; a file that is scattered in
/// single blocks of 4096 bytes can have 64 GiB.
pub const MAX_CHUNKS: u64 = 1 << 24;

/// Largest chunk as a power of two of blocks (`EROFS_CHUNK_FORMAT_BLKBITS_MASK`).
pub const MAX_CHUNK_BITS: u8 = 31;

/// Longest name of an extended attribute in bytes, with its prefix (Linux' `XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;

/// Largest value of an extended attribute in bytes: its size has 16 bits.
pub const MAX_XATTR_VALUE: usize = u16::MAX as usize;

/// Largest sum of one inode's attribute names, each with a final zero (Linux' `XATTR_LIST_MAX`).
/// Linux could not list more.
pub const MAX_XATTR_LIST: usize = 65536;

/// Largest area in bytes that the extended attributes of one inode take beside it: its size has 16
/// bits in some kernels.
pub const MAX_XATTR_BODY: usize = 65532;

/// Most inodes of an image: their handles have 32 bits.
pub const MAX_NODES: usize = u32::MAX as usize - 1;

/// Largest image in bytes: inode numbers are kept in 32 bits, each of 32 bytes.
pub const MAX_IMAGE_SIZE: u64 = 32 << 32;

/// Largest major number of a device file (Linux' `MINORBITS` leave 12 bits).
pub const MAX_MAJOR: u32 = (1 << 12) - 1;

/// Largest minor number of a device file (Linux' `MINORBITS`).
pub const MAX_MINOR: u32 = (1 << 20) - 1;
