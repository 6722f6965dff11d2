//! Traces of the real executable, as a collector receives them.

use std::process::Command;

use reqwest::StatusCode;

use crate::support::collector::{Collector, Exported, Mode};
use crate::support::eventually::{eventually, eventually_async};
use crate::support::image::ImageBuilder;
use crate::support::place::{Place, fetch};
use crate::support::registry::Registry;
use crate::support::starlift::Starlift;

/// The trace and the span of a client, as it sends them.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn context(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

/// Starts a server that exports to the collector, with these settings of `[traces]`.
fn start(
    place: &Place,
    registry: &Registry,
    collector: &Collector,
    settings: &[(&str, &str)],
) -> Starlift {
    let upstream = format!("local={}", registry.url());
    Starlift::start_with(
        place,
        &["--wait", "25s", "--upstream", &upstream],
        |command| {
            command.env("STARLIFT_TRACES_ENDPOINT", collector.url());
            for (key, value) in settings {
                command.env(format!("STARLIFT_TRACES_{key}"), value);
            }
        },
    )
}

async fn get(server: &Starlift, path: &str, traceparent: &str) -> StatusCode {
    let request = reqwest::Client::new()
        .get(server.url(path))
        .header("traceparent", traceparent);
    let response = request.send().await.unwrap();
    let status = response.status();
    response.bytes().await.unwrap();
    status
}

/// Returns the value of a metric, or 0 if it is not counted yet.
fn metric(server: &Starlift, name: &str) -> usize {
    let text = String::from_utf8(fetch(&server.url("/metrics")).unwrap()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.split(' ').next().unwrap().parse().unwrap())
}

fn named<'a>(spans: &'a [Exported], name: &str) -> Vec<&'a Exported> {
    spans.iter().filter(|span| span.name() == name).collect()
}

/// The names of a span's ancestors, the nearest first.
fn ancestors<'a>(spans: &'a [Exported], span: &Exported) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut parent = span.parent();
    while let Some(next) = spans.iter().find(|other| other.id() == parent) {
        names.push(next.name());
        parent = next.parent();
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pull_is_one_trace_through_conversion_layers_store_and_upstream() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let (registry, collector) = (Registry::start().await, Collector::start().await);
    let image = ImageBuilder::new(1).layers(2).build();
    registry.push("app", "v1", &image);
    let headers = place.write("headers", "Authorization: Bearer hush\n");
    let settings = [("RATIO", "1"), ("HEADERS_FILE", headers.to_str().unwrap())];
    let server = start(&place, &registry, &collector, &settings);
    let status = get(&server, "/v2/local/app/manifests/v1", &context(TRACE, "01")).await;
    assert_eq!(status, 200);

    let is_whole = |spans: &[Exported]| named(spans, "request").len() == 1;
    let spans = collector.trace(TRACE, "the request's span is exported", is_whole);
    let spans = spans.await;
    assert_eq!(collector.authorization().unwrap(), "Bearer hush");
    assert!(spans.iter().all(|span| span.service == "starlift"));

    let request = named(&spans, "request")[0];
    assert_eq!(request.parent(), SPAN, "the client's span");
    assert_eq!(request.span.kind, 2, "a server's");
    assert_eq!(request.attribute("starlift.endpoint"), "manifest");
    assert_eq!(request.attribute("http.response.status_code"), "200");
    let conversions = named(&spans, "conversion");
    assert_eq!(conversions.len(), 1);
    assert_eq!(ancestors(&spans, conversions[0]), ["request"]);
    let layers = named(&spans, "layer");
    assert_eq!(layers.len(), 2);
    for layer in &layers {
        assert_eq!(ancestors(&spans, layer), ["conversion", "request"]);
        for inner in ["upstream", "store"] {
            let is_inside = |span: &&&Exported| span.parent() == layer.id();
            let of_layer = named(&spans, inner);
            assert!(of_layer.iter().any(|span| is_inside(&span)), "{inner}");
        }
    }
    for upstream in named(&spans, "upstream") {
        assert_eq!(upstream.span.kind, 3, "a client's");
        assert_eq!(upstream.attribute("http.response.status_code"), "200");
    }

    // The upstream got the context of the span of its request.
    let ids: Vec<_> = named(&spans, "upstream")
        .iter()
        .map(|span| span.id())
        .collect();
    let seen = registry.seen();
    let blobs = seen
        .iter()
        .filter(|seen| seen.path_and_query.contains("/blobs/"));
    for blob in blobs {
        let context = blob.headers["traceparent"].to_str().unwrap();
        let fields: Vec<_> = context.split('-').collect();
        assert_eq!((fields[1], fields[3]), (TRACE, "01"));
        assert!(ids.contains(&fields[2].to_owned()), "{context}");
    }

    let log = server.daemon.log();
    assert!(
        log.contains(TRACE),
        "the access line names the trace: {log}"
    );
    assert_eq!(metric(&server, "starlift_image_ready_seconds_count"), 1);
    assert_eq!(metric(&server, "starlift_conversions_waiting"), 0);
    check_exposition(&place, &server);
}

/// Checks that the exposition has exemplars of the trace, and that Prometheus reads it.
fn check_exposition(place: &Place, server: &Starlift) {
    let text = String::from_utf8(fetch(&server.url("/metrics")).unwrap()).unwrap();
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}} ");
    for histogram in [
        "request",
        "conversion_wait",
        "layer_conversion",
        "image_ready",
    ] {
        let series = format!("starlift_{histogram}_seconds_bucket");
        let mut lines = text.lines().filter(|line| line.starts_with(&series));
        assert!(
            lines.any(|line| line.contains(&exemplar)),
            "{series}\n{text}"
        );
    }
    let Some(promtool) = Place::with(&["promtool"]) else {
        return;
    };
    // The importer wants the time of each sample, which stands before its exemplar.
    let timed = text.lines().map(|line| match line.split_once(" # ") {
        _ if line.starts_with('#') => format!("{line}\n"),
        Some((sample, exemplar)) => format!("{sample} 1600000000 # {exemplar}\n"),
        None => format!("{line} 1600000000\n"),
    });
    let file = place.write("metrics", timed.collect::<String>());
    let mut import = promtool.command("promtool");
    import.args(["tsdb", "create-blocks-from", "openmetrics"]);
    let output = import.arg(file).arg(place.dir("blocks")).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_wishes_for_every_trace_gets_the_configured_part() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    for (settings, expected) in [
        (vec![("RATIO", "0")], 0),
        (vec![("RATIO", "0.25")], 10),
        (vec![("RATIO", "0"), ("TRUST_CLIENTS", "true")], 40),
    ] {
        let (registry, collector) = (Registry::start().await, Collector::start().await);
        let mut server = start(&place, &registry, &collector, &settings);
        for _ in 0..40 {
            assert_eq!(get(&server, "/v2/", &context(TRACE, "01")).await, 200);
        }
        // What waits is exported before the process ends.
        server.daemon.stop();
        let spans = collector.spans();
        assert_eq!(spans.len(), expected, "{settings:?} {spans:?}");
        assert!(expected > 0 || collector.requests() == 0, "{settings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_to_be_traced_and_probes_are_not() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let (registry, collector) = (Registry::start().await, Collector::start().await);
    let mut server = start(&place, &registry, &collector, &[("RATIO", "1")]);
    assert_eq!(get(&server, "/v2/", &context(TRACE, "00")).await, 200);
    assert_eq!(get(&server, "/healthz", &context(TRACE, "01")).await, 200);
    assert_eq!(get(&server, "/v2/", "malformed").await, 200);
    server.daemon.stop();
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_ne!(spans[0].trace(), TRACE);
    assert!(spans[0].parent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_nothing_and_spans_over_the_queue_are_dropped() {
    const QUEUE: usize = 4;
    const REQUESTS: usize = 100;
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let (registry, collector) = (Registry::start().await, Collector::start().await);
    collector.set(Mode::Hangs);
    let settings = [("RATIO", "1"), ("QUEUE", "4")];
    let mut server = start(&place, &registry, &collector, &settings);
    assert_eq!(get(&server, "/v2/", &context(TRACE, "01")).await, 200);
    eventually_async("an export hangs", async || collector.requests() == 1).await;
    for _ in 0..REQUESTS {
        assert_eq!(get(&server, "/v2/", &context(TRACE, "01")).await, 200);
    }
    let dropped = r#"starlift_trace_spans_total{outcome="dropped"}"#;
    assert_eq!(metric(&server, dropped), REQUESTS - QUEUE);
    server.daemon.stop();
    assert!(collector.spans().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_refuses_is_logged_once_and_gets_later_spans() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let (registry, collector) = (Registry::start().await, Collector::start().await);
    collector.set(Mode::Refuses);
    let server = start(&place, &registry, &collector, &[("RATIO", "1")]);
    for refused in 1..=2 {
        assert_eq!(get(&server, "/v2/", &context(TRACE, "01")).await, 200);
        let failed = r#"starlift_trace_spans_total{outcome="failed"}"#;
        eventually("the spans are counted", || {
            metric(&server, failed) == refused
        });
    }
    collector.set(Mode::Takes);
    assert_eq!(get(&server, "/v2/", &context(TRACE, "01")).await, 200);
    collector
        .trace(TRACE, "a span is exported", |spans| spans.len() == 1)
        .await;
    eventually("its return is logged", || {
        server.daemon.log().contains("traces exported again")
    });
    let lines = server.daemon.log();
    assert_eq!(lines.matches("traces not exported").count(), 1, "{lines}");
}

#[test]
fn impossible_settings_stop_the_start() {
    let Some(place) = Place::with(&[]) else {
        return;
    };
    let missing = place.path().join("missing");
    for (key, value) in [
        ("RATIO", "2"),
        ("QUEUE", "0"),
        ("ENDPOINT", "collector:4317"),
        ("HEADERS_FILE", missing.to_str().unwrap()),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
        command
            .current_dir(place.path())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("STARLIFT_TRACES_ENDPOINT", "http://127.0.0.1:1")
            .env(format!("STARLIFT_TRACES_{key}"), value);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{key}");
        let named = format!("traces.{}", key.to_lowercase());
        assert!(said.contains(&named), "{key}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_quota_is_measured() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let (registry, collector) = (Registry::start().await, Collector::start().await);
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    for (header, value) in [
        ("ratelimit-limit", "100;w=21600"),
        ("ratelimit-remaining", "76;w=21600"),
    ] {
        registry.on("/manifests/").with_header(header, value);
    }
    let server = start(&place, &registry, &collector, &[]);
    server.converted("local/app", "v1");
    for (name, expected) in [("remaining", 76), ("limit", 100)] {
        let name = format!("starlift_upstream_quota_{name}{{upstream=\"local\"}}");
        assert_eq!(metric(&server, &name), expected);
    }
}
