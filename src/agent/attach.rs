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
use super::request_timeout::ReadLimits;
use super::session::{Device, SessionError};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the mount cannot be served")]
    Io(#[from] io::Error),
}

/// Serves `layers` over the FUSE connection `device` on dedicated threads. Returns once the handshake is done; the
/// returned receiver fires when the kernel ends the connection. Blocking.
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
    let limits = ReadLimits::new(config.read_timeout, device.request_timeout());
    if limits.fresh < config.read_timeout {
        tracing::warn!(limit = ?limits.fresh, configured = ?config.read_timeout, "reads limited by fs.fuse.*_request_timeout");
    }
    let adapter = Adapter::new(
        FileSystem::new(Arc::clone(layers)),
        opens,
        device.duplicate()?,
        runtime,
        limits,
        config.passthrough,
    );
    let notifier = Notifier::new(device.duplicate()?);
    let session = device.serve(adapter, config.threads)?;
    let (done, unmounted) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || {
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
    layers.announce_to(Some(notifier));
    Ok(unmounted)
}
