//! `starlift agent install` and `uninstall` on real containerd, in files of the test's own. No
//! service is started: the tests start containerd and the agent themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use prost::Message as _;
use starlift::containerd::runtime::v1::{ImageSpec, PullImageRequest};
use tonic::Request;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::cri::Kubelet;
use crate::support::eventually::eventually;
use crate::support::fixture::{self, sleeping_app};
use crate::support::lazy::ON_DEMAND;
use crate::support::place::Place;
use crate::support::pods::Pod;
use crate::support::registry::Registry;

/// A node whose containerd reads `etc/config.toml` of the workspace.
struct Node<'a> {
    place: &'a Place,
    file: PathBuf,
}

/// The text of every file below a folder, by its path.
type Files = BTreeMap<PathBuf, String>;

impl<'a> Node<'a> {
    fn new(place: &'a Place, configuration: &str) -> Self {
        let file = place.write("etc/config.toml", configuration);
        Self { place, file }
    }

    fn try_run(&self, arguments: &str) -> Output {
        let place = self.place.path();
        let mut command = self.place.command(env!("CARGO_BIN_EXE_starlift"));
        command.arg("agent").args(arguments.split(' '));
        command.arg("--no-services");
        for (flag, path) in [
            ("--containerd-config", self.file.clone()),
            ("--containerd-address", place.join("ctd.sock")),
            ("--certs-dir", place.join("etc/certs.d")),
            ("--unit-dir", place.join("etc/units")),
            ("--address", place.join("agent.sock")),
            ("--root", place.join("agent")),
        ] {
            command.arg(flag).arg(path);
        }
        command.output().unwrap()
    }

    /// Runs `starlift agent` with these arguments, split at blanks, which must succeed.
    fn run(&self, arguments: &str) -> String {
        let output = self.try_run(arguments);
        assert!(output.status.success(), "{arguments}\n{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `starlift agent` with these arguments, which must fail. Returns the error.
    fn refused(&self, arguments: &str) -> String {
        let output = self.try_run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}\n{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut folders = vec![self.place.path().join("etc")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.clone(), fs::read_to_string(&path).unwrap());
                }
            }
        }
        files
    }

    /// Returns containerd's effective configuration.
    fn dump(&self) -> toml::Table {
        let file = self.file.display();
        let dump = self
            .place
            .run(&format!("containerd --config {file} config dump"));
        dump.parse().unwrap()
    }
}

/// Checks that systemd takes the agent's unit, if systemd is there.
fn assert_is_a_unit(place: &Place) {
    let unit = place.path().join("etc/units/starlift-agent.service");
    let text = fs::read_to_string(&unit).unwrap();
    let command = format!(
        "ExecStart={} agent --address {}",
        env!("CARGO_BIN_EXE_starlift"),
        place.path().join("agent.sock").display()
    );
    assert!(text.contains(&command), "{text}");
    let Some(place) = Place::with(&["systemd-analyze"]) else {
        return;
    };
    let mut verify = place.command("systemd-analyze");
    let verified = verify
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // Debian 12's systemd is older than this setting: it ignores it and prints a warning.
    let of_unit: Vec<&str> = said
        .lines()
        .filter(|line| {
            line.contains("starlift-agent") && !line.contains("FileDescriptorStorePreserve")
        })
        .collect();
    assert!(of_unit.is_empty(), "{said}");
}

fn pull(image: &str) -> Request<bytes::Bytes> {
    let image = Some(ImageSpec {
        image: image.to_owned(),
    });
    let pull = PullImageRequest { image, auth: None };
    Request::new(pull.encode_to_vec().into())
}

/// Returns the value of a configuration at these keys.
fn at<'a>(dump: &'a toml::Table, keys: &[&str]) -> Option<&'a toml::Value> {
    let (first, rest) = keys.split_first()?;
    rest.iter()
        .try_fold(dump.get(*first)?, |value, key| value.get(*key))
}

on_each_release!(async a_pod_starts_lazily_after_the_installation_and_nothing_is_left_after_its_end);

async fn a_pod_starts_lazily_after_the_installation_and_nothing_is_left_after_its_end(
    release: Release,
) {
    let Some(place) = release.place(fixture::TOOLS) else {
        return;
    };
    let registry = Registry::start().await;
    registry.push_layout("library/app", "v1", &sleeping_app(&place));
    // Pulled through hosts.toml, as from a Starlift server.
    let image = "docker.io/library/app:v1";
    let node = Node::new(&place, &Containerd::without_agent(&place, image));
    let before = node.files();
    let install = format!(
        "install --registry docker.io --server http://{}",
        registry.host()
    );

    let shown = node.run(&format!("{install} --dry-run"));
    assert!(
        shown.ends_with("Dry run: nothing was changed.\n"),
        "{shown}"
    );
    assert_eq!(node.files(), before);
    let done = node.run(&install);
    assert!(done.ends_with("Done.\n"), "{done}");
    assert!(
        done.contains("left to you: systemctl restart containerd"),
        "{done}"
    );
    assert_is_a_unit(&place);
    let installed = node.files();
    let again = node.run(&install);
    assert!(again.ends_with("Nothing to change.\n"), "{again}");
    assert_eq!(node.files(), installed);

    let certs_dir = place.path().join("etc/certs.d").display().to_string();
    let agent = Agent::start_with(&place, &[ON_DEMAND, ("PULL_CERTS_DIR", &certs_dir)]);
    let mut containerd = Containerd::start_from(&place, &node.file);
    let kubelet = Kubelet::new(&containerd.socket);
    kubelet.call("PullImage", pull(image)).await.unwrap();
    let held = containerd.ctr("-n k8s.io content ls -q");
    assert!(
        !agent.lazy().is_empty() && held.lines().count() == 2,
        "manifest and configuration, no layer: {held}\n{}",
        agent.status()
    );
    let pod = Pod::start(&kubelet, "installed", image, &["/bin/sleep", "1000"])
        .await
        .unwrap();
    let read = pod.exec(&["/bin/cat", "/usr/share/old/d"]).await.unwrap();
    assert_eq!(read, "new\n");
    let running = node.run(&install);
    assert!(running.ends_with("Nothing to change.\n"), "{running}");
    assert!(!running.contains("restart"), "{running}");

    let refused = node.refused("uninstall");
    assert!(
        refused.contains("snapshots of images and containers are left"),
        "{refused}"
    );
    assert_eq!(node.files(), installed);
    pod.remove().await.unwrap();
    for name in containerd.ctr("-n k8s.io images ls -q").lines() {
        containerd.ctr(&format!("-n k8s.io images rm --sync {name}"));
    }
    eventually("the layers are unmounted", || {
        agent.lazy().is_empty() && agent.directories().is_empty()
    });
    let shown = node.run("uninstall --dry-run");
    assert_eq!(node.files(), installed, "{shown}");
    node.run("uninstall");
    assert_eq!(node.files(), before);
    containerd.daemon.stop();
    drop(containerd);
    let containerd = Containerd::start_from(&place, &node.file);
    assert!(!containerd.ctr("plugins ls").contains("stargz"));
    let again = node.run("uninstall");
    assert!(again.ends_with("Nothing to change.\n"), "{again}");
}

/// Files as people and distributions write them for containerd 2.x. `ETC` is their folder.
const FILES_OF_2: [(&str, &str, &str); 7] = [
    ("no file's content", "", "config.toml"),
    (
        "a file of version 3",
        "version = 3 # ours\n\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs' # fast\n  max_concurrent_downloads = 5\n",
        "config.toml",
    ),
    (
        "a file that imports drop-ins",
        "version = 3\nimports = ['ETC/conf.d/*.toml']\n",
        "conf.d/50-starlift.toml",
    ),
    (
        "a file of version 2, whose snapshotter containerd 2 drops",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = 'pause:1'\n",
        "conf.d/50-starlift.toml",
    ),
    (
        "the file of a node of kind, of version 2 although its containerd is 2.x",
        "version = 2\n[proxy_plugins.fuse-overlayfs]\n  type = 'snapshot'\n  address = '/run/fuse.sock'\n[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = 'pause:1'\n  tolerate_missing_hugepages_controller = true\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n  discard_unpacked_layers = true\n  snapshotter = 'overlayfs'\n  default_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n",
        "conf.d/50-starlift.toml",
    ),
    (
        "a file that k3s generates",
        "# File generated by k3s. DO NOT EDIT. Use config-v3.toml.tmpl instead.\nversion = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n  disable_snapshot_annotations = true\n",
        "config-v3.toml.tmpl",
    ),
    (
        "unpacking for another snapshotter",
        "version = 3\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = 'linux/arm64'\n  snapshotter = 'native'\n",
        "config.toml",
    ),
];

#[test]
fn files_of_each_kind_get_the_settings_and_lose_them_on_2_4() {
    let Some(place) = Release::V2_4.place(&[]) else {
        return;
    };
    for (kind, text, changed) in FILES_OF_2 {
        let etc = place.path().join("etc");
        let node = Node::new(&place, &text.replace("ETC", etc.to_str().unwrap()));
        let before = node.files();
        let dumped = node.dump();
        node.run("install");
        assert!(node.files().contains_key(&etc.join(changed)), "{kind}");
        let is_template = changed.ends_with(".tmpl");
        if is_template {
            // k3s would generate its file from the template.
            fs::rename(&node.file, place.path().join("generated")).unwrap();
            fs::copy(etc.join(changed), &node.file).unwrap();
        }
        let dump = node.dump();
        let images = ["plugins", "io.containerd.cri.v1.images"];
        let snapshotter = at(&dump, &[&images[..], &["snapshotter"]].concat());
        assert_eq!(
            snapshotter.and_then(toml::Value::as_str),
            Some("stargz"),
            "{kind}"
        );
        let unpacks = at(
            &dump,
            &[
                "plugins",
                "io.containerd.transfer.v1.local",
                "unpack_config",
            ],
        );
        let unpacks = unpacks.unwrap().as_array().unwrap();
        let other = if text.contains("native") {
            "native"
        } else {
            "overlayfs"
        };
        let names: Vec<_> = unpacks
            .iter()
            .filter_map(|one| one["snapshotter"].as_str())
            .collect();
        assert_eq!(names, ["stargz", other], "{kind}");
        assert!(
            node.run("install").ends_with("Nothing to change.\n"),
            "{kind}"
        );
        if is_template {
            fs::rename(place.path().join("generated"), &node.file).unwrap();
        }
        node.run("uninstall");
        assert_eq!(node.files(), before, "{kind}");
        assert_eq!(node.dump(), dumped, "{kind}");
        fs::remove_dir_all(&etc).unwrap();
    }
}

#[test]
fn a_file_of_1_6_gets_the_settings_and_is_restored() {
    let Some(place) = Release::V1_6.place(&[]) else {
        return;
    };
    let text = "version = 2\n\n# Debian's\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n      conf_dir = \"/etc/cni/net.d\"\n";
    let node = Node::new(&place, text);
    let before = node.files();
    node.run("install");
    let dump = node.dump();
    let cri = ["plugins", "io.containerd.grpc.v1.cri"];
    let snapshotter = at(&dump, &[&cri[..], &["containerd", "snapshotter"]].concat());
    assert_eq!(snapshotter.and_then(toml::Value::as_str), Some("stargz"));
    let kept = at(&dump, &[&cri[..], &["cni", "bin_dir"]].concat());
    assert_eq!(kept.and_then(toml::Value::as_str), Some("/usr/lib/cni"));
    // Somebody changes the file after the installation.
    let changed = fs::read_to_string(&node.file).unwrap() + "[debug]\nlevel = \"info\"\n";
    fs::write(&node.file, &changed).unwrap();
    node.run("uninstall");
    let left = fs::read_to_string(&node.file).unwrap();
    assert_eq!(left, format!("{text}[debug]\nlevel = \"info\"\n"));
    let copy = node.file.with_file_name("config.toml.before-starlift");
    assert_eq!(fs::read_to_string(copy).unwrap(), before[&node.file]);
}

on_each_release!(a_containerd_without_a_file_gets_one_and_loses_it);

/// containerd starts with its defaults if nobody has written its file.
fn a_containerd_without_a_file_gets_one_and_loses_it(release: Release) {
    let Some(place) = release.place(&[]) else {
        return;
    };
    let node = Node::new(&place, "");
    fs::remove_file(&node.file).unwrap();
    let before = node.files();
    assert!(node.run("install --dry-run").contains("config.toml"));
    assert_eq!(node.files(), before);
    node.run("install");
    let dump = node.dump();
    let address = at(&dump, &["proxy_plugins", "stargz", "address"]);
    let socket = place.path().join("agent.sock");
    assert_eq!(address.and_then(toml::Value::as_str), socket.to_str());
    let again = node.run("install");
    assert!(again.ends_with("Nothing to change.\n"), "{again}");
    node.run("uninstall");
    assert_eq!(node.files(), before);
}

#[test]
fn settings_that_are_not_in_force_are_taken_back() {
    let Some(place) = Release::V2_4.place(&[]) else {
        return;
    };
    let etc = place.path().join("etc");
    let node = Node::new(
        &place,
        &format!(
            "version = 3\nimports = [\"{}/conf.d/*.toml\"]\n",
            etc.display()
        ),
    );
    // Read after the drop-in of the installation.
    let later = "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n";
    place.write("etc/conf.d/99-site.toml", later);
    let before = node.files();
    let refused = node.refused("install");
    assert!(refused.contains("not in force"), "{refused}");
    assert!(refused.contains("overlayfs"), "{refused}");
    assert_eq!(node.files(), before);
}

#[test]
fn another_program_of_the_same_name_is_not_replaced() {
    let Some(place) = Release::V2_4.place(&[]) else {
        return;
    };
    let text = "version = 3\n[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/containerd-stargz-grpc/containerd-stargz-grpc.sock'\n";
    let node = Node::new(&place, text);
    let before = node.files();
    let refused = node.refused("install");
    assert!(refused.contains("containerd-stargz-grpc.sock"), "{refused}");
    assert_eq!(node.files(), before);
    assert!(node.run("uninstall").ends_with("Nothing to change.\n"));
    assert_eq!(node.files(), before);
}

#[test]
fn an_agent_that_does_not_answer_is_not_removed_by_accident() {
    let Some(place) = Release::V1_6.place(&[]) else {
        return;
    };
    let node = Node::new(&place, "version = 2\n");
    let before = node.files();
    node.run("install");
    place.dir("agent");
    let refused = node.refused("uninstall");
    assert!(refused.contains("the agent does not answer"), "{refused}");
    node.run("uninstall --force");
    let left: Vec<&Path> = before.keys().map(PathBuf::as_path).collect();
    assert_eq!(node.files().keys().collect::<Vec<_>>(), left);
}
