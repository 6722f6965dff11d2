//! What operators see of a node: traces through the server that its images come from, and metrics.

use starlift::containerd::services::snapshots::v1::PrepareSnapshotRequest;
use tonic::{Code, Request};

use crate::support::collector::{Collector, Exported};
use crate::support::eventually::eventually_async;
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};
use crate::support::starlift::Starlift;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const MIB: usize = 1 << 20;

/// Whether a request to the server is a part of a span of the agent.
fn is_joined(spans: &[Exported], outer: &str) -> bool {
    let of = |service: &'static str, name: &str| {
        let name = name.to_owned();
        let spans = spans.iter();
        spans.filter(move |span| span.service == service && span.name() == name)
    };
    of("agent", outer).any(|outer| {
        of("agent", "upstream").any(|sent| {
            let is_sent = sent.parent() == outer.id();
            is_sent && of("server", "request").any(|request| request.parent() == sent.id())
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_and_a_slow_read_share_their_traces_with_the_server() {
    let collector = Collector::start().await;
    let url = collector.url();
    let node = Node::start(&[
        ON_DEMAND,
        ("PREFETCH", "false"),
        ("TRACES_ENDPOINT", &url),
        ("TRACES_RATIO", "1"),
        ("TRACES_SERVICE_NAME", "agent"),
    ])
    .await;
    let upstream = format!("local={}", node.registry.url());
    let server = Starlift::start_with(&node.place, &["--upstream", &upstream], |command| {
        command
            .env("STARLIFT_TRACES_ENDPOINT", &url)
            .env("STARLIFT_TRACES_RATIO", "1")
            .env("STARLIFT_TRACES_SERVICE_NAME", "server");
    });
    let layer = Layer::random(1, &[4 * MIB, 1000, 4 * MIB]);
    node.push(&[&layer]);
    let mut labels = node.labels("layer", &layer);
    labels.insert(
        "containerd.io/snapshot/remote/stargz.reference".to_owned(),
        format!("{}/local/library/app:1", server.address),
    );
    let mut request = Request::new(PrepareSnapshotRequest {
        key: "extract-layer".to_owned(),
        labels,
        ..Default::default()
    });
    let context = format!("00-{TRACE}-{SPAN}-01").parse().unwrap();
    request.metadata_mut().insert("traceparent", context);
    let prepared = node.client().await.prepare(request).await;
    assert_eq!(prepared.unwrap_err().code(), Code::AlreadyExists);

    let spans = collector
        .trace(TRACE, "containerd's trace reaches the server", |spans| {
            is_joined(spans, "prepare")
        })
        .await;
    let prepare = spans.iter().find(|span| span.name() == "prepare").unwrap();
    assert_eq!(prepare.parent(), SPAN, "containerd's span");

    let path = node.directory("layer").await.join("file2");
    let content = tokio::task::spawn_blocking(move || read(&path)).await;
    assert!(content.unwrap().unwrap() == layer.files[2].1);
    eventually_async("a read's trace reaches the server", async || {
        let all = collector.spans();
        let reads = all.iter().filter(|span| span.name() == "read");
        let mut traces = reads.map(Exported::trace);
        traces.any(|trace| {
            let mut spans = all.clone();
            spans.retain(|span| span.trace() == trace);
            is_joined(&spans, "read")
        })
    })
    .await;

    let metric = |name: &str| node.agent.metric(name).unwrap();
    assert_eq!(
        metric("starlift_agent_layer_bytes_total"),
        layer.blob.len() as u64
    );
    assert!(metric("starlift_agent_read_wait_seconds_count") > 0);
    assert_eq!(metric("starlift_agent_damaged_layers"), 0);
}
