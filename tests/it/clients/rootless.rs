//! Rootless containerd with the agent in its namespaces: installed, used and uninstalled by a plain
//! user.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::containerd::Release;
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Daemon, Place};
use crate::support::starlift::Starlift;

const TOOLS: &[&str] = &[
    "rootlesskit",
    "newuidmap",
    "nsenter",
    "setpriv",
    "unshare",
    "systemd-analyze",
];
/// The user, who exists only in the test's mount namespace.
const USER: u32 = 7001;
const NODE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/fixtures/rootless-node"
);

/// The node of a plain user.
struct Node<'a> {
    place: &'a Place,
    executable: PathBuf,
}

impl<'a> Node<'a> {
    fn new(place: &'a Place) -> Self {
        // The user may pass through the workspace, which belongs to root.
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["home", "run"] {
            chown(place.dir(name), Some(USER), Some(USER)).unwrap();
        }
        // The sources may be in a directory that the user cannot enter.
        let executable = place.path().join("starlift");
        let built = env!("CARGO_BIN_EXE_starlift");
        fs::hard_link(built, &executable)
            .or_else(|_| fs::copy(built, &executable).map(drop))
            .unwrap();
        let script = place.path().join("rootless-node");
        fs::copy(NODE, script).unwrap();
        let node = Self { place, executable };
        let disabled = "[\"io.containerd.internal.v1.opt\", \"io.containerd.grpc.v1.cri\"]";
        let text = format!("version = 2\ndisabled_plugins = {disabled}\n");
        let output = node
            .as_user("sh")
            .args(["-c", "mkdir -p $HOME/.config/containerd && printf %s \"$0\" >$HOME/.config/containerd/config.toml"])
            .arg(text)
            .output();
        assert!(output.unwrap().status.success());
        node
    }

    fn home(&self, path: &str) -> PathBuf {
        self.place.path().join("home").join(path)
    }

    fn run(&self) -> PathBuf {
        self.place.path().join("run")
    }

    /// Returns a command of the user, outside of the namespaces.
    fn as_user(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.place.command("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.arg(program.as_ref());
        command.env("XDG_RUNTIME_DIR", self.run());
        for variable in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs `starlift agent` with these arguments, split at blanks, as the user.
    fn agent(&self, arguments: &str) -> Output {
        let mut command = self.as_user(&self.executable);
        command.arg("agent").args(arguments.split(' '));
        command.output().unwrap()
    }

    fn installer(&self, arguments: &str) -> Output {
        let units = self.home(".config/systemd/user");
        self.agent(&format!(
            "{arguments} --no-services --unit-dir {}",
            units.display()
        ))
    }

    /// Returns the command of the installed unit, as systemd expands it.
    fn command_of_unit(&self) -> String {
        let unit = self.home(".config/systemd/user/starlift-agent.service");
        let text = fs::read_to_string(&unit).unwrap();
        let mut verify = self.place.command("systemd-analyze");
        let verified = verify
            .args(["--user", "verify", "--man=no"])
            .arg(&unit)
            .env("XDG_RUNTIME_DIR", self.run())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(!said.contains("starlift-agent"), "{said}");
        let command = text
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .unwrap();
        let run = self.run().display().to_string();
        command.replace("%t", &run).replace("$$", "$")
    }

    /// Starts containerd in its namespaces, and the agent as its unit does, but without systemd.
    fn start(&self) -> Daemon {
        let settings = "export STARLIFT_AGENT_KEEPER=none STARLIFT_AGENT_BACKGROUND=off STARLIFT_PULL_SERVERS=127.0.0.1\n";
        let command = format!("{settings}exec {}\n", self.command_of_unit());
        self.place.write("agent-command", command);
        let mut node = Command::new("unshare");
        node.args(["--mount", "sh"])
            .arg(self.place.path().join("rootless-node"))
            .arg(self.place.path())
            .arg(USER.to_string());
        // containerd dials the agent again a moment after the socket of an earlier session refused.
        let listed = ["ctr", "snapshots", "--snapshotter", "stargz", "ls"];
        self.place.daemon("node", &mut node, || {
            self.status().is_some() && self.try_inside(&listed).is_some()
        })
    }

    /// Ends the processes of the node, and with them its namespaces.
    fn stop(&self, mut node: Daemon) {
        node.stop();
        eventually("the processes of the node are gone", || {
            let path = self.place.path().join("home").display().to_string();
            let mine = |(_, line): &(u32, String)| line.contains(&path);
            !self.place.processes().iter().any(mine)
        });
        drop(node);
    }

    /// Runs a command in the namespaces of containerd, with the rights that root has there.
    fn try_inside(&self, words: &[&str]) -> Option<String> {
        let pid = fs::read_to_string(self.run().join("containerd-rootless/child_pid")).ok()?;
        let mut command = self.place.command("nsenter");
        command.args(["--mount", "--user", "-S", "0", "-G", "0", "-t", pid.trim()]);
        // The workspace's belongs to root of the machine.
        command.env_remove("TMPDIR");
        let output = command.arg("--").args(words).output().unwrap();
        let is_fine = output.status.success();
        if !is_fine {
            eprintln!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        is_fine.then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn inside(&self, words: &[&str]) -> String {
        self.try_inside(words).unwrap()
    }

    /// Runs a command in a container. A plain user has no cgroup here.
    fn container(&self, image: &str, name: &str, command: &[&str]) -> String {
        let id = self.place.container_id(name);
        let run = [
            "ctr",
            "run",
            "--rm",
            "--cgroup",
            "",
            "--cpu-shares",
            "0",
            "--snapshotter",
            "stargz",
            image,
            &id,
        ];
        self.inside(&[&run[..], command].concat())
    }

    fn status(&self) -> Option<Value> {
        let root = self.home(".local/share/starlift-agent");
        let output = self.agent(&format!("status --json --root {}", root.display()));
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }
}

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn a_plain_user_installs_runs_a_lazy_container_and_uninstalls() {
    let Some(place) = Release::V1_6.place(&[fixture::TOOLS, TOOLS].concat()) else {
        return;
    };
    let upstream = format!("local=oci:{}", Fixture::get("app").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("local/image", "1");
    let image = format!("{}/local/image:1", server.address);
    let node = Node::new(&place);
    let file = node.home(".config/containerd/config.toml");
    let before = fs::read_to_string(&file).unwrap();

    let installed = node.installer(&format!("install --server http://{}", server.address));
    assert!(installed.status.success(), "{}", text(&installed));
    let said = text(&installed);
    assert!(
        said.contains("left to you: systemctl --user restart containerd"),
        "{said}"
    );
    let hosts = node.home(".config/containerd/certs.d/_default/hosts.toml");
    assert!(fs::read_to_string(hosts).unwrap().contains("[host."));
    let again = node.installer(&format!("install --server http://{}", server.address));
    assert!(
        text(&again).ends_with("Nothing to change.\n"),
        "{}",
        text(&again)
    );

    let daemon = node.start();
    let starlift = node.executable.to_str().unwrap();
    node.inside(&[starlift, "rpull", &image]);
    let status = node.status().unwrap();
    assert!(
        !status["layers"].as_array().unwrap().is_empty()
            && status["refusals"] == Value::Array(vec![]),
        "{status}"
    );
    // The kernel lets no user mount EROFS.
    assert_eq!(status["driver"]["driver"], "fuse", "{status}");
    let read = ["/bin/cat", "/usr/share/old/d"];
    assert_eq!(node.container(&image, "reads", &read), "new\n");
    let write = "echo mine >/usr/share/old/d && cat /usr/share/old/d && cat /proc/self/uid_map";
    let wrote = node.container(&image, "writes", &["/bin/sh", "-c", write]);
    assert!(wrote.starts_with("mine\n"), "{wrote}");
    assert!(
        wrote.contains(&USER.to_string()),
        "root is the user: {wrote}"
    );

    let root = node
        .home(".local/share/starlift-agent")
        .display()
        .to_string();
    let socket = node.run().join("starlift-agent/agent.sock");
    let doctor = [
        starlift,
        "agent",
        "doctor",
        "--json",
        "--root",
        &root,
        "--address",
    ];
    let doctor = [&doctor[..], &[socket.to_str().unwrap()]].concat();
    let checks: Value = serde_json::from_str(&node.inside(&doctor)).unwrap();
    for what in ["file system", "labels", "agent", "FUSE"] {
        let mut all = checks.as_array().unwrap().iter();
        let check = all.find(|check| check["what"] == what).unwrap();
        assert_eq!(check["state"], "good", "{check}");
    }

    // Another session: other namespaces, the same files.
    node.stop(daemon);
    let daemon = node.start();
    assert_eq!(node.container(&image, "later", &read), "new\n");

    let refused = node.installer("uninstall");
    assert!(
        text(&refused).contains("snapshots of images and containers are left"),
        "{}",
        text(&refused)
    );
    node.inside(&["ctr", "images", "rm", "--sync", &image]);
    let undone = node.installer("uninstall");
    assert!(undone.status.success(), "{}", text(&undone));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    node.stop(daemon);
}
