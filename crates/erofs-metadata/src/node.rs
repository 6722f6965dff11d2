//! Inodes as callers describe them.

use std::fmt;

/// An inode of an [`Image`](crate::Image). Handles count from 0, the root, in the order of the
/// calls that added them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// The position of the inode in the order of the calls that added it; 0 is the root.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// The type of an inode, with the properties of that type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// The place of the content.
        data: Data<'a>,
    },
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A character device. With both numbers 0 it is a whiteout of overlayfs.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// The place of a regular file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Contiguous on the data device, beginning at this byte: a multiple of the block size.
    At(u64),
    /// In pieces on the data device, ordered by their offset in the file. Bytes that no
    /// extent covers read as zeros.
    Extents(&'a [Extent]),
    /// Nowhere: the file reads as zeros.
    Hole,
}

/// A contiguous piece of a regular file. All values are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file: a multiple of the block size.
    pub offset: u64,
    /// First byte on the data device: a multiple of the block size.
    pub device_offset: u64,
    /// Length: a multiple of the block size, or less if the extent ends the file.
    pub length: u64,
}

/// Owner, permissions and time of an inode. Link counts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attributes {
    /// Permissions with the set-ID and sticky bits: at most `0o7777`.
    pub permissions: u16,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification. Linux reports it as the other times too.
    pub modified: Time,
}

impl Default for Attributes {
    /// Owned by root, `0o755`, the beginning of 1970.
    fn default() -> Self {
        Self {
            permissions: 0o755,
            uid: 0,
            gid: 0,
            modified: Time::default(),
        }
    }
}

impl Attributes {
    /// The same with other permissions.
    #[must_use]
    pub fn with_permissions(mut self, permissions: u16) -> Self {
        self.permissions = permissions;
        self
    }

    /// The same with another owner.
    #[must_use]
    pub fn with_owner(mut self, uid: u32, gid: u32) -> Self {
        self.uid = uid;
        self.gid = gid;
        self
    }

    /// The same with another time.
    #[must_use]
    pub fn with_modified(mut self, modified: Time) -> Self {
        self.modified = modified;
        self
    }
}

/// A time since the beginning of 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds; before 1970 they are negative.
    pub seconds: i64,
    /// Nanoseconds after the second: less than 1,000,000,000.
    pub nanoseconds: u32,
}
