//! The layer around every request: an id, a span, a limit of concurrent requests, one access line,
//! the metrics.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Instrument as _, Span};

use crate::telemetry::metrics;
use crate::telemetry::traces::{self, TRACEPARENT};

use super::account::{Account, Answered};
use super::app::App;
use super::connections::{Busy, Connection};
use super::error::{ApiError, Chain, Reason};
use super::flush::Flushes;
use super::registry_request::is_from_mirror;
use super::response::DOCKER_CONTENT_DIGEST;
use super::streams::Clock;
use super::{client_address, guard, policy, unread};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Shows agents that this server has profiles.
const NAME: HeaderValue = HeaderValue::from_static(concat!("starlift/", env!("CARGO_PKG_VERSION")));
/// The longest piece of a body. A client has to read it within `write_timeout`, which is 1 KiB/s
/// with the default.
const PIECE: usize = 64 << 10;
/// The longest request id that is accepted from a client.
const MAX_REQUEST_ID: usize = 64;

/// Answers a request with `handle`.
pub(crate) async fn observe<F>(
    app: &Arc<App>,
    request: Request,
    handle: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let (request, unread) = unread::watch(request);
    let mut response = answered(app, request, handle).await;
    unread.close_after(&mut response);
    response
}

async fn answered<F>(
    app: &Arc<App>,
    request: Request,
    handle: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", id);
    trace(&span, &request);
    let address = client_address::address(&app.config, request.headers(), request.extensions());
    let account = Account::open(&id, address, endpoint(request.uri().path()));
    let line = Line::of(app, &request, &span, &account);
    let refused = |failure: ApiError, line| {
        let holds = Holds::default();
        finished(failure.into_response(), line, &id, holds)
    };
    if let Err(refusal) = guard::check(&app.names, &request) {
        count_refused(refusal.label());
        return refused(refusal.failure(), line);
    }
    let connection = request.extensions().get::<Arc<Connection>>();
    let busy = connection.map(Busy::new);
    let flushes = connection
        .filter(|_| request.version() <= Version::HTTP_11)
        .map(|connection| Arc::clone(&connection.flushes));
    // Health and metrics must answer even under overload.
    let places = match line.endpoint {
        "manifest" | "blob" | "referrers" | "tags" | "token" => Some(&app.places),
        "api" | "page" | "notification" => Some(&app.api_places),
        _ => None,
    };
    match places.map(|places| places.take(address)).transpose() {
        Ok(place) => account.hold_place(place),
        Err(none) => {
            count_refused(none.label());
            return refused(ApiError::busy(), line);
        }
    }
    let is_mirror = is_from_mirror(request.headers(), request.uri());
    if line.is_budgeted()
        && let Err(over) = account.enter_by_address(&app.budgets)
    {
        return refused(ApiError::over_budget(&over, is_mirror), line);
    }
    let served = Arc::clone(&account).during(handle(request));
    let mut response = served.instrument(span).await;
    if let Some(bytes) = line.body_of(&response)
        && let Err(over) = account.send(bytes)
    {
        response = ApiError::over_budget(&over, is_mirror).into_response();
    }
    let holds = Holds {
        flushes,
        _busy: busy,
    };
    finished(response, line, &id, holds)
}

fn count_refused(reason: &'static str) {
    metrics()
        .requests_refused
        .get_or_create(&[("reason", reason)])
        .inc();
}

/// The resources that a request holds until its answer is sent or dropped, beside those of its
/// account.
#[derive(Default)]
struct Holds {
    /// Over HTTP/1: the flushes of the connection, which show that the answer is sent.
    flushes: Option<Arc<Flushes>>,
    _busy: Option<Busy>,
}

/// Adds the headers of every answer and wraps its body in a counter.
fn finished(mut response: Response, mut line: Line, id: &str, holds: Holds) -> Response {
    policy::apply(&mut response);
    let headers = response.headers_mut();
    headers.insert(SERVER, NAME);
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if line.is_api() {
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    }
    line.answered(&mut response);
    let clock = Clock::current();
    response.map(|inner| {
        Body::new(Watched {
            inner,
            rest: Bytes::new(),
            clock,
            last: None,
            answer: Some(Answer { line, holds }),
        })
    })
}

/// The client's id if it is well formed, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let is_sane = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    match headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(is_sane)
    {
        Some(id) => id.to_owned(),
        None => hex::encode(rand::random::<[u8; 8]>()),
    }
}

/// The kind of endpoint of a path: a closed set, because it labels metrics.
fn endpoint(path: &str) -> &'static str {
    let Some(rest) = path.strip_prefix("/v2/") else {
        return match path {
            "/healthz" | "/readyz" | "/metrics" => "health",
            "/v2" => "ping",
            "/token" => "token",
            "/" | "/images" | "/sign-in" => "page",
            _ if path.starts_with("/images/") => "page",
            _ if path.starts_with("/api/v1/notifications/") => "notification",
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

/// Puts the span of a request into the client's trace, if it has one. Probes are not traced.
fn trace(span: &Span, request: &Request) {
    if !traces::is_on() {
        return;
    }
    let (endpoint, path) = (endpoint(request.uri().path()), request.uri().path());
    if endpoint == "health" {
        return traces::leave_out(span);
    }
    traces::continue_from(span, request.headers().get(TRACEPARENT));
    let attributes = [
        ("http.request.method", request.method().as_str()),
        ("url.path", path),
        ("starlift.endpoint", endpoint),
    ];
    traces::describe(span, attributes);
}

/// The access line, filled in during the answer and written when its body is sent or dropped. Then
/// the account is closed.
struct Line {
    app: Option<Arc<App>>,
    account: Arc<Account>,
    /// The digest and the reason of a refusal in the answer, for the audit log.
    digest: Option<HeaderValue>,
    reason: Option<Reason>,
    span: Span,
    method: Method,
    uri: Uri,
    client: Option<SocketAddr>,
    endpoint: &'static str,
    status: StatusCode,
    /// The expected length of the body, or `None` if there is none or it is unknown.
    expected: Option<u64>,
    sent: u64,
    since: Instant,
}

impl Line {
    fn of(app: &Arc<App>, request: &Request, span: &Span, account: &Arc<Account>) -> Self {
        let mut line = Self::without_app(request, span);
        line.app = Some(Arc::clone(app));
        line.account = Arc::clone(account);
        line
    }

    fn without_app(request: &Request, span: &Span) -> Self {
        metrics().requests_running.inc();
        let client = request
            .extensions()
            .get::<ConnectInfo<SocketAddr>>()
            .map(|info| info.0);
        Self {
            app: None,
            account: Arc::default(),
            digest: None,
            reason: None,
            span: span.clone(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            client,
            endpoint: endpoint(request.uri().path()),
            // The status for a client that leaves before the answer, as nginx logs it.
            status: StatusCode::from_u16(499).unwrap_or_default(),
            expected: None,
            sent: 0,
            since: Instant::now(),
        }
    }

    fn is_api(&self) -> bool {
        self.uri.path().starts_with("/v2")
    }

    /// Whether the budgets count the request: it is for images, tokens, profiles
    /// or conversions.
    fn is_budgeted(&self) -> bool {
        match self.endpoint {
            "manifest" | "blob" | "referrers" | "tags" | "token" | "notification" => true,
            "api" => {
                self.uri.path().starts_with("/api/v1/profiles/") || self.method == Method::POST
            }
            _ => false,
        }
    }

    fn answered(&mut self, response: &mut Response) {
        self.status = response.status();
        self.expected = self.body_of(response);
        self.digest = response.headers().get(DOCKER_CONTENT_DIGEST).cloned();
        self.reason = response.extensions_mut().remove();
    }

    /// The length of the answer's body, if it has one and the length is known.
    fn body_of(&self, response: &Response) -> Option<u64> {
        let has_body = self.method != Method::HEAD && response.status() != StatusCode::NOT_MODIFIED;
        let length = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok());
        length
            .and_then(|length| length.parse().ok())
            .filter(|_| has_body)
    }

    /// Closes the account of the request.
    fn close(&self) {
        let Some(app) = &self.app else { return };
        let digest = self.digest.as_ref();
        self.account.close(
            app,
            &Answered {
                method: self.method.as_str(),
                digest: digest.and_then(|digest| digest.to_str().ok()),
                refused: self.reason.as_ref().map(|reason| reason.0.as_str()),
                status: self.status.as_u16(),
                bytes: self.sent,
            },
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.close();
        let took = self.since.elapsed();
        let seconds = took.as_secs_f64();
        traces::answered(&self.span, self.status);
        let trace = traces::trace_id(&self.span);
        let class = match self.status.as_u16() {
            499 => "gone",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        let metrics = metrics();
        metrics.requests_running.dec();
        metrics
            .requests
            .get_or_create(&[("endpoint", self.endpoint), ("class", class)])
            .inc();
        metrics
            .request_seconds
            .get_or_create(&[("endpoint", self.endpoint)])
            .observe(took, trace.clone());
        metrics
            .sent_bytes
            .get_or_create(&[("endpoint", self.endpoint)])
            .inc_by(self.sent);
        let client = self
            .client
            .map(|client| client.to_string())
            .unwrap_or_default();
        let is_cut = self.expected.is_some_and(|expected| self.sent < expected);
        let path = self.uri.path_and_query().map_or("", |path| path.as_str());
        let (method, status, bytes) = (&self.method, self.status.as_u16(), self.sent);
        self.span.in_scope(|| match self.endpoint {
            "health" => tracing::debug!(%method, path, status, bytes, seconds, client, "answered"),
            _ => tracing::info!(%method, path, status, bytes, seconds, client, is_cut, trace, "answered"),
        });
    }
}

/// The access line of an answer, and the resources that it holds until its bytes are sent.
struct Answer {
    line: Line,
    holds: Holds,
}

/// The last piece of an answer over HTTP/1, which hyper has taken.
struct Last {
    length: u64,
    /// The connection's flushes before.
    flushes: u64,
}

/// A body that counts its bytes, logs why it broke off, and keeps its request's resources until it
/// is sent or dropped.
///
/// It is sent in pieces, so that the progress of a reading client is visible. hyper drops a body as
/// soon as its last piece waits in the stream's buffer, where it may stay indefinitely. Over HTTP/1
/// the resources are kept until the connection is flushed. Over HTTP/2, where the buffer is shared,
/// the last byte is a separate piece, so that no more than that waits without resources.
struct Watched {
    inner: Body,
    /// The rest of the inner body's last frame.
    rest: Bytes,
    clock: Option<Arc<Clock>>,
    last: Option<Last>,
    /// Taken when this is dropped.
    answer: Option<Answer>,
}

impl Watched {
    /// The next piece of `rest`.
    fn piece(&mut self) -> Option<Bytes> {
        let Answer { line, holds } = self.answer.as_mut()?;
        let mut length = self.rest.len().min(PIECE);
        let is_last = line.expected == Some(line.sent + length as u64);
        match &holds.flushes {
            Some(flushes) if is_last => {
                self.last = Some(Last {
                    length: length as u64,
                    flushes: flushes.count(),
                });
            }
            None if is_last && length > 1 => length -= 1,
            _ => {}
        }
        if length == 0 {
            return None;
        }
        line.sent += length as u64;
        if let Some(clock) = &self.clock {
            clock.start();
        }
        Some(self.rest.split_to(length))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.stop();
        }
        let (Some(mut answer), Some(last)) = (self.answer.take(), self.last.take()) else {
            return;
        };
        if let Some(flushes) = answer.holds.flushes.take() {
            flushes.wait(last.flushes, move |is_flushed| {
                // Moved whole: the line is written, and the place is free, when this is dropped.
                let mut answer = answer;
                if !is_flushed {
                    answer.line.sent = answer.line.sent.saturating_sub(last.length);
                }
            });
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if let Some(clock) = &this.clock {
            clock.stop();
        }
        loop {
            if let Some(piece) = this.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => {
                    if let Some(Answer { line, .. }) = &this.answer {
                        line.span.in_scope(
                            || tracing::warn!(error = %Chain(&error), "the answer broke off"),
                        );
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.inner.size_hint().exact() {
            Some(length) => SizeHint::with_exact(length + self.rest.len() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_sent_in_pieces_and_over_http2_its_last_byte_separately() {
        for (length, over_http2, over_http1) in [
            (0, vec![], vec![]),
            (1, vec![1], vec![1]),
            (2, vec![1, 1], vec![2]),
            (PIECE + 5, vec![PIECE, 4, 1], vec![PIECE, 5]),
        ] {
            let pieces = pieces_of(length, Holds::default()).await;
            assert_eq!(pieces, over_http2);
            let flushes = Some(Arc::default());
            let holds = Holds {
                flushes,
                ..Holds::default()
            };
            assert_eq!(pieces_of(length, holds).await, over_http1);
        }
    }

    async fn pieces_of(length: usize, holds: Holds) -> Vec<usize> {
        use http_body_util::BodyExt as _;
        let request = Request::builder().uri("/v2/").body(Body::empty()).unwrap();
        let line = Line::without_app(&request, &Span::none());
        let mut response = Body::from(vec![7; length]).into_response();
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, (length as u64).into());
        let mut body = finished(response, line, "id", holds).into_body();
        assert_eq!(body.size_hint().exact(), Some(length as u64));
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap().len());
        }
        pieces
    }

    #[test]
    fn only_well_formed_request_ids_are_kept() {
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
    fn the_endpoint_is_found_from_the_right() {
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
