//! A process whose only task is to hold descriptors: `starlift agent keeper`.
//!
//! ```text
//! keep NAME + descriptor ▶ ok
//! give                   ▶ (fd NAME + descriptor)* end
//! release                ▶ ok, and the process ends
//! ```
//! One message is one packet on the socket `<root>/keeper.sock`. The agent listens on it and passes
//! the listener to the process as its standard input, so there is no moment without a listener. If
//! the process dies, the agent starts another and sends it all descriptors again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::Kept;

/// The longest message.
const MESSAGE_LEN: usize = 256;
/// Most connections that wait to be accepted: the agent has two.
const BACKLOG: i32 = 8;

type Shared = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// The agent's side.
#[derive(Debug, Clone)]
pub(crate) struct ProcessKeeper {
    socket: PathBuf,
    /// The descriptors to hold, for the next process if this one dies.
    kept: Shared,
}

impl ProcessKeeper {
    pub(super) fn open(root: &Path) -> io::Result<(Self, Kept)> {
        let keeper = Self {
            socket: root.join("keeper.sock"),
            kept: Shared::default(),
        };
        let kept = match keeper.connect() {
            Ok(connection) => take(&connection)?,
            Err(_nobody) => {
                keeper.start()?;
                Kept::new()
            }
        };
        for (name, fd) in &kept {
            keeper
                .kept
                .lock()
                .insert(name.clone(), fcntl_dupfd_cloexec(fd, 0)?);
        }
        let watched = keeper.clone();
        std::thread::Builder::new()
            .name("keeper-watch".to_owned())
            .spawn(move || watched.watch())?;
        Ok((keeper, kept))
    }

    pub(super) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.kept
            .lock()
            .insert(name.to_owned(), fcntl_dupfd_cloexec(fd, 0)?);
        self.request(&format!("keep {name}"), Some(fd))
    }

    pub(super) fn release(&self) -> io::Result<()> {
        self.kept.lock().clear();
        let connection = self.connect()?;
        send(&connection, "release", None)?;
        // The process answers. Its end then closes the connection.
        while receive(&connection)?.is_some() {}
        Ok(())
    }

    fn request(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let connection = self.connect()?;
        send(&connection, message, fd)?;
        match receive(&connection)? {
            Some((answer, _)) if answer == "ok" => Ok(()),
            answer => Err(io::Error::other(format!(
                "unexpected answer from the keeper: {answer:?}"
            ))),
        }
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.socket)?)?;
        Ok(socket)
    }

    fn start(&self) -> io::Result<()> {
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = socket()?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&self.socket)?)?;
        rustix::net::listen(&listener, BACKLOG)?;
        // Not the file's name, because an upgrade may have replaced the file. The socket's path is
        // an argument only for `ps`.
        let child = Command::new("/proc/self/exe")
            .arg0("starlift")
            .args(["agent", "keeper"])
            .arg(&self.socket)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        tracing::info!(pid = child.id(), "keeper of the mounts started");
        Ok(())
    }

    /// Waits for the keeper's death and starts another, until everything has been released.
    fn watch(&self) {
        loop {
            // The keeper sends nothing on this connection. Only its end is received.
            let ended = self.connect().and_then(|connection| receive(&connection));
            let kept = self.kept.lock();
            if kept.is_empty() {
                return;
            }
            tracing::warn!(
                ?ended,
                "the keeper of the mounts is gone; another is started"
            );
            let handed_over = self.start().and_then(|()| {
                kept.iter().try_for_each(|(name, fd)| {
                    self.request(&format!("keep {name}"), Some(fd.as_fd()))
                })
            });
            match handed_over {
                Ok(()) => tracing::info!("new keeper has all descriptors"),
                Err(error) => {
                    tracing::error!(%error, "new keeper failed; the mounts end with this process");
                    return;
                }
            }
        }
    }
}

/// The keeper's side: answers on the socket that it got as standard input, until it receives
/// `release`.
///
/// # Errors
/// If standard input is not a socket of this kind.
pub(crate) fn serve() -> io::Result<()> {
    // Signals to the agent's terminal or process group must not reach the keeper. Fails if the
    // process is already a group leader.
    let _leader_already = rustix::process::setsid();
    let listener = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let kept = Shared::default();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let Ok(connection) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) else {
                continue;
            };
            let (kept, done) = (Arc::clone(&kept), done.clone());
            std::thread::spawn(move || {
                if let Ok(true) = answer(&connection, &kept) {
                    // Closed by the end of the process, for which the other side waits.
                    std::mem::forget(connection);
                    // The receiver lives as long as the process.
                    let _sent = done.send(());
                }
            });
        }
    });
    is_done.recv().map_err(io::Error::other)
}

/// Answers on one connection until its end. Returns whether everything was released.
fn answer(connection: &OwnedFd, kept: &Shared) -> io::Result<bool> {
    while let Some((message, fd)) = receive(connection)? {
        match (message.split_once(' ').unwrap_or((&message, "")), fd) {
            (("keep", name), Some(fd)) => {
                kept.lock().insert(name.to_owned(), fd);
                send(connection, "ok", None)?;
            }
            (("give", _), None) => {
                for (name, fd) in &*kept.lock() {
                    send(connection, &format!("fd {name}"), Some(fd.as_fd()))?;
                }
                send(connection, "end", None)?;
            }
            (("release", _), None) => {
                kept.lock().clear();
                send(connection, "ok", None)?;
                return Ok(true);
            }
            _ => send(connection, "what?", None)?,
        }
    }
    Ok(false)
}

fn take(connection: &OwnedFd) -> io::Result<Kept> {
    let mut kept = Kept::new();
    send(connection, "give", None)?;
    loop {
        match receive(connection)? {
            Some((message, Some(fd))) if message.starts_with("fd ") => {
                kept.insert(message["fd ".len()..].to_owned(), fd);
            }
            Some((message, None)) if message == "end" => return Ok(kept),
            other => {
                return Err(io::Error::other(format!(
                    "unexpected answer from the keeper: {other:?}"
                )));
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn send(connection: &OwnedFd, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    rustix::net::sendmsg(
        connection,
        &[IoSlice::new(message.as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Returns the next message and its descriptor, or `None` at the end.
fn receive(connection: &OwnedFd) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut message = [0; MESSAGE_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut message)];
        match rustix::net::recvmsg(
            connection,
            &mut buffers,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => break outcome?,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&message[..received.bytes]).into_owned();
    Ok((received.bytes > 0).then_some((text, fd)))
}
