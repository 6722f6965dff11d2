//! A failure is reported in one line and leaves nothing in containerd, so that the next pull starts
//! from scratch.

use std::process::{Command, Stdio};

use serde_json::json;

use super::{Node, STARLIFT, outcomes, place, refusal, rpull};
use crate::support::eventually::eventually;
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Gate, Registry};

async fn registry_with(image: &Image) -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push("app", "v1", image);
    let name = format!("{}/app:v1", registry.host());
    (registry, name)
}

/// Returns an image of two layers and the path of the upper one, which the tests break. The lower
/// layer is then a snapshot already, or about to become one.
fn two_layers() -> (Image, String) {
    let image = ImageBuilder::new(1)
        .layers(2)
        .files(20)
        .max_file(50_000)
        .build();
    let upper = starlift::oci::Digest::sha256_of(&image.layers()[1]).to_string();
    (image, upper)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pull_leaves_nothing_and_can_be_repeated() {
    let Some(place) = place(&[]) else { return };
    let (image, upper) = two_layers();
    let (registry, name) = registry_with(&image).await;
    let node = Node::start(&place);

    let message = node.refusal(&name.replace(":v1", ":v9"));
    assert!(
        message.contains("app:v9") && message.contains("does not have it"),
        "{message}"
    );
    node.assert_empty();

    registry.on(&upper).cut_after(1000);
    let message = node.refusal(&name);
    assert!(message.contains(&upper), "{message}");
    node.assert_empty();
    registry.heal();

    registry.on(&upper).wrong_bytes();
    let message = node.refusal(&name);
    assert!(
        message.contains(&upper) && message.contains("do not have the digest"),
        "{message}"
    );
    node.assert_empty();
    registry.heal();

    registry.on(&upper).answer(404, &[]);
    let message = node.refusal(&name);
    assert!(
        message.contains(&upper) && message.contains("does not have it"),
        "{message}"
    );
    node.assert_empty();
    registry.heal();

    let message = node.refusal(&format!("--snapshotter unheard-of {name}"));
    assert!(message.contains("unheard-of"), "{message}");
    node.assert_empty();

    assert_eq!(outcomes(&node.pull(&name)), ["unpacked"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_match_the_configuration_is_rejected() {
    let Some(place) = place(&[]) else { return };
    let (image, _) = two_layers();
    let (registry, name) = registry_with(&image).await;
    let mut manifest = image.document();
    let layers = manifest["layers"].as_array_mut().unwrap();
    layers.swap(0, 1);
    let put = |manifest: &serde_json::Value| {
        let digest = registry.put_manifest("app", &image.media_type, manifest.to_string());
        registry.tag("app", "v1", &digest);
    };
    put(&manifest);
    let node = Node::start(&place);
    let message = node.refusal(&name);
    assert!(
        message.contains("diff-id") && message.contains("configuration says"),
        "{message}"
    );
    node.assert_empty();

    manifest["layers"] = json!([manifest["layers"][0]]);
    put(&manifest);
    let message = node.refusal(&name);
    assert!(
        message.contains("1 layers") && message.contains("2 diff-ids"),
        "{message}"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_an_image_is_rejected() {
    let Some(place) = place(&[]) else { return };
    let (image, _) = two_layers();
    let (registry, name) = registry_with(&image).await;
    let artifact = registry.push(
        "app",
        "artifact",
        &image.referrer("application/vnd.example.sbom"),
    );
    let node = Node::start(&place);
    let message = node.refusal(&format!("{}@{artifact}", name.replace(":v1", "")));
    assert!(message.contains("image configuration"), "{message}");
    let schema_1 = r#"{"schemaVersion":1,"name":"app","tag":"old","fsLayers":[],"history":[],"signatures":[]}"#;
    let old = registry.put_manifest(
        "app",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        schema_1,
    );
    registry.tag("app", "old", &old);
    let message = node.refusal(&name.replace(":v1", ":old"));
    assert!(
        message.contains("is not an image but") && message.contains("v1+prettyjws"),
        "{message}"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_containerd_is_reported() {
    let Some(place) = place(&[]) else { return };
    let (_registry, name) = registry_with(&two_layers().0).await;
    let mut command = place.command(STARLIFT);
    let output = command
        .args(["rpull", "--address", "/nonexistent/containerd.sock", &name])
        .output()
        .unwrap();
    let message = refusal(&output);
    assert!(
        message.contains("containerd cannot be reached at /nonexistent/containerd.sock"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pull_leaves_nothing() {
    let Some(place) = place(&[]) else { return };
    let (image, upper) = two_layers();
    let (registry, name) = registry_with(&image).await;
    let node = Node::start(&place);
    let gate = Gate::new();
    registry.on(&upper).gate_after(&gate, 1000);
    let mut command = node.command(&name);
    let child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the upper layer is asked for", || {
        registry.count("GET", &upper) > 0
    });
    eventually("the lower layer is a snapshot", || {
        node.snapshots("stargz")
            .iter()
            .any(|key| key.starts_with("sha"))
    });
    // `timeout`, which runs the command, would forward the signal twice, to the command and to its
    // group, and a second signal ends the clean-up too.
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let children = std::fs::read_to_string(children).unwrap();
    place.run(&format!("kill -TERM {}", children.trim()));
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: terminated\n"
    );
    node.assert_empty();
    gate.open();
    assert_eq!(outcomes(&node.pull(&name)), ["unpacked"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_is_taken_up_where_it_was() {
    const HELD: usize = 3 << 20;
    let Some(place) = place(&[]) else { return };
    let image = ImageBuilder::new(1)
        .layers(1)
        .files(2)
        .max_file(16 << 20)
        .build();
    let layer = starlift::oci::Digest::sha256_of(&image.layers()[0]).to_string();
    assert!(
        image.layers()[0].len() > HELD + (1 << 20),
        "{}",
        image.layers()[0].len()
    );
    let (registry, name) = registry_with(&image).await;
    let node = Node::start(&place);
    let gate = Gate::new();
    registry.on(&layer).times(1).gate_after(&gate, HELD);
    let mut command = rpull(&place, Command::new(STARLIFT), &node.containerd, &name);
    let has_what_was_sent = || node.ctr("content active").contains("3.146MB");
    place
        .daemon("rpull", &mut command, has_what_was_sent)
        .kill();
    assert_eq!(
        node.ctr("leases ls -q").lines().count(),
        1,
        "containerd drops the lease within a day"
    );

    assert_eq!(outcomes(&node.pull(&name)), ["unpacked"]);
    let seen = registry.seen();
    let asked = seen
        .iter()
        .rev()
        .find(|seen| seen.path_and_query.contains(&layer))
        .unwrap();
    let range = asked.headers.get("range").unwrap().to_str().unwrap();
    assert!(range.starts_with(&format!("bytes={HELD}-")), "{range}");
    gate.open();
}
