//! `starlift doctor`: reports the faults that keep a server from converting and serving images, each
//! with its repair. `starlift agent doctor` is the same for a node.

use std::process::ExitCode;

use super::{Global, output, service};
use crate::config::Layer;
use crate::doctor::{State, text};
use crate::failure::Failure;
use crate::server_doctor::{Parts, examine};

/// Check the server of this configuration: store, upstreams, limits, certificates
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, or s3://BUCKET[/PREFIX], gs://…, az://… [default: ./starlift-store]
    #[arg(long, value_name = "URL-or-DIR")]
    store: Option<String>,
    /// Serve URL under NAME; the URL may be http://…, https://…, oci:DIR or docker-archive:FILE
    /// (repeatable)
    #[arg(long, value_name = "NAME=URL", value_parser = service::upstream)]
    upstream: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    fn layers(&self) -> Vec<Layer> {
        let store = self.store.clone();
        let store = store.map(|store| Layer::flag("--store", &["store", "location"], store));
        store
            .into_iter()
            .chain(service::upstream_layers(&self.upstream))
            .collect()
    }
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.layers())?;
    let config = &loaded.config;
    let checks = examine(Parts {
        serve: &config.serve,
        store: &config.store,
        convert: &config.convert,
        upstreams: &config.upstreams,
        is_allow_set: !loaded.is_default(&["pull", "allow"]),
    })
    .await;
    if args.json {
        output::print_json(&checks)?;
    } else {
        output::print(&text(&checks))?;
    }
    let is_bad = checks.iter().any(|check| check.state == State::Bad);
    Ok(if is_bad {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
