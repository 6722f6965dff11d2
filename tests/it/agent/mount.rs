//! The mount of the lazy layers: it is restored, other users cannot reach it, and overlays of
//! containers over it behave like any overlay.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use starlift::containerd::services::snapshots::v1::PrepareSnapshotRequest;

use crate::support::agent::{Agent, is_erofs};
use crate::support::eventually::eventually;
use crate::support::lazy::{Layer, Node, ON_DEMAND, read};
use crate::support::place::Place;
use crate::support::registry::Registry;

const NOBODY: u32 = 65534;
const EIO: i32 = 5;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub(super) fn run(line: &str) {
    let status = Command::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// A temporary mount.
pub(super) struct Mounted(pub(super) PathBuf);

impl Mounted {
    fn new(kind: &str, options: &str, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        run(&format!(
            "mount -t {kind} {kind} -o {options} {}",
            at.display()
        ));
        Self(at)
    }

    /// Mounts a container's root file system on the snapshot `top`, with the agent's options.
    pub(super) async fn container(node: &Node, key: &str, top: &str) -> Self {
        let request = PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: top.to_owned(),
            ..Default::default()
        };
        let mounts = node
            .client()
            .await
            .prepare(request)
            .await
            .unwrap()
            .into_inner()
            .mounts;
        assert_eq!(mounts[0].r#type, "overlay");
        Self::new(
            "overlay",
            &mounts[0].options.join(","),
            node.place.path().join(key),
        )
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Returns the mountpoint of a layer's directory: EROFS has one for each layer.
fn mountpoint(directory: &Path) -> &Path {
    if is_erofs() {
        directory
    } else {
        directory.parent().unwrap()
    }
}

/// Returns a directory of the FUSE mount that serves a layer's directory.
fn served_by(node: &Node, directory: &Path) -> PathBuf {
    if is_erofs() {
        node.agent.root.join("lazy-data")
    } else {
        directory.to_owned()
    }
}

/// Makes the kernel end the connection of the file system of `path`.
fn abort(place: &Place, path: &Path) {
    // Does not ask the agent, which may be dead.
    let minor = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
    let minor = minor.unwrap().stx_dev_minor;
    let control = Mounted::new("fusectl", "rw", place.path().join("fusectl"));
    fs::write(control.0.join(minor.to_string()).join("abort"), "1").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_mount_is_put_back_and_containers_continue_to_read() {
    for layer in Layer::of_both_kinds(61, &[300_000, 300_000]) {
        let node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        let container = Mounted::container(&node, "container", "target").await;
        let inode = fs::metadata(directory.join("file0")).unwrap().ino();
        for round in 0..2 {
            run(&format!("umount -l {}", mountpoint(&directory).display()));
            let file = directory.join("file0");
            blocking(move || eventually("the mount is in its place", || file.exists())).await;
            assert_eq!(
                fs::metadata(directory.join("file0")).unwrap().ino(),
                inode,
                "{round}"
            );
        }
        let path = container.0.join("file1");
        assert!(
            blocking(move || read(&path)).await.unwrap() == layer.files[1].1,
            "over the same connection"
        );
        assert!(
            node.prepare("again", &layer).await.unwrap(),
            "further layers are lazy"
        );
        drop(container);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_connection_is_replaced_and_layers_keep_their_inodes() {
    for layer in Layer::of_both_kinds(62, &[300_000]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        let container = Mounted::container(&node, "before", "target").await;
        let inode = fs::metadata(directory.join("file0")).unwrap().ino();
        abort(&node.place, &served_by(&node, &directory));
        let file = directory.join("file0");
        blocking(move || eventually("the layers are mounted anew", || read(&file).is_ok())).await;
        assert_eq!(fs::metadata(directory.join("file0")).unwrap().ino(), inode);
        let lost = read(&container.0.join("file0")).unwrap_err();
        let is_lost = match lost.raw_os_error() {
            Some(EIO) => is_erofs(),
            _ => lost.kind() == io::ErrorKind::NotConnected,
        };
        assert!(is_lost, "containers over the old connection: {lost}");
        let next = Mounted::container(&node, "after", "target").await;
        let path = next.0.join("file0");
        assert!(
            blocking(move || read(&path)).await.unwrap() == layer.files[0].1,
            "new containers start"
        );
        node.restart(&[ON_DEMAND]);
        let path = next.0.join("file0");
        assert!(
            blocking(move || read(&path)).await.unwrap() == layer.files[0].1,
            "new containers survive a restart"
        );
        drop((container, next));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_died_while_no_agent_ran_is_not_taken_over() {
    for layer in Layer::of_both_kinds(63, &[300_000]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        node.agent.daemon.kill();
        abort(&node.place, &served_by(&node, &directory));
        for _ in 0..2 {
            node.restart(&[ON_DEMAND]);
            let path = directory.join("file0");
            assert!(blocking(move || read(&path)).await.unwrap() == layer.files[0].1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_was_undone_while_no_agent_ran_is_put_back_at_the_start() {
    for layer in Layer::of_both_kinds(64, &[300_000, 300_000]) {
        let mut node = Node::start(&[ON_DEMAND]).await;
        let directory = node.mount("target", &layer).await;
        let container = Mounted::container(&node, "container", "target").await;
        node.agent.daemon.kill();
        run(&format!("umount -l {}", mountpoint(&directory).display()));
        node.restart(&[ON_DEMAND]);
        for path in [directory.join("file0"), container.0.join("file0")] {
            assert!(blocking(move || read(&path)).await.unwrap() == layer.files[0].1);
        }
        drop(container);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_reach_neither_the_mount_nor_the_files_of_the_agent() {
    let place = Place::with(&[]).unwrap();
    let root = place.dir("agent");
    for (path, mode) in [(place.path(), 0o755), (root.as_path(), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let wrapper = format!(
        "#!/bin/sh\numask 000\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_starlift")
    );
    let wrapper = place.write("wrapper", wrapper);
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = Agent::start_as(&wrapper, &place, &[ON_DEMAND]);
    let node = Node {
        registry: Registry::start().await,
        agent,
        place,
    };
    let layer = Layer::random(65, &[100]);
    let directory = node.mount("target", &layer).await;
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
    for path in [
        directory.join("file0"),
        root.join("metadata.db"),
        root.join("api.sock"),
    ] {
        let mut cat = Command::new("cat");
        assert!(
            !cat.arg(&path)
                .uid(NOBODY)
                .gid(NOBODY)
                .output()
                .unwrap()
                .status
                .success(),
            "{}",
            path.display()
        );
    }
    for entry in fs::read_dir(&root).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{} {mode:o}", entry.path().display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(&format!(" {} ", root.join("lazy").display())))
        .unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_container_have_one_device_and_stable_inodes() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::of(
        ["dir/a", "b", "c"]
            .map(|name| (name.to_owned(), name.as_bytes().to_vec()))
            .into(),
    );
    node.mount("target", &layer).await;
    let container = Mounted::container(&node, "container", "target").await;
    let at = |name: &str| fs::metadata(container.0.join(name)).unwrap();
    fs::write(container.0.join("new"), "new").unwrap();
    let device = at("").dev();
    for name in ["dir", "dir/a", "b", "new"] {
        assert_eq!(at(name).dev(), device, "{name}");
    }
    let inodes = || ["dir", "dir/a", "c"].map(|name| at(name).ino());
    let before = inodes();
    for name in ["dir", "b"] {
        fs::set_permissions(container.0.join(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::hard_link(container.0.join("b"), container.0.join("link")).unwrap();
    assert_eq!(
        at("b").ino(),
        at("link").ino(),
        "two names of a copied file"
    );
    // Twice, because the second look finds the objects that the first one created.
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        for _ in 0..2 {
            assert_eq!(inodes(), before, "the directory was copied");
            assert_eq!(
                ["dir", "dir/a", "b", "c"].map(|name| at(name).dev()),
                [device; 4]
            );
            assert_eq!(
                fs::read(container.0.join("b")).unwrap(),
                b"b",
                "a copied file is not stale"
            );
        }
    }
    drop(container);
}

/// Encodes an access control list as the kernel stores it: version 2, then (tag, permissions, ID).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn access_control_lists_of_the_image_are_enforced() {
    const NONE: u32 = u32::MAX;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode, list: &[u8]| {
        tar.append_pax_extensions([("SCHILY.xattr.system.posix_acl_access", list)])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_mode(mode);
        tar.append_data(&mut header, name, &b"x"[..]).unwrap();
    };
    add(
        "denied",
        0o644,
        &acl(&[
            (1, 6, NONE),
            (2, 0, NOBODY),
            (4, 4, NONE),
            (16, 4, NONE),
            (32, 4, NONE),
        ]),
    );
    add(
        "allowed",
        0o640,
        &acl(&[
            (1, 6, NONE),
            (2, 4, NOBODY),
            (4, 0, NONE),
            (16, 4, NONE),
            (32, 0, NONE),
        ]),
    );
    let layer = Layer::of_tar(&tar.into_inner().unwrap());
    let node = Node::start(&[ON_DEMAND]).await;
    fs::set_permissions(node.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    node.mount("target", &layer).await;
    let container = Mounted::container(&node, "container", "target").await;
    let may_read = |name: &str| {
        let mut cat = Command::new("cat");
        cat.arg(container.0.join(name))
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap()
            .status
            .success()
    };
    assert_eq!([may_read("denied"), may_read("allowed")], [false, true]);
    drop(container);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_of_a_container_writes_to_the_log() {
    let node = Node::start(&[ON_DEMAND]).await;
    let directory = node.mount("target", &Layer::random(66, &[100, 100])).await;
    let container = Mounted::container(&node, "container", "target").await;
    let before = node.agent.daemon.log();
    for path in [directory.join("file0"), container.0.join("file0")] {
        let file = File::open(path).unwrap();
        for _ in 0..20 {
            // EROFS has no flags.
            let flags = rustix::fs::ioctl_getflags(&file);
            assert!(flags.is_ok_and(|flags| flags.is_empty()) || is_erofs());
            assert!(!rustix::termios::isatty(&file));
            // EROFS itself has nothing to sync; the overlay over it has.
            assert!(rustix::fs::fsync(&file).is_ok() || is_erofs());
            assert_eq!(
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(),
                100
            );
        }
    }
    fs::set_permissions(container.0.join("file1"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(node.agent.daemon.log(), before);
    drop(container);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_can_be_mounted_over_a_directory_of_a_container() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::of(vec![("dir/a".to_owned(), b"a".to_vec())]);
    node.mount("target", &layer).await;
    let container = Mounted::container(&node, "container", "target").await;
    let (upper, work) = (node.place.dir("upper"), node.place.dir("work"));
    let lower = container.0.join("dir");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let nested = Mounted::new("overlay", &options, node.place.path().join("nested"));
    assert_eq!(fs::read(nested.0.join("a")).unwrap(), b"a");
    drop(nested);
    drop(container);
}

/// Returns the number of requests that the kernel has sent the agent, by operation.
fn requests(agent: &Agent, operation: &str) -> u64 {
    let name = format!("starlift_agent_fuse_requests_total{{operation=\"{operation}\"}}");
    agent.metric(&name).unwrap_or_default()
}

/// Reads every file below `root`.
fn read_all(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        if entry.metadata().unwrap().is_dir() {
            read_all(&entry.path());
        } else {
            fs::read(entry.path()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_container_repeats_no_request_to_the_agent() {
    const FILES: u64 = 50;
    let files = || (0..FILES).map(|number| (format!("dir/file{number}"), vec![1; 100]));
    let plain = Layer::of(files().collect());
    let marked = Layer::with_xattrs(files().collect(), &[("user.test", b"1")]);
    let node = Node::start(&[ON_DEMAND]).await;
    for (kind, layer) in [("plain", &plain), ("marked", &marked)] {
        node.mount(kind, layer).await;
        let first = Mounted::container(&node, &format!("{kind}-first"), kind).await;
        read_all(&first.0);
        assert!(!first.0.join("dir/absent").exists());
        let operations = ["lookup", "open", "release", "read", "getxattr"];
        let before = operations.map(|operation| requests(&node.agent, operation));
        let second = Mounted::container(&node, &format!("{kind}-second"), kind).await;
        read_all(&second.0);
        assert!(!second.0.join("dir/absent").exists());
        let after = operations.map(|operation| requests(&node.agent, operation));
        assert_eq!(after[..4], before[..4], "{kind}: {operations:?}");
        // overlayfs requests its own attributes once for each file and container, if there may be
        // any. EROFS has them.
        let attributes = after[4] - before[4];
        let are_asked = kind == "marked" && !is_erofs();
        assert_eq!(attributes > FILES, are_asked, "{attributes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_visible_although_its_name_was_looked_up_before() {
    let node = Node::start(&[ON_DEMAND]).await;
    let mounts = ["lazy", "lazy-noxattr"].map(|name| node.agent.root.join(name));
    assert!(mounts.iter().all(|mount| !mount.join("1").exists()));
    let layer = Layer::of(vec![("a".to_owned(), b"a".to_vec())]);
    node.mount("target", &layer).await;
    for mount in mounts {
        assert_eq!(fs::read(mount.join("1/a")).unwrap(), b"a");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_copy_attributes_work_on_layers_without_any() {
    let node = Node::start(&[ON_DEMAND]).await;
    let layer = Layer::of(
        ["dir/a", "dir/b"]
            .map(|name| (name.to_owned(), b"x".to_vec()))
            .into(),
    );
    node.mount("target", &layer).await;
    let container = Mounted::container(&node, "container", "target").await;
    let (root, out) = (container.0.display(), node.place.dir("out"));
    let out = out.display();
    let absent = rustix::fs::getxattr(container.0.join("dir/a"), "user.test", &mut [0_u8; 8]);
    let error = if is_erofs() {
        rustix::io::Errno::NODATA
    } else {
        rustix::io::Errno::OPNOTSUPP
    };
    assert_eq!(absent.unwrap_err(), error);
    run(&format!("cp -a --preserve=xattr {root}/dir {out}/copied"));
    run(&format!(
        "tar -C {root} --xattrs --xattrs-include='*' --acls -cf {out}/tar dir"
    ));
    run(&format!("tar -C {out} --xattrs --acls -xf {out}/tar"));
    if Command::new("rsync").arg("--version").output().is_ok() {
        run(&format!("rsync -aXA {root}/dir/ {out}/rsynced"));
    }
    run(&format!("cp -a --preserve=xattr {out}/dir/a {root}/dir/b"));
    run(&format!("setfattr -n user.test -v 1 {root}/dir/a"));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(container.0.join("dir/a"), "user.test", &mut value).unwrap();
    assert_eq!(&value[..length], b"1", "a changed file has attributes");
    assert_eq!(fs::read(container.0.join("dir/a")).unwrap(), b"x");
    drop(container);
}
