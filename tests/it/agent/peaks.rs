//! What hostile registries, images and clients cost an agent.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message as _;
use serde_json::json;
use starlift::containerd::runtime::v1::{AuthConfig, ImageSpec, PullImageRequest};
use starlift::containerd::services::snapshots::v1::{
    Info, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    UpdateSnapshotRequest,
};
use starlift::oci::{Digest, media_type};
use starlift::profile::{MAX_PROFILE_BYTES, Stack};
use tonic::Request;

use crate::support::agent::Settings;
use crate::support::cri::Kubelet;
use crate::support::eventually::eventually;
use crate::support::hostile::{self, DOCUMENT, Full, filled};
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};
use crate::support::registry::{Auth, TokenAuth};

const MIB: u64 = 1 << 20;
/// The largest message of containerd's API.
const MESSAGE: usize = 16 << 20;

/// A node, and the memory that its agent had after its start.
struct Hostile {
    node: Node,
    before: u64,
}

impl Hostile {
    async fn start(settings: Settings<'_>) -> Self {
        let node = Node::start(settings).await;
        let before = node.agent.daemon.memory_now();
        Self { node, before }
    }

    /// Asserts that the process never had more than this beyond what it has at rest.
    fn assert_peak_below(&self, mib: u64) {
        let peak = self.node.agent.daemon.peak_memory();
        let peak = peak.saturating_sub(self.before) / MIB;
        println!("{peak} MiB of {mib}");
        assert!(peak < mib, "{peak} MiB of {mib}");
        assert!(self.node.agent.status()["cache_limit"].is_u64());
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_with_the_largest_tocs_cost_their_weight() {
    let hostile = Hostile::start(&[ON_DEMAND, ("MOUNT_TIMEOUT", "5m")]).await;
    let node = &hostile.node;
    let layers = &[Full::Attributes, Full::Chunks].map(hostile::largest_toc);
    for layer in layers {
        node.registry.put_blob(layer.blob.clone());
    }
    let prepared = (0..4).map(|number| async move {
        let (target, layer) = (format!("target{number}"), &layers[number % 2]);
        node.prepare(&target, layer).await.unwrap()
    });
    let are_lazy = join_all(prepared.collect::<Vec<_>>()).await;
    assert_eq!(are_lazy, [true; 4], "{}", node.agent.status());
    // The budgets for reading TOCs, and for the trees of those that are mounted.
    hostile.assert_peak_below(128 + 512 + 2 * 320);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_most_names_is_listed_from_its_tree() {
    let hostile = Hostile::start(&[ON_DEMAND, ("MOUNT_TIMEOUT", "5m")]).await;
    let layer = hostile::largest_toc(Full::Attributes);
    let directory = hostile.node.mount("target", &layer).await;
    let before = hostile.node.agent.daemon.memory_now();
    hostile.node.agent.daemon.forget_peak();
    let lists = (0..4).map(|_| {
        let directory = directory.clone();
        blocking(move || std::fs::read_dir(directory).unwrap().count())
    });
    let counts = join_all(lists).await;
    assert!(counts[0] > 500_000, "{counts:?}");
    let grown = hostile
        .node
        .agent
        .daemon
        .peak_memory()
        .saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_the_largest_chunks_cost_the_configured_memory() {
    const CHUNK: usize = 32 << 20;
    const FILES: usize = 8;
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let layer = Layer::of_large_chunks(FILES, CHUNK);
    let directory = hostile.node.mount("target", &layer).await;
    let layer = Arc::new(layer);
    let reads = (0..FILES).map(|number| {
        let (path, layer) = (directory.join(format!("file{number}")), Arc::clone(&layer));
        blocking(move || assert!(read(&path).unwrap() == layer.files[number].1))
    });
    join_all(reads).await;
    // The default of `agent.memory`, and a few chunks: as one arrives, inflated, and on its way to
    // the disk. All chunks at once would be half as much again.
    hostile.assert_peak_below(64 + 8 * 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_many_layers_costs_its_text() {
    const LAYERS: u64 = 200;
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let node = &hostile.node;
    for number in 0..LAYERS {
        let layer = Layer::random(number, &[10]);
        node.registry.put_blob(layer.blob.clone());
        let target = format!("target{number}");
        assert!(node.prepare(&target, &layer).await.unwrap());
        // One that is not lazy, with the longest name that fits a label.
        let mut labels = node.labels(&format!("not-lazy{number}"), &Layer::random(1, &[1]));
        let reference = format!("{}/{}:{number}", node.registry.host(), "x".repeat(4000));
        labels.insert(
            "containerd.io/snapshot/remote/stargz.reference".to_owned(),
            reference,
        );
        let target = format!("not-lazy{number}");
        assert!(!node.prepare_on(&target, "", labels).await.unwrap());
    }
    hostile.assert_peak_below(96);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_labels_and_filters_cost_their_messages() {
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let node = &hostile.node;
    let labels: HashMap<String, String> = (0..MESSAGE / 4200)
        .map(|number| (format!("{number:08}"), "v".repeat(4000)))
        .collect();
    let calls = (0..4).map(|number| {
        let labels = labels.clone();
        async move {
            let mut client = node.client().await.max_encoding_message_size(MESSAGE);
            let request = PrepareSnapshotRequest {
                key: format!("key{number}"),
                labels: labels.clone(),
                ..Default::default()
            };
            let prepared = client.prepare(request).await;
            let info = Info {
                name: format!("key{number}"),
                labels,
                ..Default::default()
            };
            let request = UpdateSnapshotRequest {
                info: Some(info),
                ..Default::default()
            };
            let updated = client.update(request).await;
            let long = "k".repeat(MESSAGE - 100);
            let stat = StatSnapshotRequest {
                key: long.clone(),
                ..Default::default()
            };
            assert!(client.stat(stat).await.is_err(), "no snapshot has this key");
            let remove = RemoveSnapshotRequest {
                key: long,
                ..Default::default()
            };
            assert!(client.remove(remove).await.is_err());
            let filter = filled(MESSAGE / 2, "", "", |_, text| text.push('a'));
            let request = ListSnapshotsRequest {
                filters: vec![filter],
                ..Default::default()
            };
            let listed = client.list(request).await;
            (prepared.is_ok(), updated.is_ok(), listed.is_ok())
        }
    });
    let outcomes = join_all(calls).await;
    assert!(
        outcomes.iter().all(|(_, _, is_listed)| !is_listed),
        "filters have a greatest length"
    );
    hostile.assert_peak_below(4 * 16 * 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_frames_of_a_kubelet_cost_their_bytes() {
    let nobody = ("CRI", "/nonexistent/containerd.sock");
    let hostile = Hostile::start(&[ON_DEMAND, nobody]).await;
    let kubelet = Kubelet::new(&hostile.node.agent.socket);
    let pulls = (0..8).map(|number| {
        let kubelet = kubelet.clone();
        async move {
            let image = Some(ImageSpec {
                image: format!("registry.example/app{number}:1"),
            });
            let auth = Some(AuthConfig {
                username: "user".to_owned(),
                password: "p".repeat(MESSAGE - 1000),
                ..Default::default()
            });
            let request = PullImageRequest { image, auth }.encode_to_vec();
            let answer = kubelet.call("PullImage", Request::new(Bytes::from(request)));
            assert!(answer.await.is_err(), "no containerd answers");
        }
    });
    join_all(pulls).await;
    hostile.assert_peak_below(8 * 16 * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_profiles_of_images_cost_little() {
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let node = &hostile.node;
    node.registry.is_starlift();
    let image = Digest::sha256_of(b"image");
    let start =
        format!(r#"{{"version":1,"image":"{image}","workload":"default","observers":1,"files":["#);
    let rest = r#""after_ms":1,"sources":["agents"]"#;
    let files = filled(MAX_PROFILE_BYTES, &start, "]}", |number, text| {
        write!(text, r#"{{"layer":0,"path":"{number:x}",{rest}}}"#).unwrap();
    });
    let parts = filled(
        MAX_PROFILE_BYTES,
        &format!(r#"{start}{{"layer":0,"path":"file0",{rest},"extents":["#),
        "]}]}",
        |_, text| text.push_str("[0,1]"),
    );
    for number in 0..8 {
        let layer = Layer::random(number, &[100_000]);
        let profile = if number % 2 == 0 { &files } else { &parts };
        node.registry
            .put_profile(&Stack::of([&layer.digest]), profile.clone());
        node.pull(&format!("image{number}"), &[&layer]).await;
    }
    let has_answer = || {
        let profiles = node.agent.status()["profiles"].clone();
        let profiles = profiles.as_array().unwrap().clone();
        profiles.len() == 8 && profiles.iter().all(|profile| profile["state"] != "asked")
    };
    eventually("all profiles are read", has_answer);
    hostile.assert_peak_below(224);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_manifest_without_a_toc_digest_costs_its_bytes() {
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let node = &hostile.node;
    node.registry.on("/manifests/").reply(
        200,
        &[("content-type", media_type::OCI_MANIFEST)],
        hostile::wide_manifest(1),
    );
    let layer = Layer::random(1, &[10]);
    let prepared = (0..16).map(|number| {
        let mut labels = node.labels(&format!("target{number}"), &layer);
        labels.remove("containerd.io/snapshot/stargz/toc.digest");
        async move {
            let target = format!("target{number}");
            node.prepare_on(&target, "", labels).await.unwrap()
        }
    });
    let are_lazy = join_all(prepared.collect::<Vec<_>>()).await;
    assert!(!are_lazy.contains(&true));
    hostile.assert_peak_below(192);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_documents_that_refer_to_an_image_cost_little() {
    let hostile = Hostile::start(&[ON_DEMAND, ("REFERRERS", "true")]).await;
    let node = &hostile.node;
    let index = hostile::wide_index(0);
    let headers = [("content-type", media_type::OCI_INDEX)];
    node.registry
        .on("/referrers/")
        .reply(200, &headers, index.clone());
    for number in 0..8 {
        let layer = Layer::random(number, &[10]);
        let image = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": {"mediaType": media_type::OCI_CONFIG, "digest": layer.digest.to_string(), "size": 2},
            "layers": [{"mediaType": media_type::OCI_LAYER_GZIP, "digest": layer.digest.to_string(), "size": layer.blob.len()}],
            "annotations": {"text": "x".repeat(DOCUMENT - 1000)}});
        let digest =
            node.registry
                .put_manifest("library/app", media_type::OCI_MANIFEST, image.to_string());
        node.registry.tag("library/app", "1", &digest);
        node.pull(&format!("image{number}"), &[&layer]).await;
    }
    eventually("the referrers are read", || {
        node.registry.count("GET", "/referrers/") >= 8
    });
    hostile.assert_peak_below(192);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_tokens_cost_their_cache() {
    let hostile = Hostile::start(&[ON_DEMAND]).await;
    let node = &hostile.node;
    node.registry.require(Auth::Token(TokenAuth::anonymous()));
    let token = "t".repeat(31 << 10);
    let answer = json!({"token": token, "access_token": token, "refresh_token": token});
    node.registry
        .on("/token")
        .reply(200, &[], answer.to_string());
    let layer = Layer::random(1, &[10]);
    for number in 0..200 {
        let mut labels = node.labels(&format!("target{number}"), &layer);
        let reference = format!("{}/app{number}:1", node.registry.host());
        labels.insert(
            "containerd.io/snapshot/remote/stargz.reference".to_owned(),
            reference,
        );
        let target = format!("target{number}");
        assert!(!node.prepare_on(&target, "", labels).await.unwrap());
    }
    assert!(node.registry.count("GET", "/token") >= 200);
    hostile.assert_peak_below(64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_file_of_the_greatest_size_costs_little() {
    let hosts = tempfile::tempdir().unwrap();
    let folder = hosts.path().join("registry.example");
    std::fs::create_dir(&folder).unwrap();
    let mut text = "server = \"http://127.0.0.1:1\"\n".to_owned();
    for number in 0.. {
        let host = format!("[host.\"http://127.0.0.1:1/{number}\"]\n");
        if text.len() + host.len() > 1 << 20 {
            break;
        }
        text.push_str(&host);
    }
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let directory = hosts.path().display().to_string();
    let settings = [
        ON_DEMAND,
        ("MOUNT_TIMEOUT", "2s"),
        ("PULL_CERTS_DIR", &directory),
    ];
    let hostile = Hostile::start(&settings).await;
    let node = &hostile.node;
    let layer = Layer::random(1, &[10]);
    let mut labels = node.labels("target", &layer);
    labels.insert(
        "containerd.io/snapshot/remote/stargz.reference".to_owned(),
        "registry.example/app:1".to_owned(),
    );
    assert!(!node.prepare_on("target", "", labels).await.unwrap());
    hostile.assert_peak_below(128);
}
