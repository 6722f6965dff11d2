//! Sends spans to the collector: OTLP over HTTP, in protobuf.
//!
//! ```text
//! a span ends ─try▶ queue ─batches▶ exporting task ─POST▶ collector
//!              └▶ full: dropped, counted
//! ```
//! Nothing waits for the collector. If it is away or slow, the queue fills, and spans are dropped. That
//! is logged once, and once more when the collector takes spans again.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::SpanKind;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::headers::{self, HeadersError};
use crate::telemetry::log::chain;
use crate::telemetry::metrics;
use crate::tls_provider;

/// The most spans of one request to the collector: some 200 KiB.
const BATCH: usize = 512;
/// How long a span waits for others to be sent with.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the collector may take for a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the spans that wait at the end of the process may take.
const LAST: Duration = Duration::from_secs(2);

/// The span of a client's request.
const REQUEST: &str = "request";

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// The end of the queue at which spans come in.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        // The log's span of a request cannot say so itself.
        if span.name == REQUEST {
            span.span_kind = SpanKind::Server;
        }
        if self.0.try_send(span).is_err() {
            count("dropped", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The other end of the queue, and the way to the collector.
#[derive(Debug)]
pub struct Exporter {
    pub(super) spans: mpsc::Receiver<SpanData>,
    pub(super) client: reqwest::Client,
    pub(super) address: Url,
    pub(super) headers_file: Option<PathBuf>,
    pub(super) resource: ResourceAttributesWithSchema,
}

/// Returns a queue of `places` spans.
pub(super) fn queue(places: usize) -> (Queue, mpsc::Receiver<SpanData>) {
    let (sender, receiver) = mpsc::channel(places);
    (Queue(sender), receiver)
}

/// Returns the client for the collector. It uses no proxy.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    tls_provider::install();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
}

/// The reason why the collector did not take spans.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no answer")]
    NoAnswer(#[source] reqwest::Error),
    #[error("status {0}")]
    Refused(reqwest::StatusCode),
    #[error("headers file")]
    Headers(#[from] HeadersError),
}

impl Exporter {
    /// Exports until `stop` is cancelled, then the spans that wait, for a moment.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut is_away = false;
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                taken = self.spans.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = self.fill(&mut batch) => {}
                () = stop.cancelled() => break,
            }
            let sent = tokio::select! {
                sent = self.send(std::mem::take(&mut batch)) => sent,
                () = overdue(&stop) => return,
            };
            note(&mut is_away, sent.as_ref().err());
            if sent.is_err() {
                let pause = timeout(PAUSE, stop.cancelled());
                let _over = pause.await;
            }
        }
        self.spans.close();
        if !is_away {
            let _unfinished = timeout(LAST, self.send_rest(batch)).await;
        }
    }

    /// Waits for more spans, until the batch is full or the period is over.
    async fn fill(&mut self, batch: &mut Vec<SpanData>) {
        let until = Instant::now() + PERIOD;
        while batch.len() < BATCH {
            let more = self.spans.recv_many(batch, BATCH - batch.len());
            match timeout_at(until, more).await {
                Ok(taken) if taken > 0 => {}
                _ => return,
            }
        }
    }

    async fn send_rest(&mut self, mut batch: Vec<SpanData>) {
        loop {
            if batch.is_empty() && self.spans.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            if self.send(std::mem::take(&mut batch)).await.is_err() {
                return;
            }
        }
    }

    /// Sends one request, and counts its spans.
    async fn send(&self, batch: Vec<SpanData>) -> Result<(), ExportError> {
        let spans = batch.len() as u64;
        let sent = self.post(batch).await;
        let outcome = if sent.is_ok() { "exported" } else { "failed" };
        count(outcome, spans);
        sent
    }

    async fn post(&self, batch: Vec<SpanData>) -> Result<(), ExportError> {
        let headers = self
            .headers_file
            .as_deref()
            .map(headers::read)
            .transpose()?;
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let response = self
            .client
            .post(self.address.clone())
            .headers(headers.unwrap_or_default())
            .header(CONTENT_TYPE, PROTOBUF)
            .body(request.encode_to_vec())
            .send()
            .await
            .map_err(|error| ExportError::NoAnswer(error.without_url()))?;
        // The answer's body says at most which spans were rejected, which nobody can repeat.
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(ExportError::Refused(status)),
        }
    }
}

/// Returns a while after the process was told to end.
async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST).await;
}

/// Logs that the collector is away or is back, once each.
fn note(is_away: &mut bool, error: Option<&ExportError>) {
    match error {
        Some(error) if !*is_away => {
            tracing::warn!(
                error = chain(error),
                "traces not exported, and dropped until they are"
            );
        }
        None if *is_away => tracing::info!("traces exported again"),
        _ => {}
    }
    *is_away = error.is_some();
}

fn count(outcome: &'static str, spans: u64) {
    metrics()
        .trace_spans
        .get_or_create(&[("outcome", outcome)])
        .inc_by(spans);
}
