//! `starlift agent`: the snapshotter of a node, until it is told to stop; and what is asked of a running one.

mod doctor;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use super::Global;
use super::serve::{cancel_when_told, watch};
use crate::agent::{self, keeper, run};
use crate::config::Layer;
use crate::failure::Failure;
use crate::registry;
use crate::telemetry::log;

/// Where containerd and Docker look for the hosts of a registry.
const CERTS_DIR: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// Serve containerd the snapshots of this node, images that can be lazy lazily
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Reach the registry NAME at URL, for instance in plain HTTP (repeatable)
    #[arg(long, value_name = "NAME=URL", value_parser = super::serve::upstream)]
    upstream: Vec<(String, String)>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which agent is meant.
#[derive(Debug, clap::Args)]
struct Place {
    /// The socket that containerd's proxy_plugins entry names [default: /run/starlift-agent/agent.sock]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// Where snapshots, lazy mounts and the cache lie [default: /var/lib/starlift-agent]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tell which layers are lazy, what was fetched of them, and which are not lazy and why
    Status(status::Args),
    /// Check the kernel, containerd's configuration and the sockets, and tell the mend
    Doctor(doctor::Args),
    /// Unmount the lazy layers of an agent that does not run any more
    Unmount(UnmountArgs),
    /// Keep the mount while the agent restarts; the agent starts it
    #[command(hide = true)]
    Keeper(KeeperArgs),
}

#[derive(Debug, clap::Args)]
struct KeeperArgs {
    /// The socket that standard input is, for who lists processes
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
        let given = flags.into_iter().filter_map(|(flag, key, path)| {
            Some(Layer::flag(
                flag,
                &["agent", key],
                path.as_ref()?.to_string_lossy().into_owned(),
            ))
        });
        given.collect()
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let runtime =
        || tokio::runtime::Runtime::new().map_err(Failure::when("threads cannot be started"));
    match &args.command {
        None => serve(args, global),
        Some(Command::Status(args)) => runtime()?.block_on(status::run(args, global)),
        Some(Command::Doctor(args)) => runtime()?.block_on(doctor::run(args, global)),
        Some(Command::Unmount(args)) => {
            let loaded = global.load(args.place.layers())?;
            let outcome = runtime()?.block_on(run::unmount(&loaded.config.agent));
            outcome
                .map(|()| ExitCode::SUCCESS)
                .map_err(Failure::from_error)
        }
        Some(Command::Keeper(_)) => {
            keeper::serve().map_err(Failure::when("standard input is no socket of an agent"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let upstreams = args.upstream.iter();
    let upstreams = upstreams
        .map(|(name, url)| Layer::flag("--upstream", &["upstream", name, "url"], url.as_str()));
    let loaded = global.load(args.place.layers().into_iter().chain(upstreams).collect())?;
    log::start(&loaded.config.log).map_err(Failure::from_error)?;
    // Sockets and files of the agent are for its owner, whatever the umask of whoever starts it. Directories of
    // snapshots get their modes explicitly.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let runtime =
        tokio::runtime::Runtime::new().map_err(Failure::when("threads cannot be started"))?;
    let watchdog = watch(&runtime, loaded.config.agent.liveness)?;
    let outcome = runtime.block_on(until_told(&loaded.config.agent, &loaded.config.upstreams));
    drop(watchdog);
    // Reads that still wait are answered by the next agent.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn until_told(config: &agent::Config, upstreams: &registry::Config) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    tokio::spawn(cancel_when_told(shutdown.clone()));
    run::run(config, &nodes(upstreams), shutdown)
        .await
        .map_err(Failure::from_error)?;
    tracing::info!("stopped");
    Ok(())
}

/// The upstreams as a node has them: containerd decides what is pulled, and its hosts are ours.
fn nodes(config: &registry::Config) -> registry::Config {
    let certs_dir = config.certs_dir.clone().or_else(|| Some(CERTS_DIR.into()));
    registry::Config {
        certs_dir,
        allow_private: true,
        plain_http_loopback: true,
        ..config.clone()
    }
}
