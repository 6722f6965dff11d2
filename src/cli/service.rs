//! The commands that run until a signal: their upstreams and their watchdog.

use std::net::SocketAddr;

use tokio::runtime::Runtime;

use crate::config::Layer;
use crate::failure::Failure;
use crate::telemetry::Watchdog;

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
