//! Whole layers fetched at once: when configured, when the demand is dense, and below readers.

use crate::support::agent::Agent;
use crate::support::eventually::eventually;
use crate::support::lazy::{Layer, Node, read};
use crate::support::registry::Gate;

/// Background fetching would begin only after the test.
const LATER: (&str, &str) = ("BACKGROUND_DELAY", "1h");
const BURST: (&str, &str) = ("BACKGROUND", "burst");
const MIB: usize = 1 << 20;
/// The requests of all bursts at the same time.
const REQUESTS: usize = 4;

fn is_complete(agent: &Agent, layer: usize) -> bool {
    let content = agent.status()["layers"][layer]["content"].clone();
    content["held_bytes"].is_u64() && content["held_bytes"] == content["bytes"]
}

fn in_background(agent: &Agent, layer: usize) -> u64 {
    let status = agent.status();
    status["layers"][layer]["background_bytes"]
        .as_u64()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_completes_a_layer_without_delay_and_every_byte_is_right() {
    let node = Node::start(&[BURST, LATER]).await;
    let layer = Layer::random(1, &[10 * MIB, 100, 3 * MIB, 0, 70_000]);
    let directory = node.mount("target", &layer).await;
    eventually("the layer is complete", || is_complete(&node.agent, 0));
    let requests = node.blob_requests();
    for (name, content) in &layer.files {
        let path = directory.join(name);
        let found = tokio::task::spawn_blocking(move || read(&path)).await;
        assert!(found.unwrap().unwrap() == *content, "{name}");
    }
    assert_eq!(node.blob_requests(), requests);
    let fetched = in_background(&node.agent, 0);
    assert!(
        fetched <= layer.blob.len() as u64,
        "{fetched}: bytes were fetched twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_does_not_wait_for_the_requests_of_a_burst() {
    let node = Node::start(&[BURST]).await;
    let layer = Layer::random(2, &[12 * MIB, 2 * MIB]);
    let tail = format!("/blobs/{}", layer.digest);
    let gate = Gate::new();
    node.registry.on(&tail).skip(1).times(REQUESTS).gate(&gate);
    let directory = node.mount("target", &layer).await;
    gate.reached(REQUESTS).await;
    assert_eq!(
        node.blob_requests(),
        1 + REQUESTS,
        "no more at the same time"
    );
    let path = directory.join("file1");
    let found = tokio::task::spawn_blocking(move || read(&path)).await;
    assert!(found.unwrap().unwrap() == layer.files[1].1);
    assert_eq!(gate.most_held(), REQUESTS);
    assert!(!is_complete(&node.agent, 0));
    gate.open();
    eventually("the layer is complete", || is_complete(&node.agent, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_read_densely_is_fetched_as_a_whole() {
    for background in ["full", "limited"] {
        // Readers fetch little more than they read.
        let small_requests = ("MAX_REQUEST", "128KiB");
        let node = Node::start(&[("BACKGROUND", background), LATER, small_requests]).await;
        let [sparse, dense] = [3, 4].map(|seed| Layer::random(seed, &[MIB / 2; 24]));
        let directories = [
            node.mount("sparse", &sparse).await,
            node.mount("dense", &dense).await,
        ];
        for (directory, layer, files) in
            [(&directories[0], &sparse, 1), (&directories[1], &dense, 8)]
        {
            for (name, content) in &layer.files[..files] {
                let path = directory.join(name);
                let found = tokio::task::spawn_blocking(move || read(&path)).await;
                assert!(found.unwrap().unwrap() == *content, "{name}");
            }
        }
        eventually("the layer is complete", || is_complete(&node.agent, 1));
        assert_eq!(in_background(&node.agent, 0), 0, "one file of 24 was read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_keeps_the_limit_of_bytes() {
    const LIMIT: u64 = 2 << 20;
    let settings = [
        ("BACKGROUND", "limited"),
        ("BACKGROUND_LIMIT", "2MiB"),
        ("MAX_REQUEST", "64KiB"),
        LATER,
    ];
    let node = Node::start(&settings).await;
    let layer = Layer::random(5, &[MIB / 2; 24]);
    let directory = node.mount("target", &layer).await;
    for (name, _) in &layer.files[..8] {
        let path = directory.join(name);
        tokio::task::spawn_blocking(move || read(&path))
            .await
            .unwrap()
            .unwrap();
    }
    eventually("the limit is reached", || {
        in_background(&node.agent, 0) >= LIMIT
    });
    for (name, _) in &layer.files {
        let path = directory.join(name);
        tokio::task::spawn_blocking(move || read(&path))
            .await
            .unwrap()
            .unwrap();
    }
    let fetched = in_background(&node.agent, 0);
    assert!(fetched <= LIMIT + (128 << 10), "{fetched}");
}
