//! Answers the kernel's FUSE requests from a [`FileSystem`]. Only this module uses errno.
//!
//! Requests for data on this node are answered at once, on the thread that read the request. Other
//! reads are answered when their bytes have been fetched, or with EIO if that takes too long.
//!
//! Every request has an answer here: the defaults of `fuser` write a line to the log for each
//! request, and containers can send as many as they like. docs/KERNEL.md lists the requests that
//! the kernel sends, and the reason for each answer.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::ioctl::{Opcode, opcode};
use tokio::runtime::Handle;

use super::attributes::{self, BLOCK, attr, file_type};
use super::filesystem::{Error, FileSystem, Listed, PROBE_INODE};
use super::init;
use super::patience::patiently;
use super::request_timeout::ReadLimits;
use crate::agent::layer_mount::LayerMount;
use crate::agent::layers::mount::ROOT_INODE;
use crate::telemetry::limit::LineLimit;
use crate::telemetry::metrics::metrics;

/// Nothing ever changes, except that layers come and go, and the kernel is notified of that.
const FOREVER: Duration = Duration::MAX;
const GENERATION: Generation = Generation(0);
/// `.` and `..` come before the names.
const DOTS: u64 = 2;
/// The longest file name.
const NAME_LEN: u32 = 255;
/// The bit in the number of a request that the kernel sends again (`FUSE_UNIQUE_RESEND`).
const UNIQUE_RESEND: u64 = 1 << 63;
/// `FS_IOC_GETFLAGS` and `FS_IOC_FSGETXATTR`: the flags of a file. overlayfs requests them for
/// every file that it copies.
const FILE_FLAGS: [Opcode; 2] = [
    opcode::read::<isize>(b'f', 1),
    opcode::read::<[u8; 28]>(b'X', 31),
];
/// The length of the longer answer to these.
const MAX_FILE_FLAGS: usize = 28;

/// Answers the kernel's requests from the file system.
#[derive(Debug)]
pub(super) struct Adapter {
    filesystem: FileSystem,
    mount: LayerMount,
    runtime: Handle,
    limits: ReadLimits,
}

impl Adapter {
    pub(super) fn new(
        filesystem: FileSystem,
        mount: LayerMount,
        runtime: Handle,
        limits: ReadLimits,
    ) -> Self {
        Self {
            filesystem,
            mount,
            runtime,
            limits,
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.mount, &self.limits);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        count("lookup");
        match self.filesystem.lookup(parent.0, name.as_bytes()) {
            Ok((inode, attributes)) => reply.entry(&FOREVER, &attr(inode, &attributes), GENERATION),
            // Layers never change, but they come and go in the root.
            Err(Error::NotFound) if parent.0 != ROOT_INODE => {
                reply.entry(&FOREVER, &attributes::ABSENT, GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        count("getattr");
        match self.filesystem.attributes(inode.0) {
            Ok(attributes) => reply.attr(&FOREVER, &attr(inode.0, &attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        count("readlink");
        match self.filesystem.target(inode.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Not needed for files of layers: they have no state, and after ENOSYS the kernel opens files
    /// by itself and keeps their pages. It keeps no pages of the data files, because EROFS does.
    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        count("open");
        match self.mount {
            LayerMount::Data => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            LayerMount::Full | LayerMount::NoXattr => reply.error(Errno::ENOSYS),
        }
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        count("read");
        if inode.0 == PROBE_INODE {
            return match self.filesystem.probe() {
                Some(content) => reply.data(content),
                None => reply.error(Errno::EIO),
            };
        }
        let length = u64::from(size);
        let opened = match self.filesystem.read(inode.0, offset, length) {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(error)),
        };
        if let Some(bytes) = opened.read_held(offset, length) {
            count_read("held");
            return reply.data(&bytes);
        }
        let is_resent = request.unique().0 & UNIQUE_RESEND != 0;
        let (limit, most) = if is_resent {
            (self.limits.resent, self.limits.most_resent)
        } else {
            (self.limits.fresh, self.limits.most_fresh)
        };
        let waiting = Waiting(Some(reply));
        self.runtime.spawn(async move {
            match patiently(limit, most, || opened.received(), opened.read(offset, length)).await {
                Some(Ok(bytes)) => {
                    count_read("fetched");
                    waiting.answer(&bytes);
                }
                // The error was logged where it happened.
                Some(Err(_logged)) => waiting.fail(),
                None => {
                    static LINES: LineLimit = LineLimit::new();
                    if let Some(dropped) = LINES.pass() {
                        tracing::warn!(layer = %opened.layer(), silence = ?limit, dropped, "read timed out");
                    }
                    waiting.fail();
                }
            }
        });
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        count("release");
        reply.ok();
    }

    /// Not needed. Kernels before Linux 5.16 send it all the same, once.
    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        count("flush");
        reply.error(Errno::ENOSYS);
    }

    /// Not needed: directories need no opening, and after ENOSYS the kernel does not ask again.
    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        count("opendir");
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        count("readdir");
        for dot in offset..DOTS {
            if reply.add(inode, dot + 1, FileType::Directory, dot_name(dot)) {
                return reply.ok();
            }
        }
        let listed = self
            .filesystem
            .list(inode.0, offset.saturating_sub(DOTS), |listed| {
                let Listed {
                    name,
                    inode,
                    attributes,
                    next,
                } = listed;
                !reply.add(
                    INodeNo(inode),
                    next + DOTS,
                    file_type(attributes.kind),
                    OsStr::from_bytes(&name),
                )
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
        count("readdirplus");
        let own = match self.filesystem.attributes(inode.0) {
            Ok(attributes) => attr(inode.0, &attributes),
            Err(error) => return reply.error(errno(error)),
        };
        for dot in offset..DOTS {
            if reply.add(inode, dot + 1, dot_name(dot), &FOREVER, &own, GENERATION) {
                return reply.ok();
            }
        }
        let listed = self
            .filesystem
            .list(inode.0, offset.saturating_sub(DOTS), |listed| {
                let Listed {
                    name,
                    inode,
                    attributes,
                    next,
                } = listed;
                let (name, attr) = (OsStr::from_bytes(&name), attr(inode, &attributes));
                !reply.add(
                    INodeNo(inode),
                    next + DOTS,
                    name,
                    &FOREVER,
                    &attr,
                    GENERATION,
                )
            });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        count("getxattr");
        // ENOSYS: the kernel sends no more of these requests on this connection, for any file.
        if self.mount != LayerMount::Full {
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(self.filesystem.xattr(inode.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        count("listxattr");
        answer_xattr(self.filesystem.xattrs(inode.0), size, reply);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        count("statfs");
        reply.statfs(0, 0, 0, self.filesystem.inodes(), 0, BLOCK, NAME_LEN, BLOCK);
    }

    /// No file of an image has flags. Any other ioctl is for another kind of file.
    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        _input: &[u8],
        output_len: u32,
        reply: ReplyIoctl,
    ) {
        count("ioctl");
        let length = usize::try_from(output_len).unwrap_or(usize::MAX);
        match [0; MAX_FILE_FLAGS].get(..length) {
            Some(flags) if FILE_FLAGS.contains(&command) => reply.ioctl(0, flags),
            _ => reply.error(Errno::ENOTTY),
        }
    }

    // ENOSYS as the answer to a request from here on means: the kernel does it by itself and does
    // not ask again.

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        count("access");
        reply.error(Errno::ENOSYS);
    }

    fn getlk(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _waits: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _block_size: u32,
        _block: u64,
        reply: ReplyBmap,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        count("lseek");
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_offset: u64,
        _length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    // The mount is read-only: the kernel refuses the following requests by itself.

    fn setattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

fn answer_xattr(found: Result<Vec<u8>, Error>, size: u32, reply: ReplyXattr) {
    match found {
        Err(error) => reply.error(errno(error)),
        // Only the length was requested.
        Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        Ok(bytes) if bytes.len() as u64 > u64::from(size) => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
    }
}

/// Counts a request of the kernel, by operation.
fn count(operation: &'static str) {
    metrics()
        .agent_requests
        .get_or_create(&[("operation", operation)])
        .inc();
}

fn count_read(source: &'static str) {
    metrics()
        .agent_reads
        .get_or_create(&[("source", source)])
        .inc();
}

/// A read that is answered when its bytes have arrived. If the agent ends first, the read is left
/// to the next agent: `fuser` would answer a dropped reply with EIO.
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
        // After a panic nothing else will answer, so the reply is dropped, which answers EIO.
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
