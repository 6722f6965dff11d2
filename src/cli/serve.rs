//! `starlift serve`: the registry front end, until a signal stops it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Global;
use crate::config::{Config, Layer};
use crate::convert::Converter;
use crate::failure::Failure;
use crate::predict::{Limits, Predictor};
use crate::serve::Server;
use crate::store::Store;
use crate::telemetry::{Watchdog, log};
use crate::transport::Upstreams;

/// The executable of this process, even if the file at its path was replaced.
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
    #[arg(long, value_name = "NAME=URL", value_parser = upstream)]
    upstream: Vec<(String, String)>,
    /// How long a pull waits for a conversion before it gets the source image [default: 8s]
    #[arg(long, value_name = "DURATION")]
    wait: Option<String>,
}

/// Parses `NAME=URL`.
pub(super) fn upstream(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => {
            Ok((name.to_owned(), url.to_owned()))
        }
        _ => Err("expected NAME=URL".to_owned()),
    }
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
        let upstreams = self.upstream.iter();
        let upstreams = upstreams
            .map(|(name, url)| Layer::flag("--upstream", &["upstream", name, "url"], url.as_str()));
        single.chain(upstreams).collect()
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.layers())?;
    log::start(&loaded.config.log).map_err(Failure::from_error)?;
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration read");
    }
    let runtime = Runtime::new().map_err(Failure::when("threads cannot be started"))?;
    let watchdog = watch(&runtime, loaded.config.serve.liveness)?;
    let outcome = runtime.block_on(serve(&loaded.config));
    drop(watchdog);
    // Conversions that still run leave nothing visible. The next request for the image starts the
    // conversion again.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Watches the runtime, and serves the result at the address `liveness`.
pub(super) fn watch(runtime: &Runtime, liveness: Option<SocketAddr>) -> Result<Watchdog, Failure> {
    let watchdog = Watchdog::start(runtime.handle(), liveness);
    let watchdog = watchdog.map_err(Failure::when("liveness cannot be served at its address"))?;
    if let Some(address) = watchdog.liveness() {
        tracing::info!(%address, "liveness served");
    }
    Ok(watchdog)
}

async fn serve(config: &Config) -> Result<(), Failure> {
    let store = Store::open(&config.store)
        .await
        .map_err(Failure::from_error)?;
    let upstreams = Upstreams::new(&config.upstreams).map_err(Failure::from_error)?;
    let predictor = Predictor::in_processes(OWN_EXECUTABLE, Limits::default());
    let converter = Converter::new(&config.convert, store.clone()).map_err(Failure::from_error)?;
    let server = Server::bind(&config.serve, store, upstreams, converter, predictor)
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

pub(super) async fn cancel_on_signal(shutdown: CancellationToken) {
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => tracing::info!("interrupted: waiting for running responses"),
                _ = terminate.recv() => tracing::info!("terminated: waiting for running responses"),
            }
        }
        // Without a handler, SIGTERM still ends the process, but not gracefully.
        Err(_) => drop(interrupt.await),
    }
    shutdown.cancel();
}
