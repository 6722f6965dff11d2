//! The commands that run until a signal: their upstreams, their watchdog and their traces.

use std::net::SocketAddr;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Layer;
use crate::failure::Failure;
use crate::telemetry::Watchdog;
use crate::telemetry::traces::Exporter;

/// The task that exports traces, if there are any.
#[derive(Debug)]
pub(super) struct Exporting {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
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

/// Returns the upstreams of flags as layers of the configuration.
pub(super) fn upstream_layers(upstreams: &[(String, String)]) -> impl Iterator<Item = Layer> {
    upstreams
        .iter()
        .map(|(name, url)| Layer::flag("--upstream", &["upstream", name, "url"], url.as_str()))
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

/// Exports traces on `runtime`.
pub(super) fn export(runtime: &Runtime, exporter: Option<Exporter>) -> Exporting {
    let stop = CancellationToken::new();
    let task = exporter.map(|exporter| runtime.spawn(exporter.run(stop.clone())));
    Exporting { stop, task }
}

impl Exporting {
    /// Exports the last spans, for a moment.
    pub(super) fn finish(self, runtime: &Runtime) {
        self.stop.cancel();
        if let Some(task) = self.task {
            // A panic has ended the exports already.
            let _ended = runtime.block_on(task);
        }
    }
}
