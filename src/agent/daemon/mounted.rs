//! Keeps one of the agent's mounts in its place, and restores it after every failure.
//!
//! ```text
//! unmounted, connection alive  ▶ its clone is moved into the place: readers notice nothing
//! connection ended (an abort)  ▶ another mount with the same inodes;
//!                                containers over the old one must be restarted
//! mount failed                 ▶ tried again; images are unpacked meanwhile
//! ```

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::keeper::{Keeper, Kept};
use crate::agent::config::Config;
use crate::agent::fuse::Device;
use crate::agent::fuse::{MountError, attach};
use crate::agent::layer_mount::LayerMount;
use crate::agent::layers::Layers;
use crate::agent::mountpoint::{self, Mountpoint};
use crate::telemetry::limit::LineLimit;
use crate::telemetry::log::chain;

/// Pause between two attempts to mount: short beside a container's start, long beside the work of
/// one attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// A mount of the layers.
#[derive(Debug)]
pub(crate) struct Mounted {
    context: Context,
    connection: Option<Connection>,
}

#[derive(Debug, Clone)]
struct Context {
    mount: LayerMount,
    config: Config,
    keeper: Arc<Keeper>,
    layers: Arc<Layers>,
    runtime: Handle,
}

/// A kernel connection that is being served.
#[derive(Debug)]
struct Connection {
    place: Mountpoint,
    ended: oneshot::Receiver<()>,
    begun: Instant,
}

impl Mounted {
    /// Adopts the mount that an earlier process left in `kept`, or mounts. If that fails, images
    /// are unpacked.
    pub(crate) async fn start(
        mount: LayerMount,
        config: &Config,
        keeper: Arc<Keeper>,
        layers: Arc<Layers>,
        kept: &mut Kept,
    ) -> Self {
        let context = Context {
            mount,
            config: config.clone(),
            keeper,
            layers,
            runtime: Handle::current(),
        };
        let (device, spare) = (
            kept.remove(mount.device_name()),
            kept.remove(mount.clone_name()),
        );
        let connection = context
            .blocking(move |context| context.begin(device, spare))
            .await;
        Self {
            connection: context.report(connection),
            context,
        }
    }

    /// Watches the mount and repairs it, forever.
    pub(crate) async fn keep(mut self) {
        let mut changes = MountChanges::watch();
        loop {
            let connection = match self.connection.take() {
                Some(mut connection) => tokio::select! {
                    _ended = &mut connection.ended => {
                        tracing::error!("kernel ended the connection of the layers; containers over it must be restarted");
                        self.context.layers.kernel().announce_to(self.context.mount, None);
                        // A connection that ends at once must not be mounted again at once.
                        tokio::time::sleep(PAUSE.saturating_sub(connection.begun.elapsed())).await;
                        self.context.blocking(Context::mount_anew).await
                    }
                    is_changed = changes.next() => {
                        let checked = self.context.blocking(|context| context.check(connection)).await;
                        self.connection = self.context.report(checked);
                        if is_changed {
                            self.restore_erofs().await;
                        }
                        continue;
                    }
                },
                None => {
                    tokio::time::sleep(PAUSE).await;
                    self.context.blocking(Context::mount_anew).await
                }
            };
            self.connection = self.context.report(connection);
            self.restore_erofs().await;
        }
    }

    /// Mounts the layers again that were unmounted, or whose connection has ended.
    async fn restore_erofs(&self) {
        if self.context.mount != LayerMount::Data || self.connection.is_none() {
            return;
        }
        let layers = Arc::clone(&self.context.layers);
        if let Err(error) = spawn_blocking(move || layers.restore_erofs()).await {
            tracing::error!(%error, "EROFS mounts not checked");
        }
    }
}

impl Context {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, MountError> + Send + 'static,
    ) -> Result<T, MountError> {
        let own = self.clone();
        spawn_blocking(move || work(&own))
            .await
            .map_err(io::Error::other)?
    }

    fn report(&self, outcome: Result<Connection, MountError>) -> Option<Connection> {
        static LINES: LineLimit = LineLimit::new();
        match outcome {
            Ok(connection) => Some(connection),
            Err(error) => {
                if let Some(dropped) = LINES.pass() {
                    tracing::error!(
                        error = chain(&error),
                        dropped,
                        "layers not mounted; images are unpacked"
                    );
                }
                None
            }
        }
    }

    /// Serves the kept connection, in its place, else a new one. If a kept connection's mount
    /// cannot be put back in its place, it is served beside the new one, for the containers over
    /// it.
    fn begin(
        &self,
        device: Option<OwnedFd>,
        spare: Option<OwnedFd>,
    ) -> Result<Connection, MountError> {
        let Some(fd) = device else {
            return self.mount_anew();
        };
        match Device::adopt(fd, &self.mount.saved_init(&self.config.root)) {
            Ok(device) => {
                let connection = self.serve(&device, spare)?;
                self.check(connection)
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "kept mount not taken over");
                self.mount_anew()
            }
        }
    }

    /// Mounts on the directory, over anything that is there.
    fn mount_anew(&self) -> Result<Connection, MountError> {
        let device = Device::mount(
            &self.mount.directory(&self.config.root),
            &self.mount.saved_init(&self.config.root),
        )?;
        // From here on a crash loses nothing.
        self.keeper.keep(self.mount.device_name(), device.as_fd())?;
        let connection = self.serve(&device, None)?;
        tracing::info!(path = %connection.place.path().display(), "layers mounted");
        Ok(connection)
    }

    fn serve(&self, device: &Device, spare: Option<OwnedFd>) -> Result<Connection, MountError> {
        let ended = attach(
            device,
            self.mount,
            &self.layers,
            &self.config,
            self.runtime.clone(),
        )?;
        let path = self.mount.directory(&self.config.root);
        let place = Mountpoint::new(&path, device.number(), spare);
        self.keep_spare(&place);
        mountpoint::read_further_ahead(&path);
        Ok(Connection {
            place,
            ended,
            begun: Instant::now(),
        })
    }

    /// Gives the clone to the keeper. Without it, a start finds the mount in its place or mounts
    /// anew.
    fn keep_spare(&self, place: &Mountpoint) {
        if let Some(spare) = place.spare()
            && let Err(error) = self.keeper.keep_mount(self.mount.clone_name(), spare)
        {
            tracing::warn!(%error, "clone of the mount not kept");
        }
    }

    /// Puts the mount back if it is not in its place. Mounts anew if that fails.
    fn check(&self, mut connection: Connection) -> Result<Connection, MountError> {
        if connection.place.is_in_place() {
            return Ok(connection);
        }
        match connection.place.put_back() {
            Ok(()) => {
                tracing::warn!(path = %connection.place.path().display(), "layers were unmounted; put back");
                self.keep_spare(&connection.place);
                Ok(connection)
            }
            Err(error) => {
                tracing::error!(%error, "unmounted layers not put back; running containers keep the old mount");
                self.mount_anew()
            }
        }
    }
}

/// The kernel's notice that something was mounted or unmounted (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct MountChanges {
    table: Option<AsyncFd<std::fs::File>>,
}

impl MountChanges {
    #[expect(unsafe_code, reason = "a file cannot promise to keep its descriptor")]
    fn watch() -> Self {
        let registered = std::fs::File::open("/proc/self/mountinfo").and_then(|table| {
            // SAFETY: the registration owns the file, and closes its descriptor after the reactor
            // has released it.
            let table = unsafe {
                AsyncFd::register_with_interest(table, Interest::PRIORITY | Interest::ERROR)
            };
            Ok(table?)
        });
        if let Err(error) = &registered {
            tracing::debug!(%error, "mount table not watched; mounts are checked every second");
        }
        Self {
            table: registered.ok(),
        }
    }

    /// Waits for a change, or for a second. Returns whether there may have been a change.
    async fn next(&mut self) -> bool {
        let Some(table) = &mut self.table else {
            tokio::time::sleep(PAUSE).await;
            return true;
        };
        let changed =
            tokio::time::timeout(PAUSE, table.ready(Interest::PRIORITY | Interest::ERROR)).await;
        match changed {
            Ok(Ok(mut ready)) => {
                ready.clear_ready();
                true
            }
            Ok(Err(_)) => true,
            Err(_elapsed) => false,
        }
    }
}
