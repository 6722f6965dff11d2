//! The life of the agent's process: take over from an earlier process, serve, leave everything to
//! the next.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::api::{self, Api};
use super::config::Config;
use super::cri::{CriCredentials, ImageService};
use super::keeper::Keeper;
use super::layer_mount::LayerMount;
use super::layers::Layers;
use super::mounted::Mounted;
use super::native::Natives;
use super::provenance::{self, ProvenanceCheck};
use super::server::{self, ServeError};
use super::snapshots::{self, Snapshots};
use super::snapshotter::Snapshotter;
use super::{erofs, mountpoint, root};
use crate::registry;
use crate::transport::Upstreams;

/// The names under which the fd store holds the listening socket and the credentials of pods.
/// `LayerMount` has the others.
pub const LISTENER: &str = "socket";
pub const CREDENTIALS: &str = "credentials";

/// How long to wait until an earlier process releases the metadata: one of its own reads may have
/// to be answered first.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("another agent runs with the root {0}")]
    Running(PathBuf),
    #[error("root {path} not usable")]
    Root { path: PathBuf, source: io::Error },
    #[error("root not usable")]
    UnsafeRoot(#[from] root::RootError),
    #[error("nothing keeps the mounts while the agent restarts")]
    Keeper(#[source] io::Error),
    #[error("agent.driver is \"erofs\", which this kernel cannot do")]
    Driver(#[source] erofs::ProbeError),
    #[error("snapshots not opened")]
    Snapshots(#[source] snapshots::Error),
    #[error(transparent)]
    Provenance(#[from] provenance::CheckError),
    #[error(transparent)]
    Upstreams(#[from] registry::Error),
    #[error("containerd's socket not dialled")]
    Cri(#[from] tonic::transport::Error),
    #[error(transparent)]
    Api(#[from] api::ApiError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{0}")]
    Internal(String),
}

/// Serves containerd until `shutdown`. The lazy mounts stay.
///
/// # Errors
/// If the root, the socket or the keeper cannot be used.
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
    let provenance = ProvenanceCheck::open(config, &upstreams)?;
    let images = config
        .cri
        .as_deref()
        .map(|containerd| ImageService::new(containerd, credentials))
        .transpose()?;
    let own = config.clone();
    let layers = blocking(move || Layers::open(&own, upstreams, &LayerMount::ALL)).await?;
    let layers = Arc::new(layers.map_err(|source| RunError::Root {
        path: root.clone(),
        source,
    })?);

    // Before the snapshots: an earlier process may wait for an answer of the file system before it
    // releases them.
    let keeper = Arc::new(keeper);
    let config = &Config {
        root: root.clone(),
        ..config.clone()
    };
    let mut mounts = Vec::new();
    for mount in LayerMount::ALL {
        let (keeper, layers) = (Arc::clone(&keeper), Arc::clone(&layers));
        mounts.push(Mounted::start(mount, config, keeper, layers, &mut kept).await);
    }
    let own = Arc::clone(&layers);
    let driver = blocking(move || {
        own.restore_erofs();
        own.choose_driver().cloned()
    });
    let driver = driver.await?.map_err(RunError::Driver)?;
    let place = root.clone();
    let snapshots = blocking(move || open_snapshots(&place))
        .await?
        .map_err(RunError::Snapshots)?;
    let snapshots = Arc::new(snapshots);
    restore_layers(&layers, &snapshots).await?;
    tidy_up(&layers, &snapshots).await?;
    layers.delete_unmounted_data().await;

    let listener = server::bind(&config.address, kept.remove(LISTENER))?;
    keeper
        .keep(LISTENER, listener.as_fd())
        .map_err(RunError::Keeper)?;
    let api = Api::bind(&root, config.listen, Arc::clone(&layers)).await?;
    let api = tokio::spawn(api.serve(shutdown.clone()));
    let resumed = Arc::clone(&layers);
    let resuming = tokio::spawn(async move { resumed.resume().await });
    let kept_data = Arc::clone(&layers);
    let syncing = tokio::spawn(async move { kept_data.keep_data().await });
    let natives = Natives::new(Arc::clone(&layers), Arc::clone(&snapshots));
    let keeping_native = tokio::spawn(natives.keep());
    tracing::info!(
        address = %config.address.display(),
        root = %root.display(),
        keeper = keeper.name(),
        layers = layers.len(),
        driver = ?driver.driver,
        reason = driver.reason,
        "listening"
    );
    // Not every start is by systemd, so nobody may be listening.
    let _unheard = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let serving = server::serve(
        listener,
        Snapshotter::new(snapshots, layers).requiring(provenance),
        images,
        shutdown,
    );
    let mounts: Vec<_> = mounts
        .into_iter()
        .map(|mounted| tokio::spawn(mounted.keep()))
        .collect();
    let outcome = serving.await.map_err(RunError::Serve);
    mounts.iter().for_each(JoinHandle::abort);
    resuming.abort();
    syncing.abort();
    keeping_native.abort();
    api.abort();
    outcome
}

/// Returns the credentials from pods' pulls, in memory that the keeper holds as well.
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

/// Creates the root if need be, and returns it. No other user can enter it and no other agent uses
/// it.
async fn checked_root(config: &Config) -> Result<PathBuf, RunError> {
    let given = config.root.clone();
    let root = blocking(move || root::secure(&given)).await??;
    if api::is_answered(&root).await {
        Err(RunError::Running(root))
    } else {
        Ok(root)
    }
}

/// Opens the snapshots. Waits for an earlier process to release the metadata.
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

/// Mounts the layers of snapshots again whose records a power cut has lost or torn.
async fn restore_layers(layers: &Arc<Layers>, snapshots: &Arc<Snapshots>) -> Result<(), RunError> {
    let (layers, snapshots) = (Arc::clone(layers), Arc::clone(snapshots));
    let restored = blocking(move || {
        let mut is_any_restored = false;
        let outcome = snapshots.for_each_layer(|layer| {
            is_any_restored |= layers.restore(&layer);
        });
        if is_any_restored {
            layers.restore_erofs();
        }
        outcome
    });
    restored.await?.map_err(RunError::Snapshots)
}

/// Removes the leftovers of a crash: layers without a snapshot, directories without a record.
async fn tidy_up(layers: &Arc<Layers>, snapshots: &Arc<Snapshots>) -> Result<(), RunError> {
    let own = Arc::clone(snapshots);
    match blocking(move || own.lazy_numbers())
        .await?
        .map_err(RunError::Snapshots)?
    {
        Some(numbers) => layers.retain(&numbers).await,
        None => {
            tracing::warn!("snapshot record damaged; layers without a snapshot are kept")
        }
    }
    let own = Arc::clone(layers);
    blocking(move || own.delete_leftovers()).await?;
    let own = Arc::clone(snapshots);
    if let Err(error) = blocking(move || own.cleanup()).await? {
        tracing::warn!(%error, "orphans not deleted");
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
/// If the agent runs, or its mount cannot be undone.
pub async fn unmount(config: &Config) -> Result<(), RunError> {
    let root = checked_root(config).await?;
    let kind = config.keeper;
    let work = move || {
        let (keeper, kept) = Keeper::open(kind, &root)?;
        drop(kept);
        erofs::clear(&root)?;
        for mount in LayerMount::ALL {
            mountpoint::clear(&mount.directory(&root))?;
        }
        keeper.release()
    };
    blocking(work).await?.map_err(RunError::Keeper)
}
