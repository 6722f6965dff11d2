//! The socket that containerd talks to.

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

use super::cri::ImageService;
use super::snapshotter::Snapshotter;
use crate::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;

/// containerd's own limit for a message.
const MAX_MESSAGE: usize = 16 << 20;
/// How long running calls may take to end once the agent is to stop.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("an agent listens on {0} already")]
    InUse(PathBuf),
    #[error("{0} is there, and no socket")]
    NoSocket(PathBuf),
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("the socket cannot be waited on")]
    Accept(#[source] io::Error),
    #[error("the snapshots service stopped")]
    Stopped(#[from] tonic::transport::Error),
}

/// Listens on a socket for root alone. Its folder is made if need be; a socket that nobody listens on is replaced.
///
/// `kept` is the listener of an earlier process, on which clients may be waiting already; it is taken if it is the
/// socket at `path`.
pub fn bind(path: &Path, kept: Option<OwnedFd>) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        path: path.to_owned(),
        source,
    };
    // Under another name until it has its mode: nobody else may connect, not even for a moment.
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

/// Serves snapshots, and images where kubelets are to find them here, until `shutdown`; then waits for running calls, but
/// not for long.
///
/// Call it inside a runtime.
pub async fn serve(
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
            tracing::warn!("calls that still ran were cut off");
            Ok(())
        }
    }
}
