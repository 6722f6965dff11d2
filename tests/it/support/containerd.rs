//! A containerd for one test, driven by `ctr`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::{Daemon, Place};
use super::tree::Tree;

pub(crate) const TOOLS: &[&str] = &["containerd", "ctr", "runc"];

/// The CRI plugin's table in the configuration.
const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";

#[derive(Debug)]
pub(crate) struct Containerd<'a> {
    place: &'a Place,
    pub(crate) socket: PathBuf,
    _daemon: Daemon,
}

impl<'a> Containerd<'a> {
    pub(crate) fn start(place: &'a Place) -> Self {
        Self::start_with(place, "")
    }

    /// Starts containerd with further lines of configuration.
    pub(crate) fn start_with(place: &'a Place, more: &str) -> Self {
        Self::start_without(place, &["io.containerd.grpc.v1.cri"], more)
    }

    /// Starts containerd with the CRI service, without a runtime for pods.
    pub(crate) fn start_with_cri(place: &'a Place) -> Self {
        Self::start_without(place, &[], &cri(place, ""))
    }

    /// Starts containerd with a CRI service whose pods use the snapshotter `stargz`, which `plugin`
    /// configures. Their sandboxes use the image `sandbox`.
    pub(crate) fn start_with_pods(place: &'a Place, plugin: &str, sandbox: &str) -> Self {
        let pods = format!(
            "[{CRI}.containerd]\nsnapshotter = \"stargz\"\ndisable_snapshot_annotations = false\n"
        );
        let settings = format!("sandbox_image = \"{sandbox}\"\nrestrict_oom_score_adj = true\n");
        Self::start_without(
            place,
            &[],
            &format!("{}{pods}{plugin}", cri(place, &settings)),
        )
    }

    fn start_without(place: &'a Place, plugins: &[&str], more: &str) -> Self {
        let socket = place.path().join("ctd.sock");
        let config = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = {disabled:?}\n\
             [grpc]\naddress = \"{socket}\"\n{more}",
            disabled = [plugins, &["io.containerd.internal.v1.opt"]].concat(),
            root = place.dir("ctd").display(),
            state = place.dir("ctd-state").display(),
            socket = socket.display(),
        );
        let config = place.write("containerd.toml", config);
        let mut command = Command::new("containerd");
        command.arg("--config").arg(config);
        let daemon = place.daemon("containerd", &mut command, || {
            let address = socket.to_str().unwrap();
            socket.exists()
                && Command::new("ctr")
                    .args(["-a", address, "version"])
                    .output()
                    .unwrap()
                    .status
                    .success()
        });
        Self {
            place,
            socket,
            _daemon: daemon,
        }
    }

    /// Runs `ctr` with these arguments, which must succeed.
    pub(crate) fn ctr(&self, arguments: &str) -> String {
        self.place
            .run(&format!("ctr -a {} {arguments}", self.socket.display()))
    }

    /// Runs `ctr-remote` with these arguments, which must succeed.
    pub(crate) fn ctr_remote(&self, arguments: &str) -> String {
        self.place.run(&format!(
            "ctr-remote -a {} {arguments}",
            self.socket.display()
        ))
    }

    /// The same on one thread, if the outcome depends on the number of threads.
    pub(crate) fn ctr_remote_on_one_thread(&self, arguments: &str) -> String {
        self.place.run(&format!(
            "env GOMAXPROCS=1 ctr-remote -a {} {arguments}",
            self.socket.display()
        ))
    }

    /// Returns the manifest of a stored image.
    pub(crate) fn manifest(&self, image: &str) -> serde_json::Value {
        let listed = self.ctr("images ls");
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(image));
        let digest = line
            .unwrap_or_else(|| panic!("{image} in {listed}"))
            .split_whitespace()
            .nth(2)
            .unwrap();
        serde_json::from_str(&self.ctr(&format!("content get {digest}"))).unwrap()
    }

    /// Runs a script in a container of `image` and returns its output.
    pub(crate) fn run(&self, image: &str, id: &str, script: &Path) -> String {
        let mount = format!(
            "type=bind,src={},dst=/script,options=rbind:ro",
            script.display()
        );
        self.ctr(&format!(
            "run --rm --mount {mount} {image} {id} /bin/sh /script"
        ))
    }

    /// Returns the file system that containers of `image` see; `start` as in [`Tree::read`].
    pub(crate) fn tree(&self, image: &str, name: &str, start: i64) -> Tree {
        let target = self.place.dir(name);
        self.ctr(&format!("images mount {image} {}", target.display()));
        let tree = Tree::read(&target, start);
        self.ctr(&format!("images unmount --rm {}", target.display()));
        tree
    }

    /// Returns the file system of the only image that `snapshotter` holds. `ctr images mount` would
    /// unpack the image first.
    pub(crate) fn tree_of_snapshots(&self, snapshotter: &str, name: &str, start: i64) -> Tree {
        let snapshots = format!("snapshots --snapshotter {snapshotter}");
        let listed = self.ctr(&format!("{snapshots} ls"));
        let rows: Vec<Vec<&str>> = listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        let is_parent = |key: &str| rows.iter().any(|row| row.len() == 3 && row[1] == key);
        let top = rows
            .iter()
            .map(|row| row[0])
            .find(|key| !is_parent(key))
            .unwrap();
        let target = self.place.dir(name);
        // Unlike `view`, `prepare` makes its snapshot a root for the garbage collection at the end
        // of a pull.
        self.ctr(&format!("{snapshots} prepare {name} {top}"));
        let mount = self.ctr(&format!("{snapshots} mounts {} {name}", target.display()));
        self.place.run(mount.trim());
        let tree = Tree::read(&target, start);
        self.place.run(&format!("umount {}", target.display()));
        tree
    }
}

/// Returns the CRI plugin's table: no network plugins, and no port that another test uses.
fn cri(place: &Place, settings: &str) -> String {
    let cni = format!(
        "bin_dir = \"{0}\"\nconf_dir = \"{0}\"\n",
        place.dir("cni").display()
    );
    format!("[{CRI}]\nstream_server_port = \"0\"\n{settings}[{CRI}.cni]\n{cni}")
}
