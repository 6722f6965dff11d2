//! A containerd for one test, driven by `ctr`: Debian's, or today's with today's `ctr` and `runc`.

mod configuration;

use std::path::{Path, PathBuf};
use std::process::Command;

use self::configuration::Configuration;
pub(crate) use self::configuration::deployed;
use super::agent::Agent;
use super::place::{Daemon, Place};
use super::tree::Tree;

pub(crate) const TOOLS: &[&str] = &["containerd", "ctr", "runc"];
/// The same, built by `.ci/clients`.
pub(crate) const CLIENTS: &[&str] = &["containerd", "containerd-shim-runc-v2", "ctr", "runc"];

/// A release of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 12's.
    V1_6,
    /// Today's.
    V2_4,
}

impl Release {
    /// Creates a workspace with this containerd. `None` as in [`Place::with`] and
    /// [`Place::with_clients`].
    pub(crate) fn place(self, tools: &[&str]) -> Option<Place> {
        match self {
            Self::V1_6 => Place::with(&[TOOLS, tools].concat()),
            Self::V2_4 => Place::with_clients(CLIENTS, tools),
        }
    }

    /// Returns the containerd of a workspace.
    fn of(place: &Place) -> Self {
        if place.has_todays_clients() {
            Self::V2_4
        } else {
            Self::V1_6
        }
    }
}

/// Makes two tests of each function that takes a [`Release`]: `NAME::on_1_6` and `NAME::on_2_4`.
macro_rules! on_each_release {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use crate::support::containerd::Release;

            #[test]
            fn on_1_6() {
                super::$test(Release::V1_6);
            }

            #[test]
            fn on_2_4() {
                super::$test(Release::V2_4);
            }
        }
    )+};
    (async $($test:ident),+ $(,)?) => {$(
        mod $test {
            use crate::support::containerd::Release;

            #[tokio::test(flavor = "multi_thread")]
            async fn on_1_6() {
                super::$test(Release::V1_6).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_2_4() {
                super::$test(Release::V2_4).await;
            }
        }
    )+};
}
pub(crate) use on_each_release;

/// The way in which CRI pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CriPull {
    /// By itself. With the files in `deploy/`, every release does.
    Local,
    /// Through the transfer service, the default from 2.1 on.
    Transfer,
}

#[derive(Debug)]
pub(crate) struct Containerd<'a> {
    place: &'a Place,
    pub(crate) socket: PathBuf,
    pub(crate) daemon: Daemon,
}

impl<'a> Containerd<'a> {
    pub(crate) fn start(place: &'a Place) -> Self {
        Self::start_with(place, "")
    }

    /// Starts containerd with further lines of configuration.
    pub(crate) fn start_with(place: &'a Place, more: &str) -> Self {
        Self::configured(place, &Configuration::new(place).without_cri().with(more))
    }

    /// Starts containerd with the CRI service, without a runtime for pods.
    pub(crate) fn start_with_cri(place: &'a Place) -> Self {
        Self::configured(place, &Configuration::new(place))
    }

    /// Starts containerd with the file in `deploy/` for its release: pods use the agent. Their
    /// sandboxes use the image `sandbox`.
    pub(crate) fn start_with_pods(
        place: &'a Place,
        agent: &Agent,
        sandbox: &str,
        pull: CriPull,
    ) -> Self {
        Self::start_with_more(place, agent, sandbox, pull, "")
    }

    /// The same with further lines of configuration.
    pub(crate) fn start_with_more(
        place: &'a Place,
        agent: &Agent,
        sandbox: &str,
        pull: CriPull,
        more: &str,
    ) -> Self {
        let configuration = Configuration::new(place).with_pods(agent, sandbox, pull);
        Self::configured(place, &configuration.with(more))
    }

    /// Returns the configuration of a node with pods, without any agent. Their sandboxes use the
    /// image `sandbox`.
    pub(crate) fn without_agent(place: &Place, sandbox: &str) -> String {
        Configuration::new(place).with_sandbox(sandbox).text()
    }

    fn configured(place: &'a Place, configuration: &Configuration<'_>) -> Self {
        let file = place.write("containerd.toml", configuration.text());
        Self::start_from(place, &file)
    }

    /// Starts containerd with a configuration file.
    pub(crate) fn start_from(place: &'a Place, file: &Path) -> Self {
        let socket = place.path().join("ctd.sock");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file);
        let mut version = place.command("ctr");
        version.arg("-a").arg(&socket).arg("version");
        let daemon = place.daemon("containerd", &mut command, || {
            socket.exists() && version.output().unwrap().status.success()
        });
        let containerd = Self {
            place,
            socket,
            daemon,
        };
        containerd.assert_release();
        containerd
    }

    /// Asserts that `ctr` and the daemon are of the workspace's release.
    fn assert_release(&self) {
        let said = self.ctr("version");
        let versions = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Version:"));
        let versions: Vec<_> = versions
            .map(|version| version.trim().trim_start_matches('v'))
            .collect();
        let number = match Release::of(self.place) {
            Release::V1_6 => "1.6.",
            Release::V2_4 => "2.4.",
        };
        assert!(
            versions.len() == 2 && versions.iter().all(|version| version.starts_with(number)),
            "{said}"
        );
    }

    /// Runs `ctr` with these arguments, which must succeed.
    pub(crate) fn ctr(&self, arguments: &str) -> String {
        self.place
            .run(&format!("ctr -a {} {arguments}", self.socket.display()))
    }

    /// Pulls an image for the snapshotter `stargz` with the client that names the layers to it:
    /// `ctr-remote`, or the `ctr` of 2.x, which asks the transfer service.
    pub(crate) fn pull_lazily(&self, image: &str) {
        match Release::of(self.place) {
            Release::V1_6 => self.ctr_remote(&format!("images rpull --plain-http {image}")),
            Release::V2_4 => self.ctr(&format!(
                "images pull --plain-http --snapshotter stargz {image}"
            )),
        };
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
    pub(crate) fn run(&self, image: &str, name: &str, script: &Path) -> String {
        let id = self.place.container_id(name);
        let mount = format!(
            "type=bind,src={},dst=/script,options=rbind:ro",
            script.display()
        );
        self.ctr(&format!(
            "run --rm --mount {mount} {image} {id} /bin/sh /script"
        ))
    }

    /// Deletes everything that no image, container, lease or label holds.
    pub(crate) fn collect_garbage(&self) {
        self.ctr("leases create --id collected");
        self.ctr("leases delete --sync collected");
    }

    /// Returns the file system that containers of `image` see; `start` as in [`Tree::read`].
    pub(crate) fn tree(&self, image: &str, name: &str, start: i64) -> Tree {
        self.tree_in("overlayfs", image, name, start)
    }

    /// The same with another snapshotter.
    pub(crate) fn tree_in(&self, snapshotter: &str, image: &str, name: &str, start: i64) -> Tree {
        let target = self.place.dir(name);
        let images = |command: &str, names: &str| {
            self.ctr(&format!(
                "images {command} --snapshotter {snapshotter} {names}"
            ))
        };
        images("mount", &format!("{image} {}", target.display()));
        let tree = Tree::read(&target, start);
        images("unmount", &format!("--rm {}", target.display()));
        // 2.x has another mount of its own, which it leaves to the garbage collection.
        self.collect_garbage();
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
