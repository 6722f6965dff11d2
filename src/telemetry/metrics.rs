//! Every metric: name, type, labels, unit and sentence in one table.
//!
//! Label values come from closed sets in the code, never from requests, so the number of series is
//! bounded.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

/// The media type of `/metrics`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Label names and values, all of them known at compile time.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];
/// Counters by one label.
pub type Counters = Family<Labels<1>, Counter>;
/// Counters by two labels.
pub type Counters2 = Family<Labels<2>, Counter>;
/// Gauges by the name of an upstream of the configuration.
pub type UpstreamGauges = Family<[(&'static str, String); 1], Gauge>;
/// Shares of a whole, by two labels.
pub type Ratios2 = Family<Labels<2>, Gauge<f64, AtomicU64>>;
/// Histograms of seconds by one label.
pub type TracedDurations = Family<Labels<1>, TracedSeconds, fn() -> TracedSeconds>;

/// A histogram of seconds. Each bucket has the trace of the last exported one among its observations as
/// its exemplar.
#[derive(Debug, Clone)]
pub struct TracedSeconds(HistogramWithExemplars<[(&'static str, String); 1]>);

/// The range reaches from a warm answer out of memory to the conversion of a large layer.
const SECONDS: [f64; 13] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 8.0, 25.0, 60.0, 300.0, 1800.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn traced_seconds() -> TracedSeconds {
    TracedSeconds(HistogramWithExemplars::new(SECONDS.into_iter()))
}

fn traced_durations() -> TracedDurations {
    Family::new_with_constructor(traced_seconds)
}

impl TracedSeconds {
    /// Observes what took this time, in the exported trace with this number if it was in one.
    pub fn observe(&self, time: Duration, trace: Option<String>) {
        let exemplar = trace.map(|trace| [("trace_id", trace)]);
        let at = exemplar.is_some().then(SystemTime::now);
        self.0.observe(time.as_secs_f64(), exemplar, at);
    }
}

impl TypedMetric for TracedSeconds {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for TracedSeconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static str,
    pub sentence: &'static str,
}

macro_rules! table {
    ($( $field:ident: $type:ty = $new:expr, $kind:literal, $name:literal, $unit:expr, $labels:literal, $sentence:literal; )*) => {
        /// The process's metrics.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $( #[doc = $sentence] pub $field: $type, )*
        }

        impl Metrics {
            fn new() -> Self {
                let mut registry = Registry::with_prefix("starlift");
                $(
                    let $field: $type = $new;
                    let name = metric_name($name, $kind, $unit.as_ref());
                    let help = $sentence.trim_end_matches('.');
                    match $unit {
                        Some(unit) => registry.register_with_unit(name, help, unit, $field.clone()),
                        None => registry.register(name, help, $field.clone()),
                    }
                )*
                Self { registry, $( $field, )* }
            }
        }

        /// All metrics.
        pub const TABLE: &[Description] = &[
            $( Description { name: concat!("starlift_", $name), kind: $kind, labels: $labels, sentence: $sentence }, )*
        ];
    };
}

table! {
    requests: Counters2 = Family::default(), "counter", "requests_total", None::<Unit>, "endpoint, class",
        "Requests answered, by endpoint and status class.";
    request_seconds: TracedDurations = traced_durations(), "histogram", "request_seconds", Some(Unit::Seconds), "endpoint",
        "Time from the first byte of a request to the last byte of its answer.";
    requests_running: Gauge = Gauge::default(), "gauge", "requests_running", None::<Unit>, "",
        "Requests in progress.";
    requests_refused: Counters = Family::default(), "counter", "requests_refused_total", None::<Unit>, "reason",
        "Requests refused: too many running in all, of one client or of one identity, no memory left for the request, a foreign host name, or a page of another site.";
    budget_refusals: Counters2 = Family::default(), "counter", "budget_refusals_total", None::<Unit>, "of, budget",
        "Requests and conversions refused because a budget of the identity, the address or the upstream was used up, by budget.";
    budget_use: Ratios2 = Family::default(), "gauge", "budget_use_ratio", None::<Unit>, "of, budget",
        "The part of its budget that the busiest identity, address or upstream uses now: 1 is all of it.";
    audit_lines: Counters = Family::default(), "counter", "audit_lines_total", None::<Unit>, "outcome",
        "Lines of the audit log: written, or dropped because the disk was full, broken or too slow.";
    connections: Gauge = Gauge::default(), "gauge", "connections", None::<Unit>, "",
        "Open connections of clients.";
    connections_refused: Counter = Counter::default(), "counter", "connections_refused_total", None::<Unit>, "",
        "Connections refused because there were too many, in all or of one client, and none was idle.";
    accept_failures: Counter = Counter::default(), "counter", "accept_failures_total", None::<Unit>, "",
        "Failures to accept a connection, for example because no descriptor was left.";
    streams_stalled: Counter = Counter::default(), "counter", "streams_stalled_total", None::<Unit>, "",
        "Answers cancelled because the client read nothing more of them for too long.";
    clients_stalled: Counter = Counter::default(), "counter", "clients_stalled_total", None::<Unit>, "",
        "Connections closed because the client read nothing for too long.";
    sent_bytes: Counters = Family::default(), "counter", "sent_bytes_total", Some(Unit::Bytes), "endpoint",
        "Bytes of answer bodies sent to clients.";
    manifests: Counters = Family::default(), "counter", "manifests_total", None::<Unit>, "answer",
        "Manifests answered: the converted image (converted), the source image because the converted one was not ready (source), or pass-through.";
    blobs: Counters = Family::default(), "counter", "blobs_total", None::<Unit>, "answer",
        "Blobs answered: from the store, redirected, or forwarded from the upstream.";
    access_checks: Counters = Family::default(), "counter", "access_checks_total", None::<Unit>, "answer",
        "Questions to upstreams whether a client, or this server, may pull from a repository: granted, refused, or silent.";
    tags_resolved: Counters = Family::default(), "counter", "tags_resolved_total", None::<Unit>, "answer",
        "Tags resolved: fresh or stale from memory, resolved at the upstream, or stale because it failed.";
    conversion_waits: TracedDurations = traced_durations(), "histogram", "conversion_wait_seconds", Some(Unit::Seconds), "outcome",
        "Time that a manifest request waited for the converted image.";
    conversions: Counters = Family::default(), "counter", "conversions_total", None::<Unit>, "outcome",
        "Conversions of images and indexes, by outcome: final (converted or recorded as not convertible), for now (not recorded), or failed.";
    image_seconds: TracedSeconds = traced_seconds(), "histogram", "image_ready_seconds", Some(Unit::Seconds), "",
        "Time from the first request of an image in this process until its converted image can be served.";
    layers: Counters = Family::default(), "counter", "layers_total", None::<Unit>, "outcome",
        "Layers of conversions, by outcome: converted here, passed through, found converted, or failed.";
    layer_seconds: TracedSeconds = traced_seconds(), "histogram", "layer_conversion_seconds", Some(Unit::Seconds), "",
        "Time to convert one layer, from the request of its first byte to its record.";
    layer_source_bytes: Counter = Counter::default(), "counter", "layer_source_bytes_total", Some(Unit::Bytes), "",
        "Bytes of tar in the layers converted here.";
    layer_bytes: Counter = Counter::default(), "counter", "layer_bytes_total", Some(Unit::Bytes), "",
        "Bytes of eStargz or zstd:chunked in the layers converted here.";
    conversions_running: Gauge = Gauge::default(), "gauge", "conversions_running", None::<Unit>, "",
        "Image conversions running in this process, those that wait for their turn included.";
    conversions_waiting: Gauge = Gauge::default(), "gauge", "conversions_waiting", None::<Unit>, "",
        "Image conversions that wait for their turn in this process.";
    conversion_queue_age: Gauge<f64, AtomicU64> = Gauge::default(), "gauge", "conversion_queue_age_seconds", Some(Unit::Seconds), "",
        "How long the longest of them has waited.";
    notification_events: Counters = Family::default(), "counter", "notification_events_total", None::<Unit>, "outcome",
        "Events of registries that announce pushes, by outcome: a conversion started or already running, the image refused by the rules, no room, not about an image (ignored), malformed, or a wrong secret.";
    leases: Counters = Family::default(), "counter", "leases_total", None::<Unit>, "outcome",
        "Leases requested, by outcome: taken, held by another process, or taken and lost later.";
    upstream_requests: Counters2 = Family::default(), "counter", "upstream_requests_total", None::<Unit>, "kind, class",
        "Requests to upstreams, each hop of a redirect separately, by kind and status class.";
    upstream_quota: UpstreamGauges = Family::default(), "gauge", "upstream_quota_remaining", None::<Unit>, "upstream",
        "Requests that an upstream still allows, from its last answer that said so (`ratelimit-remaining`); for the upstreams of the configuration and Docker Hub.";
    upstream_quota_limit: UpstreamGauges = Family::default(), "gauge", "upstream_quota_limit", None::<Unit>, "upstream",
        "Requests that this upstream allows in its period (`ratelimit-limit`).";
    store_operations: Counters2 = Family::default(), "counter", "store_operations_total", None::<Unit>,
        "operation, outcome", "Operations on the store's backend, by outcome.";
    store_cache: Counters = Family::default(), "counter", "store_cache_total", None::<Unit>, "outcome",
        "Pieces of layers that ranges needed, by whether `store.cache` had them (hit) or the bucket was asked (miss).";
    sweeps: Counters = Family::default(), "counter", "sweeps_total", None::<Unit>, "outcome",
        "Sweeps of the store, by outcome.";
    swept_bytes: Counter<u64, AtomicU64> = Counter::default(), "counter", "swept_bytes_total", Some(Unit::Bytes), "",
        "Bytes deleted by the sweep.";
    store_damaged: Counters2 = Family::default(), "counter", "store_damaged_total", None::<Unit>, "object, damage",
        "Objects and records of the store that were damaged, truncated or missing, and were forgotten, by kind of damage.";
    scrubbed_objects: Counter = Counter::default(), "counter", "store_scrubbed_objects_total", None::<Unit>, "",
        "Objects and records of the store compared with their digests and checksums by the scrub.";
    scrubbed_bytes: Counter<u64, AtomicU64> = Counter::default(), "counter", "store_scrubbed_bytes_total",
        Some(Unit::Bytes), "", "Bytes of objects read by the scrub.";
    scrub_finished: Gauge = Gauge::default(), "gauge", "store_scrub_finished_timestamp_seconds", Some(Unit::Seconds), "",
        "End of the last scrub of the whole store by any replica, in seconds since 1970.";
    profiles: Counters = Family::default(), "counter", "profiles_total", None::<Unit>, "answer",
        "Profiles requested: given, empty because nothing is known yet, or of an unknown image.";
    observations: Counters2 = Family::default(), "counter", "observations_total", None::<Unit>, "source, outcome",
        "Starts reported by agents or inferred from ranges, by outcome: taken, refused, or too many at once.";
    range_requests: Counters = Family::default(), "counter", "range_requests_total", None::<Unit>, "outcome",
        "Range requests for converted layers that were evaluated: noted, of an unknown image, or dropped under load.";
    profile_merges: Counters = Family::default(), "counter", "profile_merges_total", None::<Unit>, "outcome",
        "Merges of observations into an image's profile data, by outcome: written, or failed for now.";
    profile_merge_seconds: Histogram = seconds(), "histogram", "profile_merge_seconds", Some(Unit::Seconds), "",
        "Duration of these merges.";
    predictions: Counters = Family::default(), "counter", "predictions_total", None::<Unit>, "outcome",
        "Predictions of the files that an image's start reads: made, cut because it took too much, failed, died at a limit, too \
         long, or not made because the store or a process failed.";
    prediction_seconds: Histogram = seconds(), "histogram", "prediction_seconds", Some(Unit::Seconds), "",
        "Duration of these predictions.";
    trace_spans: Counters = Family::default(), "counter", "trace_spans_total", None::<Unit>, "outcome",
        "Spans of traces: exported, dropped because the queue was full, or failed because the collector did not take them.";
    runtime_late: Gauge<f64, AtomicU64> = Gauge::default(), "gauge", "runtime_late_seconds", Some(Unit::Seconds), "",
        "Delay of a task that the runtime should run each second.";
    runtime_stalls: Counter = Counter::default(), "counter", "runtime_stalls_total", None::<Unit>, "",
        "Number of times that the runtime was more than five seconds late.";
    agent_mounts: Gauge = Gauge::default(), "gauge", "agent_mounts", None::<Unit>, "",
        "Layers that the agent has mounted lazily.";
    agent_damaged_layers: Gauge = Gauge::default(), "gauge", "agent_damaged_layers", None::<Unit>, "",
        "Mounted layers that the agent cannot read any more: reads of their files fail.";
    agent_layer_bytes: Counter = Counter::default(), "counter", "agent_layer_bytes_total", Some(Unit::Bytes), "",
        "Bytes that the layers mounted lazily have in the registry: what would have been pulled. `starlift_agent_fetched_bytes_total` is what was.";
    agent_layers: Counters = Family::default(), "counter", "agent_layers_total", None::<Unit>, "outcome",
        "Layers requested from the agent: mounted lazily, left to be unpacked, or refused because their image lacks the provenance that is required.";
    agent_requests: Counters = Family::default(), "counter", "agent_fuse_requests_total", None::<Unit>, "operation",
        "Requests of the kernel for lazily mounted layers, by FUSE operation.";
    agent_reads: Counters = Family::default(), "counter", "agent_reads_total", None::<Unit>, "source",
        "Reads of lazily mounted files: from this node's cache, or fetched first; reads from the page cache are not seen.";
    agent_read_waits: TracedSeconds = traced_seconds(), "histogram", "agent_read_wait_seconds", Some(Unit::Seconds), "",
        "Time that reads of lazily mounted files waited for bytes that were not on the node.";
    agent_read_errors: Counter = Counter::default(), "counter", "agent_read_errors_total", None::<Unit>, "",
        "Reads of lazily mounted files that failed with EIO.";
    agent_fetched_bytes: Counters = Family::default(), "counter", "agent_fetched_bytes_total", Some(Unit::Bytes),
        "reason", "Bytes of layers fetched from registries, by reason.";
    agent_profiles: Counters = Family::default(), "counter", "agent_profiles_total", None::<Unit>, "outcome",
        "Profiles that the agent requested from servers, by outcome: used, none, failed.";
    agent_profile_files: Counters = Family::default(), "counter", "agent_profile_files_total", None::<Unit>, "use",
        "Files that starts of containers used: prefetched by the profile in time, late, or missing in it.";
    agent_observations: Counters = Family::default(), "counter", "agent_observations_total", None::<Unit>, "outcome",
        "Observations of starts that the agent sent to servers: sent, or refused.";
    cache_bytes: Gauge = Gauge::default(), "gauge", "agent_cache_bytes", Some(Unit::Bytes), "",
        "Bytes of disk that the content of layers takes, as the file system counts them.";
    cache_evictions: Counter = Counter::default(), "counter", "agent_cache_evictions_total", None::<Unit>, "",
        "Chunks evicted from the data files of layers.";
    cache_damaged: Counter = Counter::default(), "counter", "agent_cache_damaged_total", None::<Unit>, "",
        "Damaged chunks in the data files of layers, which were fetched again.";
    cache_write_failures: Counter = Counter::default(), "counter", "agent_cache_write_failures_total", None::<Unit>, "",
        "Chunks that could not be written to disk, for example because no space was left.";
}

/// The name for the registry, which appends the unit and `_total` itself.
fn metric_name(name: &str, kind: &str, unit: Option<&Unit>) -> String {
    let name = if kind == "counter" {
        name.trim_end_matches("_total")
    } else {
        name
    };
    match unit {
        Some(unit) => name
            .trim_end_matches(unit.as_str())
            .trim_end_matches('_')
            .to_owned(),
        None => name.to_owned(),
    }
}

/// The metrics of this process. Like tracing, there is one set per process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Metrics {
    /// Counts an upstream's answer to a request for `path`. `status` is `None` if no answer came.
    pub fn count_upstream(&self, path: &str, status: Option<u16>) {
        let kinds = [
            ("/manifests/", "manifest"),
            ("/blobs/", "blob"),
            ("/tags/", "tags"),
            ("/referrers/", "referrers"),
        ];
        let kind = kinds
            .iter()
            .find(|(part, _)| path.contains(part))
            .map_or("other", |(_, kind)| *kind);
        let class = match status {
            Some(200..300) => "2xx",
            Some(300..400) => "3xx",
            Some(429) => "429",
            Some(400..500) => "4xx",
            Some(_) => "5xx",
            None => "none",
        };
        self.upstream_requests
            .get_or_create(&[("kind", kind), ("class", class)])
            .inc();
    }

    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The text of `docs/METRICS.md`.
pub fn reference() -> String {
    let mut text = "# Metrics\n\nGenerated from the table in `src/telemetry/metrics.rs`; served at `/metrics` in the \
                    OpenMetrics format.\nUnits are part of the names; label values are closed sets.\n\n\
                    | metric | type | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for line in TABLE {
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            line.name, line.kind, line.labels, line.sentence
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_has_every_metric_of_the_table_under_its_name() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&[("endpoint", "blob"), ("class", "2xx")])
            .inc();
        metrics
            .sent_bytes
            .get_or_create(&[("endpoint", "blob")])
            .inc_by(7);
        metrics
            .request_seconds
            .get_or_create(&[("endpoint", "blob")])
            .observe(Duration::from_millis(100), None);
        let text = metrics.render().unwrap();
        assert!(
            text.contains(r#"starlift_requests_total{endpoint="blob",class="2xx"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"starlift_sent_bytes_total{endpoint="blob"} 7"#),
            "{text}"
        );
        assert!(text.contains("starlift_request_seconds_bucket"), "{text}");
        let touched = [
            "starlift_requests_total",
            "starlift_sent_bytes_total",
            "starlift_request_seconds",
        ];
        for line in TABLE
            .iter()
            .filter(|line| line.labels.is_empty() || touched.contains(&line.name))
        {
            let family = line.name.trim_end_matches("_total");
            assert!(
                text.contains(&format!("# TYPE {family} {}\n", line.kind)),
                "{family} in {text}"
            );
        }
    }

    #[test]
    fn names_are_unique_and_sentences_end() {
        let mut names: Vec<_> = TABLE.iter().map(|line| line.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.iter().all(|line| line.sentence.ends_with('.')));
    }
}
