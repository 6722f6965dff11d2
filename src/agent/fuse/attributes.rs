//! File attributes in the form that the kernel expects.

use std::time::{Duration, SystemTime};

use estargz::toc::{Kind, Time};
use fuser::{FileAttr, FileType, INodeNo};

use crate::agent::layer::tree::Attributes;
use crate::agent::numbers::Inode;

pub(super) const BLOCK: u32 = 4096;
/// The unit of stat(2)'s `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// The answer for a missing name that the kernel should remember: inode 0
/// (`fuse_entry_out.nodeid`).
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK,
    flags: 0,
};

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        // A layer with a dangling link is never mounted.
        Kind::File | Kind::DanglingLink => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

impl From<INodeNo> for Inode {
    fn from(inode: INodeNo) -> Self {
        Self(inode.0)
    }
}

pub(super) fn attr(inode: Inode, attributes: &Attributes) -> FileAttr {
    let modified = time(attributes.modified);
    FileAttr {
        ino: INodeNo(inode.0),
        size: attributes.size,
        blocks: attributes.size.div_ceil(STAT_BLOCK),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: rdev(attributes.device),
        blksize: BLOCK,
        flags: 0,
    }
}

fn time(
    Time {
        seconds,
        nanoseconds,
    }: Time,
) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let time = time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Encodes a device number as the kernel reads it from user space (`new_decode_dev`).
fn rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_in_the_far_future_are_converted() {
        let at = |seconds, nanoseconds| {
            time(Time {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(at(1, 5), SystemTime::UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(
            at(-2, 500_000_000),
            SystemTime::UNIX_EPOCH - Duration::from_millis(1500)
        );
        assert_eq!(
            at(i64::MAX, 999_999_999),
            SystemTime::UNIX_EPOCH + Duration::new(u64::MAX / 2, 999_999_999)
        );
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_reads_them() {
        assert_eq!(rdev((8, 1)), 0x801);
        assert_eq!(rdev((259, 0x12345)), 0x1231_0345);
    }
}
