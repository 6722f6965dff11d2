//! The parts of systemd that a service with a descriptor store uses: the notification socket that
//! receives descriptors, and the start that passes them back (systemd.service(5),
//! `FileDescriptorStoreMax=`; sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// The manager of one service.
#[derive(Debug)]
pub(crate) struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    pub(crate) store: BTreeMap<String, OwnedFd>,
    pub(crate) is_ready: bool,
    /// Open until the next start.
    inherited: Vec<OwnedFd>,
}

impl Manager {
    pub(crate) fn new(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            path,
            socket,
            store: BTreeMap::new(),
            inherited: Vec::new(),
            is_ready: false,
        }
    }

    /// Returns the command as systemd starts it, with the stored descriptors and their names.
    pub(crate) fn command(&mut self, executable: &str) -> Command {
        self.is_ready = false;
        // Inherited by the shell, which gives them the numbers of sd_listen_fds(3).
        self.inherited = self.store.values().map(inheritable).collect();
        let names: Vec<&str> = self.store.keys().map(String::as_str).collect();
        let mut script = "exec 1>&2; ".to_owned();
        for (number, fd) in (3..).zip(&self.inherited) {
            let fd = fd.as_raw_fd();
            script += &format!("exec {number}<&{fd} {fd}<&-; ");
        }
        if !names.is_empty() {
            script += &format!(
                "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; ",
                names.len(),
                names.join(":")
            );
        }
        // Other shells take no number of two digits.
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{script}exec {executable} \"$@\""), "bash"]);
        command.stdin(Stdio::null());
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// Receives the service's messages since the last call.
    pub(crate) fn listen(&mut self) {
        loop {
            let mut message = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(&mut message)];
            let Ok(received) = rustix::net::recvmsg(
                &self.socket,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) else {
                return;
            };
            let fd = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            self.heed(
                &String::from_utf8_lossy(&message[..received.bytes]),
                fd.as_ref(),
            );
        }
    }

    fn heed(&mut self, message: &str, fd: Option<&OwnedFd>) {
        let name = message
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or("stored");
        for line in message.lines() {
            match (line, fd) {
                ("FDSTORE=1", Some(fd)) => {
                    drop(self.store.insert(name.to_owned(), fd.try_clone().unwrap()))
                }
                ("FDSTOREREMOVE=1", None) => drop(self.store.remove(name)),
                ("READY=1", _) => self.is_ready = true,
                _ => {}
            }
        }
    }
}

/// A duplicate that an exec leaves open, with a number above those that services expect.
fn inheritable(fd: &OwnedFd) -> OwnedFd {
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 20).unwrap();
    rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).unwrap();
    copy
}
