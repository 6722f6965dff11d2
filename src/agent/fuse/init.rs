//! Which features the agent asks the kernel for. docs/KERNEL.md has the reason for each one, asked for or not.

use fuser::{InitFlags, KernelConfig};

use crate::agent::layer_mount::LayerMount;
use crate::agent::request_timeout::ReadLimits;

/// Asked for where the kernel has them.
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
        // A kernel that lacks it does without.
        let _lacking = config.add_capabilities(flag);
    }
    // Access control lists of an image's files decide who may read them. They are extended attributes.
    if mount == LayerMount::Full {
        let _lacking = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
    }
    let _kept = config.set_max_background(limits.max_background);
}
