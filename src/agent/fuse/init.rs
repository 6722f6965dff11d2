//! The features that the agent requests from the kernel. docs/KERNEL.md gives the reason for each
//! one, requested or not.

use fuser::{InitFlags, KernelConfig};

use super::request_timeout::ReadLimits;
use crate::agent::layer_mount::LayerMount;

/// Requested if the kernel has them.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    // Pods with a user namespace see their own owners without a copy of the image.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// Answers the kernel's INIT request.
pub(super) fn negotiate(config: &mut KernelConfig, mount: LayerMount, limits: &ReadLimits) {
    for flag in WANTED {
        // A kernel without the feature works too.
        let _lacking = config.add_capabilities(flag);
    }
    // EROFS reads the data files with direct I/O. Otherwise it would wait for one request after
    // another, and a reader that is killed could not end.
    if mount == LayerMount::Data {
        let _lacking = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
    }
    // Access control lists restrict the readers of an image's files. They are extended attributes.
    if mount == LayerMount::Full {
        let _lacking = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
    }
    let _kept = config.set_max_background(limits.max_background);
}
