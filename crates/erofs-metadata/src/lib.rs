//! Writes EROFS images that hold metadata only: the files' data is on an external device.
//!
//! [EROFS](https://docs.kernel.org/filesystems/erofs.html) is Linux's read-only file system. An
//! image may leave the content of its files on another device and hold only their names,
//! attributes and block addresses. Linux mounts such an image over two ordinary files:
//!
//! ```text
//! mount(2): type erofs, source METADATA, data "device=DATA"     (Linux 6.12 and newer)
//! ```
//!
//! `METADATA` is written by this crate; it takes about 130 bytes for each file. `DATA` is any file
//! in which the content of each file begins at a multiple of the block size. It may be sparse, and
//! may be a file of a FUSE file system that fetches data when it is read. Its size must be a
//! multiple of the block size too: Linux reads whole blocks, and reading a last block that is
//! incomplete fails with EIO (seen with 6.18).
//!
//! # Writing an image
//!
//! ```
//! use erofs_metadata::{Attributes, Data, Image, Kind};
//!
//! # fn main() -> Result<(), erofs_metadata::ImageError> {
//! // One file of 5000 bytes in the first two blocks of the data device.
//! let mut image = Image::builder().uuid([7; 16]).device(2).build()?;
//! let attributes = Attributes::default();
//!
//! let etc = image.insert(image.root(), b"etc", Kind::Directory, &attributes)?;
//! let file = Kind::File { size: 5000, data: Data::At(0) };
//! let file = image.insert(etc, b"hostname", file, &attributes.with_permissions(0o644))?;
//! image.add_xattr(file, b"user.note", b"text")?;
//! image.link(image.root(), b"hard-link", file)?;
//! image.insert(image.root(), b"link", Kind::Symlink(b"etc/hostname"), &attributes)?;
//!
//! let mut metadata = Vec::new();
//! image.write_to(&mut metadata)?;
//! # assert_eq!(metadata.len() % 4096, 0);
//! # Ok(())
//! # }
//! ```
//!
//! An inode is added once, with [`Image::add`] or [`Image::insert`], and has as many names as
//! [`Image::link`] gives it. The order of the calls does not matter: directories are sorted, and
//! link counts computed, when the image is laid out. [`Image::layout`] returns the [`Layout`],
//! which knows the inode numbers that users will see, and writes the image in one pass.
//!
//! # Contents of an image
//!
//! * All kinds of files, with 32-bit owners and link counts, 64-bit sizes and times in nanoseconds
//!   (`struct erofs_inode_extended`).
//! * Regular files as one or more extents on the device, and holes (`struct
//!   erofs_inode_chunk_index`). A contiguous file takes one index of 8 bytes.
//! * Extended attributes `user.`, `trusted.`, `security.` and both POSIX ACLs. Equal ones are
//!   stored once.
//! * The marks that [overlayfs](https://docs.kernel.org/filesystems/overlayfs.html) reads in a lower
//!   layer: a whiteout is a character device 0:0, an opaque directory has the extended attribute
//!   `trusted.overlay.opaque` with the value `y`.
//!
//! The bytes depend only on the calls: no clock, no random numbers. Two images with the same nodes,
//! names and UUID are equal if the nodes were added in the same order.
//!
//! # Limits
//!
//! The [constants](limits) are limits of the format or of Linux. A tree that EROFS cannot express
//! is an [`ImageError`], never a panic and never another value. An [`Image`] keeps its nodes in
//! memory until it is written: about 100 bytes for each, names of 20 bytes included.
//!
//! # Sources
//!
//! The structures are those of `fs/erofs/erofs_fs.h` in Linux, named in the source; the rules for
//! them are in `Documentation/filesystems/erofs.rst` and in the kernel's and erofs-utils' readers.
//! Images need Linux 6.12, or 5.16 with block devices instead of plain files, which is not tested.

#![warn(missing_docs)]

mod chunks;
mod crc32c;
mod directory;
mod error;
mod format;
mod image;
mod layout;
pub mod limits;
mod node;
mod write;
mod xattr;

pub use error::ImageError;
pub use image::{Builder, Image};
pub use layout::Layout;
pub use node::{Attributes, Data, Extent, Kind, NodeId, Time};
