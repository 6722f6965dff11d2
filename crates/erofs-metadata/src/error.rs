//! The error of this crate.

use std::io;

use crate::limits::{
    MAX_BLOCK_SIZE, MAX_CHUNKS, MAX_DEVICE_BLOCKS, MAX_FILE_SIZE, MAX_IMAGE_SIZE, MAX_MAJOR,
    MAX_MINOR, MAX_NAME, MAX_NODES, MAX_SYMLINK_TARGET, MAX_XATTR_BODY, MAX_XATTR_LIST,
    MAX_XATTR_NAME, MAX_XATTR_VALUE, MIN_BLOCK_SIZE,
};
use crate::node::NodeId;

/// Why an image cannot be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The block size is not a power of two between 512 and 4096.
    #[error("block size {0} is not a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}")]
    BlockSize(u32),
    /// The data device has more blocks than addresses.
    #[error("data device of {0} blocks has more than {MAX_DEVICE_BLOCKS}")]
    DeviceSize(u64),
    /// There are too many inodes.
    #[error("more than {MAX_NODES} inodes")]
    TooManyNodes,
    /// The handle is of another image.
    #[error("image has no {0}")]
    UnknownNode(NodeId),
    /// A name is to be added to something that is not a directory.
    #[error("{0} is not a directory")]
    NotADirectory(NodeId),
    /// A directory, or the root, is to have another name.
    #[error("directory {0} cannot have another name")]
    DirectoryLink(NodeId),
    /// A name is empty or too long.
    #[error("name of {0} bytes is empty or longer than {MAX_NAME}")]
    NameLength(usize),
    /// A name is `.` or `..`, or has a slash or a zero byte.
    #[error("name {:?} is reserved or has a slash or a zero byte", String::from_utf8_lossy(.0))]
    Name(Vec<u8>),
    /// A directory has the same name twice.
    #[error("{parent} has the name {:?} twice", String::from_utf8_lossy(.name))]
    DuplicateName {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Vec<u8>,
    },
    /// An inode has no name, or is in a directory that cannot be reached from the root.
    #[error("{0} cannot be reached from the root")]
    Unreachable(NodeId),
    /// There are bits above the permissions, set-ID and sticky bits.
    #[error("permissions {0:o} have bits outside 7777")]
    Permissions(u16),
    /// A time has a second or more of nanoseconds.
    #[error("{0} nanoseconds are a second or more")]
    Nanoseconds(u32),
    /// A file is too large.
    #[error("file of {0} bytes is larger than {MAX_FILE_SIZE}")]
    FileSize(u64),
    /// An extent does not begin at a block, or ends inside a block before the end of the file.
    #[error("extent at offset {offset} is not aligned to blocks")]
    ExtentAlignment {
        /// The extent's offset in the file.
        offset: u64,
    },
    /// An extent is empty, overlaps the one before it or comes before it.
    #[error("extent at offset {offset} is empty or out of order")]
    ExtentOrder {
        /// The extent's offset in the file.
        offset: u64,
    },
    /// An extent ends after the file.
    #[error("extent at offset {offset} ends after the file")]
    ExtentBeyondFile {
        /// The extent's offset in the file.
        offset: u64,
    },
    /// An extent ends after the data device.
    #[error("extent at offset {offset} ends after the data device")]
    ExtentBeyondDevice {
        /// The extent's offset in the file.
        offset: u64,
    },
    /// A file needs too many chunk indexes.
    #[error("file is in pieces that need {0} chunk indexes, more than {MAX_CHUNKS}")]
    Fragmentation(u64),
    /// A symbolic link's target is empty or too long.
    #[error("symbolic link's target of {0} bytes is empty or longer than {MAX_SYMLINK_TARGET}")]
    SymlinkLength(usize),
    /// A symbolic link's target has a zero byte.
    #[error("symbolic link's target has a zero byte")]
    SymlinkTarget,
    /// A device number is too large.
    #[error("device {major}:{minor} is larger than {MAX_MAJOR}:{MAX_MINOR}")]
    DeviceNumber {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The format has no place for an extended attribute of this name.
    #[error("extended attribute {:?} cannot be stored", String::from_utf8_lossy(.0))]
    XattrName(Vec<u8>),
    /// An extended attribute's name is too long.
    #[error("extended attribute's name of {0} bytes is longer than {MAX_XATTR_NAME}")]
    XattrNameLength(usize),
    /// An extended attribute's value is too long.
    #[error("extended attribute's value of {0} bytes is longer than {MAX_XATTR_VALUE}")]
    XattrValueLength(usize),
    /// An inode has the same extended attribute twice.
    #[error("{0} has the same extended attribute twice")]
    DuplicateXattr(NodeId),
    /// An inode's extended attributes take too much space.
    #[error(
        "extended attributes of {0} take more than {MAX_XATTR_BODY} bytes, or their names more than {MAX_XATTR_LIST}"
    )]
    XattrSpace(NodeId),
    /// The image is too large.
    #[error("image is larger than {MAX_IMAGE_SIZE} bytes")]
    ImageSize,
    /// The writer failed.
    #[error("image cannot be written")]
    Write(#[source] io::Error),
}
