//! The socket for containerd.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::snapshotter::Snapshotter;
use crate::agent::credentials::ImageService;
use crate::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;

/// containerd's own limit for a message.
const MAX_MESSAGE: usize = 16 << 20;
/// How long running calls may take to end after `shutdown`.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("another agent listens on {0}")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket")]
    NoSocket(PathBuf),
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("socket not registered with the runtime")]
    Accept(#[source] io::Error),
    #[error("snapshots service stopped")]
    Stopped(#[from] tonic::transport::Error),
}

/// Listens on a socket for root only. Creates its directory if need be. Replaces a socket that
/// nobody listens on.
///
/// `kept` is the listener of an earlier process, on which clients may already be waiting. It is
/// used if it is the socket at `path`.
pub(crate) fn bind(path: &Path, kept: Option<OwnedFd>) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        path: path.to_owned(),
        source,
    };
    // The socket has another name until its mode is set, so that nobody else can connect, not even
    // for a moment.
    let new = path.with_added_extension("new");
    if let Some(kept) = kept.map(UnixListener::from)
        && kept
            .local_addr()
            .is_ok_and(|address| address.as_pathname() == Some(new.as_path()))
        && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
    {
        return Ok(kept);
    }
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NoSocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ServeError::InUse(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

/// Serves snapshots until `shutdown`, and images if kubelets use the agent as their image service.
/// Then waits for running calls, for a limited time.
///
/// Must be called inside a runtime.
pub(crate) async fn serve(
    listener: UnixListener,
    snapshotter: Snapshotter,
    images: Option<ImageService>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true).map_err(ServeError::Accept)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServeError::Accept)?;
    let service = SnapshotsServer::new(snapshotter)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .add_service(service)
        .add_optional_service(images)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        outcome = server => Ok(outcome?),
        () = too_long => {
            tracing::warn!("running calls cut off");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("run/agent.sock")
    }

    #[test]
    fn only_root_can_use_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let socket = address(&folder);
        let _listener = bind(&socket, None).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().unwrap()), 0o700);
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = address(&folder);
        fs::create_dir(socket.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        drop(UnixListener::bind(socket.with_extension("sock.new")).unwrap());
        let listener = bind(&socket, None).unwrap();
        UnixStream::connect(&socket).unwrap();
        drop(listener);
        let _next = bind(&socket, None).unwrap();
        UnixStream::connect(&socket).unwrap();
    }

    #[test]
    fn a_living_agent_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = address(&folder);
        let _listener = bind(&socket, None).unwrap();
        assert!(matches!(bind(&socket, None), Err(ServeError::InUse(_))));
        UnixStream::connect(&socket).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(matches!(bind(&file, None), Err(ServeError::NoSocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }
}
