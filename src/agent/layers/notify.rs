//! Notifications from the agent to the kernel (kernel, include/uapi/linux/fuse.h, `enum
//! fuse_notify_code`).

use std::io;
use std::os::fd::OwnedFd;

use crate::agent::numbers::{Inode, LayerNumber};

const INVAL_INODE: u32 = 2;
const INVAL_ENTRY: u32 = 3;
const RESEND: u32 = 7;
/// `struct fuse_out_header`.
const HEADER_LEN: usize = 16;

/// Writes notifications to the device of a mount.
#[derive(Debug)]
pub(crate) struct Notifier(OwnedFd);

impl Notifier {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self(device)
    }

    /// Makes the kernel forget the directory of a layer. Without this the kernel would remember its
    /// name forever.
    pub(crate) fn is_gone(&self, number: LayerNumber) {
        let name = number.to_string();
        let length = u32::try_from(name.len()).unwrap_or_default();
        let mut body = Vec::new();
        body.extend(Inode::ROOT.0.to_ne_bytes());
        body.extend(length.to_ne_bytes());
        body.extend(0_u32.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        match self.send(INVAL_ENTRY, &body) {
            // The kernel never looked the name up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%number, %error, "kernel not notified of a removed layer")
            }
            Ok(()) => {}
        }
    }

    /// Makes the kernel forget the listing of the root, which it caches until it is notified.
    pub(crate) fn root_changed(&self) {
        // From the first byte to the last.
        let range = [Inode::ROOT.0, 0, 0];
        let body: Vec<u8> = range
            .iter()
            .flat_map(|number| number.to_ne_bytes())
            .collect();
        match self.send(INVAL_INODE, &body) {
            // The kernel does not know the root.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(%error, "kernel not notified of a changed root; it may list removed layers")
            }
            Ok(()) => {}
        }
    }

    /// Makes the kernel send again the requests that an earlier agent received and never answered
    /// (Linux 6.9).
    pub(crate) fn resend(&self) -> io::Result<()> {
        self.send(RESEND, &[])
    }

    fn send(&self, code: u32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER_LEN + body.len()).unwrap_or_default();
        let mut message = Vec::with_capacity(HEADER_LEN + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(code.to_ne_bytes());
        // A notification answers no request.
        message.extend(0_u64.to_ne_bytes());
        message.extend(body);
        rustix::io::write(&self.0, &message)?;
        Ok(())
    }
}
