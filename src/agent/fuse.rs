//! Answers the kernel's FUSE requests from a [`FileSystem`]. The only place that knows errno.
//!
//! What is on this node is answered at once on the thread that read the request; what has to be fetched is answered
//! when it is there, or with EIO when that takes too long.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use estargz::toc::{Kind, Time};
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use super::filesystem::{Error, FileSystem, Listed, Opened};
use super::opens::{How, Opens};
use super::passthrough;
use super::tree::Attributes;
use crate::telemetry::metrics::metrics;

/// Nothing ever changes but that layers come and go, of which the kernel is told.
const FOREVER: Duration = Duration::MAX;
const GENERATION: Generation = Generation(0);
/// Files have no state of their own.
const HANDLE: FileHandle = FileHandle(0);
const BLOCK: u32 = 4096;
/// As large as one block of stat(2)'s `st_blocks`.
const STAT_BLOCK: u64 = 512;
/// Requests of the kernel's own, such as read-ahead, that may wait at once.
const MAX_BACKGROUND: u16 = 128;
/// `.` and `..` come before the names.
const DOTS: u64 = 2;
/// The longest file name.
const NAME_LEN: u32 = 255;

/// The kernel's side of the file system.
#[derive(Debug)]
pub struct Adapter {
    filesystem: FileSystem,
    opens: Arc<Mutex<Opens>>,
    device: OwnedFd,
    runtime: Handle,
    read_timeout: Duration,
    passthrough: bool,
}

impl Adapter {
    pub fn new(
        filesystem: FileSystem,
        opens: Opens,
        device: OwnedFd,
        runtime: Handle,
        read_timeout: Duration,
        passthrough: bool,
    ) -> Self {
        Self { filesystem, opens: Arc::new(Mutex::new(opens)), device, runtime, read_timeout, passthrough }
    }

    /// Opens the file as it is open already, else through its backing file if it has one.
    fn answer_open(&self, inode: u64, opened: &Opened, reply: ReplyOpen) {
        // Looked for before the table is locked: a file that was never compared with its digest is read whole.
        let is_open = || self.opens.lock().unwrap_or_else(PoisonError::into_inner).how(inode).is_some();
        let file = if self.passthrough && !is_open() { opened.backing() } else { None };
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let how = opens.how(inode).unwrap_or_else(|| self.best_way(file.as_ref()));
        if let Err(error) = opens.add(inode, how) {
            tracing::error!(%error, "the table of open files cannot be written");
            return reply.error(Errno::EIO);
        }
        match how {
            How::Cached => reply.opened(HANDLE, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            How::Passthrough(backing) => passthrough::answer(reply, HANDLE, backing),
        }
    }

    fn best_way(&self, file: Option<&File>) -> How {
        // The kernel may have no such thing, or the cache lies on a file system that cannot back another.
        let backing = file.and_then(|file| BackingId::create_raw(self.device.as_fd(), file).ok());
        backing.map_or(How::Cached, How::Passthrough)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ];
        for flag in wanted {
            // What this kernel lacks it does without.
            let _lacking = config.add_capabilities(flag);
        }
        // The backing files lie below this file system, overlayfs above: the kernel's limit is two.
        let has_passthrough = self.passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        self.passthrough = has_passthrough && config.set_max_stack_depth(1).is_ok();
        let _kept = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.filesystem.lookup(parent.0, name.as_bytes()) {
            Ok((inode, attributes)) => reply.entry(&FOREVER, &attr(inode, &attributes), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.filesystem.attributes(inode.0) {
            Ok(attributes) => reply.attr(&FOREVER, &attr(inode.0, &attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.filesystem.target(inode.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        match self.filesystem.open(inode.0) {
            Ok(opened) => self.answer_open(inode.0, &opened, reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size);
        let opened = match self.filesystem.read(inode.0, offset, length) {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(error)),
        };
        if let Some(bytes) = opened.read_held(offset, length) {
            count("held");
            return reply.data(&bytes);
        }
        let (limit, waiting) = (self.read_timeout, Waiting(Some(reply)));
        self.runtime.spawn(async move {
            match tokio::time::timeout(limit, opened.read(offset, length)).await {
                Ok(Ok(bytes)) => {
                    count("fetched");
                    waiting.answer(&bytes);
                }
                // What went wrong was told where it did.
                Ok(Err(_told)) => waiting.fail(),
                Err(_elapsed) => {
                    tracing::warn!(layer = %opened.layer(), waited = ?limit, "a read was given up: the registry is silent");
                    waiting.fail();
                }
            }
        });
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Answered within the lock and before it is counted: see `opens`.
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        reply.ok();
        match opens.remove(inode.0) {
            Ok(Some(backing)) => passthrough::close(&self.device, backing),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the table of open files cannot be written"),
        }
    }

    /// Not needed; kernels before Linux 5.16 ask for it all the same, once.
    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// Directories need no opening, and the kernel does not ask again once it knows.
    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for dot in offset..DOTS {
            if reply.add(inode, dot + 1, FileType::Directory, dot_name(dot)) {
                return reply.ok();
            }
        }
        let listed = self.filesystem.list(inode.0, offset.saturating_sub(DOTS), |listed| {
            let Listed { name, inode, attributes, next } = listed;
            !reply.add(INodeNo(inode), next + DOTS, file_type(attributes.kind), OsStr::from_bytes(&name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let own = match self.filesystem.attributes(inode.0) {
            Ok(attributes) => attr(inode.0, &attributes),
            Err(error) => return reply.error(errno(error)),
        };
        for dot in offset..DOTS {
            if reply.add(inode, dot + 1, dot_name(dot), &FOREVER, &own, GENERATION) {
                return reply.ok();
            }
        }
        let listed = self.filesystem.list(inode.0, offset.saturating_sub(DOTS), |listed| {
            let Listed { name, inode, attributes, next } = listed;
            let (name, attr) = (OsStr::from_bytes(&name), attr(inode, &attributes));
            !reply.add(INodeNo(inode), next + DOTS, name, &FOREVER, &attr, GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(self.filesystem.xattr(inode.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(self.filesystem.xattrs(inode.0), size, reply);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, self.filesystem.inodes(), 0, BLOCK, NAME_LEN, BLOCK);
    }
}

fn answer_xattr(found: Result<Vec<u8>, Error>, size: u32, reply: ReplyXattr) {
    match found {
        Err(error) => reply.error(errno(error)),
        // Asked for the length alone.
        Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        Ok(bytes) if bytes.len() as u64 > u64::from(size) => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
    }
}

fn count(source: &'static str) {
    metrics().agent_reads.get_or_create(&[("source", source)]).inc();
}

/// A read that is answered when its bytes are here. One that the agent's end cuts off is left to the next agent: `fuser`
/// would answer a dropped reply with EIO.
#[derive(Debug)]
struct Waiting(Option<ReplyData>);

impl Waiting {
    fn answer(mut self, bytes: &[u8]) {
        if let Some(reply) = self.0.take() {
            reply.data(bytes);
        }
    }

    fn fail(mut self) {
        metrics().agent_read_errors.inc();
        if let Some(reply) = self.0.take() {
            reply.error(Errno::EIO);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // After a panic nobody will answer but this one.
        if let Some(reply) = self.0.take()
            && !std::thread::panicking()
        {
            std::mem::forget(reply);
        }
    }
}

fn dot_name(dot: u64) -> &'static str {
    if dot == 0 { "." } else { ".." }
}

fn errno(error: Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::Invalid => Errno::EINVAL,
        Error::NoAttribute => Errno::ENODATA,
        Error::Unreadable => Errno::EIO,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        // A layer with such a link is never mounted.
        Kind::File | Kind::DanglingLink => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

fn attr(inode: u64, attributes: &Attributes) -> FileAttr {
    let modified = time(attributes.modified);
    FileAttr {
        ino: INodeNo(inode),
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

fn time(Time { seconds, nanoseconds }: Time) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time =
        if seconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(whole) } else { SystemTime::UNIX_EPOCH.checked_add(whole) };
    let time = time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// As the kernel takes device numbers from user space (`new_decode_dev`).
fn rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_far_ahead_are_taken() {
        let at = |seconds, nanoseconds| time(Time { seconds, nanoseconds });
        assert_eq!(at(1, 5), SystemTime::UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(at(-2, 500_000_000), SystemTime::UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(at(i64::MAX, 999_999_999), SystemTime::UNIX_EPOCH + Duration::new(u64::MAX / 2, 999_999_999));
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(rdev((8, 1)), 0x801);
        assert_eq!(rdev((259, 0x12345)), 0x1231_0345);
    }
}
