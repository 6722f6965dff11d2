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
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::ioctl::{Opcode, opcode};
use tokio::runtime::Handle;
use tracing::Instrument as _;

use super::attributes::{self, BLOCK, attr, file_type};
use super::filesystem::{Error, FileSystem, Listed, PROBE_INODE};
use super::init;
use super::patience::patiently;
use super::refused::refuse;
use super::request_timeout::ReadLimits;
use crate::agent::layer_mount::LayerMount;
use crate::agent::numbers::Inode;
use crate::telemetry::limit::LineLimit;
use crate::telemetry::metrics::metrics;
use crate::telemetry::traces;

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
        match self.filesystem.lookup(parent.into(), name.as_bytes()) {
            Ok((inode, attributes)) => reply.entry(&FOREVER, &attr(inode, &attributes), GENERATION),
            // Layers never change, but they come and go in the root.
            Err(Error::NotFound) if Inode::from(parent) != Inode::ROOT => {
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
        match self.filesystem.attributes(inode.into()) {
            Ok(attributes) => reply.attr(&FOREVER, &attr(inode.into(), &attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        count("readlink");
        match self.filesystem.target(inode.into()) {
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
        if Inode::from(inode) == PROBE_INODE {
            return match self.filesystem.probe() {
                Some(content) => reply.data(content),
                None => reply.error(Errno::EIO),
            };
        }
        let length = u64::from(size);
        let opened = match self.filesystem.read(inode.into(), offset, length) {
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
        let span =
            tracing::info_span!("read", layer = %opened.layer(), inode = inode.0, offset, length);
        let since = Instant::now();
        let work = async move {
            let outcome = patiently(
                limit,
                most,
                || opened.received(),
                opened.read(offset, length),
            )
            .await;
            let waits = &metrics().agent_read_waits;
            waits.observe(since.elapsed(), traces::current_id());
            match outcome {
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
        };
        self.runtime.spawn(work.instrument(span));
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
            .list(inode.into(), offset.saturating_sub(DOTS), |listed| {
                let Listed {
                    name,
                    inode,
                    attributes,
                    next,
                } = listed;
                !reply.add(
                    INodeNo(inode.0),
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
        let own = match self.filesystem.attributes(inode.into()) {
            Ok(attributes) => attr(inode.into(), &attributes),
            Err(error) => return reply.error(errno(error)),
        };
        for dot in offset..DOTS {
            if reply.add(inode, dot + 1, dot_name(dot), &FOREVER, &own, GENERATION) {
                return reply.ok();
            }
        }
        let listed = self
            .filesystem
            .list(inode.into(), offset.saturating_sub(DOTS), |listed| {
                let Listed {
                    name,
                    inode,
                    attributes,
                    next,
                } = listed;
                let (name, attr) = (OsStr::from_bytes(&name), attr(inode, &attributes));
                !reply.add(
                    INodeNo(inode.0),
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
        answer_xattr(
            self.filesystem.xattr(inode.into(), name.as_bytes()),
            size,
            reply,
        );
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        count("listxattr");
        answer_xattr(self.filesystem.xattrs(inode.into()), size, reply);
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

    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        count("access");
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

    refuse! {
        fsync(INodeNo, FileHandle, bool) ReplyEmpty = ENOSYS;
        fsyncdir(INodeNo, FileHandle, bool) ReplyEmpty = ENOSYS;
        getlk(INodeNo, FileHandle, LockOwner, u64, u64, i32, u32) ReplyLock = ENOSYS;
        setlk(INodeNo, FileHandle, LockOwner, u64, u64, i32, u32, bool) ReplyEmpty = ENOSYS;
        bmap(INodeNo, u32, u64) ReplyBmap = ENOSYS;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags) ReplyPoll = ENOSYS;
        copy_file_range(
            INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags
        ) ReplyWrite = ENOSYS;
    }

    // The mount is read-only: the kernel refuses the following requests by itself.
    refuse! {
        setattr(
            INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>
        ) ReplyAttr = EROFS;
        mknod(INodeNo, &OsStr, u32, u32, u32) ReplyEntry = EROFS;
        mkdir(INodeNo, &OsStr, u32, u32) ReplyEntry = EROFS;
        unlink(INodeNo, &OsStr) ReplyEmpty = EROFS;
        rmdir(INodeNo, &OsStr) ReplyEmpty = EROFS;
        symlink(INodeNo, &OsStr, &Path) ReplyEntry = EROFS;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) ReplyEmpty = EROFS;
        link(INodeNo, INodeNo, &OsStr) ReplyEntry = EROFS;
        create(INodeNo, &OsStr, u32, u32, i32) ReplyCreate = EROFS;
        write(
            INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>
        ) ReplyWrite = EROFS;
        fallocate(INodeNo, FileHandle, u64, u64, i32) ReplyEmpty = EROFS;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) ReplyEmpty = EROFS;
        removexattr(INodeNo, &OsStr) ReplyEmpty = EROFS;
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
