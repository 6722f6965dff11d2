//! `starlift agent doctor`: reports the faults that keep a node from starting images lazily, each
//! with its repair.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Place, nodes};
use crate::cli::{Global, output};
use crate::doctor::{Node, State, examine, text};
use crate::failure::Failure;
use crate::install::{self, Paths};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// containerd's program [default: that of k3s or RKE2, else containerd]
    #[arg(long, value_name = "FILE")]
    containerd: Option<PathBuf>,
    /// containerd's configuration file [default: that of k3s or RKE2, else
    /// /etc/containerd/config.toml]
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// containerd's socket [default: that of k3s and RKE2, else /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.place.layers())?;
    let paths = Paths {
        containerd: args.containerd.clone(),
        containerd_config: args.containerd_config.clone(),
        containerd_address: args.containerd_address.clone(),
        ..Paths::default()
    };
    let found = install::Node::find(&paths, &loaded.config.agent, true);
    let node = Node {
        agent: &loaded.config.agent,
        upstreams: &nodes(&loaded.config.upstreams),
        containerd: found.containerd(),
        containerd_config: found.containerd_config(),
        containerd_address: found.containerd_address(),
    };
    let checks = examine(&node).await;
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
