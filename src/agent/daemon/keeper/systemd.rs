//! systemd's descriptor store (systemd.service(5), `FileDescriptorStoreMax=`).

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use sd_notify::NotifyState;

use super::{CREDENTIALS, Kept, LISTENER};
use crate::agent::layer_mount::LayerMount;

fn names() -> impl Iterator<Item = &'static str> {
    let devices = LayerMount::ALL.into_iter().map(LayerMount::device_name);
    devices.chain([LISTENER, CREDENTIALS])
}

/// Whether the unit has a store. systemd 254 and newer announce it. Older versions must be set in
/// the configuration.
pub(super) fn has_store() -> bool {
    std::env::var_os("FDSTORE").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some()
}

#[expect(unsafe_code, reason = "inherited descriptors are numbers")]
pub(super) fn take() -> io::Result<Kept> {
    let mut kept = Kept::new();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd opened it for this process, and no other code in it has taken it: this
        // function is called once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        kept.insert(name, fd);
    }
    Ok(kept)
}

pub(super) fn keep(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    // The store may hold several descriptors of one name, so the previous one is removed first.
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd])
}

pub(super) fn release() -> io::Result<()> {
    names().try_for_each(|name| {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
    })
}
