//! `starlift agent`: the snapshotter of a node, until a signal stops it. Subcommands report on an
//! agent or clean up after it.

mod doctor;
mod install;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Global, service};
use crate::agent;
use crate::agent::daemon::{keeper, run};
use crate::config::Layer;
use crate::failure::Failure;
use crate::registry;
use crate::signals::cancel_on_signal;
use crate::telemetry;

/// The directories in which containerd and Docker look for the settings of a registry's hosts.
const CERTS_DIR: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// How long a thread for blocking work waits for more. What a thread has freed is returned to the
/// system once it ends, or allocates much more.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Serve this node's containerd as a snapshotter that mounts images lazily if it can
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Reach the registry NAME at URL, for instance in plain HTTP (repeatable)
    #[arg(long, value_name = "NAME=URL", value_parser = service::upstream)]
    upstream: Vec<(String, String)>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags that identify an agent.
#[derive(Debug, clap::Args)]
struct Place {
    /// The socket in containerd's proxy_plugins entry [default: /run/starlift-agent/agent.sock]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// The directory of snapshots, lazy mounts and the content of layers [default: /var/lib/starlift-agent]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the lazy layers and their fetched bytes, and the other layers with the reasons
    Status(status::Args),
    /// Check the kernel, containerd's configuration and the sockets, and print the repair of each
    /// fault
    Doctor(doctor::Args),
    /// Make the agent the snapshotter of this node's containerd: configuration, systemd unit, and
    /// a restart if something changed
    Install(install::Args),
    /// Undo the installation
    Uninstall(install::UninstallArgs),
    /// Unmount the layers that a stopped agent left mounted
    Unmount(UnmountArgs),
    /// Keep the mount while the agent restarts; started by the agent
    #[command(hide = true)]
    Keeper(KeeperArgs),
}

#[derive(Debug, clap::Args)]
struct KeeperArgs {
    /// The path of the socket on standard input; only shown in lists of processes
    _socket: PathBuf,
}

#[derive(Debug, clap::Args)]
struct UnmountArgs {
    #[command(flatten)]
    place: Place,
}

impl Place {
    fn layers(&self) -> Vec<Layer> {
        let flags = [
            ("--address", "address", &self.address),
            ("--root", "root", &self.root),
        ];
        let layers = flags.into_iter().filter_map(|(flag, key, path)| {
            Some(Layer::flag(
                flag,
                &["agent", key],
                path.as_ref()?.to_string_lossy().into_owned(),
            ))
        });
        layers.collect()
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let runtime =
        || tokio::runtime::Runtime::new().map_err(Failure::when("threads cannot be started"));
    match &args.command {
        None => serve(args, global),
        Some(Command::Status(args)) => runtime()?.block_on(status::run(args, global)),
        Some(Command::Doctor(args)) => runtime()?.block_on(doctor::run(args, global)),
        Some(Command::Install(args)) => runtime()?.block_on(install::install(args, global)),
        Some(Command::Uninstall(args)) => runtime()?.block_on(install::uninstall(args, global)),
        Some(Command::Unmount(args)) => {
            let loaded = global.load(args.place.layers())?;
            let outcome = runtime()?.block_on(run::unmount(&loaded.config.agent));
            outcome
                .map(|()| ExitCode::SUCCESS)
                .map_err(Failure::from_error)
        }
        Some(Command::Keeper(_)) => {
            keeper::serve().map_err(Failure::when("standard input is not a socket of an agent"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let upstreams = service::upstream_layers(&args.upstream);
    let loaded = global.load(args.place.layers().into_iter().chain(upstreams).collect())?;
    let exporter =
        telemetry::start(&loaded.config.log, &loaded.config.traces).map_err(Failure::from_error)?;
    // Only the owner may use the agent's sockets and files, whatever the inherited umask is.
    // Directories of snapshots get their modes explicitly.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEEP_ALIVE)
        .build()
        .map_err(Failure::when("threads cannot be started"))?;
    let watchdog = service::watch(&runtime, loaded.config.agent.liveness)?;
    let exporting = service::export(&runtime, exporter);
    let outcome = runtime.block_on(until_signal(&loaded.config.agent, &loaded.config.upstreams));
    exporting.finish(&runtime);
    drop(watchdog);
    // The next agent answers the reads that still wait.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn until_signal(config: &agent::Config, upstreams: &registry::Config) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    tokio::spawn(cancel_on_signal(shutdown.clone()));
    run::run(config, &nodes(upstreams), shutdown)
        .await
        .map_err(Failure::from_error)?;
    tracing::info!("stopped");
    Ok(())
}

/// Returns `config` with the settings of a node. containerd decides which images are pulled, so
/// private addresses are allowed. The hosts of a registry are the same as containerd's.
fn nodes(config: &registry::Config) -> registry::Config {
    let certs_dir = config.certs_dir.clone().or_else(|| Some(CERTS_DIR.into()));
    registry::Config {
        certs_dir,
        allow_private: true,
        plain_http_loopback: true,
        ..config.clone()
    }
}
