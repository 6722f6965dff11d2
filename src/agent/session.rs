//! The mount and its device, which outlive the process.
//!
//! ```text
//! first start:  open /dev/fuse ▶ mount ▶ read INIT, save it ▶ handshake ▶ INIT's answer to the kernel ▶ serve
//! next start:   the device from the keeper, the saved INIT ▶ handshake ▶ RESEND ▶ serve
//! ```
//! `fuser` insists on the handshake. It gets it over a pair of sockets, and then the device in the socket's place.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use fuser::{Filesystem, Session, SessionACL};
use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The kernel takes no smaller buffer for a request (`FUSE_MIN_READ_BUFFER`); its INIT is far shorter.
const REQUEST_LEN: usize = 8192;
/// What the file system is called in /proc/mounts.
const SOURCE: &str = "starlift";
/// How far the kernel reads ahead, in KiB: a few of our chunks' worth would cost more than it saves.
const READ_AHEAD_KIB: &str = "512";

/// The device of a mount, and the kernel's INIT request to it.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    init: Vec<u8>,
    is_new: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("/dev/fuse cannot be opened")]
    Open(#[source] io::Error),
    #[error("{path} cannot be mounted")]
    Mount { path: PathBuf, source: io::Error },
    #[error("the kernel's greeting cannot be read or saved")]
    Init(#[source] io::Error),
    #[error("the handshake with the kernel failed")]
    Handshake(#[source] io::Error),
}

impl Device {
    /// Mounts the file system on `at`, a dead one's place as well. `saved` is where its INIT is kept.
    pub fn mount(at: &Path, saved: &Path) -> Result<Self, SessionError> {
        let failed = |source: io::Error| SessionError::Mount { path: at.to_owned(), source };
        if clear(at).map_err(failed)? {
            tracing::error!(path = %at.display(), "the lazy mounts of an earlier agent were lost; containers on them cannot read on");
        }
        fs::create_dir_all(at).map_err(failed)?;
        let fd: OwnedFd =
            fs::File::options().read(true).write(true).open("/dev/fuse").map_err(SessionError::Open)?.into();
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd.as_raw_fd());
        let options = CString::new(options).map_err(|error| failed(error.into()))?;
        // Neither NOSUID nor NODEV: a bind mount of a layer would keep them. Only root gets here, through overlayfs.
        let flags = MountFlags::RDONLY | MountFlags::NOATIME;
        let mounted = rustix::mount::mount(SOURCE, at, "fuse.starlift", flags, options.as_c_str());
        mounted.map_err(|error| failed(error.into()))?;
        let mut init = vec![0; REQUEST_LEN];
        let length = rustix::io::read(&fd, &mut init).map_err(|error| SessionError::Init(error.into()))?;
        init.truncate(length);
        fs::write(saved, &init).map_err(SessionError::Init)?;
        Ok(Self { fd, init, is_new: true })
    }

    /// Takes over the mount whose device a keeper kept.
    pub fn adopt(fd: OwnedFd, saved: &Path) -> Result<Self, SessionError> {
        Ok(Self { fd, init: fs::read(saved).map_err(SessionError::Init)?, is_new: false })
    }

    /// Whether the mount was made by this process.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The device once more, for whoever else needs it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(fcntl_dupfd_cloexec(&self.fd, 0)?)
    }

    /// Lets `filesystem` answer the kernel; requests that an earlier process left unanswered are not sent again by this.
    pub fn serve<F: Filesystem>(&self, filesystem: F, threads: NonZeroUsize) -> Result<Session<F>, SessionError> {
        let handshake = |error: rustix::io::Errno| SessionError::Handshake(error.into());
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(handshake)?;
        rustix::net::send(&ours, &self.init, SendFlags::NOSIGNAL).map_err(handshake)?;
        let mut config = fuser::Config::default();
        config.n_threads = Some(threads.get());
        let session = Session::from_fd(filesystem, theirs, SessionACL::All, config).map_err(SessionError::Handshake)?;
        let mut answer = vec![0; REQUEST_LEN];
        let (length, _) = rustix::net::recv(&ours, answer.as_mut_slice(), RecvFlags::DONTWAIT).map_err(handshake)?;
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

/// Puts the device in the place of the socket that the session was made with.
#[expect(unsafe_code, reason = "a session lends its descriptor, and dup3 wants to own the one it replaces")]
fn replace<F: Filesystem>(session: &Session<F>, device: &OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is open for as long as the session is borrowed; it is never closed through this value.
    let mut lent = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    dup3(device, &mut lent, DupFlags::CLOEXEC)
}

/// Unmounts whatever is mounted on `at`, however often; open files keep it alive. Whether something was.
pub fn clear(at: &Path) -> io::Result<bool> {
    let mut was_mounted = false;
    while mounted(at)?.is_some() {
        rustix::mount::unmount(at, UnmountFlags::DETACH)?;
        was_mounted = true;
    }
    Ok(was_mounted)
}

/// Lets the kernel read further ahead than its default of 128 KiB: each request has a price.
///
/// The mount is looked for in /proc: a look at itself would ask the agent.
pub fn read_further_ahead(at: &Path) {
    let set = mounted(at).and_then(|device| {
        let device = device.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB)
    });
    if let Err(error) = set {
        tracing::debug!(%error, "the kernel's read-ahead stays as it is");
    }
}

/// The device number, `major:minor`, of what is mounted on `at` (proc_pid_mountinfo(5)).
fn mounted(at: &Path) -> io::Result<Option<String>> {
    let mut table = Vec::new();
    fs::File::open("/proc/self/mountinfo")?.read_to_end(&mut table)?;
    let escaped = escape(at.as_os_str().as_bytes());
    // The last line is what is on top.
    let mut on_it = table.split(|byte| *byte == b'\n').rev().filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = fields.next()?;
        (fields.nth(1)? == escaped).then(|| String::from_utf8_lossy(device).into_owned())
    });
    Ok(on_it.next())
}

/// As mountinfo writes a path: blanks and backslashes in octal.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").as_bytes()),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_place() {
        assert!(mounted(Path::new("/proc")).unwrap().is_some());
        assert_eq!(mounted(Path::new("/proc/self")).unwrap(), None);
        assert_eq!(escape(b"/a b\\c"), b"/a\\040b\\134c");
    }
}
