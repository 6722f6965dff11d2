//! What fails is told in one line and leaves nothing in containerd, so that the next pull begins anew.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Node, STARLIFT, outcomes, place, refusal, rpull};
use crate::support::image::{Image, ImageBuilder};
use crate::support::place::until;
use crate::support::registry::{Gate, Registry};

/// How long a process may take to notice that it is asked to end, or containerd that a client is gone.
const SOON: Duration = Duration::from_secs(30);

async fn registry_with(image: &Image) -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push("app", "v1", image);
    let name = format!("{}/app:v1", registry.host());
    (registry, name)
}

/// The upper layer of an image is broken: the lower one is a snapshot already, or on its way to be one.
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

    let told = node.refusal(&name.replace(":v1", ":v9"));
    assert!(
        told.contains("app v9") && told.contains("does not have it"),
        "{told}"
    );
    node.assert_empty();

    registry.on(&upper).cut_after(1000);
    let told = node.refusal(&name);
    assert!(told.contains(&upper), "{told}");
    node.assert_empty();
    registry.heal();

    registry.on(&upper).wrong_bytes();
    let told = node.refusal(&name);
    assert!(
        told.contains(&upper) && told.contains("do not have the digest"),
        "{told}"
    );
    node.assert_empty();
    registry.heal();

    registry.on(&upper).answer(404, &[]);
    let told = node.refusal(&name);
    assert!(
        told.contains(&upper) && told.contains("does not have it"),
        "{told}"
    );
    node.assert_empty();
    registry.heal();

    let told = node.refusal(&format!("--snapshotter unheard-of {name}"));
    assert!(told.contains("unheard-of"), "{told}");
    node.assert_empty();

    assert_eq!(outcomes(&node.pull(&name)), ["unpacked"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
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
    let told = node.refusal(&name);
    assert!(
        told.contains("diff-id") && told.contains("configuration says"),
        "{told}"
    );
    node.assert_empty();

    manifest["layers"] = json!([manifest["layers"][0]]);
    put(&manifest);
    let told = node.refusal(&name);
    assert!(
        told.contains("1 layers") && told.contains("2 diff-ids"),
        "{told}"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_told() {
    let Some(place) = place(&[]) else { return };
    let (image, _) = two_layers();
    let (registry, name) = registry_with(&image).await;
    let artifact = registry.push(
        "app",
        "artifact",
        &image.referrer("application/vnd.example.sbom"),
    );
    let node = Node::start(&place);
    let told = node.refusal(&format!("{}@{artifact}", name.replace(":v1", "")));
    assert!(told.contains("image configuration"), "{told}");
    let schema_1 = r#"{"schemaVersion":1,"name":"app","tag":"old","fsLayers":[],"history":[],"signatures":[]}"#;
    let old = registry.put_manifest(
        "app",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        schema_1,
    );
    registry.tag("app", "old", &old);
    let told = node.refusal(&name.replace(":v1", ":old"));
    assert!(
        told.contains("is no image but") && told.contains("v1+prettyjws"),
        "{told}"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_containerd_is_told() {
    let Some(place) = place(&[]) else { return };
    let (_registry, name) = registry_with(&two_layers().0).await;
    let mut command = place.command(STARLIFT);
    let output = command
        .args(["rpull", "--address", "/nonexistent/containerd.sock", &name])
        .output()
        .unwrap();
    let told = refusal(&output);
    assert!(
        told.contains("containerd cannot be reached at /nonexistent/containerd.sock"),
        "{told}"
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
    until("the upper layer is asked for", SOON, || {
        registry.count("GET", &upper) > 0
    });
    until("the lower layer is a snapshot", SOON, || {
        node.snapshots("stargz")
            .iter()
            .any(|key| key.starts_with("sha"))
    });
    // `timeout`, which runs it, hands the signal on.
    place.run(&format!("kill -TERM {}", child.id()));
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
        "containerd drops it within a day"
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
