//! Images as Linux and erofs-utils read them. Every image is checked by `fsck.erofs` and
//! `dump.erofs`, mounted, and compared with the same tree on disk.
//!
//! The tests need root, Linux 6.12 and erofs-utils; without them they print why they are skipped.
//! With `CI=true` they fail instead if the user is root.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers fail the test by panicking, and say why they skip it"
)]

mod disk;
mod errors;
mod files;
mod mount;
mod names;
mod overlay;
mod random;
mod tree;
mod xattrs;
