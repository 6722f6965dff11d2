//! `starlift agent`: the snapshotter of a node, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Global;
use super::failure::Failure;
use super::serve::cancel_when_told;
use crate::agent::layers::Layers;
use crate::agent::server;
use crate::agent::snapshots::Snapshots;
use crate::agent::snapshotter::Snapshotter;
use crate::telemetry::log;

/// Serve containerd the snapshots of this node
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The socket that containerd's proxy_plugins entry names
    #[arg(long, value_name = "SOCKET", default_value = "/run/starlift-agent/agent.sock")]
    address: PathBuf,
    /// Where snapshots and their metadata lie
    #[arg(long, value_name = "DIR", default_value = "/var/lib/starlift-agent")]
    root: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(Vec::new())?;
    log::start(&loaded.config.log).map_err(Failure::from_error)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::when("threads cannot be started"))?;
    let outcome = runtime.block_on(serve(args));
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: &Args) -> Result<(), Failure> {
    let snapshots = Arc::new(Snapshots::open(&args.root).map_err(Failure::from_error)?);
    let cleaned = Arc::clone(&snapshots);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = cleaned.cleanup() {
            tracing::warn!(%error, "orphans stay");
        }
    });
    let listener = server::bind(&args.address).map_err(Failure::from_error)?;
    let shutdown = CancellationToken::new();
    tokio::spawn(cancel_when_told(shutdown.clone()));
    tracing::info!(address = %args.address.display(), root = %args.root.display(), "listening");
    let snapshotter = Snapshotter::new(snapshots, Arc::new(Layers));
    server::serve(listener, snapshotter, shutdown).await.map_err(Failure::from_error)?;
    tracing::info!("stopped");
    Ok(())
}
