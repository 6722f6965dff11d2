//! Answers the kernel for a mount: the agent's own, or a temporary one.

use std::io;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::adapter::Adapter;
use super::filesystem::FileSystem;
use super::request_timeout::ReadLimits;
use super::session::{Device, SessionError};
use crate::agent::config::Config;
use crate::agent::layer_mount::LayerMount;
use crate::agent::layers::Layers;
use crate::agent::layers::notify::Notifier;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("mount not served")]
    Io(#[from] io::Error),
}

/// Serves `layers` over the FUSE connection `device` of `mount` on dedicated threads. Returns once
/// the handshake is done. The returned receiver fires when the kernel ends the connection.
/// Blocking.
///
/// # Errors
/// If the kernel's INIT request cannot be answered, or a thread cannot be started.
pub(crate) fn attach(
    device: &Device,
    mount: LayerMount,
    layers: &Layers,
    config: &Config,
    runtime: Handle,
) -> Result<oneshot::Receiver<()>, MountError> {
    let limits = ReadLimits::new(config.read_timeout, device.request_timeout());
    if limits.fresh < config.read_timeout {
        tracing::warn!(limit = ?limits.fresh, configured = ?config.read_timeout, "reads limited by fs.fuse.*_request_timeout");
    }
    let filesystem = match mount {
        LayerMount::Full | LayerMount::NoXattr => FileSystem::new(layers),
        LayerMount::Data => FileSystem::of_data(layers),
    };
    let adapter = Adapter::new(filesystem, mount, runtime, limits);
    let notifier = Notifier::new(device.duplicate()?);
    let session = device.serve(adapter, config.threads)?;
    let (done, unmounted) = oneshot::channel();
    std::thread::Builder::new()
        .name(mount.device_name().to_owned())
        .spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "kernel connection failed");
            }
            // The receiver is gone while the agent stops.
            let _unheard = done.send(());
        })?;
    if !device.is_new()
        && let Err(error) = notifier.resend()
    {
        tracing::warn!(%error, "reads of an earlier process not resent; the kernel is older than Linux 6.9");
    }
    if mount == LayerMount::Data {
        layers.drivers().erofs().set_device(device.number());
    }
    layers.kernel().announce_to(mount, Some(notifier));
    Ok(unmounted)
}
