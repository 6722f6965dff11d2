//! A pull of an image with many layers: the requests and connections that it takes, the syncs, and
//! the state that a crash or a power cut leaves.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde_json::json;
use starlift::oci::Digest;

use crate::support::agent::Agent;
use crate::support::eventually::eventually;
use crate::support::image::Random;
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND, read};
use crate::support::place::Place;
use crate::support::registry::{Gate, Registry, Seen};

/// As many as the largest images in use have.
const LAYERS: usize = 32;
/// For the layer that a client waits for and four that are opened ahead, and some that were not back
/// in the pool when the next request began.
const MOST_CONNECTIONS: usize = 8;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn image(layers: usize) -> Vec<Layer> {
    (0..layers)
        .map(|seed| Layer::random(seed as u64, &[2000, 300]))
        .collect()
}

fn blob_of(layer: &Layer) -> String {
    format!("/blobs/{}", layer.digest)
}

fn requests_for_blobs(registry: &Registry) -> Vec<Seen> {
    let seen = registry.seen().into_iter();
    seen.filter(|seen| seen.path_and_query.contains("/blobs/"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_an_image_are_opened_together_over_few_connections() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = image(LAYERS);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.push(&layers);
    assert!(node.prepare_next("image", &layers, 0).await.unwrap());
    eventually("all layers are opened", || node.blob_requests() == LAYERS);
    for place in 1..LAYERS {
        assert!(node.prepare_next("image", &layers, place).await.unwrap());
    }
    let seen = requests_for_blobs(&node.registry);
    assert_eq!(seen.len(), LAYERS, "one request for each layer");
    assert!(seen.iter().all(|seen| seen.method == "GET"), "{seen:?}");
    let connections: HashSet<_> = seen.iter().map(|seen| seen.connection.unwrap()).collect();
    assert!(connections.len() <= MOST_CONNECTIONS, "{connections:?}");
    assert_eq!(node.registry.count("GET", "/manifests/"), 0);
    assert_first_files(&node, "container", &layers).await;
}

/// Reads the first file of each layer of `image`, under a new container.
async fn assert_first_files(node: &Node, container: &str, layers: &[&Layer]) {
    let top = format!("image-{}", layers.len() - 1);
    let directories = node.begin_container(container, &top).await;
    assert_eq!(directories.len(), layers.len());
    for (directory, layer) in directories.into_iter().rev().zip(layers) {
        let content = tokio::task::spawn_blocking(move || read(&directory.join("file0")));
        let content = content.await.unwrap().unwrap();
        assert!(content == layer.files[0].1, "{container} {}", layer.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_joins_an_opening_under_way_and_does_not_queue_behind_others() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = image(10);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.push(&layers);
    // All places for opening ahead are taken by layers whose registry does not answer.
    let gate = Gate::new();
    for layer in &layers[1..5] {
        node.registry.on(&blob_of(layer)).gate(&gate);
    }
    assert!(node.prepare_next("image", &layers, 0).await.unwrap());
    gate.reached(4).await;
    let mut labels = node.labels("other", layers[5]);
    labels.remove("containerd.io/snapshot/remote/stargz.layers");
    assert!(node.prepare_on("other", "", labels).await.unwrap());
    let joined = node.prepare_next("image", &layers, 1);
    let open = async { gate.open() };
    let (joined, ()) = tokio::join!(joined, open);
    assert!(joined.unwrap());
    for place in 2..layers.len() {
        assert!(node.prepare_next("image", &layers, place).await.unwrap());
    }
    for layer in &layers {
        assert_eq!(node.registry.count("GET", &blob_of(layer)), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_not_opened_ahead_is_opened_by_its_prepare() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = image(4);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.push(&layers);
    node.registry
        .on(&blob_of(layers[1]))
        .times(1)
        .answer(404, &[]);
    node.registry.on(&blob_of(layers[2])).answer(404, &[]);
    assert!(node.prepare_next("image", &layers, 0).await.unwrap());
    eventually("the others were tried", || node.blob_requests() == 4);
    assert!(node.prepare_next("image", &layers, 1).await.unwrap());
    assert!(!node.prepare_next("image", &layers, 2).await.unwrap());
    let count = |place: usize| node.registry.count("GET", &blob_of(layers[place]));
    assert_eq!([1, 2, 3].map(count), [2, 2, 1]);
    let refusals = node.agent.status()["refusals"].clone();
    assert_eq!(refusals.as_array().unwrap().len(), 1, "{refusals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_requested_once_for_all_layers_without_a_label() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = image(6);
    let mut listed = Vec::new();
    for (place, layer) in layers.iter().enumerate() {
        node.registry.put_blob(layer.blob.clone());
        // The fourth is an ordinary layer.
        let toc_digest = (place != 3).then(|| layer.toc_digest.to_string());
        listed.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer.digest.to_string(), "size": layer.blob.len(),
            "annotations": toc_digest.map(|digest| json!({"containerd.io/snapshot/stargz/toc.digest": digest})),
        }));
    }
    let config = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest::sha256_of(b"").to_string(), "size": 0,
    });
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": listed});
    let manifest = node
        .registry
        .put_manifest("library/app", MANIFEST_TYPE, manifest.to_string());
    let labels = |place: usize| -> HashMap<String, String> {
        let digests = layers[place..].iter().map(|layer| layer.digest.to_string());
        let digests: Vec<String> = digests.collect();
        let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
        [
            ("containerd.io/snapshot.ref".to_owned(), place.to_string()),
            (
                cri("image-ref"),
                format!("{}/library/app:1", node.registry.host()),
            ),
            (cri("layer-digest"), digests[0].clone()),
            (cri("image-layers"), digests.join(",")),
            (cri("manifest-digest"), manifest.to_string()),
        ]
        .into()
    };
    assert!(node.prepare_on("0", "", labels(0)).await.unwrap());
    eventually("the lazy layers are opened", || node.blob_requests() == 5);
    for place in 1..3 {
        let parent = (place - 1).to_string();
        let labels = labels(place);
        assert!(
            node.prepare_on(&place.to_string(), &parent, labels)
                .await
                .unwrap()
        );
    }
    assert_eq!(node.registry.count("GET", "/manifests/"), 1);
    assert!(!node.prepare_on("3", "2", labels(3)).await.unwrap());
    assert_eq!(node.registry.count("GET", &blob_of(&layers[3])), 0);
}

/// Creates a layer whose only file before the landmark is not in the end that comes with the TOC.
fn with_landmark(seed: u64) -> Layer {
    let mut random = Random::new(seed);
    Layer::with_landmark(vec![
        ("first".to_owned(), random.bytes(4 * CHUNK)),
        (".prefetch.landmark".to_owned(), vec![0x0f]),
        ("last".to_owned(), random.bytes(1 << 20)),
    ])
}

fn prefetched(agent: &Agent, layer: usize) -> u64 {
    let status = agent.status();
    status["layers"][layer]["prefetched_bytes"]
        .as_u64()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_fetched_ahead_after_the_last_layer_was_prepared() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = [1, 2, 3].map(with_landmark);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.pull("image", &layers).await;
    let all_are_here = || (0..3).all(|layer| prefetched(&node.agent, layer) > 0);
    eventually("the files before the landmarks are here", all_are_here);
    let seen = requests_for_blobs(&node.registry);
    let of_tails = seen
        .iter()
        .take_while(|seen| seen.headers["range"] == "bytes=-524288");
    assert_eq!(of_tails.count(), 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_fetched_ahead_for_a_pull_that_does_not_end() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layers = [1, 2].map(with_landmark);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.push(&layers);
    assert!(node.prepare_next("image", &layers, 0).await.unwrap());
    eventually("the files before the landmark are here", || {
        prefetched(&node.agent, 0) > 0
    });
}

/// A node whose agent's syncs are written to the file `syncs` of its workspace.
async fn traced() -> Option<Node> {
    let place = Place::with(&["strace"])?;
    let (syncs, program) = (place.path().join("syncs"), env!("CARGO_BIN_EXE_starlift"));
    let script = format!(
        "#!/bin/sh\nexec strace -D -f -y -qq -o {} -e trace=fsync,fdatasync,msync,syncfs {program} \"$@\"\n",
        syncs.display()
    );
    let script = place.write("traced", script);
    place.run(&format!("chmod +x {}", script.display()));
    let agent = Agent::start_as(&script, &place, &[ON_DEMAND]);
    Some(Node {
        registry: Registry::start().await,
        agent,
        place,
    })
}

/// Returns the syncs so far, except those of content, which is made durable later.
fn syncs(place: &Place) -> Vec<String> {
    let trace = fs::read_to_string(place.path().join("syncs")).unwrap();
    let is_sync = |line: &&str| {
        let is_call = line.contains("sync(") || line.contains("syncfs(");
        is_call && !line.contains("/cache/")
    };
    trace.lines().filter(is_sync).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_takes_one_sync() {
    let Some(node) = traced().await else { return };
    let layers = image(LAYERS);
    let layers: Vec<&Layer> = layers.iter().collect();
    let before = syncs(&node.place).len();
    node.pull("image", &layers).await;
    let syncs = syncs(&node.place)[before..].to_vec();
    // Numbers are reserved for many layers at once: a file and its folder.
    let of_numbers = syncs.iter().filter(|line| line.contains("/layers"));
    assert_eq!(of_numbers.count(), 2, "{syncs:#?}");
    // redb syncs once more when its file grows.
    let of_metadata = syncs.iter().filter(|line| line.contains("/metadata.db"));
    assert!(
        (LAYERS..LAYERS + 4).contains(&of_metadata.count()),
        "{syncs:#?}"
    );
    let others = |line: &&String| !line.contains("/metadata.db") && !line.contains("/layers");
    assert_eq!(syncs.iter().find(others), None);
}

/// Spoils each file beside the records as a power cut may: those that were not synced are lost,
/// empty or torn.
fn spoil(folder: &Path) {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.file_name().unwrap() != "next");
    files.sort();
    for (number, path) in files.iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        match number % 3 {
            0 => fs::remove_file(path).unwrap(),
            1 => fs::write(path, "").unwrap(),
            _ => {
                let half = bytes.len() / 2;
                bytes[half..].fill(0);
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_were_answered_survive_a_power_cut_without_their_registry() {
    // Nothing asks the registry where a layer is from.
    let settings = [ON_DEMAND, ("PROFILES", "false"), ("RECORD", "0s")];
    let mut node = Node::start(&settings).await;
    let layers = image(7);
    let layers: Vec<&Layer> = layers.iter().collect();
    node.pull("image", &layers).await;
    node.registry.on("").answer(503, &[]);
    let fetched = node.blob_requests();
    for round in 0..2 {
        node.agent.daemon.kill();
        spoil(&node.agent.root.join("layers"));
        let next = Agent::start_with(&node.place, &settings);
        drop(std::mem::replace(&mut node.agent, next));
        assert_first_files(&node, &format!("container{round}"), &layers).await;
        assert_eq!(node.blob_requests(), fetched, "{round}");
    }
    // Numbers go on.
    node.registry.heal();
    let more = Layer::random(100, &[2000]);
    node.mount("more", &more).await;
    assert_eq!(node.agent.status()["layers"].as_array().unwrap().len(), 8);
}
