//! The files that containers read at their start are reported to the Starlift server that served
//! the image, and prefetched if they were reported before. No other registry receives any of it,
//! and no odd answer of a server harms a start.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use starlift::oci::Digest;
use starlift::profile::{Extents, FileUse, Observation, Stack};

use crate::support::eventually::eventually;
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND, read, read_at};
use crate::support::registry::{Gate, Registry};

/// Long enough for a test's reads, and soon over.
const RECORD: (&str, &str) = ("RECORD", "2s");
const MIB: usize = 1 << 20;

/// Two layers, none of whose files is in the end of the blob that comes with the TOC.
fn layers() -> [Layer; 2] {
    [1, 2].map(|seed| Layer::random(seed, &[3 * CHUNK, 1000, 5 * CHUNK, 2000, 20 * CHUNK, MIB]))
}

fn stack(layers: &[Layer]) -> Stack {
    Stack::of(layers.iter().map(|layer| &layer.digest))
}

async fn node(settings: &[(&str, &str)]) -> Node {
    let node = Node::start(&[&[ON_DEMAND, RECORD], settings].concat()).await;
    node.registry.is_starlift();
    node
}

async fn pulled(node: &Node, layers: &[Layer]) -> String {
    node.pull("image", &layers.iter().collect::<Vec<_>>()).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn read_later(path: PathBuf) -> Vec<u8> {
    blocking(move || read(&path).unwrap()).await
}

/// Layer, path, ranges.
type Named<'a> = (u32, &'a str, &'a [(u64, u64)]);

/// Builds a profile with these files.
fn profile(files: &[Named<'_>]) -> Vec<u8> {
    let rest = json!({"after_ms": 1, "sources": ["agents"]});
    let file = |(layer, path, extents): &Named<'_>| {
        let mut file = json!({"layer": layer, "path": path, "extents": extents});
        file.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        file
    };
    let files: Vec<_> = files.iter().map(file).collect();
    let image = Digest::sha256_of(b"image");
    json!({"version": 1, "image": image, "workload": "default", "observers": 1, "files": files})
        .to_string()
        .into()
}

async fn observations(node: &Node) -> Vec<Observation> {
    let reports = || node.registry.told();
    eventually("a start is reported", || !reports().is_empty());
    reports()
        .iter()
        .map(|report| Observation::parse(&report.json, 2).unwrap())
        .collect()
}

/// Returns the layers of each image whose start was reported, in order.
fn reported(registry: &Registry) -> Vec<String> {
    let reports = registry.told().into_iter();
    reports.map(|report| report.stack).collect()
}

/// Starts a container of another image and returns once its start is reported. A recording that
/// began earlier has ended by then.
async fn another_start_is_reported(node: &Node) -> String {
    let layer = Layer::random(3, &[3 * CHUNK, 1000, MIB]);
    let top = node.pull("another", &[&layer]).await;
    let directories = node.begin_container("another", &top).await;
    read_later(directories[0].join("file1")).await;
    let stack = stack(&[layer]).to_string();
    eventually("the other start is reported", || {
        reported(&node.registry).contains(&stack)
    });
    stack
}

fn used(layer: u32, path: &str, parts: &[(usize, usize)]) -> (u32, String, Extents) {
    let parts = parts
        .iter()
        .map(|(start, end)| (*start as u64, *end as u64))
        .collect::<Vec<_>>();
    (layer, path.to_owned(), parts.into())
}

fn facts(observation: &Observation) -> Vec<(u32, String, Extents)> {
    let fact = |FileUse {
                    layer,
                    path,
                    extents,
                    ..
                }: &FileUse| (*layer, path.clone(), extents.clone());
    observation.files().iter().map(fact).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_in_the_configuration_receives_only_pull_requests() {
    let node = node(&[("PULL_SERVERS", "other.test")]).await;
    let layers = layers();
    pulled(&node, &layers).await;
    let others = node
        .registry
        .seen()
        .into_iter()
        .filter(|seen| !seen.path_and_query.starts_with("/v2/"))
        .count();
    let is_marked =
        |seen: &crate::support::registry::Seen| seen.headers.contains_key("starlift-purpose");
    assert_eq!(
        (
            others,
            node.registry
                .seen()
                .iter()
                .filter(|seen| is_marked(seen))
                .count()
        ),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_that_a_start_reads_are_reported_in_order() {
    let node = node(&[]).await;
    let layers = layers();
    let top = pulled(&node, &layers).await;
    let directories = node.begin_container("container", &top).await;
    let [upper, lower] = [0, 1].map(|place: usize| directories[place].clone());
    blocking(move || {
        read(&lower.join("file1")).unwrap();
        read(&upper.join("file0")).unwrap();
        read_at(&lower.join("file4"), (7 * CHUNK) as u64 + 5, 10).unwrap();
        std::fs::File::open(upper.join("file2")).unwrap();
        read(&lower.join("file1")).unwrap();
        assert!(read(&lower.join("nothing")).is_err());
    })
    .await;
    let observations = observations(&node).await;
    let facts = facts(&observations[0]);
    let (first, third) = (&facts[..2], &facts[2]);
    assert_eq!(
        first,
        [
            used(0, "file1", &[(0, 1000)]),
            used(1, "file0", &[(0, 3 * CHUNK)])
        ]
    );
    assert_eq!((third.0, third.1.as_str()), (0, "file4"));
    // The kernel may read ahead.
    assert!(
        third
            .2
            .iter()
            .any(|part| part.contains(&(7 * CHUNK as u64))),
        "{third:?}"
    );
    assert!(
        third.2.iter().all(|part| part.start % CHUNK as u64 == 0),
        "whole chunks: {third:?}"
    );
    assert_eq!(&facts[3..], [], "an open without a read is not seen");
    let report = &node.registry.told()[0];
    assert_eq!(report.stack, stack(&layers).to_string());
    let query = "workload=default&name=";
    assert!(report.query.starts_with(query), "{}", report.query);
    assert_eq!(
        node.agent
            .metric("starlift_agent_observations_total{outcome=\"sent\"}"),
        Some(1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_over_after_a_time_without_reads() {
    let node = node(&[("RECORD", "10m")]).await;
    let top = pulled(&node, &layers()).await;
    let directories = node.begin_container("container", &top).await;
    read_later(directories[0].join("file1")).await;
    assert_eq!(
        observations(&node).await.len(),
        1,
        "long before ten minutes are over"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_starts_repeatedly_is_reported_once() {
    let node = node(&[("RECORD", "500ms")]).await;
    let layers = layers();
    let top = pulled(&node, &layers).await;
    for number in 0..3 {
        let directories = node
            .begin_container(&format!("container{number}"), &top)
            .await;
        read_later(directories[0].join("file1")).await;
        // The first start is over.
        observations(&node).await;
    }
    let other = another_start_is_reported(&node).await;
    assert_eq!(
        reported(&node.registry),
        [stack(&layers).to_string(), other]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unpacking_is_not_a_start_and_nothing_is_recorded_if_that_is_off() {
    let start = async |node: &Node, key| {
        let top = pulled(node, &layers()).await;
        let directories = node.begin_container(key, &top).await;
        read_later(directories[0].join("file1")).await;
    };
    let unpacking = node(&[]).await;
    start(&unpacking, "default/7/extract-1 sha256:x").await;
    let other = another_start_is_reported(&unpacking).await;
    assert_eq!(reported(&unpacking.registry), [other]);

    let mut off = node(&[("RECORD", "0s")]).await;
    start(&off, "container").await;
    off.agent.daemon.stop();
    assert_eq!(reported(&off.registry), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_starlift_receives_only_requests_of_its_own_api() {
    let mut node = Node::start(&[ON_DEMAND, RECORD]).await;
    let layers = layers();
    let top = pulled(&node, &layers).await;
    let directories = node.begin_container("container", &top).await;
    for name in ["file0", "file2", "file4"] {
        read_later(directories[0].join(name)).await;
    }
    let server = Registry::start().await;
    server.is_starlift();
    let registry = std::mem::replace(&mut node.registry, server);
    let other = another_start_is_reported(&node).await;
    let seen = registry.seen();
    assert!(!seen.is_empty());
    for request in seen {
        assert!(request.path_and_query.starts_with("/v2/"), "{request:?}");
        assert!(
            matches!(request.method.as_str(), "GET" | "HEAD"),
            "{request:?}"
        );
        assert!(
            request
                .headers
                .keys()
                .all(|name| !name.as_str().contains("starlift")),
            "{request:?}"
        );
    }
    let status = node.agent.status();
    for profile in status["profiles"].as_array().unwrap() {
        assert_eq!(profile["stack"], other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_profile_are_prefetched_before_they_are_read() {
    let node = node(&[]).await;
    let layers = layers();
    let large = (2 * CHUNK as u64, 4 * CHUNK as u64);
    let files: [Named<'_>; 4] = [
        (1, "file0", &[]),
        (0, "file4", &[large]),
        (0, "nothing", &[]),
        (0, "file1", &[]),
    ];
    node.registry.put_profile(&stack(&layers), profile(&files));
    let top = pulled(&node, &layers).await;
    let report = || node.agent.status()["profiles"][0].clone();
    eventually("the files are on the node", || report()["held_files"] == 3);
    assert_eq!(
        (&report()["state"], &report()["files"]),
        (&json!("used"), &json!(3)),
        "{}",
        report()
    );
    let requests = node.blob_requests();
    let purposes: Vec<_> = node
        .registry
        .seen()
        .into_iter()
        .filter_map(|seen| seen.headers.get("starlift-purpose").cloned())
        .collect();
    assert!(
        purposes.len() >= 3 && purposes.iter().all(|purpose| purpose == "prefetch"),
        "{purposes:?}"
    );

    let directories = node.begin_container("container", &top).await;
    let [upper, lower] = [0, 1].map(|place: usize| directories[place].clone());
    assert_eq!(read_later(upper.join("file0")).await, layers[1].files[0].1);
    assert_eq!(read_later(lower.join("file1")).await, layers[0].files[1].1);
    assert_eq!(node.blob_requests(), requests, "nothing was missing");
    read_later(lower.join("file2")).await;
    assert!(
        node.blob_requests() > requests,
        "a file that is not in the profile was not prefetched"
    );
    let last = node.registry.seen().pop().unwrap();
    assert_eq!(last.headers["starlift-purpose"], "read");
    observations(&node).await;
    let count = |how| {
        node.agent.metric(&format!(
            "starlift_agent_profile_files_total{{use=\"{how}\"}}"
        ))
    };
    assert_eq!(
        (count("ahead"), count("unknown"), count("late")),
        (Some(2), Some(1), None)
    );
    let fetched = node.agent.status()["layers"][0]["profile_bytes"]
        .as_u64()
        .unwrap();
    assert!(
        (2 * CHUNK as u64..6 * CHUNK as u64).contains(&fetched),
        "only ranges of a large file: {fetched}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_base_layer_that_came_with_another_image_are_prefetched() {
    let node = node(&[]).await;
    let [base, one] = layers();
    let two = Layer::random(3, &[CHUNK, MIB]);
    node.pull("one", &[&base, &one]).await;
    let layers = [base, two];
    node.registry.put_profile(
        &stack(&layers),
        profile(&[(0, "file0", &[]), (1, "file0", &[])]),
    );
    // The lowest snapshot exists already, and its label describes the first image.
    node.registry.put_blob(layers[1].blob.clone());
    let mut labels = node.labels("two-1", &layers[1]);
    labels.insert(
        "containerd.io/snapshot/remote/stargz.layers".to_owned(),
        layers[1].digest.to_string(),
    );
    let is_lazy = node.prepare_on("two-1", "one-0", labels).await.unwrap();
    assert!(is_lazy);
    eventually("both files are on the node", || {
        let status = node.agent.status();
        let profiles = status["profiles"].as_array().unwrap();
        profiles.iter().any(|profile| profile["held_files"] == 2)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_asks_for_a_profile_that_did_not_exist_when_the_layers_were_mounted() {
    let mut node = node(&[]).await;
    let layers = layers();
    let top = pulled(&node, &layers).await;
    // There was no profile then, and a restarted agent remembers no server.
    node.restart(&[ON_DEMAND, RECORD]);
    assert_eq!(node.agent.status()["profiles"], json!([]));
    node.registry.put_profile(
        &stack(&layers),
        profile(&[(1, "file0", &[]), (0, "file0", &[])]),
    );
    let directories = node.begin_container("container", &top).await;
    eventually("the files are on the node", || {
        node.agent.status()["profiles"][0]["held_files"] == 2
    });
    let requests = node.blob_requests();
    for place in [0, 1] {
        assert_eq!(
            read_later(directories[place].join("file0")).await,
            layers[1 - place].files[0].1
        );
    }
    assert_eq!(node.blob_requests(), requests, "nothing was missing");
}

/// Sends every answer that a server may give instead of a sensible profile, and measures the mount.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_server_harms_a_start() {
    let hostile = profile(&[
        (0, "../../etc/shadow", &[]),
        (0, "/etc/shadow", &[]),
        (7, "file0", &[]),
        (u32::MAX, "file0", &[]),
        (0, "file0", &[(1 << 40, 1 << 41), (u64::MAX - 1, u64::MAX)]),
        (0, "file0/file1", &[]),
        (0, ".prefetch.landmark", &[]),
    ]);
    let many = vec![(0, "file4", &[(0, u64::MAX)][..]); 16_000];
    let documents = [
        b"no JSON".to_vec(),
        b"{}".to_vec(),
        vec![b'['; 5 << 20],
        vec![b'['; 200_000],
        hostile,
        profile(&many),
        profile(&[]),
        json!({"version": 9, "files": []}).to_string().into(),
    ];
    for document in documents {
        let node = node(&[]).await;
        let layers = layers();
        node.registry.put_profile(&stack(&layers), document);
        assert_starts(&node, &layers).await;
    }
    for status in [401, 403, 404, 429, 500, 307] {
        let node = node(&[]).await;
        node.registry.on("/api/").answer(
            status,
            &[("location", "http://127.0.0.1:1/"), ("retry-after", "1")],
        );
        assert_starts(&node, &layers()).await;
    }
    let (node, silent) = (node(&[]).await, Gate::new());
    node.registry.on("/api/").gate(&silent);
    assert_starts(&node, &layers()).await;
    silent.open();
}

async fn assert_starts(node: &Node, layers: &[Layer]) {
    let begun = Instant::now();
    let top = pulled(node, layers).await;
    let directories = node.begin_container("container", &top).await;
    for (name, content) in &layers[1].files {
        assert!(
            read_later(directories[0].join(Path::new(name))).await == *content,
            "{name}"
        );
    }
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(node.agent.status()["refusals"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_files_before_the_landmark_are_fetched() {
    let node = node(&[]).await;
    let silent = Gate::new();
    node.registry.on("/api/").gate(&silent);
    let file = |name: &str, size| (name.to_owned(), Layer::random(9, &[size]).files.remove(0).1);
    let layer = Layer::with_landmark(vec![
        file("first", CHUNK),
        (".prefetch.landmark".to_owned(), vec![0xf]),
        file("rest", MIB),
    ]);
    let layers = [layer];
    pulled(&node, &layers).await;
    eventually("the files before the landmark are on the node", || {
        node.agent.status()["layers"][0]["prefetched_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > CHUNK as u64)
    });
    silent.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_fetches_no_more_than_its_limit() {
    let node = node(&[("PROFILE_LIMIT", "300KiB")]).await;
    let layers = layers();
    node.registry.put_profile(
        &stack(&layers),
        profile(&[(0, "file1", &[]), (1, "file4", &[]), (0, "file0", &[])]),
    );
    pulled(&node, &layers).await;
    eventually("the fetch has ended", || {
        node.agent.daemon.log().contains("fetched by profile")
    });
    let bytes: u64 = node.agent.status()["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["profile_bytes"].as_u64().unwrap())
        .sum();
    assert!((1..=300 << 10).contains(&bytes), "{bytes}");
}
