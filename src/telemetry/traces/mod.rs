//! Traces: spans of requests, conversions, layers, operations of the store, and of the node's mounts
//! and reads, sent to an OpenTelemetry collector.
//!
//! A trace begins with a span of the log: `request`, `prepare` or `read`. Within it, `child_span!`
//! makes spans that no log shows. While no collector is configured, or outside a trace, none is created:
//! that costs one read of `is_on`.

mod allowance;
mod config;
mod context;
mod export;
mod headers;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, StatusCode};
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::instrument::Instrumented;
use tracing::{Instrument as _, Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use allowance::Allowance;
pub use config::{Config, TracesError};
pub use context::TRACEPARENT;
pub use export::Exporter;

/// The target of the spans that only traces have.
pub(crate) const TARGET: &str = "otel";

/// The target of the others, which are the log's.
const OF_LOG: &str = "starlift::";

/// The longest text in a span, in bytes. With it a span takes a few KiB at most.
const MAX_TEXT: usize = 256;

static IS_ON: AtomicBool = AtomicBool::new(false);
static ALLOWANCE: OnceLock<Allowance> = OnceLock::new();

/// Whether there is a collector.
pub(crate) fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// A span within a trace, or none.
macro_rules! child_span {
    ($name:literal $(, $($fields:tt)*)?) => {
        if $crate::telemetry::traces::is_in_trace() {
            tracing::info_span!(target: $crate::telemetry::traces::TARGET, $name $(, $($fields)*)?)
        } else {
            tracing::Span::none()
        }
    };
}
pub(crate) use child_span;

/// Whether the current span belongs to a trace that is exported.
pub(crate) fn is_in_trace() -> bool {
    is_on() && context_of(&Span::current()).is_sampled()
}

/// Runs `work`, which another task is about to take, within the current trace. Outside a trace it stays
/// as it is.
pub(crate) fn in_trace<T>(work: T) -> Instrumented<T> {
    let span = if is_in_trace() {
        Span::current()
    } else {
        Span::none()
    };
    work.instrument(span)
}

/// Makes `span`, which is new, a part of the sender's trace, if it sent a trace context. Whether the
/// span is exported follows the sender as far as the configuration allows.
pub(crate) fn continue_from(span: &Span, traceparent: Option<&HeaderValue>) {
    adopt(span, traceparent, |is_wished| {
        ALLOWANCE
            .get()
            .is_some_and(|allowance| allowance.grants(is_wished))
    });
}

/// As [`continue_from`], for senders on this machine that only root can be.
#[cfg(feature = "agent")]
pub(crate) fn continue_from_root(span: &Span, traceparent: Option<&HeaderValue>) {
    adopt(span, traceparent, |is_wished| is_wished);
}

/// Makes `span`, which is new, a part of no trace.
pub(crate) fn leave_out(span: &Span) {
    let none = (TraceId::from(1_u128), SpanId::from(1_u64));
    set_parent(span, none, TraceFlags::NOT_SAMPLED);
}

fn adopt(span: &Span, traceparent: Option<&HeaderValue>, grants: impl FnOnce(bool) -> bool) {
    if !is_on() {
        return;
    }
    let sent = traceparent
        .and_then(|value| value.to_str().ok())
        .and_then(context::parse);
    let Some(sent) = sent else { return };
    let flags = TraceFlags::NOT_SAMPLED.with_sampled(grants(sent.is_sampled()));
    set_parent(span, (sent.trace_id(), sent.span_id()), flags);
}

fn set_parent(span: &Span, (trace, parent): (TraceId, SpanId), flags: TraceFlags) {
    if is_on() {
        let parent = SpanContext::new(trace, parent, flags, true, TraceState::NONE);
        // A new span takes a parent.
        let _set = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Adds what the span's fields in the log do not say.
pub(crate) fn describe<const N: usize>(span: &Span, attributes: [(&'static str, &str); N]) {
    if is_on() {
        for (name, value) in attributes {
            span.set_attribute(name, short(value).to_owned());
        }
    }
}

/// Adds the status of an answer.
pub(crate) fn answered(span: &Span, status: StatusCode) {
    if is_on() {
        span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
    }
}

/// The trace context for a request to another server, if the current span belongs to a trace. Requests
/// of a trace that is not exported have one too, which says so.
pub(crate) fn traceparent() -> Option<HeaderValue> {
    if !is_on() {
        return None;
    }
    let context = context_of(&Span::current());
    if context.is_valid() {
        context::write(&context)
    } else {
        None
    }
}

/// The number of the trace that `span` belongs to, if the trace is exported.
pub(crate) fn trace_id(span: &Span) -> Option<String> {
    if !is_on() {
        return None;
    }
    let context = context_of(span);
    context.is_sampled().then(|| context.trace_id().to_string())
}

/// The number of the current trace, if it is exported.
pub(crate) fn current_id() -> Option<String> {
    if !is_on() {
        return None;
    }
    trace_id(&Span::current())
}

fn context_of(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}

/// The beginning of a text from outside, short enough for a span.
pub(crate) fn short(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT))
        .unwrap_or_default()
}

/// A layer of a subscriber `S`.
type AnyLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// The layer that makes spans of traces, and the exporter that sends them; `None` without a collector.
///
/// # Errors
/// If a value of the configuration is impossible, or the file of headers cannot be used.
pub(super) fn layer<S>(config: &Config) -> Result<Option<(AnyLayer<S>, Exporter)>, TracesError>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let Some(address) = config.checked()? else {
        return Ok(None);
    };
    if let Some(file) = &config.headers_file {
        headers::read(file)?;
    }
    let resource = resource(&config.service_name);
    let (queue, spans) = export::queue(config.queue);
    let exporter = Exporter {
        spans,
        client: export::client()?,
        address,
        headers_file: config.headers_file.clone(),
        resource: ResourceAttributesWithSchema::from(&resource),
    };
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            config.ratio,
        ))))
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("starlift"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(
            filter_fn(|metadata| {
                let target = metadata.target();
                metadata.is_span() && (target == TARGET || target.starts_with(OF_LOG))
            })
            .with_max_level_hint(Level::INFO),
        );
    // Set once: there is one subscriber in a process.
    let _set = ALLOWANCE.set(Allowance::new(config.ratio, config.trust_clients));
    Ok(Some((Box::new(layer), exporter)))
}

/// Lets spans be created. The subscriber is in place.
pub(super) fn switch_on() {
    IS_ON.store(true, Ordering::Relaxed);
}

fn resource(service: &str) -> Resource {
    let host = rustix::system::uname();
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host.nodename().to_string_lossy().into_owned()),
        ])
        .build()
}
