//! Answers the kernel for a mount: the agent's own, or one for a while.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::config::Config;
use super::filesystem::FileSystem;
use super::fuse::Adapter;
use super::layers::Layers;
use super::notify::Notifier;
use super::opens::Opens;
use super::session::{Device, SessionError};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the mount cannot be served")]
    Io(#[from] io::Error),
}

/// Shows `layers` on the mount of `device`, from threads of their own, until it is unmounted; that is told. Blocks.
///
/// # Errors
/// When the kernel does not greet, or what is open cannot be read from beneath the root.
pub(super) fn attach(
    device: &Device,
    layers: &Arc<Layers>,
    config: &Config,
    runtime: Handle,
) -> Result<oneshot::Receiver<()>, MountError> {
    let opens = Opens::load(&config.root.join("opens"), device.is_new())?;
    let adapter = Adapter::new(
        FileSystem::new(Arc::clone(layers)),
        opens,
        device.duplicate()?,
        runtime,
        config.read_timeout,
        config.passthrough,
    );
    let notifier = Notifier::new(device.duplicate()?);
    let session = device.serve(adapter, config.threads)?;
    let (done, unmounted) = oneshot::channel();
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the kernel is not answered any more");
        }
        // Nobody hears it while the agent stops.
        let _unheard = done.send(());
    })?;
    if !device.is_new()
        && let Err(error) = notifier.resend()
    {
        tracing::warn!(%error, "reads that an earlier process left unanswered stay so: the kernel is older than Linux 6.9");
    }
    layers.announce_to(notifier);
    Ok(unmounted)
}
