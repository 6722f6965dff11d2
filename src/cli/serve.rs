//! `starlift serve`: the registry front end, until a signal stops it.

use std::path::Path;
use std::process::ExitCode;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{Global, service};
use crate::config::{Config, Layer, Loaded};
use crate::convert::Converter;
use crate::failure::Failure;
use crate::learn::Profiles;
#[cfg(feature = "predict")]
use crate::predict::{Limits, Predictor};
use crate::serve::Server;
use crate::signals::cancel_on_signal;
use crate::store::Store;
use crate::telemetry;
use crate::transport::Upstreams;

/// The executable of this process, even if the file at its path was replaced.
#[cfg(feature = "predict")]
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Serve any image as eStargz, converted at the first request
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// A folder, or s3://BUCKET[/PREFIX], gs://…, az://… [default: ./starlift-store]
    #[arg(long, value_name = "URL-or-DIR")]
    store: Option<String>,
    /// Serve URL under NAME; the URL may be http://…, https://…, oci:DIR or docker-archive:FILE
    /// (repeatable)
    #[arg(long, value_name = "NAME=URL", value_parser = service::upstream)]
    upstream: Vec<(String, String)>,
    /// How long a pull waits for a conversion before it gets the source image [default: 8s]
    #[arg(long, value_name = "DURATION")]
    wait: Option<String>,
}

impl Args {
    fn layers(&self) -> Vec<Layer> {
        let single = [
            ("--listen", ["serve", "listen"], &self.listen),
            ("--store", ["store", "location"], &self.store),
            ("--wait", ["serve", "wait"], &self.wait),
        ];
        let single = single
            .into_iter()
            .filter_map(|(flag, path, value)| Some(Layer::flag(flag, &path, value.clone()?)));
        single
            .chain(service::upstream_layers(&self.upstream))
            .collect()
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.layers())?;
    check_exposure(&loaded)?;
    let exporter =
        telemetry::start(&loaded.config.log, &loaded.config.traces).map_err(Failure::from_error)?;
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration read");
    }
    let runtime = Runtime::new().map_err(Failure::when("threads cannot be started"))?;
    let watchdog = service::watch(&runtime, loaded.config.serve.liveness)?;
    let exporting = service::export(&runtime, exporter);
    let outcome = runtime.block_on(serve(&loaded.config));
    exporting.finish(&runtime);
    drop(watchdog);
    // Conversions that still run leave nothing visible. The next request for the image starts the
    // conversion again.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Refuses a server that others reach and that would dial any host for them.
fn check_exposure(loaded: &Loaded) -> Result<(), Failure> {
    if loaded.config.serve.has_api_listener() && loaded.is_default(&["pull", "allow"]) {
        let text = "serve.listen is beyond loopback and pull.allow is not set: clients would make this \
                    server dial any public host; write [pull] allow = [\"docker.io\"] with the hosts \
                    that may be pulled from, or allow = [\"*\"]";
        return Err(Failure::new(text));
    }
    Ok(())
}

async fn serve(config: &Config) -> Result<(), Failure> {
    let store = Store::open(&config.store)
        .await
        .map_err(Failure::from_error)?;
    let upstreams = Upstreams::new(&config.upstreams).map_err(Failure::from_error)?;
    let converter = Converter::new(&config.convert, store.clone()).map_err(Failure::from_error)?;
    let generation = converter.generation().clone();
    let merge_interval = config.serve.profiles.merge_interval;
    let profiles = Profiles::new(store.clone(), generation, merge_interval);
    #[cfg(feature = "predict")]
    let profiles = profiles.predicting(Predictor::in_processes(OWN_EXECUTABLE, Limits::default()));
    let server = Server::bind(&config.serve, store, upstreams, converter, profiles)
        .await
        .map_err(Failure::from_error)?;
    announce(config, &server);
    let shutdown = CancellationToken::new();
    tokio::spawn(cancel_on_signal(shutdown.clone()));
    server
        .run(shutdown)
        .await
        .map_err(Failure::when("the server stopped"))?;
    tracing::info!("stopped");
    Ok(())
}

/// Logs the addresses, the store and a command to try, and a warning for each local upstream that
/// does not exist yet.
fn announce(config: &Config, server: &Server) {
    let (address, api) = (server.address(), server.api_address());
    for (name, upstream) in &config.upstreams.upstream {
        let path = upstream
            .url
            .strip_prefix("oci:")
            .or_else(|| upstream.url.strip_prefix("docker-archive:"));
        if let Some(path) = path.filter(|path| !Path::new(path).exists()) {
            tracing::warn!(upstream = name, path, "upstream's path does not exist");
        }
    }
    let upstream = config.upstreams.upstream.keys().next();
    let image = upstream.map_or("docker.io/library/alpine:latest".to_owned(), |name| {
        format!("{name}/REPOSITORY:TAG")
    });
    let tls = if config.serve.tls.is_some() {
        ""
    } else {
        " --src-tls-verify=false"
    };
    if api != address {
        tracing::info!(address = %api, "listening for status, conversions, page and metrics");
    }
    tracing::info!(
        %address,
        store = config.store.location,
        wait = %humantime::format_duration(config.serve.wait),
        "listening; try: skopeo copy{tls} docker://{address}/{image} oci:/tmp/image"
    );
}
