//! Images that are pulled, run, and compared with the result of containerd's own clients.

use std::process::Stdio;

use serde_json::Value;

use super::{Node, STARLIFT, outcomes, place, place_with_images, pulled};
use crate::support::containerd::{Release, on_each_release};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::fixture::Fixture;
use crate::support::image::{Image, ImageBuilder};
use crate::support::place::Place;
use crate::support::registry::Registry;

fn pushed(place: &Place) -> (DockerRegistry, String) {
    let registry = DockerRegistry::start(place, Access::Anyone);
    registry.push(place, &Fixture::get("app"), "image", false);
    let name = format!("{}/image:1", registry.address);
    (registry, name)
}

/// Pulls with `rpull`, runs a container, and compares the file system with that of `ctr images
/// pull`.
fn an_image_is_pulled_and_run(containerd: Release, snapshotter: &str, other: &str) {
    let Some(place) = place_with_images(containerd, &[]) else {
        return;
    };
    let (_registry, image) = pushed(&place);
    let node = Node::start(&place);
    let pulled = node.pull(&format!("--snapshotter {snapshotter} {image}"));
    assert_eq!(outcomes(&pulled), ["unpacked"; 3]);
    assert_eq!(pulled["reference"], image);
    assert_eq!(node.snapshots(snapshotter).len(), 3);
    assert_eq!(node.ctr("leases ls -q"), "");

    let id = place.container_id("rpull");
    let run =
        format!("run --rm --snapshotter {snapshotter} {image} {id} /bin/cat /usr/share/old/d");
    assert_eq!(node.ctr(&run), "new\n");
    let tree = |snapshotter: &str| {
        let name = format!("mounted-{snapshotter}");
        node.containerd.tree_in(snapshotter, &image, &name, 0)
    };
    let ours = tree(snapshotter);
    node.ctr(&format!(
        "images pull --plain-http --snapshotter {other} {image}"
    ));
    tree(other).assert_same(&ours, "ctr's, then Starlift's");
}

on_each_release!(an_image_is_pulled_and_run_with_our_agent);

fn an_image_is_pulled_and_run_with_our_agent(containerd: Release) {
    an_image_is_pulled_and_run(containerd, "stargz", "overlayfs");
}

#[test]
fn an_image_is_pulled_and_run_with_overlayfs() {
    an_image_is_pulled_and_run(Release::V1_6, "overlayfs", "native");
}

#[test]
fn containerd_holds_the_same_as_after_ctr_remote() {
    let Some(place) = place_with_images(Release::V1_6, &["ctr-remote"]) else {
        return;
    };
    let (registry, original) = pushed(&place);
    let image = format!("{}/converted:1", registry.address);
    place.run(&format!("{STARLIFT} convert {original} {image}"));
    let node = Node::start(&place);
    let pulled = node.pull(&format!(
        "--namespace ours --snapshotter overlayfs --skip-content-verify {image}"
    ));
    let flags = "--plain-http --snapshotter overlayfs --skip-content-verify";
    node.containerd
        .ctr_remote(&format!("-n theirs images rpull {flags} {image}"));

    let in_both = |line: &str| {
        ["ours", "theirs"].map(|namespace| node.ctr(&format!("-n {namespace} {line}")))
    };
    let [ours, theirs] = in_both("content ls").map(|listed| without_ages(&listed));
    assert!(
        ours.contains("containerd.io/gc.ref.content.l.2") && ours.contains("distribution.source"),
        "{ours}"
    );
    assert_eq!(ours, theirs);
    let [ours, theirs] = in_both("images ls");
    assert_eq!(ours, theirs);
    for layer in pulled["layers"].as_array().unwrap() {
        let chain_id = layer["chain_id"].as_str().unwrap();
        let [ours, theirs] = in_both(&format!(
            "snapshots --snapshotter overlayfs info {chain_id}"
        ))
        .map(|info| snapshot(&info));
        assert!(
            ours["Labels"]["containerd.io/snapshot/stargz/toc.digest"].is_string(),
            "{ours}"
        );
        assert_eq!(ours, theirs);
    }
}

/// Returns a snapshot without its times and without empty labels of URLs, which ctr-remote also
/// sets on layers without URLs.
fn snapshot(info: &str) -> Value {
    let mut info: Value = serde_json::from_str(info).unwrap();
    for key in ["Created", "Updated"] {
        info[key].take();
    }
    let labels = info["Labels"].as_object_mut().unwrap();
    labels
        .retain(|key, value| !key.starts_with("containerd.io/snapshot/remote/urls") || value != "");
    info
}

/// Returns a listing of content without the column of ages, with sorted labels.
fn without_ages(listed: &str) -> String {
    let row = |line: &str| {
        let cells: Vec<_> = line.split('\t').map(str::trim).collect();
        let mut labels: Vec<_> = cells.last().unwrap().split(',').collect();
        labels.sort_unstable();
        [cells[0], cells[1], &labels.join(" ")].join(" ")
    };
    listed
        .lines()
        .skip(1)
        .map(row)
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_present_are_not_fetched_again() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).layers(3).build());
    let image = format!("{}/app:v1", registry.host());
    let node = Node::start(&place);
    let first = node.pull(&image);
    assert_eq!(
        registry.count("GET", "/blobs/"),
        4,
        "a configuration and three layers"
    );
    let content = node.ctr("content ls -q");
    let again = node.pull(&image);
    assert_eq!(outcomes(&again), ["present"; 3]);
    assert_eq!(
        (&again["chain_id"], &again["digest"]),
        (&first["chain_id"], &first["digest"])
    );
    assert_eq!(
        registry.count("GET", "/blobs/"),
        5,
        "only the configuration"
    );
    let overlay = node.pull(&format!("--snapshotter overlayfs {image}"));
    assert_eq!(outcomes(&overlay), ["unpacked"; 3]);
    assert_eq!(
        registry.count("GET", "/blobs/"),
        6,
        "the layers are in the content store"
    );
    assert_eq!(node.ctr("content ls -q"), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_beside_the_removal_of_an_image_with_the_same_layers_succeeds() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    let image = ImageBuilder::new(1).layers(4).build();
    let [old, new] = ["old", "new"].map(|tag| {
        registry.push("app", tag, &image);
        format!("{}/app:{tag}", registry.host())
    });
    let node = Node::start(&place);
    for _ in 0..5 {
        node.pull(&old);
        let pull = node
            .command(&format!("--json {new}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        node.ctr(&format!("images rm --sync {old}"));
        pulled(&pull.wait_with_output().unwrap());
        assert_eq!(node.snapshots("stargz").len(), 4, "every layer is there");
        node.ctr(&format!("images rm --sync {new}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_fetch_each_layer_once() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    registry.push(
        "app",
        "v1",
        &ImageBuilder::new(1)
            .layers(4)
            .files(8)
            .max_file(2 << 20)
            .build(),
    );
    let image = format!("{}/app:v1", registry.host());
    let node = Node::start(&place);
    let start = || {
        node.command(&format!("--json {image}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let children = [start().unwrap(), start().unwrap()];
    let [one, other] = children.map(|child| pulled(&child.wait_with_output().unwrap()));
    assert_eq!(
        (&one["chain_id"], &one["digest"]),
        (&other["chain_id"], &other["digest"])
    );
    assert_eq!(
        registry.count("GET", "/blobs/"),
        2 + 4,
        "the configuration twice, each layer once"
    );
    assert_eq!(node.ctr("leases ls -q"), "");
    assert_eq!(
        node.snapshots("stargz").len(),
        4,
        "the slower pull removes what it prepared"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_one_platform_are_pulled_of_an_index() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    let arm = ImageBuilder::new(2).architecture("arm64").docker().build();
    let arm_digest = arm.digest().to_string();
    let amd = ImageBuilder::new(1).build();
    let index = Image::index(vec![("linux/amd64", amd), ("linux/arm64", arm)], true);
    registry.push("app", "v1", &index);
    let image = format!("{}/app:v1", registry.host());
    let node = Node::start(&place);
    let refusal = node.refusal(&format!("--platform linux/s390x {image}"));
    assert!(
        refusal.contains("linux/s390x") && refusal.contains("linux/amd64, linux/arm64"),
        "{refusal}"
    );
    node.assert_empty();

    let pulled = node.pull(&format!("--platform linux/arm64 {image}"));
    assert_eq!(pulled["manifest"], arm_digest);
    assert_eq!(pulled["digest"], index.digest().to_string());
    assert_eq!(
        node.ctr("content ls -q").lines().count(),
        5,
        "index, manifest, configuration, two layers"
    );
    let labels = node.ctr("content ls");
    let of_index = labels
        .lines()
        .find(|line| line.starts_with(&index.digest().to_string()))
        .unwrap();
    assert!(
        of_index.contains(&format!("containerd.io/gc.ref.content.m.0={arm_digest}")),
        "{of_index}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_moves_to_its_new_image_and_keeps_its_labels() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    let image = format!("{}/app:v1", registry.host());
    let node = Node::start(&place);
    node.pull(&format!("--label kept=1 --label moved=1 {image}"));
    let second = ImageBuilder::new(2).build();
    registry.push("app", "v1", &second);
    node.pull(&format!("--label moved=2 {image}"));
    let listed = node.ctr("images ls");
    let line = listed.lines().nth(1).unwrap();
    assert!(line.contains(&second.digest().to_string()), "{line}");
    assert!(
        line.contains("kept=1") && line.contains("moved=2"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshotter_gets_its_labels_in_either_dialect() {
    let Some(place) = place(&[]) else { return };
    let registry = Registry::start().await;
    let original = ImageBuilder::new(1).build();
    registry.push("app", "v1", &original);
    let image = format!("{}/app:v1", registry.host());
    let node = Node::start(&place);
    let labels_of = |pulled: &Value| -> Value {
        let key = pulled["layers"][0]["chain_id"].as_str().unwrap();
        let info = node.ctr(&format!("snapshots --snapshotter stargz info {key}"));
        serde_json::from_str::<Value>(&info).unwrap()["Labels"].clone()
    };
    let pulled = node.pull(&format!("--use-containerd-labels {image}"));
    let labels = labels_of(&pulled);
    assert_eq!(
        labels["containerd.io/snapshot/cri.image-ref"],
        image.as_str()
    );
    assert_eq!(
        labels["containerd.io/snapshot/cri.manifest-digest"],
        original.digest().to_string()
    );
    assert_eq!(
        labels["containerd.io/snapshot/remote/stargz.reference"],
        Value::Null
    );

    node.ctr(&format!("images rm --sync {image}"));
    let labels = labels_of(&node.pull(&image));
    let digests: Vec<_> = pulled["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["digest"].as_str().unwrap())
        .collect();
    assert_eq!(
        labels["containerd.io/snapshot/remote/stargz.reference"],
        image.as_str()
    );
    assert_eq!(
        labels["containerd.io/snapshot/remote/stargz.digest"],
        digests[0]
    );
    assert_eq!(
        labels["containerd.io/snapshot/remote/stargz.layers"],
        digests.join(",")
    );
    assert_eq!(labels["containerd.io/snapshot/cri.image-ref"], Value::Null);
}
