//! The accept loop: admits connections as long as there is room, serves each, and ends them.
//!
//! ```text
//! accept ▶ Connections (room, share) ▶ stall watch ▶ TLS ▶ lingering close ▶ hyper
//!                                                                            └▶ a task and a clock per stream ▶ routes
//! ```

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;

use axum_server::tls_rustls::RustlsConfig;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::metrics;

use super::access::ClientCertificate;
use super::config::Config;
use super::connections::{Admitted, Connection, Connections};
use super::flush::Reported;
use super::linger::Lingering;
use super::router::Routes;
use super::stall;
use super::streams::{Executor, Timed};
use super::tls::{self, Authorities, Tls};

/// How long the listener pauses if the system has no descriptor for a connection.
const REST: Duration = Duration::from_millis(50);
/// The shortest time between two log lines about it.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The most streams of one HTTP/2 connection: hyper's default, and twice the least that RFC 9113
/// recommends.
const MAX_STREAMS: u32 = 200;
/// The bytes of request bodies that a client may send before they are read: per stream, and per
/// connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// A listener, and everything it needs to serve its connections.
pub(super) struct Listener {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Tls>,
    pub(super) routes: Routes,
    pub(super) config: Arc<Config>,
    pub(super) connections: Arc<Connections>,
}

/// The state that all connections of a listener share.
struct Shared {
    tls: Option<(RustlsConfig, Arc<Authorities>)>,
    routes: Routes,
    config: Arc<Config>,
    builder: Builder<Executor>,
    /// Cancelled when the server accepts no new requests.
    stopping: CancellationToken,
    /// Cancelled when the grace for running answers is over.
    ended: CancellationToken,
}

impl Listener {
    /// Serves until `stopping`, then gives running answers the configured grace to end.
    pub(super) async fn run(self, stopping: CancellationToken) {
        let Self {
            listener,
            tls,
            routes,
            config,
            connections,
        } = self;
        let shared = Arc::new(Shared {
            tls: tls.map(|tls| (tls.config, tls.authorities)),
            routes,
            builder: builder(&config),
            stopping,
            ended: CancellationToken::new(),
            config,
        });
        let tasks = TaskTracker::new();
        let mut log = FailureLog::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shared.stopping.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let client = (!shared.config.is_proxy(peer.ip())).then_some(peer.ip());
                    match connections.admit(client) {
                        Some(admitted) => {
                            tasks.spawn(Arc::clone(&shared).serve(stream, peer, admitted));
                        }
                        None => {
                            metrics().connections_refused.inc();
                        }
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    log.note(&error);
                    connections.give_one_up();
                    sleep(REST).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        if timeout(shared.config.shutdown_grace, tasks.wait())
            .await
            .is_err()
        {
            shared.ended.cancel();
            tasks.wait().await;
        }
    }
}

/// Whether accepting failed for a reason that does not affect the next connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// Logs at a bounded rate that connections cannot be accepted.
#[derive(Default)]
struct FailureLog {
    last: Option<Instant>,
}

impl FailureLog {
    fn note(&mut self, error: &io::Error) {
        metrics().accept_failures.inc();
        if self.last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            tracing::warn!(%error, "a connection cannot be accepted");
            self.last = Some(Instant::now());
        }
    }
}

/// Sets limits that keep slow and greedy clients from holding connections and memory.
fn builder(config: &Config) -> Builder<Executor> {
    let headers = config.max_header_size.as_u64();
    let mut builder = Builder::new(Executor {
        limit: config.write_timeout,
    });
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(usize::try_from(headers).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(config.write_timeout)
        .keep_alive_timeout(config.write_timeout)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(headers).unwrap_or(u32::MAX));
    builder
}

/// The other end of a connection.
struct Peer {
    address: SocketAddr,
    certificate: Option<ClientCertificate>,
    /// Cancelled when the authorities of certificates have changed.
    changed: CancellationToken,
}

impl Peer {
    fn without_certificate(address: SocketAddr) -> Self {
        Self {
            address,
            certificate: None,
            changed: CancellationToken::new(),
        }
    }

    /// Returns when the certificate has to be verified again, which needs another connection.
    async fn is_outdated(&self) {
        match self.certificate {
            Some(_) => self.changed.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
        let Ok(stream) = stall::watch(stream, self.config.write_timeout) else {
            return;
        };
        match &self.tls {
            None => {
                let peer = Peer::without_certificate(peer);
                self.drive(stream, peer, &admitted.connection).await;
            }
            Some((config, authorities)) => {
                let changed = authorities.changed();
                let accepted = tokio::select! {
                    () = self.stopping.cancelled() => return,
                    () = admitted.connection.given_up.cancelled() => return,
                    accepted = tls::accept(config, stream, self.config.header_timeout) => accepted,
                };
                match accepted {
                    Ok(stream) => {
                        let certificate = tls::client(stream.get_ref().1, peer);
                        let peer = Peer {
                            address: peer,
                            certificate,
                            changed,
                        };
                        self.drive(stream, peer, &admitted.connection).await;
                    }
                    Err(error) => tls::note_refused(&error, peer),
                }
            }
        }
    }

    /// Serves one connection to its end.
    async fn drive<S>(&self, stream: S, peer: Peer, connection: &Arc<Connection>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer.address));
            if let Some(certificate) = &peer.certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            request.extensions_mut().insert(Arc::clone(connection));
            let routes = self.routes.clone();
            async move { Ok::<_, Infallible>(routes.answer(request.map(Body::new)).await) }
        });
        let stream = Reported::new(Lingering::new(stream), Arc::clone(&connection.flushes));
        let served = self.builder.serve_connection(TokioIo::new(stream), service);
        let mut served = Timed::new(served, self.config.write_timeout);
        tokio::select! {
            biased;
            () = connection.given_up.cancelled() => return,
            () = &mut served => return,
            () = self.stopping.cancelled() => served.inner().graceful_shutdown(),
            () = peer.is_outdated() => served.inner().graceful_shutdown(),
            () = connection.idle_for_too_long(self.config.header_timeout) => {
                served.inner().graceful_shutdown();
                // If the client does not close the connection now, the server does.
                drop(timeout(self.config.header_timeout, &mut served).await);
                return;
            }
        }
        tokio::select! {
            biased;
            () = self.ended.cancelled() => {}
            () = &mut served => {}
        }
    }
}
