//! The agent's HTTP interface: `/api/v1/status`, `/metrics`, `/healthz`. Served on a socket in its
//! root, and on an address if the configuration has one.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::agent::layers::Layers;
use crate::agent::layers::report::Report;
use crate::telemetry::metrics;

const SOCKET: &str = "api.sock";
pub(crate) const STATUS: &str = "/api/v1/status";
/// How long a living agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The longest answer that is read: a hundred thousand layers.
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("cannot listen on {at}")]
    Listen { at: String, source: io::Error },
    #[error("no answer from an agent on {socket}")]
    Silent { socket: PathBuf, source: io::Error },
    #[error("agent's answer not understood")]
    Answer(#[source] serde_json::Error),
}

/// The listeners, ready to serve.
#[derive(Debug)]
pub(crate) struct Api {
    socket: UnixListener,
    address: Option<TcpListener>,
    router: Router,
}

impl Api {
    /// Listens in the root, which only its owner can enter, and on `address`.
    pub(crate) async fn bind(
        root: &Path,
        address: Option<SocketAddr>,
        layers: Arc<Layers>,
    ) -> Result<Self, ApiError> {
        let path = root.join(SOCKET);
        let failed = |source| ApiError::Listen {
            at: path.display().to_string(),
            source,
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixListener::bind(&path).map_err(failed)?;
        let address = match address {
            Some(address) => {
                let failed = |source| ApiError::Listen {
                    at: address.to_string(),
                    source,
                };
                Some(TcpListener::bind(address).await.map_err(failed)?)
            }
            None => None,
        };
        let router = Router::new()
            .route(STATUS, get(status))
            .route("/metrics", get(exposition))
            .route("/healthz", get(|| async { "ok\n" }))
            .with_state(layers);
        Ok(Self {
            socket,
            address,
            router,
        })
    }

    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Self {
            socket,
            address,
            router,
        } = self;
        let on_socket = axum::serve(socket, router.clone())
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let on_address = async {
            match address {
                Some(address) => {
                    axum::serve(address, router)
                        .with_graceful_shutdown(shutdown.cancelled_owned())
                        .await
                }
                None => Ok(()),
            }
        };
        if let Err(error) = tokio::try_join!(async { on_socket.await }, on_address) {
            tracing::error!(%error, "status and metrics server failed");
        }
    }
}

async fn status(State(layers): State<Arc<Layers>>) -> Result<Json<Report>, StatusCode> {
    let report = tokio::task::spawn_blocking(move || layers.report()).await;
    report
        .map(Json)
        .map_err(|_panicked| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn exposition(State(layers): State<Arc<Layers>>) -> Result<Response<Body>, StatusCode> {
    let held = layers.fetcher().store().usage();
    metrics::metrics()
        .cache_bytes
        .set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
    let damaged = layers.damaged();
    metrics::metrics()
        .agent_damaged_layers
        .set(i64::try_from(damaged).unwrap_or(i64::MAX));
    let text = metrics::metrics()
        .render()
        .map_err(|_format| StatusCode::INTERNAL_SERVER_ERROR)?;
    let response = Response::builder()
        .header(header::CONTENT_TYPE, metrics::CONTENT_TYPE)
        .body(Body::from(text));
    response.map_err(|_header| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Whether a living agent uses this root. A dying agent still holds its sockets, but answers
/// nothing.
pub(crate) async fn is_answered(root: &Path) -> bool {
    http_get(root, "/healthz").await.is_ok()
}

/// Returns the status report of the agent with this root.
///
/// # Errors
/// If no agent answers, or an agent of another version answers in another format.
pub(crate) async fn report(root: &Path) -> Result<Report, ApiError> {
    let answer = http_get(root, STATUS).await;
    let answer = answer.map_err(|source| ApiError::Silent {
        socket: root.join(SOCKET),
        source,
    })?;
    serde_json::from_slice(&answer).map_err(ApiError::Answer)
}

async fn http_get(root: &Path, path: &str) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut socket: UnixStream = UnixStream::connect(root.join(SOCKET)).await?;
        // The end of the connection is the end of the answer: there is no length and there are no
        // chunks.
        socket
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        socket.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(io::Error::from)??;
    let end_of_head = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end_of_head {
        Some(end) if answer.starts_with(b"HTTP/1.0 200") => Ok(answer[end + 4..].to_vec()),
        _ => Err(io::Error::other(
            String::from_utf8_lossy(&answer)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        )),
    }
}
