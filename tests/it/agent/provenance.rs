//! An agent that requires provenance refuses every layer that no trusted statement names.

use std::collections::HashMap;

use serde_json::json;
use starlift::containerd::services::snapshots::v1::PrepareSnapshotRequest;
use starlift::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use starlift::oci::{Artifact, Digest, Manifest, Platform};
use starlift::provenance::{SigningKey, sign};
use tonic::{Code, Status};

use crate::support::agent::Settings;
use crate::support::keys::KeyFiles;
use crate::support::lazy::{Layer, Node, ON_DEMAND};
use crate::support::registry::Registry;

const REPOSITORY: &str = "library/app";
const REQUIRED: (&str, &str) = ("REQUIRE_PROVENANCE", "true");

struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn key(&self, name: &str) -> KeyFiles {
        KeyFiles::new(self.0.path(), name)
    }
}

fn source() -> Digest {
    Digest::sha256_of(b"source")
}

/// A node whose agent trusts the keys in these files.
async fn requiring(keys: &str, more: Settings<'_>) -> Node {
    let settings = [ON_DEMAND, REQUIRED, ("PROVENANCE_KEYS", keys)];
    Node::start(&[&settings, more].concat()).await
}

/// The manifest of a converted image of these layers.
fn image(layers: &[&Layer]) -> Manifest {
    let descriptor = |layer: &&Layer| {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer.digest, "size": layer.blob.len()})
    };
    let layers: Vec<_> = layers.iter().map(descriptor).collect();
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": source(), "size": 1});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config,
        "layers": layers, "annotations": {
            "dev.starlift.source.digest": source(), "dev.starlift.generation": "g1"}});
    Manifest::new(OCI_MANIFEST.to_owned(), manifest.to_string().into())
}

fn push(registry: &Registry, manifest: &Manifest) {
    let digest = registry.put_manifest(REPOSITORY, &manifest.media_type, manifest.bytes.clone());
    registry.tag(REPOSITORY, "1", &digest);
}

fn attach(registry: &Registry, artifact: Artifact) {
    for (_, bytes) in artifact.blobs {
        registry.put_blob(bytes);
    }
    let manifest = artifact.manifest;
    registry.put_manifest(REPOSITORY, &manifest.media_type, manifest.bytes);
}

fn push_signed(registry: &Registry, manifest: &Manifest, key: &SigningKey) {
    push(registry, manifest);
    attach(registry, sign(key, manifest, &source()).unwrap());
}

/// The labels of containerd's CRI plugin, which names the manifest.
fn cri_labels(
    node: &Node,
    target: &str,
    layer: &Layer,
    manifest: &Digest,
) -> HashMap<String, String> {
    let image = format!("{}/{REPOSITORY}:1", node.registry.host());
    let labels = [
        ("containerd.io/snapshot.ref", target.to_owned()),
        ("containerd.io/snapshot/cri.image-ref", image),
        (
            "containerd.io/snapshot/cri.layer-digest",
            layer.digest.to_string(),
        ),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            manifest.to_string(),
        ),
        (
            "containerd.io/snapshot/stargz/toc.digest",
            layer.toc_digest.to_string(),
        ),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

#[track_caller]
fn refused(answer: Result<bool, Status>) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let message = status.message().to_owned();
    assert!(message.contains("without provenance"), "{message}");
    assert!(message.contains("agent.require_provenance"), "{message}");
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_trusted_statement_names_is_lazy_and_the_image_is_proven_once() {
    let keys = Keys::new();
    let key = keys.key("key");
    let node = requiring(key.public_path(), &[]).await;
    let layers = [1, 2, 3].map(|seed| Layer::random(seed, &[2000]));
    let layers: Vec<&Layer> = layers.iter().collect();
    node.push(&layers);
    push_signed(&node.registry, &image(&layers), &key.signing());
    for place in 0..layers.len() {
        assert!(node.prepare_next("image", &layers, place).await.unwrap());
    }
    assert_eq!(node.registry.count("GET", "/referrers/"), 1);
    // A container's own snapshot needs no proof.
    assert_eq!(node.begin_container("container", "image-2").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_that_containerd_names_must_be_signed() {
    let keys = Keys::new();
    let key = keys.key("key");
    let node = requiring(key.public_path(), &[]).await;
    let (one, other) = (Layer::random(1, &[2000]), Layer::random(2, &[2000]));
    node.push(&[&one, &other]);
    let signed = image(&[&one]);
    push_signed(&node.registry, &signed, &key.signing());
    // The same signed layer in an image that somebody else put together.
    let composed = image(&[&one, &other]);
    push(&node.registry, &composed);
    let labels = cri_labels(&node, "a", &one, &composed.digest);
    let message = refused(node.prepare_on("a", "", labels).await);
    let expected = format!("no signed statement refers to {}", composed.digest);
    assert!(message.contains(&expected), "{message}");
    let labels = cri_labels(&node, "b", &other, &signed.digest);
    let message = refused(node.prepare_on("b", "", labels).await);
    assert!(message.contains(&other.digest.to_string()), "{message}");
    let labels = cri_labels(&node, "c", &one, &signed.digest);
    assert!(node.prepare_on("c", "", labels).await.unwrap());
    let layers = |outcome: &str| {
        let name = format!("starlift_agent_layers_total{{outcome=\"{outcome}\"}}");
        node.agent.metric(&name)
    };
    assert_eq!((layers("refused"), layers("lazy")), (Some(2), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_another_key_or_an_altered_one_is_refused() {
    let keys = Keys::new();
    let (key, other) = (keys.key("key"), keys.key("other"));
    let node = requiring(key.public_path(), &[]).await;
    let layer = Layer::random(1, &[2000]);
    node.push(&[&layer]);
    let manifest = image(&[&layer]);
    push_signed(&node.registry, &manifest, &other.signing());
    let message = refused(node.prepare("a", &layer).await);
    assert!(
        message.contains(&other.id()) && message.contains("not trusted"),
        "{message}"
    );

    // A refusal is not remembered: the next statement counts.
    let good = sign(&key.signing(), &manifest, &source()).unwrap();
    let mut altered = good.clone();
    let text = String::from_utf8(altered.blobs[1].1.to_vec()).unwrap();
    let digest = altered.blobs[1].0.digest.clone();
    altered.blobs[1].1 = text.replace(&key.id(), &other.id()).into();
    node.registry
        .put_wrong_blob(&digest, altered.blobs[1].1.clone());
    let document = altered.manifest;
    node.registry
        .put_manifest(REPOSITORY, &document.media_type, document.bytes);
    refused(node.prepare("a", &layer).await);
    attach(&node.registry, good);
    assert!(node.prepare("a", &layer).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_trusted_keys_will_do() {
    let keys = Keys::new();
    let (old, new) = (keys.key("old"), keys.key("new"));
    let both = format!("{},{}", old.public_path(), new.public_path());
    let node = requiring(&both, &[]).await;
    for (seed, key) in [(1, &old), (2, &new)] {
        let layer = Layer::random(seed, &[2000]);
        node.push(&[&layer]);
        let manifest = image(&[&layer]);
        push_signed(&node.registry, &manifest, &key.signing());
        let target = format!("image {seed}");
        let labels = cri_labels(&node, &target, &layer, &manifest.digest);
        assert!(node.prepare_on(&target, "", labels).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_an_index_means_its_image_for_this_machine() {
    let keys = Keys::new();
    let key = keys.key("key");
    let node = requiring(key.public_path(), &[]).await;
    let (own, foreign) = (Layer::random(1, &[2000]), Layer::random(2, &[2000]));
    node.push(&[&own, &foreign]);
    let machine = Platform::of_this_machine();
    let child = |layer: &Layer, architecture: &str| {
        let manifest = image(&[layer]);
        push_signed(&node.registry, &manifest, &key.signing());
        json!({"mediaType": OCI_MANIFEST, "digest": manifest.digest, "size": manifest.bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let children = [child(&own, &machine.architecture), child(&foreign, "s390x")];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
    push(
        &node.registry,
        &Manifest::new(OCI_INDEX.to_owned(), index.to_string().into()),
    );
    assert!(node.prepare("own", &own).await.unwrap());
    let message = refused(node.prepare("foreign", &foreign).await);
    assert!(message.contains("does not name the layer"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_nobody_names_are_not_unpacked_either() {
    let keys = Keys::new();
    let key = keys.key("key");
    let node = requiring(key.public_path(), &[]).await;
    let unpack = |key: &str, labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        PrepareSnapshotRequest {
            key: key.to_owned(),
            labels: labels.collect(),
            ..Default::default()
        }
    };
    let target = [("containerd.io/snapshot.ref", "sha256:chain")];
    for request in [unpack("default/1/extract-2", &[]), unpack("any", &target)] {
        let status = node.client().await.prepare(request).await.unwrap_err();
        let message = refused(Err(status));
        assert!(message.contains("no labels that name it"), "{message}");
    }
    let container = unpack("default/1/container", &[]);
    node.client().await.prepare(container).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_proves_nothing() {
    let keys = Keys::new();
    let key = keys.key("key");
    let more = [("MOUNT_TIMEOUT", "300ms")];
    let node = requiring(key.public_path(), &more).await;
    let layer = Layer::random(1, &[2000]);
    node.push(&[&layer]);
    push_signed(&node.registry, &image(&[&layer]), &key.signing());
    node.registry.on("/referrers/").answer(503, &[]);
    node.registry.on("/manifests/sha256-").answer(503, &[]);
    refused(node.prepare("a", &layer).await);
    node.registry.heal();
    assert!(node.prepare("a", &layer).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_without_number_are_not_all_fetched() {
    let keys = Keys::new();
    let (key, other) = (keys.key("key"), keys.key("other"));
    let node = requiring(key.public_path(), &[]).await;
    let layer = Layer::random(1, &[2000]);
    node.push(&[&layer]);
    let manifest = image(&[&layer]);
    push(&node.registry, &manifest);
    let foreign = sign(&other.signing(), &manifest, &source()).unwrap();
    for number in 0..40 {
        let [_, (blob, envelope)] = &foreign.blobs;
        let text = [&envelope[..], " ".repeat(number).as_bytes()].concat();
        let kind = "application/vnd.dsse.envelope.v1+json";
        assert_eq!(blob.media_type, kind);
        let subject = manifest.descriptor();
        let artifact = Artifact::new(kind, text.into(), &subject, serde_json::Map::new());
        attach(&node.registry, artifact);
    }
    node.registry.forget_requests();
    refused(node.prepare("a", &layer).await);
    assert_eq!(node.registry.count("GET", "/blobs/"), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_excepts_an_image_and_another_one_demands_it_of_one_image() {
    let keys = Keys::new();
    let key = keys.key("key");
    let rule = |required: bool| {
        format!("[{{ pattern = '*/library/app:*', require_provenance = {required} }}]")
    };
    let layer = Layer::random(1, &[2000]);
    let (excepted, demanded) = (rule(false), rule(true));
    let node = requiring(key.public_path(), &[("IMAGE", &excepted)]).await;
    node.push(&[&layer]);
    assert!(node.prepare("a", &layer).await.unwrap());
    let settings = [
        ON_DEMAND,
        ("PROVENANCE_KEYS", key.public_path()),
        ("IMAGE", &demanded),
    ];
    let node = Node::start(&settings).await;
    node.push(&[&layer]);
    push(&node.registry, &image(&[&layer]));
    refused(node.prepare("a", &layer).await);
    let mut other = node.labels("b", &layer);
    let name = format!("{}/library/other:1", node.registry.host());
    other.insert(
        "containerd.io/snapshot/remote/stargz.reference".to_owned(),
        name,
    );
    assert!(node.prepare_on("b", "", other).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_layers_need_no_proof_after_a_restart() {
    let keys = Keys::new();
    let key = keys.key("key");
    let mut node = requiring(key.public_path(), &[]).await;
    let layer = Layer::random(1, &[2000]);
    node.push(&[&layer]);
    push_signed(&node.registry, &image(&[&layer]), &key.signing());
    assert!(node.prepare("a", &layer).await.unwrap());
    node.registry.forget_requests();
    node.restart(&[ON_DEMAND, REQUIRED, ("PROVENANCE_KEYS", key.public_path())]);
    assert!(node.prepare("a", &layer).await.unwrap(), "it is committed");
    assert_eq!(node.registry.count("GET", "/referrers/"), 0);
}

#[test]
fn an_agent_without_a_key_that_can_be_read_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let start = |settings: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_starlift"));
        command.current_dir(folder.path()).arg("agent");
        command.arg("--address").arg(folder.path().join("sock"));
        command.arg("--root").arg(folder.path().join("root"));
        command.env("STARLIFT_AGENT_REQUIRE_PROVENANCE", "true");
        command.envs(settings.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let none = start(&[]);
    assert!(
        none.contains("agent.provenance_keys names no public key"),
        "{none}"
    );
    let missing = start(&[("STARLIFT_AGENT_PROVENANCE_KEYS", "missing.pub")]);
    assert!(
        missing.contains("agent.provenance_keys: key missing.pub: not readable"),
        "{missing}"
    );
}
