//! The agent's FUSE mounts. Two show the tree of every layer: a snapshot over the FUSE driver uses
//! one of them. The third has a data file for every layer, from which the EROFS driver reads.
//!
//! overlayfs requests its own attributes (`trusted.overlay.metacopy`, `.opaque`, `.redirect`) from
//! a lower layer when it first sees a file, once for each container, and the kernel caches none of
//! FUSE's answers. After an answer of ENOSYS the kernel sends a connection no more GETXATTR
//! requests (kernel, fs/fuse/xattr.c). An image whose layers have no extended attribute is
//! therefore read through a separate connection.

use std::path::{Path, PathBuf};

use super::numbers::LayerNumber;

/// Returns the directory of the EROFS mounts of layers.
pub(crate) fn erofs_folder(root: &Path) -> PathBuf {
    root.join("erofs")
}

/// Returns the directory on which a layer is mounted as EROFS.
pub(crate) fn erofs_mountpoint(root: &Path, number: LayerNumber) -> PathBuf {
    erofs_folder(root).join(number.to_string())
}

/// One of the mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LayerMount {
    /// Answers requests for extended attributes.
    Full,
    /// Has no extended attributes.
    NoXattr,
    /// Has the data files.
    Data,
}

impl LayerMount {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::NoXattr, Self::Data];

    /// The directory on which the layers are mounted.
    pub(crate) fn directory(self, root: &Path) -> PathBuf {
        root.join(match self {
            Self::Full => "lazy",
            Self::NoXattr => "lazy-noxattr",
            Self::Data => "lazy-data",
        })
    }

    /// The file with the kernel's INIT request.
    pub(super) fn saved_init(self, root: &Path) -> PathBuf {
        root.join(match self {
            Self::Full => "init",
            Self::NoXattr => "init-noxattr",
            Self::Data => "init-data",
        })
    }

    /// The name under which the fd store keeps the FUSE device.
    pub(super) fn device_name(self) -> &'static str {
        match self {
            Self::Full => "fuse",
            Self::NoXattr => "fuse-noxattr",
            Self::Data => "fuse-data",
        }
    }

    /// The name under which the fd store keeps the clone of the mount.
    pub(super) fn clone_name(self) -> &'static str {
        match self {
            Self::Full => "mount",
            Self::NoXattr => "mount-noxattr",
            Self::Data => "mount-data",
        }
    }
}
