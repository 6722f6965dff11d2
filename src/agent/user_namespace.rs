//! The user namespace of this process: rootless containerd and its agent run in one.

use std::fs;

/// The user that the kernel shows for owners without a name in a user namespace, unless it is
/// configured otherwise (user_namespaces(7), "Unmapped user and group IDs").
const OVERFLOW_USER: u32 = 65534;

/// Whether some users of the machine have no name here.
pub(super) fn is_inside() -> bool {
    let whole = ["0", "0", "4294967295"];
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.split_whitespace().eq(whole))
}

/// Returns the user that stands for all users without a name here, the machine's root among them.
/// `None` outside of a user namespace.
pub(super) fn unmapped_user() -> Option<u32> {
    let configured = || {
        let text = fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
        text.trim().parse().ok()
    };
    is_inside().then(|| configured().unwrap_or(OVERFLOW_USER))
}
