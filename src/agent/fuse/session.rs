//! The mount and its device, which outlive the process.
//!
//! ```text
//! first start:  open /dev/fuse ▶ mount ▶ read INIT, save it ▶ handshake ▶ answer INIT ▶ serve
//! next start:   the device from the keeper, the saved INIT ▶ handshake ▶ RESEND ▶ serve
//! ```
//! `fuser` insists on the handshake. It gets the handshake over a socket pair. The device then
//! replaces the socket.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{Filesystem, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::request_timeout;
use crate::agent::mountpoint;

/// The kernel accepts no smaller buffer for a request (`FUSE_MIN_READ_BUFFER`). Its INIT is far
/// shorter.
const REQUEST_LEN: usize = 8192;
/// The name of the file system in /proc/mounts.
const SOURCE: &str = "starlift";

/// The device of a mount, and the kernel's INIT request to it.
#[derive(Debug)]
pub(crate) struct Device {
    fd: OwnedFd,
    saved: Saved,
    is_new: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("/dev/fuse not opened")]
    Open(#[source] io::Error),
    #[error("{path} not mounted")]
    Mount { path: PathBuf, source: io::Error },
    #[error("connection ended by the kernel")]
    Ended,
    #[error("kernel's INIT request not read or not saved")]
    Init(#[source] io::Error),
    #[error("handshake with the kernel failed")]
    Handshake(#[source] io::Error),
}

impl Device {
    /// Mounts the file system on `at`, also in the place of a dead mount. `saved` is the file for
    /// its INIT.
    pub(crate) fn mount(at: &Path, saved: &Path) -> Result<Self, SessionError> {
        let failed = |source: io::Error| SessionError::Mount {
            path: at.to_owned(),
            source,
        };
        if mountpoint::clear(at).map_err(failed)? {
            tracing::error!(path = %at.display(), "an earlier mount of the layers was lost; containers over it must be restarted");
        }
        fs::create_dir_all(at).map_err(failed)?;
        // The kernel's limit for this connection stays the same, whatever it is set to later.
        let timeout = request_timeout::current();
        let fd: OwnedFd = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(SessionError::Open)?
            .into();
        let options = format!(
            "fd={},rootmode=40700,user_id=0,group_id=0,allow_other,default_permissions",
            fd.as_raw_fd()
        );
        let options = CString::new(options).map_err(|error| failed(error.into()))?;
        // Containers have the flags of their own overlay, or of a bind mount that containerd
        // remounts with its own.
        let flags =
            MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = rustix::mount::mount(SOURCE, at, "fuse.starlift", flags, options.as_c_str());
        mounted.map_err(|error| failed(error.into()))?;
        let mut init = vec![0; REQUEST_LEN];
        let length =
            rustix::io::read(&fd, &mut init).map_err(|error| SessionError::Init(error.into()))?;
        init.truncate(length);
        let timeout = timeout.map_or(0, |timeout| {
            u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)
        });
        let device = mountpoint::device_at(at).map_err(SessionError::Init)?;
        let state = Saved {
            device,
            timeout,
            init,
        };
        state.write(saved).map_err(SessionError::Init)?;
        Ok(Self {
            fd,
            saved: state,
            is_new: true,
        })
    }

    /// Takes over the mount whose device the keeper held.
    ///
    /// # Errors
    /// If the kernel has ended the connection, or its saved state cannot be read.
    pub(crate) fn adopt(fd: OwnedFd, saved: &Path) -> Result<Self, SessionError> {
        if !is_connected(&fd).map_err(|error| SessionError::Init(error.into()))? {
            return Err(SessionError::Ended);
        }
        Ok(Self {
            fd,
            saved: Saved::read(saved).map_err(SessionError::Init)?,
            is_new: false,
        })
    }

    /// The device number of the file system.
    pub(crate) fn number(&self) -> u64 {
        self.saved.device
    }

    /// Returns the time after which an unanswered request ends the connection, if there is a limit.
    pub(crate) fn request_timeout(&self) -> Option<Duration> {
        (self.saved.timeout > 0).then(|| Duration::from_millis(self.saved.timeout))
    }

    /// Whether the mount was made by this process.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Returns a duplicate of the device's descriptor.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(fcntl_dupfd_cloexec(&self.fd, 0)?)
    }

    /// Creates a session in which `filesystem` answers the kernel. Requests that an earlier process
    /// left unanswered are not sent again by this.
    pub(crate) fn serve<F: Filesystem>(
        &self,
        filesystem: F,
        threads: NonZeroUsize,
    ) -> Result<Session<F>, SessionError> {
        let handshake = |error: rustix::io::Errno| SessionError::Handshake(error.into());
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(handshake)?;
        rustix::net::send(&near, &self.saved.init, SendFlags::NOSIGNAL).map_err(handshake)?;
        let mut config = fuser::Config::default();
        config.n_threads = Some(threads.get());
        let session = Session::from_fd(filesystem, far, SessionACL::All, config)
            .map_err(SessionError::Handshake)?;
        let mut answer = vec![0; REQUEST_LEN];
        let (length, _) = rustix::net::recv(&near, answer.as_mut_slice(), RecvFlags::DONTWAIT)
            .map_err(handshake)?;
        if self.is_new {
            rustix::io::write(&self.fd, &answer[..length]).map_err(handshake)?;
        }
        replace(&session, &self.fd).map_err(handshake)?;
        Ok(session)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Replaces the socket of the session's handshake with the device.
#[expect(
    unsafe_code,
    reason = "a session lends its descriptor, and dup3 wants to own the one it replaces"
)]
fn replace<F: Filesystem>(session: &Session<F>, device: &OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is open for as long as the session is borrowed. It is never closed
    // through this value.
    let mut lent = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    dup3(device, &mut lent, DupFlags::CLOEXEC)
}

/// Whether the kernel still sends requests. It does not after the last unmount or after an abort.
fn is_connected(fd: &OwnedFd) -> rustix::io::Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(!polled[0].revents().contains(PollFlags::ERR))
}

/// The state of a connection that a later process needs. Stored in one file, the kernel's INIT
/// last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Saved {
    /// The device number of the file system.
    device: u64,
    /// The kernel's limit on unanswered requests, in milliseconds. 0 if it has none.
    timeout: u64,
    init: Vec<u8>,
}

impl Saved {
    fn write(&self, path: &Path) -> io::Result<()> {
        let numbers = [self.device.to_le_bytes(), self.timeout.to_le_bytes()].concat();
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&[numbers.as_slice(), &self.init].concat())
    }

    fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let (device, rest) = bytes
            .split_first_chunk()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let (timeout, init) = rest
            .split_first_chunk()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let (device, timeout) = (u64::from_le_bytes(*device), u64::from_le_bytes(*timeout));
        Ok(Self {
            device,
            timeout,
            init: init.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_process_reads_the_saved_state_of_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        let saved = Saved {
            device: 42,
            timeout: 20_000,
            init: vec![1, 2, 3],
        };
        saved.write(&path).unwrap();
        assert_eq!(Saved::read(&path).unwrap(), saved);
        fs::write(&path, "short").unwrap();
        assert!(Saved::read(&path).is_err());
    }

    #[test]
    fn a_device_without_a_mount_is_not_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        Saved {
            device: 42,
            timeout: 0,
            init: vec![1],
        }
        .write(&path)
        .unwrap();
        // A pipe without a reader polls as a device does after an abort.
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert!(matches!(
            Device::adopt(writer.into(), &path),
            Err(SessionError::Ended)
        ));
    }
}
