//! The agent's life: take over what an earlier process left, serve, and leave it to the next.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::api::{self, Api};
use super::config::Config;
use super::cri::{CriCredentials, ImageService};
use super::keeper::Keeper;
use super::layers::Layers;
use super::mounted::Mounted;
use super::server::{self, ServeError};
use super::snapshots::{self, Snapshots};
use super::snapshotter::Snapshotter;
use super::{mountpoint, root};
use crate::registry;
use crate::transport::Upstreams;

/// What a keeper knows the FUSE device, the clone of its mount, the listening socket and the credentials of pods by.
pub const DEVICE: &str = "fuse";
pub const MOUNT: &str = "mount";
pub const LISTENER: &str = "socket";
pub const CREDENTIALS: &str = "credentials";

/// How long an earlier process may take to let go of the metadata: a read of its own may have to be answered first.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("an agent runs already with the root {0}")]
    Running(PathBuf),
    #[error("the root {path} cannot be used")]
    Root { path: PathBuf, source: io::Error },
    #[error("the root cannot be used")]
    UnsafeRoot(#[from] root::RootError),
    #[error("nothing keeps the mounts while the agent restarts")]
    Keeper(#[source] io::Error),
    #[error("the snapshots cannot be opened")]
    Snapshots(#[source] snapshots::Error),
    #[error(transparent)]
    Upstreams(#[from] registry::Error),
    #[error("containerd's socket cannot be dialled")]
    Cri(#[from] tonic::transport::Error),
    #[error(transparent)]
    Api(#[from] api::ApiError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{0}")]
    Internal(String),
}

/// Serves containerd until `shutdown`; the lazy mounts stay.
///
/// # Errors
/// When the root, the socket or the keeper cannot be used.
pub async fn run(
    config: &Config,
    upstreams: &registry::Config,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let root = checked_root(config).await?;
    let (kind, place) = (config.keeper, root.clone());
    let (keeper, mut kept) = blocking(move || Keeper::open(kind, &place))
        .await?
        .map_err(RunError::Keeper)?;
    let credentials =
        credentials(config, &keeper, kept.remove(CREDENTIALS)).map_err(RunError::Keeper)?;
    let upstreams = Upstreams::with_logins(upstreams, credentials.logins())?;
    let images = config
        .cri
        .as_deref()
        .map(|containerd| ImageService::new(containerd, credentials))
        .transpose()?;
    let own = config.clone();
    let layers = blocking(move || Layers::open(&own, upstreams)).await?;
    let layers = Arc::new(layers.map_err(|source| RunError::Root {
        path: root.clone(),
        source,
    })?);

    // Before the snapshots: an earlier process may wait for an answer of the file system before it lets go of them.
    let keeper = Arc::new(keeper);
    let config = &Config {
        root: root.clone(),
        ..config.clone()
    };
    let mounted = Mounted::start(config, Arc::clone(&keeper), Arc::clone(&layers), &mut kept).await;
    let place = root.clone();
    let snapshots = blocking(move || open_snapshots(&place))
        .await?
        .map_err(RunError::Snapshots)?;
    let snapshots = Arc::new(snapshots);
    tidy_up(&layers, &snapshots).await?;

    let listener = server::bind(&config.address, kept.remove(LISTENER))?;
    keeper
        .keep(LISTENER, listener.as_fd())
        .map_err(RunError::Keeper)?;
    let api = Api::bind(&root, config.listen, Arc::clone(&layers)).await?;
    let api = tokio::spawn(api.serve(shutdown.clone()));
    let resumed = Arc::clone(&layers);
    let resuming = tokio::spawn(async move { resumed.resume().await });
    tracing::info!(
        address = %config.address.display(),
        root = %root.display(),
        keeper = keeper.name(),
        layers = layers.len(),
        "listening"
    );
    // Nobody may be listening: not every start is systemd's.
    let _unheard = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let serving = server::serve(
        listener,
        Snapshotter::new(snapshots, layers),
        images,
        shutdown,
    );
    let mounted = tokio::spawn(mounted.keep());
    let outcome = serving.await.map_err(RunError::Serve);
    mounted.abort();
    resuming.abort();
    api.abort();
    outcome
}

/// What pods' pulls bring, in memory that the keeper holds as well.
fn credentials(
    config: &Config,
    keeper: &Keeper,
    kept: Option<OwnedFd>,
) -> io::Result<CriCredentials> {
    if config.cri.is_none() {
        return Ok(CriCredentials::default());
    }
    let memory = match kept {
        Some(memory) => memory,
        None => {
            let memory = CriCredentials::memory()?;
            keeper.keep(CREDENTIALS, memory.as_fd())?;
            memory
        }
    };
    Ok(CriCredentials::kept_in(memory))
}

/// The root, made if need be, which no other user reaches and no other agent uses.
async fn checked_root(config: &Config) -> Result<PathBuf, RunError> {
    let given = config.root.clone();
    let root = blocking(move || root::secure(&given)).await??;
    if api::is_answered(&root).await {
        Err(RunError::Running(root))
    } else {
        Ok(root)
    }
}

/// Waits for an earlier process to let go of the metadata.
fn open_snapshots(root: &Path) -> Result<Snapshots, snapshots::Error> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match Snapshots::open(root) {
            Err(error) if error.is_in_use() && std::time::Instant::now() < deadline => {
                std::thread::sleep(POLL)
            }
            outcome => return outcome,
        }
    }
}

/// Lets go what a crash left: layers without a snapshot, directories without a record.
async fn tidy_up(layers: &Arc<Layers>, snapshots: &Arc<Snapshots>) -> Result<(), RunError> {
    let own = Arc::clone(snapshots);
    match blocking(move || own.lazy_numbers())
        .await?
        .map_err(RunError::Snapshots)?
    {
        Some(numbers) => layers.retain(&numbers).await,
        None => {
            tracing::warn!("a snapshot's record is damaged: layers without a snapshot are kept")
        }
    }
    let own = Arc::clone(snapshots);
    if let Err(error) = blocking(move || own.cleanup()).await? {
        tracing::warn!(%error, "orphans stay");
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    spawn_blocking(work)
        .await
        .map_err(|error| RunError::Internal(error.to_string()))
}

/// Unmounts the lazy layers of an agent that does not run, and ends their keeper.
///
/// # Errors
/// When the agent runs, or its mount cannot be undone.
pub async fn unmount(config: &Config) -> Result<(), RunError> {
    let root = checked_root(config).await?;
    let kind = config.keeper;
    let work = move || {
        let (keeper, kept) = Keeper::open(kind, &root)?;
        drop(kept);
        mountpoint::clear(&Layers::mountpoint(&root))?;
        keeper.release()
    };
    blocking(work).await?.map_err(RunError::Keeper)
}
