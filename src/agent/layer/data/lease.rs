//! Whether a data file is open anywhere else: in another process, or as the device of a file system.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use libc::c_int;

/// The command that chooses the signal (Linux, include/uapi/asm-generic/fcntl.h).
const F_SETSIG: c_int = 10;

/// Returns whether the file is open anywhere but here. `None` if this file system cannot say. The
/// file must be open for writing.
///
/// The kernel grants a write lease only on a file that nobody else has open (fcntl(2), "Leases"). It
/// is given back at once.
pub(super) fn is_shared(file: &File) -> Option<bool> {
    match lease(file) {
        Ok(()) => Some(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(true),
        Err(error) => {
            tracing::debug!(%error, "no lease on a data file");
            None
        }
    }
}

fn lease(file: &File) -> io::Result<()> {
    // Whoever opens the file meanwhile waits, and this process gets a signal: one that is ignored
    // by default, and not SIGIO, which would end it.
    control(file, F_SETSIG, libc::SIGURG)?;
    control(file, libc::F_SETLEASE, libc::F_WRLCK)?;
    control(file, libc::F_SETLEASE, libc::F_UNLCK)
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn control(file: &File, command: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and these commands take a number.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    if outcome == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_file_is_shared_as_long_as_another_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.data");
        let mut options = OpenOptions::new();
        let own = options.read(true).write(true).create(true).truncate(true);
        let own = own.open(&path).unwrap();
        assert_eq!(is_shared(&own), Some(false));
        let other = File::open(&path).unwrap();
        assert_eq!(is_shared(&own), Some(true));
        drop(other);
        assert_eq!(is_shared(&own), Some(false));
        assert!(File::open(&path).is_ok(), "the lease was given back");
    }
}
