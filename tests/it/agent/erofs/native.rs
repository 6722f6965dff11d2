//! Complete layers are read by the kernel, and the mounts behave as those of an unpacked image.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::mount::{Mounted, run};
use crate::support::eventually::eventually;
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};
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
