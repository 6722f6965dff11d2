//! An OpenTelemetry collector in this process: it decodes what is exported to it, and fails on command.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message as _;

use super::eventually::eventually_async;

/// The collector; dropping it ends its server.
#[derive(Debug)]
pub(crate) struct Collector {
    address: SocketAddr,
    shared: Arc<Mutex<Received>>,
    server: tokio::task::JoinHandle<()>,
}

/// How the collector answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Mode {
    #[default]
    Takes,
    Refuses,
    Hangs,
}

#[derive(Debug, Default)]
struct Received {
    mode: Mode,
    spans: Vec<Exported>,
    requests: usize,
    authorization: Option<String>,
}

/// A span, and the service that exported it.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl Exported {
    pub(crate) fn name(&self) -> &str {
        &self.span.name
    }

    pub(crate) fn trace(&self) -> String {
        hex::encode(&self.span.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex::encode(&self.span.span_id)
    }

    pub(crate) fn parent(&self) -> String {
        hex::encode(&self.span.parent_span_id)
    }

    /// Returns an attribute's value as text, or nothing.
    pub(crate) fn attribute(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()) {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => text.clone(),
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => number.to_string(),
        _ => String::new(),
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        // An error means that another test of this process installed it. The tests' clients need it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Mutex<Received>>::default();
        let router = Router::new()
            .route("/v1/traces", post(receive))
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            shared,
            server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
    }

    /// Returns the number of requests so far, whatever the answer was.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().requests
    }

    /// Returns the `Authorization` header of the last request.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.shared.lock().authorization.clone()
    }

    pub(crate) fn spans(&self) -> Vec<Exported> {
        self.shared.lock().spans.clone()
    }

    /// Waits until the spans of a trace are as wanted, and returns them.
    pub(crate) async fn trace(
        &self,
        trace: &str,
        state: &str,
        are_wanted: impl Fn(&[Exported]) -> bool,
    ) -> Vec<Exported> {
        let spans = || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace() == trace);
            spans
        };
        eventually_async(state, async || are_wanted(&spans())).await;
        spans()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(
    State(shared): State<Arc<Mutex<Received>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let mode = {
        let mut received = shared.lock();
        received.requests += 1;
        let authorization = headers.get(header::AUTHORIZATION);
        received.authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        received.mode
    };
    match mode {
        Mode::Hangs => std::future::pending().await,
        Mode::Refuses => return StatusCode::SERVICE_UNAVAILABLE,
        Mode::Takes => {}
    }
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut received = shared.lock();
    for resource in request.resource_spans {
        let service = text(&resource.resource.unwrap().attributes, "service.name");
        let spans = resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans);
        received.spans.extend(spans.map(|span| Exported {
            service: service.clone(),
            span,
        }));
    }
    StatusCode::OK
}
