//! The server's life cycle: bind, serve, stop. Also starts its background tasks.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::convert::Converter;
use crate::learn::Profiles;
use crate::store::Store;
use crate::telemetry::metrics;
use crate::transport::Upstreams;

use super::access::AccessError;
use super::ahead::{SecretError, Target, check_secrets, keep_warm};
use super::app::App;
use super::audit::Audit;
use super::config::{Config, ConfigError};
use super::connections::Connections;
use super::descriptors;
use super::error::Chain;
use super::face::Face;
use super::listener::Listener;
use super::places::share;
use super::router::Routes;
use super::tls::{Tls, TlsError};

/// The most connections to the API's own listener: operators, scrapes and probes.
const API_CONNECTIONS: usize = 256;

/// How long a stopping server may take to write the last observations.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// A server that listens and is about to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    /// The listener of Starlift's own API, if that is separate.
    api: Option<TcpListener>,
    tls: Option<Tls>,
    app: Arc<App>,
}

/// The reason why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("audit log {} cannot be opened; name a file that can be written in serve.audit", file.display())]
    Audit {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{key}: {name:?} names an upstream that is neither configured nor in pull.allow")]
    Upstream { key: &'static str, name: String },
    #[error("serve.warm.images: {0:?} is no reference")]
    Image(String),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `config.listen`. Port 0 takes a free port. Connections queue up until
    /// [`Server::run`].
    pub async fn bind(
        config: &Config,
        store: Store,
        upstreams: Upstreams,
        converter: Converter,
        profiles: Profiles,
    ) -> Result<Self, StartError> {
        config.check()?;
        check_ahead(config, &upstreams).await?;
        let tls = match &config.tls {
            Some(files) => Some(Tls::open(files).await?),
            None => None,
        };
        let (listener, address) = listen(config.listen).await?;
        let api = if config.has_api_listener() {
            Some(listen(config.api_listen).await?.0)
        } else {
            None
        };
        let audit = config.audit.as_deref().map(Audit::open).transpose();
        let audit = audit.map_err(|source| StartError::Audit {
            file: config.audit.clone().unwrap_or_default(),
            source,
        })?;
        let app = Arc::new(App::new(
            config.clone(),
            store,
            upstreams,
            converter,
            profiles,
            audit,
        )?);
        Ok(Self {
            listener,
            address,
            api,
            tls,
            app,
        })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of Starlift's own API: the same one, unless that is beyond loopback.
    pub fn api_address(&self) -> SocketAddr {
        self.api
            .as_ref()
            .and_then(|api| api.local_addr().ok())
            .unwrap_or(self.address)
    }

    /// Serves until `shutdown`, then gives running answers the configured grace to end.
    ///
    /// # Errors
    /// If the signal handler for SIGHUP cannot be installed.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let Self {
            listener,
            api,
            tls,
            app,
            ..
        } = self;
        let mut beside = JoinSet::new();
        beside.spawn(sweep(Arc::clone(&app)));
        beside.spawn(app.store.clone().tend());
        beside.spawn(keep_warm(Arc::clone(&app)));
        let mut hangups = signal(SignalKind::hangup())?;
        match tls.clone() {
            Some(tls) => beside.spawn(tls.renew(hangups)),
            // SIGHUP must not end a server that has nothing to reload.
            None => beside.spawn(async move { while hangups.recv().await.is_some() {} }),
        };
        beside.spawn(reopen_audit(
            app.audit.clone(),
            signal(SignalKind::hangup())?,
        ));
        beside.spawn(drain(shutdown.clone(), Arc::clone(&app)));
        let config = Arc::new(app.config.clone());
        let limit = descriptors::connections(config.max_connections, descriptors::raise());
        let connections = Connections::new(limit, share(limit, config.client_share));
        let of = |listener, face, connections| Listener {
            listener,
            tls: tls.clone(),
            routes: Routes::new(&app, face),
            config: Arc::clone(&config),
            connections,
        };
        let face = if api.is_some() {
            Face::Public
        } else {
            Face::Local
        };
        let served = of(listener, face, connections).run(shutdown.clone());
        match api {
            Some(api) => {
                let api = of(
                    api,
                    Face::Api,
                    Connections::new(API_CONNECTIONS, API_CONNECTIONS),
                );
                tokio::join!(served, api.run(shutdown));
            }
            None => served.await,
        }
        if timeout(LAST_WRITES, app.profiles.flush()).await.is_err() {
            tracing::warn!("what was learned last could not be written");
        }
        if let Some(audit) = &app.audit
            && timeout(LAST_WRITES, audit.flush()).await.is_err()
        {
            tracing::warn!("last lines of the audit log not written");
        }
        Ok(())
    }
}

/// Checks the secrets of the registries that announce pushes.
pub(crate) async fn check_sources(config: &Config) -> Result<(), StartError> {
    for source in &config.notifications {
        check_secrets(source).await?;
    }
    Ok(())
}

/// Checks the registries that announce pushes, and the list of images.
async fn check_ahead(config: &Config, upstreams: &Upstreams) -> Result<(), StartError> {
    check_sources(config).await?;
    for source in &config.notifications {
        upstreams
            .get(&source.upstream)
            .map_err(|_unknown| StartError::Upstream {
                key: "serve.notifications",
                name: source.upstream.clone(),
            })?;
    }
    for image in &config.warm.images {
        let target = Target::parse(image, |name| upstreams.is_configured(name));
        let target = target.ok_or_else(|| StartError::Image(image.clone()))?;
        upstreams
            .get(&target.location.upstream)
            .map_err(|_unknown| StartError::Upstream {
                key: "serve.warm.images",
                name: image.clone(),
            })?;
    }
    Ok(())
}

async fn listen(wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        address: wanted,
        source,
    };
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn drain(shutdown: CancellationToken, app: Arc<App>) {
    shutdown.cancelled().await;
    app.drain();
}

/// Opens the audit log again on SIGHUP.
async fn reopen_audit(audit: Option<Audit>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        if let Some(audit) = &audit {
            audit.reopen();
        }
    }
}

async fn sweep(app: Arc<App>) {
    if app.config.sweep_interval.is_zero() {
        return;
    }
    let mut ticks = interval(app.config.sweep_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate. A server that restarts often must not sweep at each start.
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
        metrics()
            .sweeps
            .get_or_create(&[("outcome", outcome)])
            .inc();
    }
}
