//! Around every request: an id, a span, a limit on how many run at once, one access line, the metrics.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument as _, Span};

use crate::telemetry::metrics;

use super::app::App;
use super::error::{Chain, Failure};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// By which agents know whom to ask for profiles.
const NAME: HeaderValue = HeaderValue::from_static(concat!("starlift/", env!("CARGO_PKG_VERSION")));
/// A request id from outside is kept up to this length.
const MAX_REQUEST_ID: usize = 64;

pub(crate) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", id);
    let mut line = Line::of(&request, &span);
    let is_registry = matches!(line.endpoint, "manifest" | "blob" | "referrers" | "tags");
    // Health, metrics and the page must answer most of all when there is too much to do.
    let permit = if is_registry { Arc::clone(&app.permits).try_acquire_owned().map(Some) } else { Ok(None) };
    let (mut response, permit) = match permit {
        Ok(permit) => (next.run(request).instrument(span.clone()).await, permit),
        Err(_all_taken) => {
            metrics().requests_refused.inc();
            (Failure::busy().into_response(), None)
        }
    };
    let headers = response.headers_mut();
    headers.insert(SERVER, NAME);
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    if line.is_api() {
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    }
    line.answered(&response);
    response.map(|inner| Body::new(Watched { inner, line, _permit: permit }))
}

/// The client's id where it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let is_sane = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    match headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_sane) {
        Some(id) => id.to_owned(),
        None => hex::encode(rand::random::<[u8; 8]>()),
    }
}

/// The kind of endpoint a path belongs to: a closed set, since it labels metrics.
fn endpoint(path: &str) -> &'static str {
    let Some(rest) = path.strip_prefix("/v2/") else {
        return match path {
            "/healthz" | "/readyz" | "/metrics" => "health",
            "/v2" => "ping",
            "/" => "page",
            _ if path.starts_with("/api/") => "api",
            _ => "other",
        };
    };
    match rest.rsplit('/').nth(1) {
        _ if rest.is_empty() => "ping",
        Some("manifests") => "manifest",
        Some("blobs") => "blob",
        Some("referrers") => "referrers",
        Some("tags") => "tags",
        _ => "other",
    }
}

/// The access line, filled in while the request is answered and written when its body is done or dropped.
struct Line {
    span: Span,
    method: Method,
    path: String,
    client: Option<SocketAddr>,
    endpoint: &'static str,
    status: StatusCode,
    /// Bytes the body should have; `None` where there is none or nobody knows.
    expected: Option<u64>,
    sent: u64,
    since: Instant,
}

impl Line {
    fn of(request: &Request, span: &Span) -> Self {
        metrics().requests_running.inc();
        let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        Self {
            span: span.clone(),
            method: request.method().clone(),
            path: request.uri().path_and_query().map_or_else(String::new, |path| path.as_str().to_owned()),
            client,
            endpoint: endpoint(request.uri().path()),
            // What a client that leaves before the answer gets, as nginx logs it.
            status: StatusCode::from_u16(499).unwrap_or_default(),
            expected: None,
            sent: 0,
            since: Instant::now(),
        }
    }

    fn is_api(&self) -> bool {
        self.path.starts_with("/v2")
    }

    fn answered(&mut self, response: &Response) {
        self.status = response.status();
        let has_body = self.method != Method::HEAD && self.status != StatusCode::NOT_MODIFIED;
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        self.expected = length.and_then(|length| length.parse().ok()).filter(|_| has_body);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let seconds = self.since.elapsed().as_secs_f64();
        let class = match self.status.as_u16() {
            499 => "gone",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        let metrics = metrics();
        metrics.requests_running.dec();
        metrics.requests.get_or_create(&[("endpoint", self.endpoint), ("class", class)]).inc();
        metrics.request_seconds.get_or_create(&[("endpoint", self.endpoint)]).observe(seconds);
        metrics.sent_bytes.get_or_create(&[("endpoint", self.endpoint)]).inc_by(self.sent);
        let client = self.client.map(|client| client.to_string()).unwrap_or_default();
        let is_cut = self.expected.is_some_and(|expected| self.sent < expected);
        let (method, path, status, bytes) = (&self.method, &self.path, self.status.as_u16(), self.sent);
        self.span.in_scope(|| match self.endpoint {
            "health" => tracing::debug!(%method, path, status, bytes, seconds, client, "answered"),
            _ => tracing::info!(%method, path, status, bytes, seconds, client, is_cut, "answered"),
        });
    }
}

/// A body that counts its bytes, logs why it broke, and holds the request's permit until it is gone.
struct Watched {
    inner: Body,
    line: Line,
    _permit: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => this.line.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
            Poll::Ready(Some(Err(error))) => {
                this.line.span.in_scope(|| tracing::warn!(error = %Chain(error), "the answer broke off"));
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_request_ids_are_kept() {
        let id_of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, value.parse().unwrap());
            request_id(&headers)
        };
        assert_eq!(id_of("abc-1.2_3"), "abc-1.2_3");
        for bad in ["", "a b", "a\"b", &"a".repeat(65)] {
            assert_eq!(id_of(bad).len(), 16, "{bad}");
        }
    }

    #[test]
    fn endpoints_are_told_apart_from_the_right() {
        let cases = [
            ("/v2/", "ping"),
            ("/v2/a/blobs/b/manifests/1", "manifest"),
            ("/v2/a/manifests/b/blobs/sha256:0", "blob"),
            ("/v2/a/tags/list", "tags"),
            ("/v2/_catalog", "other"),
            ("/healthz", "health"),
            ("/api/v1/status", "api"),
            ("/favicon.ico", "other"),
        ];
        for (path, expected) in cases {
            assert_eq!(endpoint(path), expected, "{path}");
        }
    }
}
