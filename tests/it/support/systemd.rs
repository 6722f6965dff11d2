//! The parts of systemd that a service with a descriptor store uses: the notification socket that
//! receives descriptors, and the start that passes them back (systemd.service(5),
//! `FileDescriptorStoreMax=`; sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
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
}

impl Manager {
    pub(crate) fn new(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            path,
            socket,
            store: BTreeMap::new(),
            is_ready: false,
        }
    }

    /// Returns the command as systemd starts it, with the stored descriptors and their names.
    pub(crate) fn command(&mut self, executable: &str) -> Command {
        self.is_ready = false;
        let mut command = Command::new("sh");
        // The standard library can pass two descriptors, as standard input and output.
        let store: Vec<(String, OwnedFd)> = self
            .store
            .iter()
            .map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()))
            .collect();
        assert!(store.len() <= 2, "{store:?}");
        let names = store
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(":");
        let mut script = "exec 3<&0 4<&1 0</dev/null 1>&2; ".to_owned();
        if !store.is_empty() {
            script += &format!(
                "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={names}; ",
                store.len()
            );
        }
        command.args(["-c", &format!("{script}exec {executable} \"$@\""), "sh"]);
        let mut fds = store.into_iter().map(|(_, fd)| Stdio::from(fd));
        command
            .stdin(fds.next().unwrap_or_else(Stdio::null))
            .stdout(fds.next().unwrap_or_else(Stdio::null));
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
