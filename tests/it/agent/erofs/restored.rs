//! Layers are mounted again after a reboot, and layers of both drivers work together.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::mount::{Mounted, run};
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Leaves what a reboot leaves: the files, no mounts, no keeper.
fn reboot(node: &mut Node, settings: &[(&str, &str)], change: impl FnOnce(&Path)) {
    node.agent.daemon.kill();
    run(&format!(
        "{} agent unmount --root {}",
        env!("CARGO_BIN_EXE_starlift"),
        node.agent.root.display()
    ));
    change(&node.agent.root.join("erofs"));
    node.restart(settings);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_mounted_again_after_a_reboot() {
    let mut node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::random(81, &[1 << 20, 70_000]);
    let directory = node.mount("target", &layer).await;
    let inode = fs::metadata(directory.join("file0")).unwrap().ino();
    let changes: [fn(&Path); 4] = [
        |_| {},
        |folder| fs::remove_file(folder.join("1.image")).unwrap(),
        |folder| {
            let image = fs::read(folder.join("1.image")).unwrap();
            fs::write(folder.join("1.image"), &image[..image.len() / 2]).unwrap();
        },
        |folder| {
            let mut image = fs::read(folder.join("1.image")).unwrap();
            image[1024 + 200] ^= 1;
            fs::write(folder.join("1.image"), image).unwrap();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        reboot(&mut node, &[ON_DEMAND], change);
        assert_eq!(
            fs::metadata(directory.join("file0")).unwrap().ino(),
            inode,
            "{number}"
        );
        for (name, content) in &layer.files {
            let path = directory.join(name);
            assert!(blocking(move || read(&path)).await.unwrap() == *content);
        }
    }
    // The driver of a mounted layer stays.
    reboot(&mut node, &[ON_DEMAND, ("DRIVER", "fuse")], |_| {});
    let path = directory.join("file0");
    assert!(blocking(move || read(&path)).await.unwrap() == layer.files[0].1);
    assert_eq!(node.agent.status()["layers"][0]["driver"], "erofs");
    assert_eq!(node.agent.status()["driver"]["driver"], "fuse");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_both_drivers_are_one_image() {
    let node = Node::start(&[ON_DEMAND]).await;
    // EROFS has no place for this attribute.
    let files = |name: &str| vec![(format!("dir/{name}"), name.as_bytes().to_vec())];
    let bottom = Layer::with_xattrs(files("bottom"), &[("system.other", b"1")]);
    let middle = Layer::of(files("middle"));
    let top = Layer::of(files("top"));
    let image = node.pull("image", &[&bottom, &middle, &top]).await;
    let status = node.agent.status();
    let drivers: Vec<_> = (0..3).map(|n| &status["layers"][n]["driver"]).collect();
    assert_eq!(drivers, ["fuse", "erofs", "erofs"], "{status}");
    let container = Mounted::container(&node, "container", &image).await;
    let at = |name: &str| container.0.join("dir").join(name);
    let device = fs::metadata(&container.0).unwrap().dev();
    let inodes =
        || ["", "bottom", "middle", "top"].map(|name| fs::metadata(at(name)).unwrap().ino());
    let before = inodes();
    for name in ["bottom", "middle", "top"] {
        assert_eq!(fs::read(at(name)).unwrap(), name.as_bytes());
        assert_eq!(fs::metadata(at(name)).unwrap().dev(), device, "{name}");
    }
    fs::write(at("new"), "new").unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(inodes(), before, "the directory was copied");
    drop(container);
}
