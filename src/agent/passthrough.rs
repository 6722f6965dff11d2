//! Files that the kernel reads by itself from a backing file (Linux 6.9; kernel, fs/fuse/passthrough.c).
//!
//! A backing file has an identifier that is the mount's, not the process's: it outlives the agent.

use std::os::fd::OwnedFd;

use fuser::{FileHandle, FopenFlags, ReplyOpen};
use rustix::ioctl::{Setter, opcode};

/// `FUSE_DEV_IOC_BACKING_CLOSE`, `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(229, 2);

/// Answers an open with a backing file, which stays.
#[expect(unsafe_code, reason = "fuser cannot know whose an identifier is")]
pub(super) fn answer(reply: ReplyOpen, handle: FileHandle, backing: u32) {
    // SAFETY: the identifier is this mount's; it is closed when the table of open files has no open with it any more,
    // and this one was counted before.
    let id = unsafe { reply.wrap_backing(backing) };
    reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &id);
    let _kept = id.into_raw();
}

/// Lets a backing file go.
#[expect(unsafe_code, reason = "an ioctl that no library has")]
pub(super) fn close(device: &OwnedFd, backing: u32) {
    // SAFETY: the kernel reads one number and touches no memory of ours.
    let closed = unsafe {
        let request = Setter::<BACKING_CLOSE, u32>::new(backing);
        rustix::ioctl::ioctl(device, request)
    };
    if let Err(error) = closed {
        tracing::debug!(%error, "a backing file was not let go");
    }
}
