//! `starlift agent doctor`: reports the faults that keep a node from starting images lazily, each
//! with its repair.

use std::path::PathBuf;
use std::process::ExitCode;

use super::Place;
use crate::cli::{Global, output};
use crate::doctor::{State, examine, text};
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// containerd's configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,
    /// containerd's socket
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    containerd_address: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.place.layers())?;
    let config = &loaded.config.agent;
    let checks = examine(config, &args.containerd_config, &args.containerd_address).await;
    if args.json {
        output::print_json(&checks)?;
    } else {
        output::print(&text(&checks))?;
    }
    let is_bad = checks.iter().any(|check| check.state == State::Bad);
    Ok(if is_bad {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}
