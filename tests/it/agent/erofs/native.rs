//! Complete layers are read by the kernel, and the mounts behave as those of an unpacked image.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::mount::{Mounted, run};
use crate::support::eventually::eventually;
use crate::support::lazy::{Layer, Node, ON_DEMAND, data_file, read};
use crate::support::registry::Gate;

const NOBODY: u32 = 65534;
/// Layers are fetched at once, and no start is recorded.
const COMPLETE: [(&str, &str); 2] = [("BACKGROUND_DELAY", "0s"), ("RECORD", "0s")];

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn layer(node: &Node, key: &str) -> serde_json::Value {
    node.agent.status()["layers"][0][key].clone()
}

fn wait_until_complete(node: &Node) {
    eventually("the layer is complete", || {
        let content = layer(node, "content");
        content["bytes"] == content["held_bytes"]
    });
}

/// Ends the agent and its keeper, and unmounts its directories.
fn end(node: &mut Node) {
    node.agent.daemon.kill();
    run(&format!(
        "{} agent unmount --root {}",
        env!("CARGO_BIN_EXE_starlift"),
        node.agent.root.display()
    ));
}

fn assert_same(root: &Path, layer: &Layer) {
    for (name, content) in &layer.files {
        assert!(read(&root.join(name)).unwrap() == *content, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_on_complete_layers_need_no_agent() {
    let mut node = Node::start(&COMPLETE).await;
    let files = Layer::random(71, &[2 << 20, 100, 300_000]);
    node.mount("target", &files).await;
    wait_until_complete(&node);
    let container = Mounted::container(&node, "container", "target").await;
    assert_eq!(layer(&node, "is_native"), true);
    end(&mut node);
    assert_same(&container.0, &files);
    assert!(!container.0.join("absent").exists());
    fs::write(container.0.join("file1"), "written").unwrap();
    assert_eq!(fs::read(container.0.join("file1")).unwrap(), b"written");
    drop(container);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_layer_stays_native_over_a_restart() {
    let mut node = Node::start(&COMPLETE).await;
    let files = Layer::random(72, &[2 << 20]);
    let directory = node.mount("target", &files).await;
    wait_until_complete(&node);
    let before = Mounted::container(&node, "before", "target").await;
    node.restart(&COMPLETE);
    assert_eq!(layer(&node, "is_native"), true);
    let after = Mounted::container(&node, "after", "target").await;
    for root in [&directory, &before.0, &after.0] {
        assert_same(root, &files);
    }
    drop((before, after));
    node.remove("before").await.unwrap();
    node.remove("after").await.unwrap();
    node.remove("target").await.unwrap();
    assert!(!directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reads_of_a_first_container_pass_through_the_agent() {
    let node = Node::start(&[("BACKGROUND_DELAY", "0s")]).await;
    let files = Layer::random(73, &[300_000]);
    node.mount("target", &files).await;
    wait_until_complete(&node);
    let first = Mounted::container(&node, "first", "target").await;
    assert_eq!(layer(&node, "is_native"), false, "its reads are recorded");
    let second = Mounted::container(&node, "second", "target").await;
    assert_eq!(layer(&node, "is_native"), true);
    for root in [&first.0, &second.0] {
        assert_same(root, &files);
    }
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_killed_ends_and_leaves_no_zeros() {
    let node = Node::start(&[ON_DEMAND]).await;
    let files = Layer::random(74, &[2 << 20]);
    let directory = node.mount("target", &files).await;
    let gate = Gate::new();
    node.registry.on("/blobs/").gate(&gate);
    let mut reader = Command::new("cat")
        .arg(directory.join("file0"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    gate.reached(1).await;
    reader.kill().unwrap();
    let mut reader = blocking(move || {
        eventually("the reader ends although nothing arrives", || {
            reader.try_wait().unwrap().is_some()
        });
        reader
    })
    .await;
    assert!(!reader.wait().unwrap().success());
    gate.open();
    assert_same(&directory, &files);
}

#[tokio::test(flavor = "multi_thread")]
async fn set_uid_programs_work_in_containers() {
    let program = fs::read("/usr/bin/id").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o4755);
    tar.append_data(&mut header, "id", program.as_slice())
        .unwrap();
    let files = Layer::of_tar(&tar.into_inner().unwrap());
    let node = Node::start(&[ON_DEMAND]).await;
    fs::set_permissions(node.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let directory = node.mount("target", &files).await;
    let container = Mounted::container(&node, "container", "target").await;
    let effective = |program: &Path| {
        let mut command = Command::new(program);
        let output = command.arg("-u").uid(NOBODY).gid(NOBODY).output();
        output.map(|output| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    assert_eq!(effective(&container.0.join("id")).unwrap(), "0");
    assert!(
        effective(&directory.join("id")).is_err(),
        "others do not reach the mount itself"
    );
    drop(container);
}

/// Room for three layers of 3 MiB, and some more.
const SMALL: [(&str, &str); 5] = [
    COMPLETE[0],
    COMPLETE[1],
    ("CACHE_SIZE", "10MiB"),
    ("MIN_FREE", "0B"),
    ("MAX_REQUEST", "256KiB"),
];
const LIMIT: u64 = 10 << 20;

/// Mounts layers of 3 MiB, the first as `image0`, one after the other, and waits until they are
/// complete.
async fn mount_complete(node: &Node, count: u64) -> Vec<Layer> {
    let mut layers = Vec::new();
    for number in 0..count {
        let files = Layer::random(80 + number, &[2 << 20, 1 << 20]);
        node.mount(&format!("image{number}"), &files).await;
        eventually("the layer is complete", || {
            let content = content(node, number);
            content["bytes"] == content["held_bytes"]
        });
        layers.push(files);
    }
    layers
}

fn of_layer(node: &Node, number: u64, key: &str) -> serde_json::Value {
    let layers = node.agent.status()["layers"].clone();
    layers[usize::try_from(number).unwrap()][key].clone()
}

fn content(node: &Node, number: u64) -> serde_json::Value {
    of_layer(node, number, "content")
}

async fn read_whole(node: &Node, target: &str, files: &Layer) {
    let (directory, files) = (node.directory(target).await, files.clone());
    blocking(move || assert_same(&directory, &files)).await;
}

fn wait_for_limit(node: &Node) {
    eventually("the files are within their limit", || {
        let bytes = &node.agent.status()["cache"]["bytes"];
        bytes.as_u64().unwrap() <= LIMIT
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_images_of_which_no_container_runs_are_evicted() {
    let node = Node::start(&SMALL).await;
    let mut layers = mount_complete(&node, 2).await;
    for (number, _) in layers.iter().enumerate() {
        let (key, top) = (format!("container{number}"), format!("image{number}"));
        drop(Mounted::container(&node, &key, &top).await);
        assert_eq!(of_layer(&node, number as u64, "is_native"), true);
    }
    // A container of the older image runs.
    node.remove("container1").await.unwrap();
    for number in [2, 3] {
        let files = Layer::random(80 + number, &[2 << 20, 1 << 20]);
        let target = format!("image{number}");
        node.mount(&target, &files).await;
        read_whole(&node, &target, &files).await;
        layers.push(files);
    }
    wait_for_limit(&node);
    assert_eq!(of_layer(&node, 0, "is_native"), true, "it is in use");
    assert_eq!(content(&node, 0)["held_bytes"], content(&node, 0)["bytes"]);
    eventually("the layer that no container uses is served", || {
        of_layer(&node, 1, "is_native") == false
    });
    for (number, files) in layers.iter().enumerate() {
        read_whole(&node, &format!("image{number}"), files).await;
    }
    wait_for_limit(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_layer_that_is_still_mounted_somewhere_keeps_its_content() {
    let node = Node::start(&SMALL).await;
    let layers = mount_complete(&node, 1).await;
    let container = Mounted::container(&node, "container", "image0").await;
    assert_eq!(of_layer(&node, 0, "is_native"), true);
    // The overlay is left behind: no snapshot says that it is there.
    node.remove("container").await.unwrap();
    for number in [1, 2, 3] {
        let files = Layer::random(80 + number, &[2 << 20, 1 << 20]);
        let target = format!("image{number}");
        node.mount(&target, &files).await;
        read_whole(&node, &target, &files).await;
    }
    wait_for_limit(&node);
    assert_eq!(of_layer(&node, 0, "is_native"), false);
    let (root, files) = (container.0.clone(), layers[0].clone());
    blocking(move || assert_same(&root, &files)).await;
    drop(container);
    let files = Layer::random(84, &[2 << 20, 1 << 20]);
    node.mount("image4", &files).await;
    read_whole(&node, "image4", &files).await;
    eventually("the layer is evicted", || {
        content(&node, 0)["held_bytes"] != content(&node, 0)["bytes"]
    });
    read_whole(&node, "image0", &layers[0]).await;
}

/// Waits until a power cut would take nothing of the only layer.
fn wait_until_durable(node: &Node) {
    let map = data_file(&node.agent).with_extension("map");
    eventually("every chunk is durable", || {
        let states = fs::read(&map).unwrap().split_off(128);
        states.iter().all(|state| *state == b'd')
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_layers_are_native_at_once_after_a_reboot() {
    let mut node = Node::start(&COMPLETE).await;
    let files = Layer::random(75, &[2 << 20, 100]);
    let directory = node.mount("target", &files).await;
    wait_until_complete(&node);
    wait_until_durable(&node);
    end(&mut node);
    node.restart(&COMPLETE);
    assert_eq!(layer(&node, "is_native"), true);
    end_agent_only(&mut node);
    assert_same(&directory, &files);
    node.restart(&COMPLETE);
    // One of which a power cut may have torn something is served.
    let map = data_file(&node.agent).with_extension("map");
    end(&mut node);
    let mut states = fs::read(&map).unwrap();
    states[128] = b'?';
    fs::write(&map, states).unwrap();
    node.restart(&COMPLETE);
    assert_eq!(layer(&node, "is_native"), false);
    let (root, files) = (directory.clone(), files.clone());
    blocking(move || assert_same(&root, &files)).await;
}

/// Ends the agent. Reads of its FUSE mounts wait.
fn end_agent_only(node: &mut Node) {
    node.agent.daemon.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_a_native_layer_is_noticed_after_a_restart_and_healed() {
    let mut node = Node::start(&COMPLETE).await;
    let files = Layer::random(76, &[300_000, 2 << 20]);
    node.mount("target", &files).await;
    wait_until_complete(&node);
    wait_until_durable(&node);
    let before = Mounted::container(&node, "before", "target").await;
    assert_eq!(layer(&node, "is_native"), true);
    let path = data_file(&node.agent);
    let right = fs::read(&path).unwrap();
    end_agent_only(&mut node);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[!right[100_000]], 100_000).unwrap();
    node.restart(&COMPLETE);
    let damaged = "starlift_agent_cache_damaged_total";
    eventually("the damage is healed, and the layer native again", || {
        node.agent.metric(damaged) == Some(1)
            && fs::read(&path).unwrap() == right
            && layer(&node, "is_native") == true
    });
    let after = Mounted::container(&node, "after", "target").await;
    for root in [&before.0, &after.0] {
        assert_same(root, &files);
    }
    assert_eq!(node.agent.metric(damaged), Some(1), "counted once");
    drop((before, after));
}
