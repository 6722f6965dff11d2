//! The server's life: bind, serve, stop; and what goes on beside the requests.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::convert::Converter;
use crate::store::Store;
use crate::telemetry::metrics;
use crate::upstream::Upstreams;

use super::app::App;
use super::config::{Config, ConfigError, TlsConfig};
use super::error::Chain;
use super::router::router;
use super::stall::StallAcceptor;

/// How often the certificate's files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

/// How long a stopping server may take to write what was learned last.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// A server that listens and is about to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<(TlsConfig, RustlsConfig)>,
    app: Arc<App>,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the certificate {cert} and its key")]
    Certificate {
        cert: String,
        #[source]
        source: io::Error,
    },
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `config.listen`; port 0 takes a free port. Connections queue up until [`Server::run`].
    pub async fn bind(
        config: &Config,
        store: Store,
        upstreams: Upstreams,
        converter: Converter,
    ) -> Result<Self, StartError> {
        config.check()?;
        let tls = match &config.tls {
            Some(tls) => Some((tls.clone(), certificate(tls).await?)),
            None => None,
        };
        let failed = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let app = Arc::new(App::new(config.clone(), store, upstreams, converter));
        Ok(Self { listener, address, tls, app })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets running answers end for the configured grace.
    ///
    /// # Errors
    /// The listener or SIGHUP cannot be used.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let Self { listener, tls, app, .. } = self;
        let handle = Handle::new();
        let mut beside = JoinSet::new();
        beside.spawn(sweep(Arc::clone(&app)));
        beside.spawn(app.store.clone().tend());
        beside.spawn(renew_certificate(tls.clone(), signal(SignalKind::hangup())?));
        beside.spawn(stop(shutdown, Arc::clone(&app), handle.clone()));
        let service = router(Arc::clone(&app)).into_make_service_with_connect_info::<SocketAddr>();
        let plain = axum_server::from_tcp(listener)?;
        let accept = StallAcceptor::new(app.config.write_timeout);
        let served = match tls {
            Some((_, config)) => {
                let acceptor = RustlsAcceptor::new(config).acceptor(accept);
                tuned(plain.acceptor(acceptor), &app.config, handle).serve(service).await
            }
            None => tuned(plain.acceptor(accept), &app.config, handle).serve(service).await,
        };
        if timeout(LAST_WRITES, app.profiles.flush()).await.is_err() {
            tracing::warn!("what was learned last could not be written");
        }
        served
    }
}

/// Sets the limits that keep slow and greedy clients from holding connections.
fn tuned<A>(
    mut server: axum_server::Server<SocketAddr, A>,
    config: &Config,
    handle: Handle<SocketAddr>,
) -> axum_server::Server<SocketAddr, A> {
    let headers = config.max_header_size.as_u64();
    let builder = server.http_builder();
    builder
        .http1()
        .header_read_timeout(config.header_timeout)
        .max_buf_size(usize::try_from(headers).unwrap_or(usize::MAX));
    builder
        .http2()
        .keep_alive_interval(config.write_timeout)
        .keep_alive_timeout(config.write_timeout)
        .max_header_list_size(u32::try_from(headers).unwrap_or(u32::MAX));
    server.first_request_timeout(config.header_timeout).handle(handle)
}

async fn certificate(tls: &TlsConfig) -> Result<RustlsConfig, StartError> {
    // Whoever is first installs it; it is the same one for all.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    RustlsConfig::from_pem_file(&tls.cert, &tls.key)
        .await
        .map_err(|source| StartError::Certificate { cert: tls.cert.display().to_string(), source })
}

async fn stop(shutdown: CancellationToken, app: Arc<App>, handle: Handle<SocketAddr>) {
    shutdown.cancelled().await;
    app.drain();
    handle.graceful_shutdown(Some(app.config.shutdown_grace));
}

/// Reads the certificate again on SIGHUP, or when its files have changed.
async fn renew_certificate(tls: Option<(TlsConfig, RustlsConfig)>, mut hangups: Signal) {
    let Some((files, config)) = tls else {
        // SIGHUP must not end a server that has nothing to read again.
        while hangups.recv().await.is_some() {}
        return;
    };
    let mut ticks = interval(CERTIFICATE_INTERVAL);
    // The first tick is immediate, and the files were read a moment ago.
    ticks.tick().await;
    let mut seen = modified(&files).await;
    loop {
        let is_asked = tokio::select! {
            _ = hangups.recv() => true,
            _ = ticks.tick() => false,
        };
        let now = modified(&files).await;
        if !is_asked && now == seen {
            continue;
        }
        match config.reload_from_pem_file(&files.cert, &files.key).await {
            Ok(()) => tracing::info!(cert = %files.cert.display(), "the certificate is read again"),
            Err(error) => tracing::warn!(error = %Chain(&error), "the certificate stays as it was"),
        }
        seen = now;
    }
}

async fn modified(files: &TlsConfig) -> [Option<SystemTime>; 2] {
    let time = async |path| tokio::fs::metadata(path).await.and_then(|metadata| metadata.modified()).ok();
    [time(&files.cert).await, time(&files.key).await]
}

async fn sweep(app: Arc<App>) {
    if app.config.sweep_interval.is_zero() {
        return;
    }
    let mut ticks = interval(app.config.sweep_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate; a server that restarts often must not sweep at each start.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let outcome = match app.store.sweep(SystemTime::now()).await {
            Ok(report) if report.busy => "busy",
            Ok(report) => {
                metrics().swept_bytes.inc_by(report.freed_bytes);
                tracing::info!(?report, "the store is swept");
                "done"
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the sweep failed");
                "failed"
            }
        };
        metrics().sweeps.get_or_create(&[("outcome", outcome)]).inc();
    }
}
