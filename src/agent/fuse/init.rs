//! Which features the agent asks the kernel for. docs/KERNEL.md has the reason for each one, asked for or not.

use fuser::{InitFlags, KernelConfig};

use crate::agent::request_timeout::ReadLimits;

/// Asked for where the kernel has them.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    // Access control lists of an image's files decide who may read them.
    InitFlags::FUSE_POSIX_ACL,
    // Pods with a user namespace see their own owners without a copy of the image.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// Answers the kernel's greeting. Whether files can be read without the agent.
pub(super) fn greet(
    config: &mut KernelConfig,
    limits: &ReadLimits,
    wants_passthrough: bool,
) -> bool {
    for flag in WANTED {
        // A kernel that lacks it does without.
        let _lacking = config.add_capabilities(flag);
    }
    let _kept = config.set_max_background(limits.max_background);
    // The backing files lie below this file system, overlayfs above: the kernel's limit is two, so no overlay can lie
    // on a container's.
    wants_passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok()
}
